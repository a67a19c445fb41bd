"""Tests that shards are written atomically, and that damage is reported."""

import errno
import os
import subprocess
import sys

import numpy as np
import pytest

from genie_jax.core import errors
from genie_jax.data import manifest, shards, sources

# A limit of the file size simulates a full disk; random bytes do not compress.
_FILL = """
import resource, sys, os
from genie_jax.data import shards
hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))
try:
  with shards.ShardWriter(sys.argv[1]) as writer:
    for _ in range(40):
      writer.write(os.urandom(50_000))
except OSError as error:
  print(error.errno, error)
"""


def _only_shard(made: manifest.Manifest, index: int = 0):
  path, entry = made.shards("train")[index]
  return path, entry


def test_a_full_disk_is_an_os_error_and_leaves_nothing(tmp_path):
  path = tmp_path / "folder" / "00000-of-00001.array_record"
  done = subprocess.run(
    [sys.executable, "-c", _FILL, str(path)],
    capture_output=True,
    text=True,
    check=True,
  )
  number, message = done.stdout.split(" ", 1)
  assert int(number) == errno.EFBIG  # The error code of the size limit.
  assert "incomplete files were removed" in message
  assert str(path) in message
  assert not any(path.parent.iterdir())


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_recognised_in_an_error_of_array_record(code):
  error = RuntimeError(f"write() failed: {os.strerror(code)}; writing x")
  assert shards.disk_error(error, "x").errno == code


def test_a_failing_writer_keeps_an_existing_file(tmp_path):
  path = tmp_path / "00000-of-00001.array_record"
  with shards.ShardWriter(path) as writer:
    writer.write(b"old")
  before = path.read_bytes()
  with pytest.raises(KeyError), shards.ShardWriter(path) as writer:
    writer.write(b"new")
    raise KeyError
  assert path.read_bytes() == before
  assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_the_file_gets_its_name_only_when_it_is_complete(tmp_path):
  path = tmp_path / "00000-of-00001.array_record"
  with shards.ShardWriter(path) as writer:
    writer.write(b"one")
    assert not path.exists()
  assert path.exists()
  assert writer.entry["records"] == 1
  assert writer.entry["bytes"] == path.stat().st_size


@pytest.mark.parametrize("cut", [1, 1000])
def test_a_truncated_shard_is_refused_when_a_source_is_made(make_clips, cut):
  made = make_clips()
  path, _ = _only_shard(made)
  with open(path, "r+b") as file:
    file.truncate(path.stat().st_size - cut)
  with pytest.raises(errors.UserError, match="cut short"):
    sources.WindowSource(made.folder, "train", 8)


def test_a_shard_of_right_size_but_no_records_is_refused(make_clips):
  made = make_clips()
  path, entry = _only_shard(made)
  path.write_bytes(bytes(entry["bytes"]))
  with pytest.raises(errors.UserError, match="damaged: 0 records"):
    sources.WindowSource(made.folder, "train", 8)


def test_a_missing_shard_is_named(make_clips):
  made = make_clips()
  path, _ = _only_shard(made, 1)
  path.unlink()
  with pytest.raises(errors.UserError, match=r"00001-of-00002.*missing"):
    sources.WindowSource(made.folder, "train", 8)


def test_a_flipped_bit_damages_only_one_record_and_the_error_names_it(
  make_clips,
):
  made = make_clips()
  path, entry = _only_shard(made)
  reader = shards.ShardReader(path, entry)
  want = reader.read([0])[0][0]["frames"].copy()
  data = bytearray(path.read_bytes())
  # A byte in the compressed data of the shard's last record: after the other
  # records, and before the zeros and the footer that fill the 64 KiB block.
  place = max(i for i in range(3000) if data[i]) - 100
  data[place] ^= 4
  path.write_bytes(bytes(data))
  reader = shards.ShardReader(path, entry)
  failed = []
  for number in range(len(reader)):
    try:
      reader.read([number])
    except errors.UserError as error:
      assert path.name in str(error) and f"record {number}" in str(error)
      failed.append(number)
  assert len(failed) == 1
  if failed != [0]:
    assert (reader.read([0])[0][0]["frames"] == want).all()


def test_many_shards_are_read_with_few_open_files(
  make_clips, expected, monkeypatch
):
  monkeypatch.setattr(shards, "_MOST_OPEN", 3)
  lengths = dict.fromkeys(range(12), (20,))
  made = make_clips("many", lengths, per_shard=1)
  source = sources.WindowSource(made.folder, "train", 20)
  before = len(os.listdir("/proc/self/fd"))
  for _ in range(2):
    for number in range(12):
      np.testing.assert_array_equal(
        source[number]["frames"], expected(number, 0, 20)
      )
  assert len(os.listdir("/proc/self/fd")) <= before + 3


_OPEN_MANY = """
import resource, sys
from genie_jax.core import errors
from genie_jax.data import manifest, shards
made = manifest.Manifest.read(sys.argv[1])
path, entry = made.shards("train")[0]
kept = []
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (40, hard))
try:
  for _ in range(60):
    kept.append(shards.ShardReader(path, entry))
    kept[-1].open()
except errors.UserError as error:
  print(error)
"""


def test_the_limit_of_open_files_is_not_reported_as_damage(make_clips):
  made = make_clips()
  done = subprocess.run(
    [sys.executable, "-c", _OPEN_MANY, str(made.folder)],
    capture_output=True,
    text=True,
    check=True,
  )
  assert "too many files are open" in done.stdout
  assert "damaged" not in done.stdout and done.stdout.count("\n") == 1
