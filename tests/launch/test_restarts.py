"""Tests of how the recipes end, restart and resume a run."""

import argparse
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from genie_jax.cli import train
from genie_jax.core import config as config_lib
from genie_jax.sharding import mesh as mesh_lib
from tests.launch import command_flags, jobset_model, recipes

JOBSET, XPK, QUEUED, SLURM = recipes.SHELL


# Kubernetes


def pods(tmp_path):
  """Returns the JobSet and its Job."""
  made = recipes.jobset(recipes.start(tmp_path, JOBSET, "start"))
  return made, made["spec"]["replicatedJobs"][0]["template"]["spec"]


def test_the_jobset_fills_its_slice(tmp_path):
  _, job = pods(tmp_path)
  pod = job["template"]["spec"]
  chips = pod["containers"][0]["resources"]["limits"]["google.com/tpu"]
  sides = [
    int(side)
    for side in pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split(
      "x"
    )
  ]
  assert sides == sorted(sides) == [4, 8, 8]  # GKE requires ascending order
  assert job["parallelism"] == job["completions"] == 4 * 8 * 8 / chips == 64


def test_a_jobset_of_two_slices_saves_copies_that_outlive_its_pods(
  tmp_path, monkeypatch
):
  made = recipes.jobset(
    recipes.start(tmp_path, JOBSET, "start", variables={"SLICES": "2"})
  )
  jobset_model.check(made)
  (slices,) = made["spec"]["replicatedJobs"]
  assert slices["replicas"] == 2
  pod = slices["template"]["spec"]["template"]["spec"]
  (container,) = pod["containers"]
  (line,) = recipes.run(
    tmp_path / "host", [*container["command"], *container["args"]], {}
  ).of("genie")
  monkeypatch.chdir(recipes.ROOT)
  parser = argparse.ArgumentParser(prog="genie train")
  train.add_arguments(parser)
  args, overrides = parser.parse_known_args(line[1:])
  config = config_lib.load(args.config, overrides)
  assert config.emergency_every == 20
  sizes = mesh_lib.sizes(config.mesh, 2 * 256)
  assert sizes["data"] % 2 == 0
  microbatch = config.data.batch_size // config.optimizer.accumulate
  assert microbatch % (sizes["data"] * sizes["fsdp"]) == 0
  (mount,) = [
    mount
    for mount in container["volumeMounts"]
    if mount["mountPath"] == config.emergency_folder
  ]
  (volume,) = [v for v in pod["volumes"] if v["name"] == mount["name"]]
  assert volume["hostPath"]["path"].startswith("/dev/shm/")


def test_a_jobset_of_no_slices_is_refused(tmp_path):
  for slices in ("0", "two"):
    ended = recipes.start(
      tmp_path, JOBSET, "start", variables={"SLICES": slices}
    )
    assert ended.code == 2 and not ended.calls
    assert f"SLICES={slices} is not a number of slices" in ended.err


def test_the_jobset_restarts_after_all_codes_except_0_2_and_3(tmp_path):
  made, job = pods(tmp_path)
  assert job["backoffLimit"] == 0  # so that no host is restarted alone
  (rule,) = job["podFailurePolicy"]["rules"]
  (container,) = job["template"]["spec"]["containers"]
  assert rule == {
    "action": "FailJob",
    "onExitCodes": {
      "containerName": container["name"],
      "operator": "In",
      "values": [2, 3],
    },
  }
  policy = made["spec"]["failurePolicy"]
  assert policy["maxRestarts"] > 0
  (only,) = policy["rules"]
  assert only["action"] == "FailJobSet"
  assert only["onJobFailureReasons"] == ["PodFailurePolicy"]
  assert job["template"]["spec"]["restartPolicy"] == "Never"


def test_sigterm_reaches_genie_in_the_pod(tmp_path):
  _, job = pods(tmp_path)
  (container,) = job["template"]["spec"]["containers"]
  assert_stops_with_143(
    tmp_path / "pod", [*container["command"], *container["args"]]
  )


def test_sigterm_reaches_genie_in_xpks_script(tmp_path):
  (created,) = recipes.start(tmp_path, XPK, "start").of("xpk")
  # The script in which XPK 1.16 runs a command.
  script = (
    "_sigterm() (kill -SIGTERM $! 2>/dev/null;); trap _sigterm SIGTERM; "
    f"({recipes.value_of(created, '--command')}) & PID=$!; "
    "while kill -0 $PID 2>/dev/null; do sleep 0.1; done; wait $PID"
  )
  assert_stops_with_143(tmp_path / "pod", ["bash", "-c", script])


def assert_stops_with_143(folder, command):
  """Sends SIGTERM to a command; asserts that it reaches a fake `genie`."""
  folder.mkdir()
  ready = folder / "ready"
  genie = folder / "genie"
  genie.write_text(
    f"#!{sys.executable} -IS\n"
    "import pathlib, signal, sys, time\n"
    "signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))\n"
    f"pathlib.Path({str(ready)!r}).touch()\n"
    "time.sleep(60)\n"
  )
  genie.chmod(0o755)
  process = subprocess.Popen(
    command,
    env={"PATH": f"{folder}:{os.defpath}"},
    stderr=subprocess.DEVNULL,
    start_new_session=True,
  )
  try:
    wait_for(ready)
    process.terminate()
    assert process.wait(timeout=30) == 143
  finally:
    if process.poll() is None:
      os.killpg(process.pid, signal.SIGKILL)
      process.wait()


def wait_for(path: pathlib.Path) -> None:
  end = time.monotonic() + 60
  while not path.exists():
    assert time.monotonic() < end, f"{path} was not created"
    time.sleep(0.05)


def test_resume_on_kubernetes_deletes_the_old_job_first(tmp_path):
  for script, tool in ((JOBSET, "kubectl"), (XPK, "xpk")):
    calls = recipes.start(tmp_path / tool, script, "resume").of(tool)
    assert ["delete" in call for call in calls] == [True, False], script
    assert "create" in calls[1]


@pytest.mark.parametrize("verb", ["resume", "delete"])
def test_deletion_on_kubernetes_waits_until_all_pods_have_ended(verb, tmp_path):
  deletes = [
    call
    for call in recipes.start(tmp_path, JOBSET, verb).of("kubectl")
    if call[0] == "delete"
  ]
  # With the default cascade, kubectl waits for the JobSet but not for its pods.
  assert deletes and all(
    {"--cascade=foreground", "--wait"} <= set(call) for call in deletes
  )


@pytest.mark.parametrize("script", recipes.SHELL, ids=lambda path: path.name)
def test_hosts_wait_at_least_a_day_for_a_missing_one(script, tmp_path):
  line = recipes.genie(tmp_path, script)
  day = 24 * 3600  # After the timeout the exit code is 2, without a restart.
  assert int(recipes.value_of(line, "--initialization-timeout")) >= day


def test_an_invalid_name_is_rejected_before_kubernetes_is_called(tmp_path):
  for name in ("Run_1", "1run", "a" * 40, "run-"):
    ended = recipes.start(tmp_path, JOBSET, "start", variables={"RUN": name})
    assert ended.code == 2 and not ended.calls
    assert f"RUN={name}" in ended.err


# Queued resources


def test_start_waits_in_the_queue_and_then_starts_all_hosts(tmp_path):
  ended = recipes.start(
    tmp_path,
    QUEUED,
    "start",
    "--spot",
    answers={
      recipes.STATE: [
        ("WAITING_FOR_RESOURCES\n", 0),
        ("PROVISIONING\n", 0),
        ("ACTIVE\n", 0),
      ]
    },
  )
  assert ended.code == 0, ended.err
  create, *described, ssh = ended.of("gcloud")
  assert "--spot" in create and len(described) == 3
  assert recipes.value_of(create, "--accelerator-type") == "v5p-512"
  assert "--worker=all" in ssh
  assert len(ended.of("sleep")) == 2


@pytest.mark.parametrize(
  "state, deletes",
  [
    ("ACTIVE", False),
    ("PROVISIONING", False),
    ("SUSPENDED", True),
    ("FAILED", True),
  ],
)
def test_resume_requests_new_machines_only_if_the_old_ones_are_lost(
  state, deletes, tmp_path
):
  ended = recipes.start(
    tmp_path,
    QUEUED,
    "resume",
    answers={recipes.STATE: [(f"{state}\n", 0), ("ACTIVE\n", 0)]},
  )
  assert ended.code == 0, ended.err
  verbs = [call[3] for call in ended.of("gcloud")]
  assert ("delete" in verbs) == ("create" in verbs) == deletes
  assert "--worker=all" in ended.of("gcloud")[-1]


def test_nothing_is_deleted_if_the_state_is_unknown(tmp_path):
  for verb in ("resume", "delete"):
    ended = recipes.start(
      tmp_path / verb, QUEUED, verb, answers={recipes.STATE: [("", 1)]}
    )
    assert ended.code == 1
    assert [call[3] for call in ended.of("gcloud")] == ["describe"]


def test_a_failed_request_ends_the_wait(tmp_path):
  ended = recipes.start(
    tmp_path, QUEUED, "start", answers={recipes.STATE: [("FAILED\n", 0)]}
  )
  assert ended.code == 1 and "FAILED" in ended.err
  assert "ssh" not in [call[3] for call in ended.of("gcloud")]


def test_a_host_saves_before_its_container_is_replaced(tmp_path):
  ended = recipes.start(
    tmp_path, QUEUED, "resume", answers={recipes.STATE: [("ACTIVE\n", 0)] * 2}
  )
  script = recipes.value_of(ended.of("gcloud")[-1], "--command")
  docker = [
    call
    for call in recipes.run(tmp_path / "host", ["bash", "-c", script], {}).of(
      "sudo"
    )
    if call[0] == "docker"
  ]
  assert [call[1] for call in docker] == ["container", "stop", "rm", "run"]
  command_flags.assert_known(
    "docker", docker[-1][1 : docker[-1].index(recipes.IMAGE)]
  )
  assert recipes.value_of(docker[-1], "--restart") == "on-failure:100"
  fresh = recipes.run(
    tmp_path / "fresh",
    ["bash", "-c", script],
    {},
    answers={"sudo docker container inspect": [("", 1)]},
  )
  assert [call[1] for call in fresh.of("sudo") if call[0] == "docker"] == [
    "container",
    "run",
  ]


def test_resume_mounts_the_bucket_on_a_rebooted_host(tmp_path):
  ended = recipes.start(
    tmp_path, QUEUED, "resume", answers={recipes.STATE: [("ACTIVE\n", 0)] * 2}
  )
  script = recipes.value_of(ended.of("gcloud")[-1], "--command")
  for name, code, mounts in (("up", 0, 0), ("rebooted", 1, 1)):
    host = recipes.run(
      tmp_path / name,
      ["bash", "-c", script],
      {},
      answers={"mountpoint": [("", code)]},
    )
    verbs = [call[:1] for call in host.of("sudo")]
    assert host.code == 0 and verbs.count(["gcsfuse"]) == mounts
    assert host.of("sudo")[-1][:2] == ["docker", "run"]


# Slurm


@pytest.mark.parametrize(
  "code, restarts, requeues",
  [
    (0, "0", False),
    (1, "", True),
    (2, "0", False),
    (134, "3", True),
    (143, "99", True),
    (143, "100", False),
  ],
)
def test_slurm_requeues_the_job_after_all_codes_except_0_and_2(
  code, restarts, requeues, tmp_path
):
  ended = recipes.start(
    tmp_path,
    SLURM,
    answers={"srun": [("", code)]},
    variables={"SLURM_RESTART_COUNT": restarts},
  )
  assert ended.of("scontrol") == ([["requeue", "7"]] if requeues else [])
  assert ended.code == (0 if requeues else code)
  command_flags.assert_known("srun", srun_flags(ended))


def srun_flags(ended):
  (srun,) = ended.of("srun")
  return srun[: srun.index("genie")]


def test_slurm_ends_the_other_tasks_some_time_after_the_first(tmp_path):
  flags = srun_flags(recipes.start(tmp_path, SLURM))
  (seconds,) = [
    int(word.removeprefix("--wait="))
    for word in flags
    if word.startswith("--wait=")
  ]
  # Long enough to save, and much shorter than a day.
  assert 300 <= seconds <= 1800
  assert "--kill-on-bad-exit=0" in flags


def test_slurm_does_not_requeue_a_job_that_the_user_stopped(tmp_path):
  folder = tmp_path / "tools"
  recipes.run(folder, ["true"], {})  # writes the fake tools
  ready, go = tmp_path / "ready", tmp_path / "go"
  (folder / "srun").write_text(
    f"#!/bin/sh\ntouch {ready}\n"
    f"while [ ! -e {go} ]; do /bin/sleep 0.05; done\nexit 143\n"
  )
  env = (
    recipes.VARIABLES[SLURM.name]
    | recipes.SLURM
    | {"PATH": f"{folder}:{os.defpath}"}
  )
  process = subprocess.Popen(["bash", str(SLURM)], env=env)
  try:
    wait_for(ready)
    process.terminate()  # signals the batch shell only, as `scancel --batch`
    go.touch()
    assert process.wait(timeout=30) == 143
  finally:
    go.touch()
    process.wait()
  assert (folder / "calls").read_text() == ""
