"""Runs tests on eight CPU devices, never on a GPU, with a compilation cache.

A test whose process looks up a host name, other than localhost, fails.
"""

import contextlib
import ipaddress
import os
import pathlib
import socket
import sys

os.environ["JAX_PLATFORMS"] = "cpu"
# Processes that tests start also use it, instead of one in the home folder.
os.environ["JAX_COMPILATION_CACHE_DIR"] = os.environ.get(
  "GENIE_TEST_CACHE",
  str(pathlib.Path(__file__).parent.parent / ".cache" / "jax"),
)
# The tests' models are tiny, so compiling takes most of the time. Without
# optimizations, and as one piece, it takes about a third; `make test-slow` uses
# the defaults.
os.environ.setdefault(
  "XLA_FLAGS",
  "--xla_backend_optimization_level=0"
  " --xla_cpu_opt_preset=CPU_OPT_PRESET_FAST_COMPILE"
  " --xla_cpu_use_fusion_emitters=false"
  " --xla_cpu_parallel_codegen_split_count=1",
)

import jax
import pytest

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)


def _refuse_name_servers(event, arguments):
  """Ends a test that looks up a host name, before a name server is asked.

  A name server may be absent or slow, or answer for names that do not exist. An
  audit hook also applies where a library has its own reference to the function.
  """
  if not event.startswith(("socket.getaddrinfo", "socket.gethostby")):
    return
  name = arguments[0]
  name = name.decode() if isinstance(name, bytes) else name
  if name in (None, "", "localhost"):
    return
  with contextlib.suppress(ValueError):
    # Of an address, gethostbyaddr asks for the name.
    address = ipaddress.ip_address(name.partition("%")[0])
    if address.is_loopback or event != "socket.gethostbyaddr":
      return
  with contextlib.suppress(OSError):
    socket.inet_aton(name)  # Also "2130706433".
    if event != "socket.gethostbyaddr":
      return
  # Not an OSError, which the code under test may expect of an unknown name.
  pytest.fail(
    f"{event}({name!r}) asks a name server; tests use 127.0.0.1 or localhost, "
    "or replace the call."
  )


sys.addaudithook(_refuse_name_servers)


@pytest.fixture(autouse=True)
def environment():
  """Restores the environment, which some commands change for their process."""
  before = dict(os.environ)
  yield
  for name in os.environ.keys() - before.keys():
    del os.environ[name]
  os.environ.update(before)


@pytest.fixture
def unknown_host(monkeypatch):
  """A host name that is unknown, without asking a name server."""

  def fail(*_, **__):
    raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

  monkeypatch.setattr(socket, "getaddrinfo", fail)
  return "nobody.invalid"
