"""Tests of reading and writing files in buckets."""

import pathlib

import numpy as np
import pytest

from genie_jax.cli import main
from genie_jax.core import buckets, errors, files, images
from genie_jax.data import manifest
from genie_jax.evals import curves
from genie_jax.worlds import trained_models
from tests.fixtures import memory_bucket


@pytest.fixture(autouse=True)
def bucket(tmp_path, monkeypatch):
  """The address of an empty bucket; the working folder is empty too."""
  monkeypatch.chdir(tmp_path)
  yield memory_bucket.empty()
  # An address handled as a local path would have created a folder "s3:".
  assert not list(tmp_path.glob("*:"))


def test_files_in_a_bucket_round_trip(bucket):
  value = {"a": [1, 2.5, None, "ü"]}
  files.write_json(f"{bucket}/plan.json", value)
  files.write_atomic(f"{bucket}/step.txt", "text")
  assert files.read_json(f"{bucket}/plan.json") == value
  assert buckets.read_bytes(f"{bucket}/step.txt") == b"text"
  assert buckets.names(bucket) == ["plan.json", "step.txt"]
  assert buckets.exists(f"{bucket}/plan.json")
  assert not buckets.exists(f"{bucket}/other.json")


def test_a_large_file_is_read_in_blocks(bucket, monkeypatch):
  monkeypatch.setattr(buckets, "_BLOCK_BYTES", 4)
  files.write_atomic(f"{bucket}/x", b"0123456789")
  assert list(buckets.blocks(f"{bucket}/x")) == [b"0123", b"4567", b"89"]


def test_errors_for_missing_and_invalid_json_name_the_full_address(bucket):
  with pytest.raises(
    errors.UserError, match=r"s3://bucket/run/gone\.json does not exist"
  ):
    files.read_json(f"{bucket}/gone.json")
  files.write_atomic(f"{bucket}/broken.json", b"\xff\xfe")
  with pytest.raises(
    errors.UserError, match=r"s3://bucket/run/broken\.json is not valid"
  ):
    files.read_json(f"{bucket}/broken.json")


def test_denied_access_raises_an_error_of_one_line(bucket, monkeypatch):
  def forbidden(*_, **__):
    raise PermissionError("403\nForbidden")

  monkeypatch.setattr(memory_bucket.Bucket, "_open", forbidden)
  with pytest.raises(errors.UserError, match="403 Forbidden") as raised:
    files.write_json(f"{bucket}/x.json", 1)
  assert "\n" not in str(raised.value)
  with pytest.raises(errors.UserError, match="access to the bucket"):
    files.read_json(f"{bucket}/x.json")


@pytest.mark.parametrize(
  "given",
  ["s3://bucket/x.gif", pathlib.Path("s3://bucket/x.gif"), "gs:/b/x.gif"],
)
def test_disk_only_outputs_reject_bucket_addresses(given):
  with pytest.raises(errors.UserError, match="to a disk only") as raised:
    buckets.disk(given, "--out")
  assert "--out" in str(raised.value) and "\n" not in str(raised.value)
  with pytest.raises(errors.UserError, match="to a disk only"):
    files.temporary_sibling(given)


def test_videos_and_pictures_can_be_saved_to_a_bucket(bucket):
  frames = np.zeros((2, 8, 8, 3), np.uint8)
  images.save_video(f"{bucket}/x.gif", frames, 10)
  images.save_png(f"{bucket}/x.png", frames[0])
  assert buckets.read_bytes(f"{bucket}/x.gif").startswith(b"GIF")
  assert buckets.read_bytes(f"{bucket}/x.png").startswith(b"\x89PNG")


def test_local_paths_are_returned_unchanged():
  for text in ("runs/x", "/runs/x", "s3", "gs", "", "a/gs:/b"):
    assert buckets.disk(text, "--out") == pathlib.Path(text)


def test_the_cache_folder_follows_xdg_cache_home():
  folder = buckets.cache_folder("data", {"XDG_CACHE_HOME": "/c"})
  assert folder == pathlib.Path("/c/genie_jax/data")
  home = buckets.cache_folder("data", {})
  assert home == pathlib.Path.home() / ".cache" / "genie_jax" / "data"


@pytest.mark.parametrize(
  "read",
  [trained_models.read, curves.read, files.read_json, manifest.Manifest.read],
)
def test_a_missing_driver_raises_an_error_that_says_what_to_install(read):
  with pytest.raises(errors.UserError, match="pip install gcsfs"):
    read("gs://no-such-bucket/x")


@pytest.mark.parametrize(
  "line",
  [
    "data coinrun --levels 1 --validation-levels 0 --test-levels 0 "
    "--frames-per-level 1 --workers 1 --out s3://bucket/clips",
    "tokenize --tokenizer t --clips c --out s3://bucket/tokens",
    "eval --world w --clips c --out s3://bucket/report",
  ],
)
def test_commands_reject_a_bucket_as_output_folder_before_they_start(
  line, capsys
):
  assert main.main(line.split()) == 2
  message = capsys.readouterr().err
  assert "--out s3://bucket/" in message and "to a disk only" in message


def test_curves_are_read_from_a_run_in_a_bucket(bucket):
  files.write_json(f"{bucket}/config.json", {"stage": "toy"})
  files.write_atomic(f"{bucket}/metrics.jsonl", '{"step": 1, "loss": 2.0}\n')
  found = curves.read(bucket)
  assert found.stage == "toy"
  assert found.panels["Training loss"]["loss"] == ([1], [2])
