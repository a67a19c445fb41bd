"""Tests that the project's files are consistent."""

import configparser
import importlib.util
import pathlib
import re
import subprocess
import tomllib
import warnings

import pytest
import yaml
from packaging import requirements, utils

import genie_jax

ROOT = pathlib.Path(__file__).parent.parent
LOCKS = sorted(path.stem for path in (ROOT / "locks").glob("*.txt"))


@pytest.fixture(scope="module")
def setup_cfg():
  """Returns the sections of setup.cfg."""
  parser = configparser.ConfigParser()
  parser.read(ROOT / "setup.cfg")
  return parser


@pytest.fixture(scope="module")
def matrix():
  """Returns `.ci/matrix.py` as a module."""
  spec = importlib.util.spec_from_file_location(
    "matrix", ROOT / ".ci/matrix.py"
  )
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def test_a_commit_is_checked_by_the_commands_of_make_lint():
  recipe = subprocess.run(
    # Without --no-print-directory, `make test` would add lines to the output.
    ["make", "--no-print-directory", "--dry-run", "-o", ".venv/.ready", "lint"],
    cwd=ROOT, capture_output=True, text=True, timeout=60, check=True,
  )  # fmt: skip
  config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
  (repo,) = config["repos"]
  assert repo["repo"] == "local"  # Others would be downloaded.
  assert recipe.stdout.splitlines() == [hook["entry"] for hook in repo["hooks"]]
  for hook in repo["hooks"]:
    assert hook["language"] == "system"
    assert not hook["pass_filenames"]


def test_the_version_is_the_same_everywhere():
  citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
  assert citation["version"] == genie_jax.__version__
  titles = re.findall(
    r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE
  )
  assert titles[0] == "Unreleased"
  assert titles[1] == genie_jax.__version__


def paths_in_the_tree():
  """Returns the paths in the tree of BUILD.md, relative to the root."""
  text = (ROOT / "BUILD.md").read_text()
  (tree,) = re.findall(r"^## The tree\n\n```\n(.+?)^```", text, re.M | re.S)
  folders, paths = [], set()
  for line in tree.splitlines():
    names = re.split(r"  +", line.strip())[0].split(", ")
    depth = (len(line) - len(line.lstrip())) // 2
    folders = folders[:depth]
    paths |= {"".join(folders) + name for name in names}
    folders.append(names[0])
  return paths


def test_the_tree_names_every_package_and_module():
  package = ROOT / "genie_jax"
  modules = {str(path.relative_to(ROOT)) for path in package.rglob("*.py")}
  folders = {
    f"{path.parent.relative_to(ROOT)}/" for path in package.rglob("__init__.py")
  }
  # A package's line includes its __init__.py.
  inner = {name for name in modules if name.endswith("/__init__.py")}
  named = paths_in_the_tree()
  assert len(modules) > len(folders) > 1
  assert (modules - inner) | folders <= named


def test_everything_in_the_tree_exists():
  missing = {name for name in paths_in_the_tree() if not (ROOT / name).exists()}
  assert not missing


def test_the_package_contains_its_type_marker(setup_cfg):
  data = setup_cfg["options.package_data"]
  assert "py.typed" in data["genie_jax"].split()
  assert (ROOT / "genie_jax" / "py.typed").exists()


def lock(name):
  """Returns a lock file's lines, each with its hashes, by package."""
  text = (ROOT / "locks" / f"{name}.txt").read_text()
  found = {}
  for line in text.replace("\\\n", " ").splitlines():
    if not line.startswith("#"):
      requirement, *hashes = re.split(r"\s+--hash=", line)
      requirement = requirements.Requirement(requirement)
      package = utils.canonicalize_name(requirement.name)
      found.setdefault(package, []).append((requirement, hashes))
  return found


def wanted(setup_cfg, extras):
  """Yields what setup.cfg and pyproject.toml require, with some extras."""
  build = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]
  yield from map(requirements.Requirement, build["requires"])
  lists = setup_cfg["options.extras_require"]
  for text in (
    setup_cfg["options"]["install_requires"],
    *map(lists.get, extras),
  ):
    for line in filter(None, text.split("\n")):
      requirement = requirements.Requirement(line)
      if requirement.name == "genie_jax":
        yield from wanted(setup_cfg, requirement.extras)
      else:
        yield requirement


@pytest.mark.parametrize("name", LOCKS)
def test_every_file_of_a_lock_has_a_hash_and_an_exact_version(name):
  found = lock(name)
  assert found
  for package, entries in found.items():
    for requirement, hashes in entries:
      assert re.fullmatch(r"==[^*]+", str(requirement.specifier)), package
      assert hashes, package
      for each in hashes:
        assert re.fullmatch(r"sha256:[0-9a-f]{64}", each), package


@pytest.mark.parametrize("name", LOCKS)
def test_a_lock_names_no_address_and_no_path(name):
  # pip uses the index of its user's settings.
  text = (ROOT / "locks" / f"{name}.txt").read_text()
  assert not re.search(r"://|@|^ *--(?!hash=)|(^|\s)/", text, re.MULTILINE)


@pytest.mark.parametrize("version", ["3.11.0", "3.12.0", "3.13.0"])
@pytest.mark.parametrize(
  "name, extras",
  [("dev", ["dev"]), ("tpu", ["tpu", "gs"]), ("cuda", ["cuda", "gs"])],
)
def test_a_lock_has_a_version_of_all_that_is_required(
  setup_cfg, name, extras, version
):
  environment = {
    "python_version": version[:4],
    "python_full_version": version,
    "sys_platform": "linux",
    "platform_machine": "x86_64",
  }
  applies = lambda requirement: (
    requirement.marker is None or requirement.marker.evaluate(environment)
  )
  found = lock(name) | lock("build")
  count = 0
  for requirement in filter(applies, wanted(setup_cfg, extras)):
    package = utils.canonicalize_name(requirement.name)
    assert package in found, f"{package}: run `make lock`"
    ((locked, _),) = [entry for entry in found[package] if applies(entry[0])]
    (exact,) = locked.specifier
    assert requirement.specifier.contains(exact.version), (
      f"{locked} is not {requirement}: run `make lock`"
    )
    count += 1
  assert count > 25


@pytest.mark.parametrize("name", ["tpu", "cuda"])
def test_images_have_the_versions_of_the_tests(name):
  versions = lambda entries: {str(each.specifier) for each, _ in entries}
  tested, image = lock("dev"), lock(name)
  both = tested.keys() & image.keys()
  assert len(both) > 50
  for package in both:
    assert versions(image[package]) <= versions(tested[package]), package


def test_the_tpu_compiler_of_the_tests_has_the_hashes_of_the_lock():
  recipe = (ROOT / "Makefile").read_text()
  (command,) = re.findall(r"^\t-(sed .*libtpu.*) \|", recipe, re.MULTILINE)
  done = subprocess.run(
    command.replace("$$", "$"), shell=True, cwd=ROOT, capture_output=True,
    text=True, timeout=60, check=True,
  )  # fmt: skip
  lines = [line for line in done.stdout.splitlines() if "==" in line]
  assert [str(requirements.Requirement(line[:-1])) for line in lines] == [
    str(requirement) for requirement, _ in lock("tpu")["libtpu"]
  ]
  hashes = [each for _, hashes in lock("tpu")["libtpu"] for each in hashes]
  assert re.findall("--hash=(.+?)[ \n]", done.stdout) == hashes


def test_the_matrix_has_every_python_that_the_package_names(matrix, setup_cfg):
  named = re.findall(
    r"Python :: (3\.\d+)", setup_cfg["metadata"]["classifiers"]
  )
  assert {f"highest-{version}" for version in named} <= set(matrix.CELLS)
  assert f"lowest-{min(named)}" in matrix.CELLS


def test_the_matrix_states_the_failed_step_and_why(
  matrix, monkeypatch, tmp_path
):
  def run(command, **options):
    words = [str(word) for word in command]
    if words[1:3] == ["pip", "list"]:
      return '[{"name": "jax", "version": "9.9"}]'
    if "-c" in words:
      return "7\n"
    if "pytest" in words:
      raise matrix.Failed("python ended with 1: E  no\n== 1 failed in 2s ==")
    return ""

  monkeypatch.setattr(matrix, "run", run)
  monkeypatch.setattr(matrix, "FOLDER", tmp_path)
  row = matrix.run_cell("lowest-3.11", "uv", 1, ["tests/core"])
  assert not row["passed"]
  assert row["modules_imported"] == 7
  line = matrix.table({"lowest-3.11": row}).splitlines()[1]
  assert " failed at tests " in line
  assert line.endswith(" 1 failed in 2s")


@pytest.mark.parametrize(
  "module", ["genie_jax", "genie_jax.core.files", "experiments.coinrun.lam"]
)
def test_a_warning_of_our_own_code_is_an_error(module):
  with pytest.raises(DeprecationWarning, match="old"):
    warnings.warn_explicit("old", DeprecationWarning, "f.py", 1, module)


@pytest.mark.parametrize("module", ["jax._src.core", "genie_jaxed", "tests.x"])
def test_a_warning_of_other_code_is_not_an_error(module):
  with pytest.warns(DeprecationWarning, match="old"):
    warnings.warn_explicit("old", DeprecationWarning, "f.py", 1, module)
