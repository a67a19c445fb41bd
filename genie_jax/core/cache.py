"""Where compiled programs are kept between starts."""

import hashlib
import os
import pathlib
import platform
from collections.abc import Mapping

_CPU = pathlib.Path("/proc/cpuinfo")


def default_folder(environ: Mapping[str, str] | None = None) -> pathlib.Path:
  """Returns the user's cache of compiled programs for this kind of machine.

  Programs hold code for the CPU that compiled them, also around kernels of an
  accelerator, and JAX does not look at the CPU when it finds one. Home folders
  are shared between machines, so each kind of CPU has a folder of its own.

  Args:
    environ: Environment variables; those of this process by default.
  """
  environ = os.environ if environ is None else environ
  base = environ.get("XDG_CACHE_HOME")
  base = pathlib.Path(base) if base else pathlib.Path.home() / ".cache"
  return base / "genie_jax" / "xla" / f"{platform.machine()}-{_features()}"


def _features() -> str:
  """Returns a short name of the CPU's set of instructions."""
  text = platform.processor()
  if _CPU.is_file():
    lines = _CPU.read_text().splitlines()
    text = next(
      (line for line in lines if line.startswith(("flags", "Features"))), text
    )
  return hashlib.sha256(text.encode()).hexdigest()[:8]
