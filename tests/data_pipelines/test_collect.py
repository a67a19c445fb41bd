"""Tests that collected folders have the same bytes however they were made."""

import hashlib
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from data_pipelines.procgen import collect
from genie_jax.core import errors
from genie_jax.data import inspection, manifest, sources

_OPTIONS = collect.Options(
  levels=6,
  validation_levels=2,
  test_levels=1,
  frames_per_level=100,
  levels_per_shard=2,
)

_COLLECT = """
import resource, sys
from data_pipelines.procgen import collect
if __name__ == "__main__":
  out, workers, limit = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
  if limit:
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
  try:
    collect.collect(out, collect.Options(
        levels=6, validation_levels=2, test_levels=1, frames_per_level=100,
        levels_per_shard=2), workers)
  except OSError as error:
    sys.exit(f"OSError {error}")
"""


def _digests(folder: pathlib.Path) -> dict[str, str]:
  return {
    str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
    for path in sorted(folder.rglob("*"))
    if path.is_file()
  }


@pytest.fixture(scope="module")
def whole(procgen, tmp_path_factory):
  """Returns a folder that one process collected without a stop."""
  folder = tmp_path_factory.mktemp("whole") / "clips"
  collect.collect(folder, _OPTIONS)
  return folder


@pytest.fixture
def script(tmp_path):
  """Returns a function that starts a collector in another process."""
  path = tmp_path / "script.py"
  path.write_text(_COLLECT)

  def start(out, workers: int = 1, limit: int = 0) -> subprocess.Popen:
    return subprocess.Popen(
      [sys.executable, str(path), str(out), str(workers), str(limit)],
      stderr=subprocess.PIPE,
      text=True,
      env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )

  return start


def test_levels_of_the_splits_are_those_of_the_paper(whole):
  full = collect.Options()
  assert full.counts() == {"train": 10_000, "validation": 100, "test": 100}
  assert full.frames_per_level == 1_000 and full.mode == "hard"
  made = manifest.Manifest.read(whole)
  assert made.sources("train") == list(range(6))
  assert made.sources("validation") == [10_000, 10_001]
  assert made.sources("test") == [10_100]
  assert made.num_actions == 15
  assert made.action_aliases == dict.fromkeys((9, 10, 11, 12, 13, 14), 4)
  assert "CC-BY" in made.made_by["licences"]


def test_every_record_passes_inspection(whole):
  inspection.verify(manifest.Manifest.read(whole))


@pytest.mark.parametrize("workers", [2, 3])
def test_any_number_of_workers_writes_the_same_bytes(whole, tmp_path, workers):
  collect.collect(tmp_path / "clips", _OPTIONS, workers)
  assert _digests(tmp_path / "clips") == _digests(whole)


def test_windows_contain_the_frames_and_actions_that_were_played(whole):
  played = collect.play(3, _OPTIONS)
  frames, actions, first = played.frames, played.actions, played.first
  assert first[0]
  assert (
    actions.tolist()
    == np.random.default_rng([0, 3])
    .integers(0, 15, 100, dtype=np.int32)
    .tolist()
  )
  source = sources.WindowSource(whole, "train", 20)
  seen = 0
  for index in range(len(source)):
    window = source[index]
    if window["source"] != 3:
      continue
    start = int(window["start"])
    np.testing.assert_array_equal(window["frames"], frames[start : start + 20])
    np.testing.assert_array_equal(
      window["actions"], actions[start : start + 19]
    )
    assert not first[start + 1 : start + 20].any()
    seen += 1
  assert seen


def test_the_episode_table_follows_the_resets(procgen, tmp_path):
  # In these levels, this policy dies or wins before the 500th step.
  options = collect.Options(4, 0, 0, 500)
  collect.collect(tmp_path / "clips", options)
  made = manifest.Manifest.read(tmp_path / "clips")
  rows = made.splits["train"]["shards"][0]["episodes"]
  assert len(rows) > 4
  for level in range(4):
    first = collect.play(level, options).first
    starts = [start for source, _, start, _ in rows if source == level]
    assert starts == np.flatnonzero(first).tolist()
  assert sum(length for *_, length in rows) == 4 * 500


def test_a_killed_run_resumes_and_keeps_finished_shards(
  whole, script, tmp_path
):
  out = tmp_path / "clips"
  run = script(out)
  deadline = time.monotonic() + 60
  while not list(out.glob(".progress/train/*.json")):
    assert time.monotonic() < deadline and run.poll() is None
    time.sleep(0.002)
  run.send_signal(signal.SIGKILL)
  run.communicate()
  assert not (out / "manifest.json").exists()
  with pytest.raises(errors.UserError, match="run that command again"):
    manifest.Manifest.read(out)
  report = collect.collect(out, _OPTIONS)
  assert report.kept_frames >= 200
  assert report.kept_frames + report.frames == 900
  assert _digests(out) == _digests(whole)


def test_a_full_disk_ends_with_one_line_and_the_next_run_finishes(
  whole, script, tmp_path
):
  out = tmp_path / "clips"
  sizes = sorted(path.stat().st_size for path in whole.rglob("*.array_record"))
  run = script(out, 1, sizes[-1] - 1)
  _, said = run.communicate()
  assert run.returncode == 1
  assert "OSError" in said.splitlines()[-1]
  assert "run the same command again" in said.splitlines()[-1]
  assert not (out / "manifest.json").exists()
  assert not list(out.rglob("*.tmp"))
  collect.collect(out, _OPTIONS)
  assert _digests(out) == _digests(whole)


def test_a_finished_folder_is_checked_and_only_damaged_shards_are_redone(
  whole, tmp_path
):
  out = tmp_path / "clips"
  collect.collect(out, _OPTIONS)
  assert collect.collect(out, _OPTIONS).frames == 0
  path = out / "train" / "00001-of-00003.array_record"
  data = bytearray(path.read_bytes())
  data[70] ^= 1
  path.write_bytes(bytes(data))
  report = collect.collect(out, _OPTIONS)
  assert (report.frames, report.kept_frames) == (200, 700)
  assert _digests(out) == _digests(whole)


def test_a_folder_with_other_options_is_refused_with_both_values(whole):
  with pytest.raises(errors.UserError, match="levels 6 there, 7 now"):
    collect.collect(whole, collect.Options(7, 2, 1, 100, levels_per_shard=2))


def test_a_folder_with_other_files_is_left_alone(procgen, tmp_path):
  (tmp_path / "precious.txt").write_text("mine")
  with pytest.raises(errors.UserError, match="is not empty"):
    collect.collect(tmp_path, _OPTIONS)
  assert [path.name for path in tmp_path.iterdir()] == ["precious.txt"]


@pytest.mark.parametrize(
  "change, said",
  [
    ({"levels": 10_001}, "--levels 10001.*0 to 10000"),
    ({"levels": 0}, "--levels 0"),
    ({"validation_levels": 101}, "--validation-levels 101.*0 to 100"),
    ({"test_levels": -1}, "--test-levels -1"),
    ({"frames_per_level": 0}, "--frames-per-level"),
    ({"levels_per_shard": 0}, "--levels-per-shard"),
    ({"policy_seed": -1}, "--policy-seed"),
    ({"mode": "hrad"}, "did you mean 'hard'"),
  ],
)
def test_options_out_of_range_are_refused(tmp_path, change, said):
  with pytest.raises(errors.UserError, match=said):
    collect.collect(tmp_path / "clips", collect.Options(**change))
  assert not (tmp_path / "clips").exists()


def test_no_workers_are_refused(tmp_path):
  with pytest.raises(errors.UserError, match="--workers"):
    collect.collect(tmp_path / "clips", _OPTIONS, 0)
