"""Tests of data folders in a bucket, with a bucket in memory."""

import dataclasses
import pathlib
import shutil
import threading
from concurrent import futures
from unittest import mock

import numpy as np
import pytest

from genie_jax.core import buckets, errors
from genie_jax.data import inspection, manifest, mirror, shards, sources
from tests.fixtures import memory_bucket

FIRST = "train/00000-of-00002.array_record"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
  """The folder for copies; the current folder is another, empty one."""
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
  (tmp_path / "here").mkdir()
  monkeypatch.chdir(tmp_path / "here")
  yield tmp_path / "cache" / "genie_jax" / "data"
  assert not list((tmp_path / "here").iterdir())


@pytest.fixture
def clips(make_clips):
  """A clips folder with two splits, on the disk and in a bucket."""
  made = make_clips()
  shutil.copytree(made.folder / "train", made.folder / "test")
  made = dataclasses.replace(
    made, splits={**made.splits, "test": made.splits["train"]}
  )
  made.write(made.folder)
  return made, memory_bucket.upload(
    made.folder, f"{memory_bucket.empty()}/clips"
  )


@pytest.fixture
def addresses(monkeypatch):
  """The addresses of files that are read from the bucket."""
  found, blocks = [], buckets.blocks

  def watched(address):
    found.append(address)
    return blocks(address)

  monkeypatch.setattr(buckets, "blocks", watched)
  return found


def files_of(folder):
  return sorted(
    path.relative_to(folder).as_posix()
    for path in folder.rglob("*")
    if path.is_file()
  )


def test_clips_in_a_bucket_equal_those_on_disk(clips):
  made, address = clips
  found = sources.WindowSource(address, "train", 20)
  wanted = sources.WindowSource(made.folder, "train", 20)
  assert len(found) == len(wanted)
  rows = [0, 7, len(wanted) - 1]
  for name, array in wanted.gather(rows).items():
    np.testing.assert_array_equal(found.gather(rows)[name], array)
  again = manifest.Manifest.read(f"{address}/")
  assert again.fingerprint == made.fingerprint
  assert again.to_dict() == made.to_dict()
  assert again.sources("train") == made.sources("train")
  inspection.verify(again)


def test_tokens_in_a_bucket_equal_those_on_disk(make_tokens):
  made = make_tokens()
  address = memory_bucket.upload(made.folder, f"{memory_bucket.empty()}/tokens")
  found = sources.TokenSource(address, "train")
  wanted = sources.TokenSource(made.folder, "train")
  for name, array in wanted[3].items():
    np.testing.assert_array_equal(found[3][name], array)


def test_only_the_requested_split_is_copied_and_only_once(
  clips, cache, addresses
):
  made, address = clips
  with mock.patch.object(mirror.logging, "info") as told:
    sources.WindowSource(address, "train", 20)
    (folder,) = cache.iterdir()
    assert files_of(folder) == [
      path for path in files_of(made.folder) if path.startswith("train/")
    ]
    assert addresses.count(f"{address}/{FIRST}") == 1
    (call,) = told.call_args_list
    size = sum(entry["bytes"] for _, entry in made.shards("train"))
    assert f"2 files, {size / 1e6:.1f} MB" in call.args[0] % call.args[1:]
    del addresses[:]
    sources.WindowSource(address, "train", 20)
    assert set(addresses) == {f"{address}/manifest.json"}
    assert told.call_count == 1


def test_a_truncated_copy_is_made_again(clips, cache):
  _, address = clips
  sources.WindowSource(address, "train", 20)
  (folder,) = cache.iterdir()
  whole = (folder / FIRST).read_bytes()
  (folder / FIRST).write_bytes(whole[:-1])
  sources.WindowSource(address, "train", 20)
  assert (folder / FIRST).read_bytes() == whole


@pytest.mark.parametrize(
  "change, match",
  [
    (
      lambda path: memory_bucket.flip(path),
      "is not the shard that its manifest",
    ),
    (
      lambda path: memory_bucket.Bucket().pipe_file(path, b"x" * (1 << 20)),
      "is not the shard that its manifest",
    ),
    (
      lambda path: memory_bucket.Bucket().pipe_file(path, b""),
      "is not the shard that its manifest",
    ),
    (lambda path: memory_bucket.remove(path), "does not exist; copy the whole"),
  ],
  ids=["flipped", "longer", "empty", "gone"],
)
def test_a_shard_that_differs_from_the_manifest_is_not_copied(
  clips, cache, change, match
):
  _, address = clips
  change(f"{address}/{FIRST}")
  with pytest.raises(errors.UserError, match=match) as raised:
    sources.WindowSource(address, "train", 20)
  assert f"{address}/{FIRST}" in str(raised.value)
  assert "\n" not in str(raised.value)
  (folder,) = cache.iterdir()
  assert FIRST not in files_of(folder)
  assert not [name for name in files_of(folder) if name.endswith(".tmp")]


def test_several_processes_of_one_machine_may_copy_at_the_same_time(
  clips, cache, monkeypatch
):
  made, address = clips
  meets, blocks = threading.Barrier(3, timeout=60), buckets.blocks

  def together(where):
    content = list(blocks(where))
    if where.endswith(FIRST):
      meets.wait()  # All have read, none has renamed.
    return iter(content)

  monkeypatch.setattr(buckets, "blocks", together)
  with futures.ThreadPoolExecutor(3) as pool:
    list(
      pool.map(lambda _: sources.WindowSource(address, "train", 20), range(3))
    )
  assert meets.n_waiting == 0
  (folder,) = cache.iterdir()
  assert (folder / FIRST).read_bytes() == (made.folder / FIRST).read_bytes()
  assert len(files_of(folder)) == 2


def test_changed_data_is_copied_to_another_folder(clips, cache):
  made, address = clips
  sources.WindowSource(address, "train", 20)
  dataclasses.replace(made, name="other").write(address)
  sources.WindowSource(address, "train", 20)
  assert len(list(cache.iterdir())) == 2


def test_a_missing_folder_is_named_with_its_whole_address():
  where = f"{memory_bucket.empty()}/clips"
  with pytest.raises(
    errors.UserError, match=f"^{where}/manifest.json does not exist"
  ):
    manifest.Manifest.read(where)
  assert not manifest.exists(where)


def test_messages_name_the_bucket_and_not_the_copy(clips):
  _, address = clips
  assert manifest.exists(address)
  with pytest.raises(errors.UserError, match=f"^{address}/manifest.json has"):
    manifest.Manifest.read(address).check({"fps": 11})
  with pytest.raises(errors.UserError, match=f"^{address} has clips"):
    sources.TokenSource(address, "train")
  with pytest.raises(errors.UserError, match=f"of {address} has no episode"):
    sources.WindowSource(address, "train", 99)


@pytest.mark.parametrize(
  "name", ["../../00000-of-00002.array_record", "/etc/passwd", "x"]
)
def test_a_shard_cannot_be_copied_out_of_the_cache(clips, cache, name):
  made, address = clips
  entry = {**made.shards("train")[0][1], "file": name}
  with pytest.raises(errors.UserError, match="not a valid name"):
    mirror.copy_shards(address, cache / "x", "train", [entry])
  with pytest.raises(errors.UserError, match="not a valid name"):
    mirror.copy_shards(
      address, cache / "x", "..", made.splits["train"]["shards"]
    )
  assert not cache.exists()


@pytest.mark.parametrize("fails", ["before", "meanwhile"])
def test_a_full_disk_raises_a_one_line_error_with_a_remedy(
  clips, monkeypatch, fails
):
  _, address = clips
  if fails == "before":
    usage = shutil.disk_usage("/")._replace(free=10)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
  else:

    def full(*_):
      raise OSError(28, "No space left on device")

    monkeypatch.setattr(mirror.os, "replace", full)
  with pytest.raises(errors.UserError, match="set XDG_CACHE_HOME") as raised:
    sources.WindowSource(address, "train", 20)
  assert "\n" not in str(raised.value)


def test_a_model_in_a_token_folder_is_copied_once(make_tokens, addresses):
  made = make_tokens()
  (made.folder / "tokenizer").mkdir()
  (made.folder / "tokenizer" / "config.json").write_text("{}")
  address = memory_bucket.upload(made.folder, f"{memory_bucket.empty()}/tokens")
  memory_bucket.Bucket().pipe_file(f"{address}/tokenizer/marker", b"")
  found = manifest.Manifest.read(address)
  folder = found.model_folder("tokenizer")
  assert files_of(folder) == ["config.json"]
  assert addresses.count(f"{address}/tokenizer/config.json") == 1
  assert found.model_folder("tokenizer") == folder
  assert addresses.count(f"{address}/tokenizer/config.json") == 1
  with pytest.raises(errors.UserError, match=f"{address}/lam does not exist"):
    found.model_folder("lam")
  assert made.model_folder("lam") == made.folder / "lam"


def test_a_model_that_another_process_copied_first_is_used(
  make_tokens, monkeypatch
):
  made = make_tokens()
  (made.folder / "lam").mkdir()
  (made.folder / "lam" / "config.json").write_text("{}")
  found = manifest.Manifest.read(
    memory_bucket.upload(made.folder, f"{memory_bucket.empty()}/tokens")
  )
  blocks = buckets.blocks

  def overtaken(address):
    shutil.copytree(made.folder / "lam", found.folder / "lam")
    return blocks(address)

  monkeypatch.setattr(buckets, "blocks", overtaken)
  folder = found.model_folder("lam")
  assert files_of(folder.parent) == ["lam/config.json"]


def test_shards_can_only_be_written_to_a_disk():
  with (
    pytest.raises(errors.UserError, match="to a disk only"),
    shards.ShardWriter(pathlib.Path("s3://bucket/tokens/train/x")),
  ):
    pass
