"""Runs commands on disks that are too small, then again with room.

The disk is a file system in memory, mounted in a namespace of its own: this
needs Linux, and no rights.
"""

import functools
import json
import pathlib
import shutil
import subprocess
import sys
import threading

from genie_jax.checkpoints import reader
from tests.faults import jobs, kills, trials

_SIZES = 30
_ROOM = 1 << 32
NAMESPACE = ("unshare", "--user", "--map-root-user", "--mount")
_PAGE = 4096
NAMES = ("tokenizer", *jobs.WRITERS)


def available() -> bool:
  """Returns whether this machine has such namespaces."""
  return bool(shutil.which("unshare")) and not subprocess.call(
    [*NAMESPACE, "true"]
  )


def isolated(folder: pathlib.Path, *words: str) -> str:
  """Runs this module in a namespace of its own; returns its output."""
  done = subprocess.run(
    [*NAMESPACE, sys.executable, "-m", "tests.faults.disks", *words],
    cwd=pathlib.Path(__file__).parents[2],
    env=jobs.environment(folder),
    capture_output=True,
    text=True,
    timeout=1800,
    check=False,
  )
  if done.returncode:
    raise RuntimeError(done.stderr[-1500:])
  return done.stdout


def mount(folder: pathlib.Path, size: int, again: bool = False) -> None:
  """Mounts a disk of this many bytes, or gives a mounted one another size."""
  subprocess.run(
    [
      *("mount", "-t", "tmpfs", "-o"),
      f"{'remount,' if again else ''}size={size}",
      *("tmpfs", str(folder)),
    ],
    check=True,
  )


def used(folder: pathlib.Path) -> int:
  """Returns the bytes in use on a mounted disk."""
  usage = shutil.disk_usage(folder)
  return usage.total - usage.free


def measure(name: str, base: pathlib.Path, folder: pathlib.Path) -> int:
  """Runs a job with room; returns the most bytes that its disk held."""
  mount(folder, _ROOM)
  most, ended = 0, threading.Event()

  def watch() -> None:
    nonlocal most
    while not ended.wait(0.005):
      most = max(most, used(folder))

  thread = threading.Thread(target=watch)
  thread.start()
  try:
    jobs.run(jobs.JOBS[name], base, folder)
  finally:
    ended.set()
    thread.join()
  return most


def attempt(
  name: str, base: pathlib.Path, folder: pathlib.Path, size: int
) -> list[str]:
  """Runs a job on a disk of this size, then with room; returns failures."""
  job = jobs.JOBS[name]
  content, _ = kills.reference(name, base)
  mount(folder, size)
  code, text = jobs.attempt(job, base, folder)
  failures = []
  if code == 0 and job.content(folder / "out") != content:
    failures.append("code 0, and another result")
  if code not in (0, 1, 2):
    failures.append(f"code {code}")
  if "Traceback" in text:
    failures.append(f"a traceback: {text[-1500:]}")
  elif code and not text.rstrip().splitlines()[-1].startswith("genie"):
    failures.append(f"the last line is not the reason: {text[-300:]}")
  saved = reader.valid_steps(folder / "out") if job.steps else []
  mount(folder, _ROOM, again=True)
  again, text = jobs.attempt(job, base, folder)
  if again and code:
    failures.append(f"with room, code {again}: {text[-600:]}")
  elif job.content(folder / "out") != content:
    failures.append("with room, another result")
  elif saved and saved[-1] != jobs.resumed_step(text):
    failures.append(f"step {saved[-1]} was whole, and was not used")
  return failures


def trial(
  name: str, base: pathlib.Path, scratch: pathlib.Path, number: int
) -> trials.Outcome:
  """Runs a job on a disk whose size is a share of what it needs."""
  kills.reference(name, base)
  folder = scratch / f"disk-{name}"
  folder.mkdir(parents=True, exist_ok=True)
  stated = base / "references" / name / "disk.txt"
  if not stated.exists():
    most = isolated(base, "measure", name, str(base), str(folder))
    stated.write_text(most)
  most = int(stated.read_text())
  size = _PAGE * max(1, round(most * number / (_SIZES - 1) / _PAGE))
  found = json.loads(
    isolated(base, "attempt", name, str(base), str(folder), str(size))
  )
  return trials.Outcome(
    1, tuple(f"{size} bytes of {most}: {one}" for one in found)
  )


def campaigns(
  base: pathlib.Path, scratch: pathlib.Path
) -> dict[str, trials.Campaign]:
  """Returns the campaigns: 30 sizes of disk for each writer."""
  return {
    f"disks-{name}": trials.Campaign(
      "a full disk under "
      + ("`genie train`" if name in jobs.TRAINING else f"`genie {name}`"),
      "one line; with room, the same bits in the end",
      _SIZES,
      functools.partial(trial, name, base, scratch),
    )
    for name in NAMES
  }


def main(what: str, name: str, base: str, folder: str, size: str = "0") -> None:
  """Runs within a namespace; prints the result as JSON."""
  places = pathlib.Path(base), pathlib.Path(folder)
  if what == "measure":
    print(measure(name, *places))
  else:
    print(json.dumps(attempt(name, *places, int(size))))


if __name__ == "__main__":
  main(*sys.argv[1:])
