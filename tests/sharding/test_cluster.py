"""Tests of who belongs to a run: one rule of the environment at a time."""

import pytest

from genie_jax.core import errors
from genie_jax.sharding import cluster, tpu_vm

SLURM = {
  "SLURM_JOB_ID": "4097",
  "SLURM_STEP_NODELIST": "gpu[007,9-12],login",
  "SLURM_STEP_NUM_TASKS": "4",
  "SLURM_STEP_NUM_NODES": "4",
  "SLURM_NTASKS": "4",
  "SLURM_PROCID": "2",
  "SLURM_LOCALID": "0",
}
POD = {"TPU_WORKER_HOSTNAMES": "t-0.svc,t-1.svc", "TPU_WORKER_ID": "1"}
OPEN_MPI = {
  "OMPI_COMM_WORLD_SIZE": "4",
  "OMPI_COMM_WORLD_RANK": "3",
  "OMPI_COMM_WORLD_LOCAL_RANK": "1",
  "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
}
# What JAX sets on every machine without TPU chips.
NO_CHIPS = {"TPU_SKIP_MDS_QUERY": "1"}
TPU_MACHINE = {"TPU_LIBRARY_PATH": "/usr/lib/libtpu.so"}


def never():
  raise AssertionError("The network was touched.")


def detect(environ, *flags, ask=never):
  return cluster.detect(
    *flags, environ={**NO_CHIPS, **environ}, ask_machine=ask
  )


def on_tpu_vm(answer, **environ):
  return cluster.detect(
    environ=TPU_MACHINE | environ, ask_machine=lambda: answer
  )


def place(found):
  return found.coordinator, found.num_processes, found.process_id


@pytest.mark.parametrize(
  "environ",
  [
    {},  # a laptop
    {"CUDA_VISIBLE_DEVICES": "0,1"},  # a box with GPUs
    {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "0"},
    {"TPU_WORKER_HOSTNAMES": "localhost", "TPU_WORKER_ID": "0"},
    SLURM | {"SLURM_STEP_NUM_TASKS": "1", "SLURM_NTASKS": "4"},
    # A batch script outside srun, in a job of four tasks.
    {name: value for name, value in SLURM.items() if "STEP" not in name},
    OPEN_MPI | {"OMPI_COMM_WORLD_SIZE": "1"},
  ],
)
def test_one_process_stays_alone_and_asks_no_network(environ):
  assert detect(environ) is None


def test_a_machine_without_libtpu_is_never_asked(monkeypatch):
  monkeypatch.setattr(tpu_vm, "has_libtpu", lambda environ: False)
  assert cluster.detect(environ={}, ask_machine=never) is None


def test_a_tpu_machine_that_computes_on_its_cpu_is_never_asked():
  assert (
    cluster.detect(
      environ=TPU_MACHINE | {"JAX_PLATFORMS": "cpu"}, ask_machine=never
    )
    is None
  )


def test_flags_win_over_every_launcher():
  found = detect(SLURM | POD, "10.0.0.1:8476", 3, 2)
  assert place(found) == ("10.0.0.1:8476", 3, 2)
  assert found.local_device_ids is None


def test_variables_stand_for_flags():
  environ = {
    "JAX_COORDINATOR_ADDRESS": "a:1",
    "JAX_NUM_PROCESSES": "2",
    "JAX_PROCESS_ID": "0",
  }
  assert place(detect(environ)) == ("a:1", 2, 0)
  assert place(detect(environ, None, None, 1)) == ("a:1", 2, 1)


def test_flags_for_one_process_mean_one_process():
  assert detect({}, "127.0.0.1:8476", 1, 0) is None


@pytest.mark.parametrize(
  "flags", [(None, 2, 0), ("a:1", 2, None), ("a:1", None, 0), (None, None, 1)]
)
def test_flags_that_lack_one_are_one_clear_line(flags):
  with pytest.raises(errors.UserError, match="give all three"):
    detect({}, *flags)


def test_an_address_alone_needs_a_launcher():
  with pytest.raises(errors.UserError, match="add --num-processes"):
    detect({}, "a:1")
  assert place(detect(SLURM, "a:1")) == ("a:1", 4, 2)


@pytest.mark.parametrize("address", ["a", "a:", ":1", "a:x", "a:70000"])
def test_an_address_that_is_none_is_one_clear_line(address):
  with pytest.raises(errors.UserError, match="no HOST:PORT"):
    detect({}, address, 2, 0)


def test_addresses_may_be_of_ipv6():
  assert cluster.split_address("[fe80::1]:80") == ("fe80::1", 80)


def test_a_process_id_out_of_range_is_one_clear_line():
  with pytest.raises(errors.UserError, match="process 2 of 2"):
    detect({}, "a:1", 2, 2)


def test_a_variable_that_is_no_number_is_named():
  with pytest.raises(errors.UserError, match="JAX_PROCESS_ID='x'"):
    detect({"JAX_PROCESS_ID": "x"})


def test_slurm_gives_the_first_node_and_a_port_of_the_job():
  found = detect(SLURM)
  assert place(found) == ("gpu007:61441", 4, 2)
  assert found.local_device_ids is None  # one process a node has all GPUs
  assert place(detect(SLURM | {"JAX_COORDINATOR_PORT": "99"}))[0] == (
    "gpu007:99"
  )


@pytest.mark.parametrize(
  "nodes, first",
  [
    ("node1", "node1"),
    ("node1,node2", "node1"),
    ("n[01-10]", "n01"),
    ("rack[3-4]n[5,7]", "rack3n5"),
    ("a[2,4],b", "a2"),
  ],
)
def test_slurms_lists_of_nodes_are_read(nodes, first):
  found = detect(SLURM | {"SLURM_STEP_NODELIST": nodes})
  assert found.coordinator == f"{first}:61441"


def test_slurm_tasks_that_share_a_node_have_a_gpu_each():
  shared = SLURM | {"SLURM_STEP_NUM_NODES": "2", "SLURM_LOCALID": "1"}
  assert detect(shared).local_device_ids == (1,)
  bound = shared | {"CUDA_VISIBLE_DEVICES": "1"}  # --gpus-per-task
  assert detect(bound).local_device_ids is None
  seen = shared | {"CUDA_VISIBLE_DEVICES": "0,1"}
  assert detect(seen).local_device_ids == (1,)


def test_slurm_without_a_rank_names_what_is_missing():
  environ = dict(SLURM)
  del environ["SLURM_PROCID"]
  with pytest.raises(errors.UserError, match="SLURM_PROCID is not set"):
    detect(environ)


def test_open_mpi_gives_the_numbers_and_needs_an_address():
  found = detect(OPEN_MPI, "a:1")
  assert place(found) == ("a:1", 4, 3)
  assert found.local_device_ids == (1,)
  with pytest.raises(errors.UserError, match=r"4 processes.*--coordinator="):
    detect(OPEN_MPI)


def test_a_tpu_pod_on_gke_is_found():
  assert place(detect(POD)) == ("t-0.svc:8482", 2, 1)
  addresses = POD | {"TPU_PROCESS_ADDRESSES": "u-0:8476,u-1:8476,u-2:8476"}
  assert place(detect(addresses)) == ("u-0:8482", 3, 1)


def test_slices_are_numbered_one_after_the_other():
  environ = POD | {
    "MEGASCALE_NUM_SLICES": "2",
    "MEGASCALE_SLICE_ID": "1",
    "MEGASCALE_COORDINATOR_ADDRESS": "job-0-0.job:8080",
  }
  assert place(detect(environ)) == ("job-0-0.job:8482", 4, 3)
  # Slices of one host each are many processes too.
  single = environ | {"TPU_WORKER_HOSTNAMES": "a", "TPU_WORKER_ID": "0"}
  assert place(detect(single)) == ("job-0-0.job:8482", 2, 1)
  del environ["MEGASCALE_COORDINATOR_ADDRESS"]
  with pytest.raises(errors.UserError, match="MEGASCALE_COORDINATOR_ADDRESS"):
    detect(environ)


def test_a_pod_without_a_worker_id_names_what_is_missing():
  with pytest.raises(errors.UserError, match="TPU_WORKER_ID is not set"):
    detect({"TPU_WORKER_HOSTNAMES": "a,b"})


def test_a_tpu_machine_is_asked_for_its_pod():
  pod = tpu_vm.Answer(["10.0.0.2", "10.0.0.3"], 1, {})
  assert place(on_tpu_vm(pod)) == ("10.0.0.2:8482", 2, 1)
  assert on_tpu_vm(tpu_vm.Answer(["10.0.0.2"], 0, {})) is None
  with pytest.raises(errors.UserError, match="metadata server"):
    on_tpu_vm(None)


@pytest.mark.parametrize(
  "endpoints", ["10.0.0.2,10.0.0.3", "w-0:0:10.0.0.2,w-1:1:10.0.0.3"]
)
def test_metadata_is_read_in_both_of_its_forms(endpoints):
  texts = {
    "agent-worker-number": "1",
    "worker-network-endpoints": endpoints,
    "tpu-env": "ZONE: 'us-east5-a'\nMEGASCALE_NUM_SLICES: '2'\n",
  }
  assert tpu_vm.ask(texts.get) == tpu_vm.Answer(
    ["10.0.0.2", "10.0.0.3"],
    1,
    {"ZONE": "us-east5-a", "MEGASCALE_NUM_SLICES": "2"},
  )
  assert tpu_vm.ask({}.get) is None
