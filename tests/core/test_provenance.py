"""Tests of the origin that results state."""

import datetime
import pathlib
import shlex
import subprocess

from genie_jax.core import provenance

ROOT = pathlib.Path(__file__).parents[2]


def git(*words):
  return subprocess.run(
    ["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=True
  ).stdout.strip()


def test_the_commit_is_that_of_the_checkout_and_marked_if_edited():
  found = provenance.commit()
  if not (ROOT / ".git").exists():
    assert found is None
    return
  edited = git("status", "--porcelain", "--untracked-files=no")
  assert found == git("rev-parse", "HEAD") + ("+" if edited else "")


def test_a_result_states_its_command_so_that_a_shell_repeats_it():
  argv = ["genie", "scaling", "ladder", "a file.py"]
  found = provenance.collect(argv)
  assert shlex.split(found["command"]) == argv
  assert datetime.datetime.fromisoformat(found["date"]).tzinfo is not None
  assert (found["commit"] is None) == (found["clean"] is None)
  assert found["commit"] is None or len(found["commit"]) == 40
  assert "cores" in found["hardware"]
