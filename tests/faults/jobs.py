"""The commands that campaigns disturb, and what must come out of them.

Each is small, so that it ends in seconds, and runs in a folder of its own, with
the data and models of `prepare` beside it.
"""

import dataclasses
import hashlib
import json
import os
import pathlib
import re
import subprocess
import sys
from collections.abc import Callable
from typing import Any

from genie_jax.checkpoints import reader

_ROOT = pathlib.Path(__file__).parents[2]
_COINRUN = _ROOT / "experiments" / "coinrun"
# In metrics.jsonl, but not a result.
_TIMES = re.compile(
  "time|steps_per_second|clips_per_second|data_wait|model_flops_per_second|"
  "goodput|lost_seconds/.*|host_.*|slowest_.*"
)
# Checkpoints and evaluations often enough that kills meet them.
_STEPS, _EVERY = 24, 4


@dataclasses.dataclass(frozen=True)
class Job:
  """A command that a campaign disturbs.

  Attributes:
    words: The arguments of `genie`; it writes the folder `out` of the working
      folder, and finds the folder of `prepare` at `base`.
    content: Function from the folder `out` to everything in it that must be
      the same after any number of faults.
    steps: Whether it is a training run, with checkpoints.
  """

  words: tuple[str, ...]
  content: Callable[[pathlib.Path], str]
  steps: bool = False


def environment(base: pathlib.Path) -> dict[str, str]:
  """Returns the environment of a job; compiled programs are kept in `base`."""
  kept = {
    name: value
    for name, value in os.environ.items()
    if not name.startswith(("JAX_", "XLA_"))
  }
  return kept | {
    "PYTHONPATH": str(_ROOT),
    "PYTHONUNBUFFERED": "1",
    "JAX_PLATFORMS": "cpu",
    "XDG_CACHE_HOME": str(base / "cache"),
  }


def command(job: Job) -> list[str]:
  """Returns the program and its arguments."""
  return [sys.executable, "-m", "genie_jax", *job.words]


def attempt(
  job: Job, base: pathlib.Path, folder: pathlib.Path
) -> tuple[int, str]:
  """Runs a job in a folder; returns its exit code and all its output."""
  (folder / "base").unlink(missing_ok=True)
  (folder / "base").symlink_to(base)
  done = subprocess.run(
    command(job),
    cwd=folder,
    env=environment(base),
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
    timeout=900,
    check=False,
  )
  return done.returncode, done.stdout


def run(job: Job, base: pathlib.Path, folder: pathlib.Path) -> str:
  """Runs a job to its end and returns the content that it made.

  Raises:
    RuntimeError: It failed; the message has the end of its output.
  """
  code, text = attempt(job, base, folder)
  if code:
    raise RuntimeError(f"code {code}: {text[-1500:]}")
  return job.content(folder / "out")


def last_step(text: str) -> int | None:
  """Returns the last step in the output of a training run."""
  return max(map(int, re.findall(r"step (\d+)/", text)), default=None)


def resumed_step(text: str) -> int | None:
  """Returns the step from which a training run says that it resumes."""
  found = re.search(r"Resuming from step (\d+)", text)
  return int(found[1]) if found else None


def prepare(base: pathlib.Path) -> None:
  """Makes clips, tokens, models and a world of a few steps, once."""
  if (base / "report.html").exists():  # The last that the pipeline writes.
    return
  subprocess.run(
    [
      sys.executable,
      *("-m", "experiments.coinrun.pipeline", "--mode", "smoke"),
      *("--out", str(base)),
    ],
    cwd=_ROOT,
    env=environment(base),
    stdout=subprocess.DEVNULL,
    check=True,
  )


def folder_content(out: pathlib.Path) -> str:
  """Returns a digest of the names and bytes of a folder's files."""
  found = hashlib.sha256()
  for path in sorted(out.rglob("*")):
    hidden = any(part.startswith(".") for part in path.relative_to(out).parts)
    if path.is_file() and not hidden:
      found.update(f"{path.relative_to(out)}\0".encode())
      found.update(hashlib.sha256(path.read_bytes()).digest())
  return found.hexdigest()


def run_content(workdir: pathlib.Path) -> str:
  """Returns a digest of the last checkpoint's arrays and of all metrics."""
  step = max(reader.valid_steps(workdir))
  note = reader.read_note(workdir / reader.FOLDER / str(step))
  lines = [
    {name: x for name, x in json.loads(line).items() if not _TIMES.match(name)}
    for line in (workdir / "metrics.jsonl").read_text().splitlines()
  ]
  result: Any = [step, note["fingerprints"], note["iterator"], lines]
  text = json.dumps(result, sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()


def _training(stage: str, data: str, workers: int = 0) -> Job:
  fields = {
    "data.path": f"base/{data}",
    "data.num_workers": workers,
    "steps": _STEPS,
    "checkpoint_every": _EVERY,
    "eval_every": 6,
  }
  if stage == "dynamics":
    fields["world.num_latent_actions"] = 8
  return Job(
    (
      *("train", "--config", f"{_COINRUN / stage}.py:smoke"),
      *("--workdir", "out"),
      *(f"--config.{name}={value}" for name, value in fields.items()),
    ),
    run_content,
    steps=True,
  )


TRAINING = {
  "tokenizer": _training("tokenizer", "clips"),
  "lam": _training("lam", "clips", workers=2),
  "dynamics": _training("dynamics", "tokens"),
  "joint": _training("joint", "clips", workers=2),
}
WRITERS = {
  "data": Job(
    (
      *("data", "procgen", "--game", "coinrun", "--policy", "walker"),
      *("--states", "--out", "out", "--levels", "12"),
      *("--validation-levels", "2", "--test-levels", "2"),
      *("--frames-per-level", "160", "--levels-per-shard", "2"),
    ),
    folder_content,
  ),
  "tokenize": Job(
    (
      *("tokenize", "--tokenizer", "base/tokenizer", "--lam", "base/lam"),
      *("--clips", "base/clips", "--out", "out"),
    ),
    folder_content,
  ),
  "export": Job(
    (
      *("export", "--workdir", "base/tokenizer", "--workdir", "base/lam"),
      *("--workdir", "base/dynamics", "--prompts", "base/clips"),
      *("--out", "out", "--name", "faults"),
    ),
    folder_content,
  ),
}
JOBS = TRAINING | WRITERS
# The most steps that a kill may cost: the interval between checkpoints, and
# another one while a save is in flight (docs/multihost.md).
MOST_LOST = 2 * _EVERY
