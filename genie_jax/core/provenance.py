"""Where a result comes from: command, commit, time and machine."""

import datetime
import os
import pathlib
import platform
import shlex
import subprocess
from collections.abc import Sequence
from typing import Any

_CPU = pathlib.Path("/proc/cpuinfo")


def commit(*paths: str) -> str | None:
  """Returns the checkout's commit, "+" if edited; None outside a checkout.

  Args:
    *paths: Where edits count: git's path specifications, relative to the
      checkout. Everywhere if there are none.
  """
  root = pathlib.Path(__file__).resolve().parents[2]
  if not (root / ".git").exists():
    return None
  ask = lambda *words: subprocess.run(
    ["git", "-C", str(root), *words],
    capture_output=True,
    text=True,
    check=False,
  )
  try:
    found = ask("rev-parse", "HEAD")
    edited = ask("status", "--porcelain", "--untracked-files=no", "--", *paths)
  except FileNotFoundError:  # A checkout on a machine without git.
    return None
  if found.returncode:
    return None
  return found.stdout.strip() + ("+" if edited.stdout.strip() else "")


def cpu() -> str:
  """Returns the name of this machine's CPU and the number of its cores."""
  name = platform.processor() or platform.machine()
  if _CPU.is_file():
    for line in _CPU.read_text().splitlines():
      if line.startswith("model name"):
        name = line.partition(":")[2].strip()
        break
  return f"{name}, {os.cpu_count()} cores"


def collect(argv: Sequence[str]) -> dict[str, Any]:
  """Returns what every result states about its origin.

  Args:
    argv: The words of the command, starting with its name.

  Returns:
    command; date, with the time zone; commit, None outside a checkout; clean,
    whether the checkout has no edits (None outside a checkout); hardware.
  """
  found = commit()
  return {
    "command": shlex.join(argv),
    "date": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
    "commit": None if found is None else found.removesuffix("+"),
    "clean": None if found is None else not found.endswith("+"),
    "hardware": cpu(),
  }
