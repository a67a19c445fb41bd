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


def test_only_edits_of_the_named_paths_count(monkeypatch, tmp_path):
  # A checkout of its own, whose package the module belongs to.
  folder = tmp_path / "genie_jax/core"
  folder.mkdir(parents=True)
  for name in ("a.py", "b.json"):
    (tmp_path / name).write_text("1")
  run = lambda *words: subprocess.run(
    ["git", "-C", str(tmp_path), "-c", "user.name=n", "-c", "user.email=e"]
    + list(words),
    check=True,
    capture_output=True,
  )
  run("init")
  run("add", ".")
  run("commit", "-m", "m")
  monkeypatch.setattr(provenance, "__file__", str(folder / "provenance.py"))
  (tmp_path / "b.json").write_text("2")
  assert provenance.commit().endswith("+")
  assert not provenance.commit("a.py").endswith("+")
  assert not provenance.commit(".", ":(exclude,glob)**/b.json").endswith("+")
