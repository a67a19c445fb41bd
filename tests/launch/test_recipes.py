"""Tests of what the recipes do: the line they start, and when they restart."""

import argparse
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import pytest

from genie_jax.cli import plan as plan_command
from genie_jax.cli import train as train_command
from genie_jax.core import config as config_lib
from tests.launch import recipes
from tests.multihost import fleet
from tests.stages import folders

JOBSET, XPK, QUEUED, SLURM = recipes.SHELL
VERBS = [(script, verb) for script in (JOBSET, XPK, QUEUED)
         for verb in ("start", "watch", "resume", "delete")]
UNSET = [(script, name) for script in recipes.SHELL
         for name in recipes.VARIABLES[script.name]]
name_of = lambda value: getattr(value, "name", None)
# An entry of the queue, as `describe` says.
STATE = "gcloud compute tpus queued-resources describe"

# Flags of XPK 1.16, gcloud 528 and Docker 28 for what the recipes call.
KNOWN = {
    "xpk workload create": {
        "--cluster", "--project", "--zone", "--workload", "--docker-image",
        "--tpu-type", "--num-slices", "--max-restarts",
        "--restart-on-exit-codes", "--termination-grace-period-seconds",
        "--storage", "--command", "--priority", "--env"},
    "xpk workload delete": {
        "--cluster", "--project", "--zone", "--workload", "--force"},
    "xpk workload list": {
        "--cluster", "--project", "--zone", "--filter-by-job",
        "--filter-by-status"},
    "gcloud compute tpus queued-resources create": {
        "--project", "--zone", "--node-id", "--accelerator-type",
        "--runtime-version", "--spot", "--reserved", "--service-account"},
    "gcloud compute tpus queued-resources describe": {
        "--project", "--zone", "--format"},
    "gcloud compute tpus queued-resources delete": {
        "--project", "--zone", "--force", "--quiet", "--async"},
    "gcloud compute tpus tpu-vm ssh": {
        "--project", "--zone", "--worker", "--command"},
    "gcloud auth configure-docker": {"--quiet"},
    "kubectl create": {"--filename"},
    "kubectl delete jobset": {"--ignore-not-found", "--wait"},
    "kubectl get jobset": set(),
    "kubectl logs": {"--follow", "--tail", "--selector", "--container"},
    "docker run": {
        "--detach", "--name", "--restart", "--stop-timeout", "--privileged",
        "--user", "--net", "--shm-size", "--volume"},
    "srun": {"--cpu-bind", "--kill-on-bad-exit"},
}


def assert_known(tool, argv):
  line = " ".join([tool, *argv])
  command = max((known for known in KNOWN if line.startswith(known)),
                key=len, default=None)
  assert command, f"{line[:60]} is not in the list of known commands"
  unknown = recipes.flags(argv) - KNOWN[command]
  assert not unknown, f"{command} has no {unknown}"


@pytest.mark.parametrize("script, name", UNSET, ids=name_of)
def test_an_unset_variable_stops_with_one_line_that_names_it(
    script, name, tmp_path
):
  ended = recipes.start(tmp_path, script, "start", without=name)
  assert ended.code == 2 and len(ended.err.splitlines()) == 1
  assert f"{name} is not set" in ended.err
  assert not ended.calls
  # The header of the file says what it is.
  header = script.read_text().partition("set -euo")[0]
  assert re.search(rf"^#.*\b{name}\b", header, re.M)


@pytest.mark.parametrize("script", [JOBSET, XPK, QUEUED], ids=name_of)
def test_an_unknown_verb_stops_with_the_known_ones(script, tmp_path):
  for verb in ((), ("strat",)):
    ended = recipes.start(tmp_path, script, *verb)
    assert ended.code == 2 and not ended.calls
    assert "say start, watch, resume or delete" in ended.err


@pytest.mark.parametrize("script, verb", VERBS, ids=name_of)
def test_every_verb_calls_commands_and_flags_that_there_are(
    script, verb, tmp_path
):
  ended = recipes.start(
      tmp_path, script, verb, answers={STATE: [("ACTIVE\n", 0)] * 3})
  assert ended.code == 0, ended.err
  assert ended.calls
  for call in ended.calls:
    assert_known(call.tool, call.argv)


def test_every_recipe_starts_the_same_line(tmp_path):
  lines = {script.name: recipes.genie(tmp_path / script.name, script)
           for script in recipes.SHELL}
  assert lines["jobset.sh"] == [
      "train", "--config", "experiments/platformers/dynamics.py",
      "--workdir", f"gs://{recipes.BUCKET}/{recipes.RUN}",
      "--config.data.path=/bucket/tokens",
      "--compilation-cache", f"gs://{recipes.BUCKET}/cache",
      "--initialization-timeout", "1800"]
  # Slurm has a disk where the cloud has a bucket.
  lines["slurm.sbatch"] = [
      word.replace("/disk/tokens", "/bucket/tokens")
      for word in lines["slurm.sbatch"]]
  for name, line in lines.items():
    assert line == lines["jobset.sh"], name


def test_the_line_is_one_that_genie_train_takes(tmp_path, monkeypatch):
  monkeypatch.chdir(recipes.ROOT)
  line = recipes.genie(tmp_path, JOBSET)
  parser = argparse.ArgumentParser(prog="genie train")
  train_command.add_arguments(parser)
  args, overrides = parser.parse_known_args(line[1:])
  assert args.distributed == "auto" and args.coordinator is None
  config = config_lib.load(args.config, overrides)
  assert config.data.path == "/bucket/tokens" and config.stage == "dynamics"


@pytest.mark.slow
def test_two_processes_run_the_line_in_its_smoke_mode_and_go_on(tmp_path):
  tokens = folders.write_tokens(
      tmp_path / "tokens", (90, 160, 3), grid=(6, 10), num_codes=64,
      tokenizer=folders.random_part("tokenizer", config_lib.load(
          str(recipes.ROOT / "experiments/platformers/tokenizer.py:smoke"))))
  line = recipes.genie(tmp_path / "recipe", JOBSET)
  local = {
      "experiments/platformers/dynamics.py":
          "experiments/platformers/dynamics.py:smoke",
      f"gs://{recipes.BUCKET}/{recipes.RUN}": str(tmp_path / "run"),
      "--config.data.path=/bucket/tokens": f"--config.data.path={tokens}",
      f"gs://{recipes.BUCKET}/cache": os.environ.get(
          "GENIE_TEST_CACHE", str(recipes.ROOT / ".cache" / "jax"))}
  assert set(local) < set(line)
  line = [local.get(word, word) for word in line[1:]] + [
      # As the records of the tests are.
      "--config.world.num_latent_actions=6", "--config.world.fps=15",
      # What takes long to compile and is no part of the line.
      "--config.eval_batches=0", "--config.optimizer.name=adamw"]
  fleet.train(tmp_path / "first", 2, *line, "--config.steps=2", devices=1)
  ended = fleet.train(tmp_path / "again", 2, *line, devices=1)
  assert "Going on from step 2" in ended.text(0)
  assert "trained to step 4" in ended.text(0)
  assert "trained to step" not in ended.text(1)


# Kubernetes


def pods(tmp_path):
  """Returns the JobSet and the template of its pods."""
  made = recipes.jobset(recipes.start(tmp_path, JOBSET, "start"))
  return made, made["spec"]["replicatedJobs"][0]["template"]["spec"]


def test_the_jobset_fills_its_slice(tmp_path):
  _, job = pods(tmp_path)
  pod = job["template"]["spec"]
  chips = pod["containers"][0]["resources"]["limits"]["google.com/tpu"]
  sides = [int(side) for side in pod["nodeSelector"][
      "cloud.google.com/gke-tpu-topology"].split("x")]
  assert sides == sorted(sides) == [4, 8, 8]  # as the cloud spells it
  assert job["parallelism"] == job["completions"] == 4 * 8 * 8 / chips == 64


def test_the_jobset_restarts_after_all_codes_but_0_and_2(tmp_path):
  made, job = pods(tmp_path)
  assert job["backoffLimit"] == 0  # so that no host comes back alone
  rule, = job["podFailurePolicy"]["rules"]
  container, = job["template"]["spec"]["containers"]
  assert rule == {"action": "FailJob", "onExitCodes": {
      "containerName": container["name"], "operator": "In", "values": [2]}}
  policy = made["spec"]["failurePolicy"]
  assert policy["maxRestarts"] > 0
  only, = policy["rules"]
  assert only["action"] == "FailJobSet"
  assert only["onJobFailureReasons"] == ["PodFailurePolicy"]
  assert job["template"]["spec"]["restartPolicy"] == "Never"


def test_sigterm_reaches_genie_in_the_pod(tmp_path):
  _, job = pods(tmp_path)
  container, = job["template"]["spec"]["containers"]
  assert_stops_with_143(
      tmp_path / "pod", [*container["command"], *container["args"]])


def test_sigterm_reaches_genie_below_xpk(tmp_path):
  created, = recipes.start(tmp_path, XPK, "start").of("xpk")
  # The frame that XPK 1.16 puts around a command.
  frame = (
      "_sigterm() (kill -SIGTERM $! 2>/dev/null;); trap _sigterm SIGTERM; "
      f"({recipes.value_of(created, '--command')}) & PID=$!; "
      "while kill -0 $PID 2>/dev/null; do sleep 0.1; done; wait $PID")
  assert_stops_with_143(tmp_path / "pod", ["bash", "-c", frame])


def assert_stops_with_143(folder, command):
  """Sends SIGTERM to a command whose genie exits with 143 when it gets it."""
  folder.mkdir()
  ready = folder / "ready"
  genie = folder / "genie"
  genie.write_text(
      f"#!{sys.executable} -IS\n"
      "import pathlib, signal, sys, time\n"
      "signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))\n"
      f"pathlib.Path({str(ready)!r}).touch()\n"
      "time.sleep(60)\n")
  genie.chmod(0o755)
  process = subprocess.Popen(
      command, env={"PATH": f"{folder}:{os.defpath}"},
      stderr=subprocess.DEVNULL, start_new_session=True)
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
    assert time.monotonic() < end, f"{path} did not come"
    time.sleep(0.05)


def test_resume_on_kubernetes_ends_the_old_one_first(tmp_path):
  for script, tool in ((JOBSET, "kubectl"), (XPK, "xpk")):
    calls = recipes.start(tmp_path / tool, script, "resume").of(tool)
    assert ["delete" in call for call in calls] == [True, False], script
    assert "create" in calls[1]


def test_a_name_that_kubernetes_refuses_stops_before_it(tmp_path):
  for name in ("Run_1", "1run", "a" * 40, "run-"):
    ended = recipes.start(
        tmp_path, JOBSET, "start", variables={"RUN": name})
    assert ended.code == 2 and not ended.calls
    assert f"RUN={name}" in ended.err


# Queued resources


def test_start_waits_in_the_queue_and_then_starts_every_host(tmp_path):
  ended = recipes.start(tmp_path, QUEUED, "start", "--spot", answers={
      STATE: [("WAITING_FOR_RESOURCES\n", 0), ("PROVISIONING\n", 0),
              ("ACTIVE\n", 0)]})
  assert ended.code == 0, ended.err
  create, *described, ssh = ended.of("gcloud")
  assert "--spot" in create and len(described) == 3
  assert recipes.value_of(create, "--accelerator-type") == "v5p-512"
  assert "--worker=all" in ssh
  assert len(ended.of("sleep")) == 2


@pytest.mark.parametrize("state, deletes", [
    ("ACTIVE", False), ("PROVISIONING", False), ("SUSPENDED", True),
    ("FAILED", True)])
def test_resume_gives_up_only_machines_that_are_gone(
    state, deletes, tmp_path
):
  ended = recipes.start(tmp_path, QUEUED, "resume", answers={
      STATE: [(f"{state}\n", 0), ("ACTIVE\n", 0)]})
  assert ended.code == 0, ended.err
  verbs = [call[3] for call in ended.of("gcloud")]
  assert ("delete" in verbs) == ("create" in verbs) == deletes
  assert "--worker=all" in ended.of("gcloud")[-1]


def test_a_lost_connection_deletes_nothing(tmp_path):
  for verb in ("resume", "delete"):
    ended = recipes.start(
        tmp_path / verb, QUEUED, verb, answers={STATE: [("", 1)]})
    assert ended.code == 1
    assert [call[3] for call in ended.of("gcloud")] == ["describe"]


def test_a_request_that_failed_ends_the_wait(tmp_path):
  ended = recipes.start(tmp_path, QUEUED, "start", answers={
      STATE: [("FAILED\n", 0)]})
  assert ended.code == 1 and "FAILED" in ended.err
  assert "ssh" not in [call[3] for call in ended.of("gcloud")]


def test_a_host_saves_before_its_container_is_replaced(tmp_path):
  ended = recipes.start(tmp_path, QUEUED, "resume", answers={
      STATE: [("ACTIVE\n", 0)] * 2})
  script = recipes.value_of(ended.of("gcloud")[-1], "--command")
  docker = [call for call in recipes.run(
      tmp_path / "host", ["bash", "-c", script], {}).of("sudo")
            if call[0] == "docker"]
  assert [call[1] for call in docker] == ["container", "stop", "rm", "run"]
  assert_known("docker", docker[-1][1:docker[-1].index(recipes.IMAGE)])
  assert recipes.value_of(docker[-1], "--restart") == "on-failure:100"
  fresh = recipes.run(
      tmp_path / "fresh", ["bash", "-c", script], {},
      answers={"sudo docker container inspect": [("", 1)]})
  assert [call[1] for call in fresh.of("sudo")
          if call[0] == "docker"] == ["container", "run"]


# Slurm


@pytest.mark.parametrize("code, restarts, back", [
    (0, "0", False), (1, "", True), (2, "0", False), (134, "3", True),
    (143, "99", True), (143, "100", False)])
def test_slurm_goes_back_into_the_queue_after_all_codes_but_0_and_2(
    code, restarts, back, tmp_path
):
  ended = recipes.start(
      tmp_path, SLURM, answers={"srun": [("", code)]},
      variables={"SLURM_RESTART_COUNT": restarts})
  assert ended.of("scontrol") == ([["requeue", "7"]] if back else [])
  assert ended.code == (0 if back else code)
  assert_known("srun", ended.of("srun")[0][:2])


def test_slurm_does_not_start_again_what_was_told_to_end(tmp_path):
  folder = tmp_path / "tools"
  recipes.run(folder, ["true"], {})  # puts the stand-ins there
  ready, go = tmp_path / "ready", tmp_path / "go"
  (folder / "srun").write_text(
      f"#!/bin/sh\ntouch {ready}\n"
      f"while [ ! -e {go} ]; do /bin/sleep 0.05; done\nexit 143\n")
  env = recipes.VARIABLES[SLURM.name] | recipes.SLURM | {
      "PATH": f"{folder}:{os.defpath}"}
  process = subprocess.Popen(["bash", str(SLURM)], env=env)
  try:
    wait_for(ready)
    process.terminate()  # the batch shell only, as `scancel --batch` does
    go.touch()
    assert process.wait(timeout=30) == 143
  finally:
    go.touch()
    process.wait()
  assert (folder / "calls").read_text() == ""


# Documentation


def test_the_walk_through_uses_flags_that_there_are():
  text = (recipes.ROOT / "docs" / "launch.md").read_text()
  lines = re.sub(r"\\\n\s*", "", text).splitlines()
  found = {"train": train_command, "plan": plan_command}
  plans = 0
  for line in lines:
    words = line.split()
    if words[:1] == ["genie"] and len(words) > 1 and words[1] in found:
      parser = argparse.ArgumentParser()
      found[words[1]].add_arguments(parser)
      _, rest = parser.parse_known_args(words[2:])
      assert all(word.startswith("--config.") for word in rest), line
      plans += words[1] == "plan"
  assert plans >= 1
  for path in re.findall(r"`((?:launch|docs|experiments)/[\w./]+)`", text):
    assert (recipes.ROOT / path).exists(), path
