"""Tests of files that are whole or absent."""

import errno
import hashlib
import json
import os

import pytest

from genie_jax.core import errors, files


def test_a_new_file_is_whole_and_its_folder_is_made(tmp_path):
  path = tmp_path / "a" / "b.txt"
  files.write_atomic(path, "héllo")
  assert path.read_bytes() == "héllo".encode()
  assert os.listdir(path.parent) == ["b.txt"]


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_a_full_disk_keeps_the_old_file_and_leaves_nothing_beside_it(
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


def test_a_full_device_raises_and_leaves_nothing(tmp_path, monkeypatch):
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


def test_temporary_names_are_fresh_hidden_siblings(tmp_path):
  names = {files.temporary_sibling(tmp_path / "x.bin") for _ in range(20)}
  assert len(names) == 20
  for name in names:
    assert name.parent == tmp_path and name.name.startswith(".x.bin.")


def test_json_round_trips_and_refuses_what_json_has_no_name_for(tmp_path):
  value = {"a": [1, 2.5, None, "ü"], "b": {"c": True}}
  files.write_json(tmp_path / "v.json", value)
  assert files.read_json(tmp_path / "v.json") == value
  with pytest.raises(ValueError, match="JSON compliant"):
    files.write_json(tmp_path / "nan.json", {"x": float("nan")})
  assert not (tmp_path / "nan.json").exists()


@pytest.mark.parametrize("content", [b'{"a": 1', b"", b"\xff\xfe\x00"])
def test_broken_json_is_one_line_that_names_the_file(tmp_path, content):
  path = tmp_path / "broken.json"
  path.write_bytes(content)
  with pytest.raises(
    errors.UserError, match=r"broken\.json is not valid JSON"
  ) as raised:
    files.read_json(path)
  assert "\n" not in str(raised.value)


def test_missing_json_names_the_file(tmp_path):
  with pytest.raises(errors.UserError, match=r"gone\.json does not exist"):
    files.read_json(tmp_path / "gone.json")
  (tmp_path / "file").write_text(json.dumps(1))
  with pytest.raises(errors.UserError, match="does not exist"):
    files.read_json(tmp_path / "file" / "below.json")


def test_sha256_is_that_of_all_bytes_across_blocks(tmp_path):
  content = os.urandom((1 << 20) + 17)
  (tmp_path / "x").write_bytes(content)
  assert files.sha256(tmp_path / "x") == hashlib.sha256(content).hexdigest()


def test_closest_hints_only_at_names_that_are_alike():
  assert errors.closest("stpes", ["steps", "seed"]) == (
    " (did you mean 'steps'?)"
  )
  assert errors.closest("xyzzy", ["steps", "seed"]) == ""
