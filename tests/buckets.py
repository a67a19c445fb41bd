"""A bucket in memory for tests."""

import pathlib
from typing import ClassVar

import fsspec
from fsspec.implementations import memory


class Bucket(memory.MemoryFileSystem):
  """Objects in memory under s3://."""

  protocol = "s3"
  cachable = False
  # etils keeps the one that it made first, so both belong to the class.
  store: ClassVar[dict] = {}
  pseudo_dirs: ClassVar[list] = [""]

  @classmethod
  def _strip_protocol(cls, path):
    return super()._strip_protocol(path.removeprefix("s3://"))


def empty() -> str:
  """Returns the address of a folder in an empty bucket."""
  fsspec.register_implementation("s3", Bucket, clobber=True)
  Bucket.store.clear()
  Bucket.pseudo_dirs[:] = [""]
  return "s3://bucket/run"


def upload(folder: pathlib.Path, address: str) -> str:
  """Copies all files of a folder to an address, and returns that."""
  target = Bucket()
  for path in folder.rglob("*"):
    if path.is_file():
      target.pipe_file(
        f"{address}/{path.relative_to(folder)}", path.read_bytes()
      )
  return address


def remove(address: str) -> None:
  """Removes one object."""
  Bucket().rm_file(address)


def flip(address: str) -> None:
  """Changes the last byte of one object."""
  content = bytearray(Bucket().cat_file(address))
  content[-1] ^= 1
  Bucket().pipe_file(address, bytes(content))
