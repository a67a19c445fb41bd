"""Kills commands at random moments and compares what they make in the end."""

import contextlib
import functools
import os
import pathlib
import random
import shutil
import signal
import subprocess
import time

from tests.faults import jobs, trials

# A run that does not end by itself this long after a child was killed hangs.
_HANGS = 300.0
_KILLS = 4  # Per trial, at most.


def reference(name: str, base: pathlib.Path) -> tuple[str, float]:
  """Returns the content that an undisturbed job makes, and its seconds.

  The first call runs it twice: only the second has all compiled programs.
  """
  folder = base / "references" / name
  stated = folder / "reference.txt"
  if not stated.exists():
    contents = []
    for _ in range(2):
      shutil.rmtree(folder, ignore_errors=True)
      folder.mkdir(parents=True)
      began = time.monotonic()
      contents.append(jobs.run(jobs.JOBS[name], base, folder))
      seconds = time.monotonic() - began
    if contents[0] != contents[1]:
      raise RuntimeError(f"Two undisturbed runs of {name} differ.")
    stated.write_text(f"{contents[0]} {seconds}")
  content, seconds = stated.read_text().split()
  return content, float(seconds)


def trial(
  name: str, base: pathlib.Path, scratch: pathlib.Path, number: int
) -> trials.Outcome:
  """Kills a job up to four times, then lets it end and compares.

  Half of the kills of a job with worker processes kill a worker, not the job;
  it must then end by itself, or go on without.
  """
  job = jobs.JOBS[name]
  content, usual = reference(name, base)
  folder = scratch / f"{name}-{number}"
  shutil.rmtree(folder, ignore_errors=True)
  folder.mkdir(parents=True)
  (folder / "base").symlink_to(base)
  rng = random.Random(f"{name} {number}")
  kills, failures, worst, seen = 0, [], 0, 0
  while kills < _KILLS:
    log = folder / f"{kills}.log"
    process = _begin(job, base, folder, log)
    with contextlib.suppress(subprocess.TimeoutExpired):
      process.wait(rng.uniform(0, usual))
    ended = process.poll() is not None
    children = [] if ended else _children(process.pid)
    if not ended:
      kills += 1
      if children and rng.random() < 0.5:
        with contextlib.suppress(ProcessLookupError):
          os.kill(rng.choice(children), signal.SIGKILL)
        try:
          ended = process.wait(_HANGS) == 0
        except subprocess.TimeoutExpired:
          failures.append("a worker was killed, and the run hangs")
      _kill(process)
    text = log.read_text()
    if job.steps:
      resumed = jobs.resumed_step(text)
      if resumed is not None:
        worst = max(worst, seen - resumed)
      seen = jobs.last_step(text) or resumed or 0
    if ended:
      if process.returncode:
        failures.append(f"code {process.returncode}: {text[-600:]}")
      break
  try:
    if jobs.run(job, base, folder) != content:
      failures.append("the result differs from that of an undisturbed run")
  except (RuntimeError, subprocess.TimeoutExpired) as error:
    failures.append(f"the last start: {error}"[:1500])
  if worst > jobs.MOST_LOST:
    failures.append(f"{worst} steps were lost")
  if not failures:
    shutil.rmtree(folder)
  measured = {"steps lost": worst} if job.steps else {}
  return trials.Outcome(kills, tuple(failures), measured)


def _begin(job, base, folder, log) -> subprocess.Popen:
  with log.open("w") as out:
    return subprocess.Popen(
      jobs.command(job),
      cwd=folder,
      env=jobs.environment(base),
      stdout=out,
      stderr=subprocess.STDOUT,
      start_new_session=True,
    )


def _children(pid: int) -> list[int]:
  """Returns the processes that a process has started."""
  listed = pathlib.Path(f"/proc/{pid}/task/{pid}/children")
  try:
    return [int(word) for word in listed.read_text().split()]
  except OSError:
    return []


def _kill(process: subprocess.Popen) -> None:
  """Kills a process and all that it has started."""
  with contextlib.suppress(ProcessLookupError):
    os.killpg(process.pid, signal.SIGKILL)
  process.wait()


def campaigns(
  base: pathlib.Path, scratch: pathlib.Path
) -> dict[str, trials.Campaign]:
  """Returns the campaigns: 25 kills of each stage, 20 of each writer."""
  made = {}
  for name in jobs.JOBS:
    stage = name in jobs.TRAINING
    what = f"`genie train`, {name}" if stage else f"`genie {name}`"
    made[f"kills-{name}"] = trials.Campaign(
      f"SIGKILL of {what}",
      "the same bits in the end"
      + (f", at most {jobs.MOST_LOST} steps lost" if stage else ""),
      25 if stage else 20,
      functools.partial(trial, name, base, scratch),
    )
  return made
