"""The user's cache folder, and that of compiled programs in it."""

import hashlib
import importlib
import os
import pathlib
import platform
from collections.abc import Mapping

_CPU = pathlib.Path("/proc/cpuinfo")


def user_folder(environ: Mapping[str, str] | None = None) -> pathlib.Path:
  """Returns the user's cache folder, which may not exist yet.

  Args:
    environ: Environment variables; those of this process by default.
  """
  environ = os.environ if environ is None else environ
  base = environ.get("XDG_CACHE_HOME")
  base = pathlib.Path(base) if base else pathlib.Path.home() / ".cache"
  return base / "genie_jax"


def default_folder(environ: Mapping[str, str] | None = None) -> pathlib.Path:
  """Returns the user's compilation cache for this machine's kind of CPU.

  A compiled program contains code for the CPU that compiled it, even when most
  of it runs on an accelerator, and JAX's cache key does not include the CPU.
  Several machines may share a home folder, so each kind of CPU gets its own
  cache folder.

  Args:
    environ: Environment variables; those of this process by default.
  """
  name = f"{platform.machine()}-{_cpu_digest()}"
  return user_folder(environ) / "xla" / name


def use_checksums() -> None:
  """Makes JAX keep compiled programs with a checksum, from here on.

  Where zstandard is installed, which other packages need, JAX compresses with
  it and without a checksum, so that a bit that flips on the disk ends up in
  machine code. It uses zlib otherwise, which has a checksum: the program is
  then compiled again. JAX has no setting for this. The method is part of JAX's
  key of a program, so that programs that were kept before are not read.
  """
  compression = importlib.import_module("jax._src.compilation_cache")
  for name in ("zstd", "zstandard"):
    if hasattr(compression, name):
      setattr(compression, name, None)


def _cpu_digest() -> str:
  """Returns a short digest of the CPU's supported instructions."""
  text = platform.processor()
  if _CPU.is_file():
    lines = _CPU.read_text().splitlines()
    text = next(
      (line for line in lines if line.startswith(("flags", "Features"))), text
    )
  return hashlib.sha256(text.encode()).hexdigest()[:8]
