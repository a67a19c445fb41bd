"""The default folder of the compilation cache."""

import hashlib
import os
import pathlib
import platform
from collections.abc import Mapping

_CPU = pathlib.Path("/proc/cpuinfo")


def default_folder(environ: Mapping[str, str] | None = None) -> pathlib.Path:
  """Returns the user's compilation cache for this machine's kind of CPU.

  A compiled program contains code for the CPU that compiled it, even when most
  of it runs on an accelerator, and JAX's cache key does not include the CPU.
  Several machines may share a home folder, so each kind of CPU gets its own
  cache folder.

  Args:
    environ: Environment variables; those of this process by default.
  """
  environ = os.environ if environ is None else environ
  base = environ.get("XDG_CACHE_HOME")
  base = pathlib.Path(base) if base else pathlib.Path.home() / ".cache"
  return base / "genie_jax" / "xla" / f"{platform.machine()}-{_cpu_digest()}"


def _cpu_digest() -> str:
  """Returns a short digest of the CPU's supported instructions."""
  text = platform.processor()
  if _CPU.is_file():
    lines = _CPU.read_text().splitlines()
    text = next(
      (line for line in lines if line.startswith(("flags", "Features"))), text
    )
  return hashlib.sha256(text.encode()).hexdigest()[:8]
