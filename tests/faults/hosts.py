"""Kills or stops one of two processes that train together.

Their devices are those of two hosts of a TPU pod, see `tests.multihost.torus`.
"""

import functools
import os
import pathlib
import random
import shutil
import signal
import time

import jax

from genie_jax.checkpoints import reader
from tests.faults import jobs, trials
from tests.multihost import fleet

_STEPS, _EVERY = 60, 4
# Three times the heartbeat's limit, as the machine may be busy.
_HEARTBEAT, _DETECTED = 10, 30.0
_POD = {"devices": 4, "module": "tests.multihost.torus"}


def _arguments(base: pathlib.Path, folder: pathlib.Path) -> list[str]:
  words = list(jobs.JOBS["dynamics"].words[1:])
  words = [word.replace("base/", f"{base}/") for word in words]
  words[words.index("--workdir") + 1] = str(folder / "out")
  return [
    *words,
    "--config.data.batch_size=8",
    "--config.optimizer.name=adamw",
    f"--config.steps={_STEPS}",
    "--heartbeat-timeout",
    str(_HEARTBEAT),
    # Only process 0 would find compiled steps, and wait for the other.
    "--compilation-cache",
    "off",
  ]


def reference(base: pathlib.Path) -> str:
  """Returns the content that two undisturbed processes make."""
  # `fleet` gives its processes the folder of this one, unused here.
  jax.config.update("jax_compilation_cache_dir", str(base / "cache"))
  folder = base / "references" / "hosts"
  stated = folder / "reference.txt"
  if not stated.exists():
    shutil.rmtree(folder, ignore_errors=True)
    fleet.train(folder / "logs", 2, *_arguments(base, folder), **_POD)
    stated.write_text(jobs.run_content(folder / "out"))
  return stated.read_text()


def trial(
  base: pathlib.Path, scratch: pathlib.Path, number: int
) -> trials.Outcome:
  """Kills or stops a process after a random step; then both start again."""
  content = reference(base)
  folder = scratch / f"hosts-{number}"
  shutil.rmtree(folder, ignore_errors=True)
  rng = random.Random(number)
  victim = rng.randrange(2)
  sent = rng.choice((signal.SIGKILL, signal.SIGKILL, signal.SIGSTOP))
  args = _arguments(base, folder)
  failures = []
  with fleet.running(folder / "logs", 2, *args, **_POD) as both:
    both.wait_for(0, f"step {rng.randrange(1, _STEPS // 2)}/")
    time.sleep(rng.uniform(0, 0.5))
    began = time.monotonic()
    os.kill(both.processes[victim].pid, sent)
    codes = both.codes(timeout=120, without=(victim,))
    took = time.monotonic() - began
    seen = jobs.last_step(both.text(0)) or 0
  if codes[1 - victim] in (0, None):
    failures.append(f"the other process: code {codes[1 - victim]}")
  if took > _DETECTED:
    failures.append(f"the loss was found after {took:.0f} seconds")
  saved = reader.valid_steps(folder / "out")
  again = fleet.train(folder / "again", 2, *args, **_POD)
  resumed = jobs.resumed_step(again.text(0)) or 0
  if saved and resumed != saved[-1]:
    failures.append(f"step {saved[-1]} was whole, resumed from {resumed}")
  if seen - resumed > jobs.MOST_LOST:
    failures.append(f"{seen - resumed} steps were lost")
  if jobs.run_content(folder / "out") != content:
    failures.append("the result differs from that of an undisturbed run")
  if not failures:
    shutil.rmtree(folder)
  return trials.Outcome(
    1,
    tuple(failures),
    {"steps lost": seen - resumed, "seconds to notice": round(took, 1)},
  )


def campaigns(
  base: pathlib.Path, scratch: pathlib.Path
) -> dict[str, trials.Campaign]:
  """Returns the campaign of two processes."""
  return {
    "kills-hosts": trials.Campaign(
      "SIGKILL or SIGSTOP of one of two processes that train together",
      "the other ends; together again, the same bits in the end",
      20,
      functools.partial(trial, base, scratch),
    )
  }
