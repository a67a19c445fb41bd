"""Tests that imports point down, and that unused libraries are not loaded."""

import ast
import importlib
import json
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
LAYERS = (
  "core",
  "sharding",
  "weights",
  "data",
  "checkpoints",
  "nn",
  "models",
  "sampling",
  "train",
  "stages",
  "worlds",
  "tokenizing",
  "ports",
  "evals",
  "plan",
  "scaling",
  "serve",
  "cli",
)
# Folder outside the package -> packages of genie_jax that it may import.
ALLOWED = {"data_pipelines": {"core", "data"}}
ACCELERATED = {"jax", "jaxlib", "flax", "optax", "orbax", "chex"}


def modules(folder):
  """Returns the Python files below a folder."""
  return sorted((ROOT / folder).rglob("*.py"))


def imports(path):
  """Returns the dotted names that a file imports anywhere in it.

  Imports inside functions and under TYPE_CHECKING count: they are
  dependencies as well.
  """
  names = set()
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      names |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, f"{path} imports relatively"
      names |= {f"{node.module}.{alias.name}" for alias in node.names}
  return names


def packages(path):
  """Returns the sub-packages of genie_jax that a file imports."""
  return {
    name.split(".")[1]
    for name in imports(path)
    if name.startswith("genie_jax.") and name != "genie_jax.__version__"
  }


def test_every_package_has_a_layer():
  package = ROOT / "genie_jax"
  found = {
    path.relative_to(package).parts[0]
    for path in modules("genie_jax")
    if path.name == "__init__.py" and path.parent != package
  }
  assert found <= set(LAYERS), found - set(LAYERS)


@pytest.mark.parametrize("layer", LAYERS)
def test_a_package_imports_only_packages_below_it(layer):
  below = set(LAYERS[: LAYERS.index(layer) + 1])
  for path in modules(f"genie_jax/{layer}"):
    assert packages(path) <= below, f"{path} imports {packages(path) - below}"


@pytest.mark.parametrize("folder", sorted(ALLOWED))
def test_pipelines_import_only_packages_for_data(folder):
  for path in modules(folder):
    assert packages(path) <= ALLOWED[folder], path
    roots = {name.split(".")[0] for name in imports(path)}
    assert not roots & (ACCELERATED | {"experiments"}), path


def test_only_the_command_line_reaches_outside_the_package():
  for layer in LAYERS:
    for path in modules(f"genie_jax/{layer}"):
      roots = {name.split(".")[0] for name in imports(path)}
      assert not roots & {"experiments", "benchmarks", "tests"}, path
      if layer != "cli":
        assert "data_pipelines" not in roots, path


@pytest.mark.parametrize("layer", ["core", "data"])
def test_reading_data_needs_no_accelerator_library(layer):
  for path in modules(f"genie_jax/{layer}"):
    roots = {name.split(".")[0] for name in imports(path)}
    assert not roots & ACCELERATED, path


def test_no_module_is_longer_than_525_lines():
  # Files of more than about 500 lines may have more than one purpose.
  for folder in ("genie_jax", "data_pipelines", "experiments"):
    for path in modules(folder):
      assert len(path.read_text().splitlines()) <= 525, path


def test_nothing_unpickles():
  for folder in ("genie_jax", "data_pipelines", "experiments", "benchmarks"):
    for path in modules(folder):
      if folder != "benchmarks":  # A baseline there uses pickle.
        assert "pickle" not in {name.split(".")[0] for name in imports(path)}, (
          path
        )


@pytest.mark.parametrize(
  "line, rule",
  [
    ("exec(text)", "S102"),
    ("pickle.loads(text)", "S301"),
    ("marshal.loads(text)", "S302"),
    ("eval(text)", "S307"),
    ("yaml.load(text, yaml.Loader)", "S506"),
  ],
)
@pytest.mark.parametrize("folder", ["genie_jax/core", "tests/core", ".ci"])
def test_make_lint_refuses_what_runs_code_in_data(folder, line, rule):
  done = subprocess.run(
    [sys.executable, "-m", "ruff", "check", "--no-cache", "--quiet",
     "--output-format", "concise", "--stdin-filename", f"{folder}/new.py", "-"],
    input=f"import marshal, pickle\n\nimport yaml\n\ntext = b''\n{line}\n",
    cwd=ROOT, capture_output=True, text=True, timeout=60,
  )  # fmt: skip
  assert done.returncode == 1 and f": {rule} " in done.stdout, done


def loaded_after(code):
  """Runs code in a new Python; returns names of loaded modules, and stdout."""
  done = subprocess.run(
    [
      sys.executable,
      "-c",
      f"{code}\nimport json, sys\n"
      "print('\\n' + json.dumps(sorted(sys.modules)))",
    ],
    cwd=ROOT,
    capture_output=True,
    text=True,
    timeout=300,
    check=False,
  )
  assert done.returncode == 0, done.stderr[-2000:]
  return set(json.loads(done.stdout.splitlines()[-1])), done.stdout


def test_importing_the_package_loads_no_accelerator_library():
  loaded, _ = loaded_after("import genie_jax")
  assert not loaded & (ACCELERATED | {"numpy"})


def test_help_names_every_command_and_loads_no_accelerator_library():
  from genie_jax.cli import main

  loaded, out = loaded_after(
    "from genie_jax.cli import main\n"
    "for argv in ['--help'], *([n, '--help'] for n in main.COMMANDS):\n"
    "  try: main.main(argv)\n"
    "  except SystemExit as end: assert not end.code"
  )
  assert not loaded & ACCELERATED
  for name, text in main.COMMANDS.items():
    assert name in out and text in " ".join(out.split())
    # `--help` everywhere shows an example.
    assert f"\n  genie {name}" in out, name


def test_a_data_worker_starts_no_backend():
  names = [f"genie_jax.data.{path.stem}" for path in modules("genie_jax/data")]
  loaded, _ = loaded_after(
    "\n".join(f"import {name}" for name in names) + "\n"
    "import sys\n"
    "bridge = sys.modules.get('jax._src.xla_bridge')\n"
    "assert bridge is None or not bridge._backends"
  )
  assert "genie_jax.data.loader" in loaded


@pytest.mark.parametrize(
  "name",
  [path.stem for path in modules("genie_jax/cli") if path.stem != "__init__"],
)
def test_every_entry_point_imports_and_can_be_run_as_a_module(name):
  module = importlib.import_module(f"genie_jax.cli.{name}")
  assert callable(module.main)
  source = pathlib.Path(module.__file__).read_text()
  assert 'if __name__ == "__main__":' in source
