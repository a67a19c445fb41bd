"""Runs launch recipes with fake versions of the tools that they call.

A fake tool records its arguments and its standard input, so tests check the
commands that a recipe sends.
"""

import dataclasses
import json
import os
import pathlib
import stat
import subprocess
import sys
from collections.abc import Mapping, Sequence

import pytest

ROOT = pathlib.Path(__file__).parents[2]
LAUNCH = ROOT / "launch"
IMAGE = "us-docker.pkg.dev/project/genie/genie:1"
BUCKET, RUN = "the-bucket", "run-1"
SHELL = [
  LAUNCH / name
  for name in ("gke/jobset.sh", "xpk.sh", "queued_resource.sh", "slurm.sbatch")
]
DOCKERFILES = [LAUNCH / "Dockerfile.tpu", LAUNCH / "Dockerfile.cuda"]

# The variables that each recipe requires.
VARIABLES = {
  "jobset.sh": {"RUN": RUN, "IMAGE": IMAGE, "BUCKET": BUCKET},
  "xpk.sh": {
    "PROJECT": "project",
    "ZONE": "us-east5-a",
    "CLUSTER": "cluster",
    "RUN": RUN,
    "IMAGE": IMAGE,
    "BUCKET": BUCKET,
  },
  "queued_resource.sh": {
    "PROJECT": "project",
    "ZONE": "us-east5-a",
    "RUN": RUN,
    "IMAGE": IMAGE,
    "BUCKET": BUCKET,
  },
  "slurm.sbatch": {"RUN": RUN, "BUCKET": BUCKET, "TOKENS": "/disk/tokens"},
}
# Variables that Slurm sets.
SLURM = {"SLURM_JOB_ID": "7", "SLURM_SUBMIT_DIR": str(ROOT)}

# The command that returns the state of a queued resource.
STATE = "gcloud compute tpus queued-resources describe"

# Tools that would use the network, change the machine or delay a test.
_TOOLS = (
  "genie",
  "kubectl",
  "xpk",
  "gcloud",
  "srun",
  "scontrol",
  "sudo",
  "docker",
  "gcsfuse",
  "mountpoint",
  "curl",
  "lsb_release",
  "sleep",
)
_FAKE_TOOL = """#!{python} -IS
import json, os, sys
here, tool = os.path.split(sys.argv[0])
call = [tool, sys.argv[1:], "" if sys.stdin.isatty() else sys.stdin.read()]
with open(os.path.join(here, "calls"), "a") as file:
  file.write(json.dumps(call) + chr(10))
with open(os.path.join(here, "answers")) as file:
  answers = json.load(file)
key = next((k for k in answers if " ".join([tool, *sys.argv[1:]]).startswith(k)
            and answers[k]), None)
output, code = answers[key].pop(0) if key else ("", 0)
with open(os.path.join(here, "answers"), "w") as file:
  json.dump(answers, file)
print(output, end="")
sys.exit(code)
"""


@dataclasses.dataclass(frozen=True)
class Call:
  """One call of a tool."""

  tool: str
  argv: list[str]
  stdin: str


@dataclasses.dataclass(frozen=True)
class Ended:
  """The result of a script.

  Attributes:
    code: Its exit code.
    err: Its standard error.
    calls: Its calls of tools, in order.
  """

  code: int
  err: str
  calls: list[Call]

  def of(self, tool: str) -> list[list[str]]:
    """Returns the arguments of each call of one tool."""
    return [call.argv for call in self.calls if call.tool == tool]


def run(
  folder: pathlib.Path,
  command: Sequence[str],
  variables: Mapping[str, str],
  answers: Mapping[str, Sequence[tuple[str, int]]] | None = None,
) -> Ended:
  """Runs a command in a minimal environment with fake tools.

  Args:
    folder: Where the fake tools are written.
    command: The command.
    variables: Its environment, without PATH.
    answers: Prefix of a call -> output and exit code of the calls with this
      prefix, in order; by default there is no output, and the code is 0.
  """
  folder.mkdir(parents=True, exist_ok=True)
  for tool in _TOOLS:
    path = folder / tool
    path.write_text(_FAKE_TOOL.format(python=sys.executable))
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
  (folder / "answers").write_text(json.dumps(dict(answers or {})))
  (folder / "calls").write_text("")
  done = subprocess.run(
    list(command),
    env={**variables, "PATH": f"{folder}:{os.defpath}"},
    cwd=ROOT,
    text=True,
    capture_output=True,
    timeout=120,
    stdin=subprocess.DEVNULL,
  )
  calls = [
    Call(*json.loads(line))
    for line in (folder / "calls").read_text().splitlines()
  ]
  return Ended(done.returncode, done.stderr, calls)


def start(
  folder: pathlib.Path,
  script: pathlib.Path,
  *verb: str,
  without: str = "",
  **options,
) -> Ended:
  """Runs a recipe with all required variables set, except for `without`."""
  variables = dict(VARIABLES[script.name])
  if script.name == "slurm.sbatch":
    variables |= SLURM
  variables.pop(without, None)
  return run(
    folder,
    ["bash", str(script), *verb],
    variables | options.pop("variables", {}),
    **options,
  )


def genie(folder: pathlib.Path, script: pathlib.Path) -> list[str]:
  """Returns the arguments with which a recipe starts `genie` on a host."""
  if script.name == "slurm.sbatch":
    (srun,) = start(folder, script).of("srun")
    return srun[srun.index("genie") + 1 :]
  ended = start(folder, script, "start", answers={STATE: [("ACTIVE\n", 0)]})
  assert ended.code == 0, ended.err
  on_host = folder / "host"
  if script.name == "jobset.sh":
    pod = jobset(ended)["spec"]["replicatedJobs"][0]["template"]["spec"][
      "template"
    ]["spec"]
    (container,) = pod["containers"]
    shell = [*container["command"], *container["args"]]
    (argv,) = run(on_host, shell, {}).of("genie")
    return argv
  if script.name == "xpk.sh":
    (created,) = ended.of("xpk")
    # XPK's own script runs the command in a subshell.
    command = f"({value_of(created, '--command')}) & wait $!"
    (argv,) = run(on_host, ["bash", "-c", command], {}).of("genie")
    return argv
  host_script = value_of(ended.of("gcloud")[-1], "--command")
  done = run(on_host, ["bash", "-c", host_script], {})
  assert done.code == 0, done.err
  (docker,) = [
    argv for argv in done.of("sudo") if argv[:2] == ["docker", "run"]
  ]
  assert docker[docker.index(IMAGE) + 1] == "genie"
  return docker[docker.index(IMAGE) + 2 :]


def jobset(ended: Ended) -> dict:
  """Returns the object that was passed to `kubectl create`."""
  yaml = tool("yaml", "PyYAML")
  (created,) = [call for call in ended.calls if call.argv[:1] == ["create"]]
  assert created.tool == "kubectl"
  assert created.argv == ["create", "--filename", "-"]
  return yaml.safe_load(created.stdin)


def value_of(argv: Sequence[str], flag: str) -> str:
  """Returns the argument after a flag."""
  return argv[argv.index(flag) + 1]


def flags(argv: Sequence[str]) -> set[str]:
  """Returns the names of the flags of a command line."""
  return {
    word.split("=")[0]
    for word in argv
    if word.startswith("--") and len(word) > 2
  }


def tool(module: str, package: str):
  """Imports a parser; skips the test if it is not installed."""
  return pytest.importorskip(
    module, reason=f"{package} is not installed; pip install '.[dev]'"
  )


def program(name: str, package: str) -> str:
  """Returns the path of a linter; skips the test if it is not installed."""
  path = pathlib.Path(sys.executable).parent / name
  if not path.exists():
    pytest.skip(f"{package} is not installed; pip install '.[dev]'")
  return str(path)
