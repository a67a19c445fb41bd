"""Tests of `genie_jax.load_world`: names, caches, and missing libraries."""

import os
import pathlib
import subprocess
import sys

import pytest

import genie_jax
from genie_jax.core import errors
from genie_jax.worlds import download, shipped, world_manifest

ROOT = pathlib.Path(__file__).parents[1]
SHIPPED = ROOT / "experiments/coinrun/results/world"


def run(code, **environ):
  """Returns the output of code in a new process."""
  done = subprocess.run(
    [sys.executable, "-c", code],
    cwd=ROOT,
    capture_output=True,
    text=True,
    timeout=300,
    check=False,
    env={**os.environ, **environ},
  )
  assert done.returncode == 0, done.stderr[-2000:]
  return done.stdout


def test_the_package_lists_the_worlds_that_ship():
  assert genie_jax.worlds() == ["coinrun"]
  for name in genie_jax.worlds():
    manifest = world_manifest.read_manifest(shipped.find(name))
    assert manifest["name"] == name
  # It is also a package.
  assert genie_jax.worlds.shipped is shipped


def test_a_name_is_that_of_a_shipped_world():
  assert download.local("coinrun").samefile(SHIPPED)


def test_a_folder_comes_before_a_name(tmp_path, monkeypatch):
  (tmp_path / "coinrun").mkdir()
  monkeypatch.chdir(tmp_path)
  assert download.local("coinrun") == pathlib.Path("coinrun")
  with pytest.raises(errors.UserError, match="coinrun is not a world"):
    genie_jax.load_world("coinrun")


def test_an_unknown_name_is_one_line_with_the_known_ones():
  with pytest.raises(errors.UserError) as caught:
    genie_jax.load_world("coinrum")
  assert str(caught.value) == (
    "There is no folder 'coinrum' and no world of that name (did you mean "
    "'coinrun'?); give a folder that `genie export` wrote, its address, or one "
    "of: coinrun."
  )


def test_without_jax_one_line_points_to_pytorch():
  answer = run(
    "import sys\n"
    "sys.modules['jax'] = sys.modules['jaxlib'] = None\n"
    "import genie_jax\n"
    "from genie_jax.core import errors\n"
    "try: genie_jax.load_world('coinrun')\n"
    "except errors.UserError as error: print(error)\n"
  )
  [line] = answer.splitlines()
  assert "needs JAX, which is not installed" in line
  assert "genie_jax.ports.torch.load_world" in line


def test_without_pytorch_one_line_gives_the_command():
  answer = run(
    "import sys\n"
    "sys.modules['torch'] = None\n"
    "from genie_jax.core import errors\n"
    "try: from genie_jax.ports.torch import load_world\n"
    "except errors.UserError as error: print(error)\n"
  )
  [line] = answer.splitlines()
  assert "`pip install 'genie_jax[torch]'`" in line


def test_compiled_programs_are_cached_even_after_an_earlier_compilation(
  tmp_path,
):
  environ = {"XDG_CACHE_HOME": str(tmp_path), "JAX_COMPILATION_CACHE_DIR": ""}
  run(
    "import jax\n"
    "jax.jit(lambda x: x + 1)(1)  # JAX notes that there is no cache.\n"
    "import genie_jax\n"
    "genie_jax.load_world('coinrun', cache=True)\n"
    "jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.0)\n"
    "jax.jit(lambda x: x * 2)(1)\n",
    **environ,
  )
  assert list(tmp_path.rglob("genie_jax/xla/*/jit_*"))
