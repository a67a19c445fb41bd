"""Tests of atomic writes, JSON files and checksums."""

import errno
import hashlib
import json
import os

import pytest

from genie_jax.core import errors, files


def test_writing_creates_the_folder_and_leaves_no_temporary_file(tmp_path):
  path = tmp_path / "a" / "b.txt"
  files.write_atomic(path, "héllo")
  assert path.read_bytes() == "héllo".encode()
  assert os.listdir(path.parent) == ["b.txt"]


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_a_failed_write_keeps_the_old_file_and_removes_the_temporary_one(
  tmp_path, monkeypatch, failing
):
  path = tmp_path / "state.json"
  files.write_atomic(path, "old")

  def full(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

  monkeypatch.setattr(files.os, failing, full)
  with pytest.raises(OSError, match="No space left"):
    files.write_atomic(path, "new" * 1000)
  assert path.read_text() == "old"
  assert os.listdir(tmp_path) == ["state.json"]


def test_a_write_to_a_full_device_raises_and_leaves_no_file(
  tmp_path, monkeypatch
):
  if not os.path.exists("/dev/full"):
    pytest.skip("needs /dev/full, which only Linux has")
  target = tmp_path / "big.bin"
  link = tmp_path / "link"
  link.symlink_to("/dev/full")
  monkeypatch.setattr(files, "temporary_sibling", lambda path: link)
  with pytest.raises(OSError) as raised:
    files.write_atomic(target, bytes(1 << 16))
  assert raised.value.errno == errno.ENOSPC
  assert not target.exists() and not os.listdir(tmp_path)


def test_temporary_names_are_unique_hidden_siblings(tmp_path):
  names = {files.temporary_sibling(tmp_path / "x.bin") for _ in range(20)}
  assert len(names) == 20
  for name in names:
    assert name.parent == tmp_path and name.name.startswith(".x.bin.")


def test_json_round_trips_and_nan_is_rejected(tmp_path):
  value = {"a": [1, 2.5, None, "ü"], "b": {"c": True}}
  files.write_json(tmp_path / "v.json", value)
  assert files.read_json(tmp_path / "v.json") == value
  with pytest.raises(ValueError, match="JSON compliant"):
    files.write_json(tmp_path / "nan.json", {"x": float("nan")})
  assert not (tmp_path / "nan.json").exists()


@pytest.mark.parametrize("content", [b'{"a": 1', b"", b"\xff\xfe\x00"])
def test_the_error_for_invalid_json_names_the_file(tmp_path, content):
  path = tmp_path / "broken.json"
  path.write_bytes(content)
  with pytest.raises(
    errors.UserError, match=r"broken\.json is not valid JSON"
  ) as raised:
    files.read_json(path)
  assert "\n" not in str(raised.value)


def test_the_error_for_a_missing_file_names_it(tmp_path):
  with pytest.raises(errors.UserError, match=r"gone\.json does not exist"):
    files.read_json(tmp_path / "gone.json")
  (tmp_path / "file").write_text(json.dumps(1))
  with pytest.raises(errors.UserError, match="does not exist"):
    files.read_json(tmp_path / "file" / "below.json")


def test_sha256_covers_files_larger_than_one_block(tmp_path):
  content = os.urandom((1 << 20) + 17)
  (tmp_path / "x").write_bytes(content)
  assert files.sha256(tmp_path / "x") == hashlib.sha256(content).hexdigest()


def test_closest_suggests_only_similar_names():
  assert errors.closest("stpes", ["steps", "seed"]) == (
    " (did you mean 'steps'?)"
  )
  assert errors.closest("xyzzy", ["steps", "seed"]) == ""
