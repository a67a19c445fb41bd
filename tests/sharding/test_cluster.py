"""Tests of detecting the processes of a run from the environment."""

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
# Set by JAX on every machine without TPU chips.
NO_CHIPS = {"TPU_SKIP_MDS_QUERY": "1"}
TPU_MACHINE = {"TPU_LIBRARY_PATH": "/usr/lib/libtpu.so"}


def must_not_query():
  raise AssertionError("The metadata server was queried.")


def detect(environ, *flags):
  return cluster.detect(
    *flags, environ={**NO_CHIPS, **environ}, read_metadata=must_not_query
  )


def detect_on_tpu_vm(metadata, **environ):
  return cluster.detect(
    environ=TPU_MACHINE | environ, read_metadata=lambda: metadata
  )


def values(found):
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
def test_one_process_is_no_cluster_and_queries_no_metadata(environ):
  assert detect(environ) is None


def test_without_libtpu_the_metadata_server_is_not_queried(monkeypatch):
  monkeypatch.setattr(tpu_vm, "has_libtpu", lambda environ: False)
  assert cluster.detect(environ={}, read_metadata=must_not_query) is None


def test_a_tpu_machine_that_uses_its_cpu_does_not_query_metadata():
  assert (
    cluster.detect(
      environ=TPU_MACHINE | {"JAX_PLATFORMS": "cpu"},
      read_metadata=must_not_query,
    )
    is None
  )


def test_flags_take_precedence_over_launchers():
  found = detect(SLURM | POD, "10.0.0.1:8476", 3, 2)
  assert values(found) == ("10.0.0.1:8476", 3, 2)
  assert found.local_device_ids is None


def test_jax_variables_replace_missing_flags():
  environ = {
    "JAX_COORDINATOR_ADDRESS": "a:1",
    "JAX_NUM_PROCESSES": "2",
    "JAX_PROCESS_ID": "0",
  }
  assert values(detect(environ)) == ("a:1", 2, 0)
  assert values(detect(environ, None, None, 1)) == ("a:1", 2, 1)


def test_flags_for_one_process_mean_one_process():
  assert detect({}, "127.0.0.1:8476", 1, 0) is None


@pytest.mark.parametrize(
  "flags", [(None, 2, 0), ("a:1", 2, None), ("a:1", None, 0), (None, None, 1)]
)
def test_an_incomplete_set_of_flags_is_rejected(flags):
  with pytest.raises(errors.UserError, match="give all three"):
    detect({}, *flags)


def test_an_address_alone_needs_a_launcher():
  with pytest.raises(errors.UserError, match="add --num-processes"):
    detect({}, "a:1")
  assert values(detect(SLURM, "a:1")) == ("a:1", 4, 2)


@pytest.mark.parametrize("address", ["a", "a:", ":1", "a:x", "a:70000"])
def test_an_invalid_address_is_rejected(address):
  with pytest.raises(errors.UserError, match="not of the form HOST:PORT"):
    detect({}, address, 2, 0)


def test_addresses_may_be_ipv6():
  assert cluster.split_address("[fe80::1]:80") == ("fe80::1", 80)


def test_a_process_id_out_of_range_is_rejected():
  with pytest.raises(errors.UserError, match="process 2 of 2"):
    detect({}, "a:1", 2, 2)


def test_the_error_for_a_variable_that_is_not_a_number_names_it():
  with pytest.raises(errors.UserError, match="JAX_PROCESS_ID='x'"):
    detect({"JAX_PROCESS_ID": "x"})


def test_slurms_coordinator_is_the_first_node_and_a_port_from_the_job_id():
  found = detect(SLURM)
  assert values(found) == ("gpu007:61441", 4, 2)
  assert found.local_device_ids is None  # one process per node uses all GPUs
  assert values(detect(SLURM | {"JAX_COORDINATOR_PORT": "99"}))[0] == (
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
def test_the_first_node_of_a_slurm_node_list_is_found(nodes, first):
  found = detect(SLURM | {"SLURM_STEP_NODELIST": nodes})
  assert found.coordinator == f"{first}:61441"


def test_slurm_tasks_that_share_a_node_use_one_gpu_each():
  shared = SLURM | {"SLURM_STEP_NUM_NODES": "2", "SLURM_LOCALID": "1"}
  assert detect(shared).local_device_ids == (1,)
  bound = shared | {"CUDA_VISIBLE_DEVICES": "1"}  # --gpus-per-task
  assert detect(bound).local_device_ids is None
  visible = shared | {"CUDA_VISIBLE_DEVICES": "0,1"}
  assert detect(visible).local_device_ids == (1,)


def test_the_error_for_a_missing_slurm_variable_names_it():
  environ = dict(SLURM)
  del environ["SLURM_PROCID"]
  with pytest.raises(errors.UserError, match="SLURM_PROCID is not set"):
    detect(environ)


def test_open_mpi_sets_the_numbers_but_needs_an_address():
  found = detect(OPEN_MPI, "a:1")
  assert values(found) == ("a:1", 4, 3)
  assert found.local_device_ids == (1,)
  with pytest.raises(errors.UserError, match=r"4 processes.*--coordinator="):
    detect(OPEN_MPI)


def test_a_tpu_pod_on_gke_is_detected():
  assert values(detect(POD)) == ("t-0.svc:8482", 2, 1)
  addresses = POD | {"TPU_PROCESS_ADDRESSES": "u-0:8476,u-1:8476,u-2:8476"}
  assert values(detect(addresses)) == ("u-0:8482", 3, 1)


def test_process_ids_are_consecutive_across_slices():
  environ = POD | {
    "MEGASCALE_NUM_SLICES": "2",
    "MEGASCALE_SLICE_ID": "1",
    "MEGASCALE_COORDINATOR_ADDRESS": "job-0-0.job:8080",
  }
  assert values(detect(environ)) == ("job-0-0.job:8482", 4, 3)
  # Several slices of one host each are several processes.
  single = environ | {"TPU_WORKER_HOSTNAMES": "a", "TPU_WORKER_ID": "0"}
  assert values(detect(single)) == ("job-0-0.job:8482", 2, 1)
  del environ["MEGASCALE_COORDINATOR_ADDRESS"]
  with pytest.raises(errors.UserError, match="MEGASCALE_COORDINATOR_ADDRESS"):
    detect(environ)


def test_the_error_for_a_missing_worker_id_names_the_variable():
  with pytest.raises(errors.UserError, match="TPU_WORKER_ID is not set"):
    detect({"TPU_WORKER_HOSTNAMES": "a,b"})


def test_a_tpu_machine_without_variables_uses_its_metadata():
  pod = tpu_vm.Metadata(["10.0.0.2", "10.0.0.3"], 1, {})
  assert values(detect_on_tpu_vm(pod)) == ("10.0.0.2:8482", 2, 1)
  assert detect_on_tpu_vm(tpu_vm.Metadata(["10.0.0.2"], 0, {})) is None
  with pytest.raises(errors.UserError, match="metadata server"):
    detect_on_tpu_vm(None)


@pytest.mark.parametrize(
  "endpoints", ["10.0.0.2,10.0.0.3", "w-0:0:10.0.0.2,w-1:1:10.0.0.3"]
)
def test_both_formats_of_endpoints_in_the_metadata_are_read(endpoints):
  texts = {
    "agent-worker-number": "1",
    "worker-network-endpoints": endpoints,
    "tpu-env": "ZONE: 'us-east5-a'\nMEGASCALE_NUM_SLICES: '2'\n",
  }
  assert tpu_vm.read_metadata(texts.get) == tpu_vm.Metadata(
    ["10.0.0.2", "10.0.0.3"],
    1,
    {"ZONE": "us-east5-a", "MEGASCALE_NUM_SLICES": "2"},
  )
  assert tpu_vm.read_metadata({}.get) is None
