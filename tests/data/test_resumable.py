"""Folders of shards that are killed, locked, resumed and refused."""

import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys

import numpy as np
import pytest

from genie_jax.core import errors, files
from genie_jax.data import inspection, manifest, records, resumable, shards

SPLITS = {"train": range(7), "validation": range(100, 103), "test": range(0)}
PER_SHARD = 3


def make_manifest(**options):
  return manifest.Manifest(
    kind="clips",
    name="numbers",
    fps=10,
    frame_shape=(2, 2, 1),
    frames_per_record=4,
    splits={},
    num_actions=None,
    action_aliases={},
    made_by={"maker": "a test", "options": {"seed": 0} | options},
  )


def open_writer(out, **options):
  return resumable.FolderWriter(
    out, make_manifest(**options), SPLITS, PER_SHARD
  )


def write_shard(folder, shard):
  with resumable.ShardWriter(folder, shard) as writer:
    for number in shard.items:
      frames = np.full((4, 2, 2, 1), number, np.uint8)
      meta = {"fps": 10, "source": number, "start": 0}
      writer.episodes.append([number, len(writer.episodes), 0, 4])
      writer.write(records.pack({"frames": frames}, meta))


def write(out, most=None, **options):
  """Writes a folder, or only so many of its missing shards."""
  writer = open_writer(out, **options)
  with writer:
    for shard in writer.missing[:most]:
      write_shard(writer.folder, shard)
    if most is None:
      writer.finish()
  return writer


def contents(folder):
  return {
    path.relative_to(folder).as_posix(): path.read_bytes()
    for path in sorted(folder.rglob("*"))
    if path.is_file()
  }


@pytest.fixture
def whole(tmp_path):
  write(tmp_path / "whole")
  return tmp_path / "whole"


def names(found):
  return [(shard.split, shard.name[:5], shard.items) for shard in found]


def test_shards_are_fixed_ranges_of_items():
  found = resumable.divide("train", range(10, 17), 3)
  assert [shard.items for shard in found] == [
    range(10, 13),
    range(13, 16),
    range(16, 17),
  ]
  assert [shard.name for shard in found] == [
    shards.shard_name(index, 3) for index in range(3)
  ]
  assert resumable.divide("test", range(0), 3) == []


def test_a_whole_folder_has_a_manifest_and_no_traces(whole):
  found = manifest.Manifest.read(whole)
  inspection.verify(found)
  assert list(found.splits) == ["train", "validation", "test"]
  assert found.splits["train"]["frames"] == 28
  assert found.splits["test"] == {"records": 0, "frames": 0, "shards": []}
  assert not (whole / ".progress").exists()


def test_what_was_finished_is_kept_and_the_bytes_are_the_same(whole, tmp_path):
  out = tmp_path / "out"
  write(out, most=2)
  with pytest.raises(errors.UserError, match="has finished"):
    manifest.Manifest.read(out)
  writer = write(out)
  assert names(writer.kept) == [
    ("train", "00000", range(3)),
    ("train", "00001", range(3, 6)),
  ]
  assert names(writer.missing) == [
    ("train", "00002", range(6, 7)),
    ("validation", "00000", range(100, 103)),
  ]
  assert contents(out) == contents(whole)


def test_a_finished_folder_is_left_alone_and_damage_is_written_again(whole):
  before = contents(whole)
  assert write(whole).missing == [] and contents(whole) == before
  path = whole / "train" / shards.shard_name(1, 3)
  path.write_bytes(path.read_bytes()[:-1])
  writer = open_writer(whole)
  with writer:
    assert names(writer.missing) == [("train", "00001", range(3, 6))]
    # Until it is whole again nobody must take it for finished.
    assert not manifest.exists(whole)
  write(whole)
  assert contents(whole) == before


def test_a_receipt_whose_shard_is_gone_counts_for_nothing(whole, tmp_path):
  out = tmp_path / "out"
  write(out, most=3)
  (out / "train" / shards.shard_name(0, 3)).unlink()
  assert len(write(out).kept) == 2
  assert contents(out) == contents(whole)


def test_what_a_killed_writer_left_half_written_is_removed(whole, tmp_path):
  out = tmp_path / "out"
  write(out, most=1)
  for name in (
    "train/.00001-of-00003.array_record.0.tmp",
    ".manifest.json.tmp",
  ):
    (out / name).write_bytes(b"half")
  write(out)
  assert contents(out) == contents(whole)


_KILLED = """
import sys, time
sys.path.insert(0, sys.argv[2])
from tests.data import test_resumable as test
writer = test.open_writer(sys.argv[1])
with writer:
  test.write_shard(writer.folder, writer.missing[0])
  with test.resumable.ShardWriter(writer.folder, writer.missing[1]) as shard:
    shard.write(b"half a shard")
    print("ready", flush=True)
    time.sleep(600)
"""


def test_a_killed_process_leaves_its_shards_and_no_lock(whole, tmp_path):
  out, root = tmp_path / "out", pathlib.Path(__file__).parents[2]
  run = subprocess.Popen(
    [sys.executable, "-c", _KILLED, str(out), str(root)],
    stdout=subprocess.PIPE,
    text=True,
  )
  try:
    assert run.stdout.readline() == "ready\n"
    # Whoever asks is told who writes, and the folder stays as it is.
    before = contents(out)
    with pytest.raises(errors.UserError) as caught:
      write(out)
    assert f"Process {run.pid} on " in str(caught.value)
    assert str(out) in str(caught.value) and "\n" not in str(caught.value)
    assert contents(out) == before
  finally:
    run.send_signal(signal.SIGKILL)
    run.communicate()
  assert len(write(out).kept) == 1
  assert contents(out) == contents(whole)


def test_a_lock_file_that_a_finished_writer_removed_locks_nothing(
  tmp_path, monkeypatch
):
  out = tmp_path / "out"
  real, removed = os.fstat, []

  def fstat(descriptor):
    # The other writer finishes just before this one looks at the file.
    if not removed:
      (out / ".progress" / "lock").unlink()
      removed.append(descriptor)
    return real(descriptor)

  writer = open_writer(out)
  with monkeypatch.context() as patch:
    patch.setattr(os, "fstat", fstat)
    writer.__enter__()
  try:
    assert removed and (out / ".progress" / "lock").exists()
    with pytest.raises(errors.UserError, match=f"Process {os.getpid()} on"):
      write(out)
  finally:
    writer.__exit__(None, None, None)


def test_another_request_is_refused_with_both_values(whole, tmp_path):
  out = tmp_path / "out"
  write(out, most=1)
  for folder in (out, whole):
    before = contents(folder)
    with pytest.raises(errors.UserError) as caught:
      write(folder, seed=3, noise=True)
    message = str(caught.value)
    assert "(noise None there, True now; seed 0 there, 3 now)" in message
    assert "another folder" in message and "\n" not in message
    assert contents(folder) == before


def test_a_folder_with_other_things_is_left_alone(tmp_path):
  (tmp_path / "notes.txt").write_text("mine")
  with pytest.raises(errors.UserError, match="not empty and holds no clips"):
    write(tmp_path)
  assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("below", ["file", "file/out/deep"])
def test_a_folder_that_is_a_file_or_below_one_is_refused(tmp_path, below):
  (tmp_path / "file").write_text("mine")
  with pytest.raises(errors.UserError, match=r"file is not a folder"):
    open_writer(tmp_path / below)


def test_a_folder_that_may_not_be_written_is_refused(tmp_path, monkeypatch):
  # The user who runs the tests may be root, who may write everywhere.
  monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path)
  with pytest.raises(errors.UserError, match="you may not write into"):
    open_writer(tmp_path / "out")


def test_a_folder_in_a_bucket_is_refused():
  with pytest.raises(errors.UserError, match=r"--out gs://b/c .* disk only"):
    open_writer("gs://b/c")


def test_a_shard_that_fails_gets_no_receipt(tmp_path):
  writer = open_writer(tmp_path / "out")
  with (
    writer,
    pytest.raises(KeyError),
    resumable.ShardWriter(writer.folder, writer.missing[0]),
  ):
    raise KeyError
  assert write(tmp_path / "out").kept == {}


def test_notes_of_the_version_before_are_understood(whole, tmp_path):
  """Collectors stated only `made_by`, and kept receipts in one folder."""
  out = tmp_path / "out"
  write(out, most=2)
  progress = out / ".progress"
  request = make_manifest().to_dict()["made_by"]
  (progress / "request.json").write_text(json.dumps(request))
  for path in list(progress.glob("train/*.json")):
    path.rename(progress / f"train-{path.name}")
  (progress / "train").rmdir()
  with pytest.raises(errors.UserError, match="seed 0 there, 1 now"):
    write(out, seed=1)
  assert len(write(out).kept) == 2
  assert contents(out) == contents(whole)


def test_the_entries_of_a_manifest_are_those_of_its_shards(whole):
  for shard in manifest.Manifest.read(whole).splits["train"]["shards"]:
    path = whole / "train" / shard["file"]
    assert shard["sha256"] == files.sha256(path)
    assert shard["bytes"] == path.stat().st_size
    assert shard["records"] == len(shard["episodes"])


def test_a_request_does_not_depend_on_what_was_written(whole):
  found = manifest.Manifest.read(whole)
  assert dataclasses.replace(found, splits={}).to_dict() == (
    make_manifest().to_dict()
  )
