"""Runs the tests on each Python, with the newest and the oldest packages.

    make test-matrix
    make test-matrix CELL=lowest-3.11 TESTS="tests/core tests/nn"

A cell is a Python and a rule for versions within the bounds of setup.cfg:
`highest` takes the newest of every package, `lowest` the oldest of those that
setup.cfg names. Each has an environment in .venv-matrix, where every module of
the packages is imported and then the tests run. A table at the end and
build/matrix.json say what passed; what a run of one cell did not try stays in
build/matrix.json from the run before.
"""

import argparse
import configparser
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
CELLS = ("highest-3.11", "highest-3.12", "highest-3.13", "lowest-3.11")
RULES = {"highest": "highest", "lowest": "lowest-direct"}
FOLDER = ROOT / ".venv-matrix"
REPORT = ROOT / "build" / "matrix.json"
SHOWN = ("jax", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
# Imports every module; prints what only an extra outside `dev` would bring.
IMPORT_ALL = """
import importlib, pkgutil
count = 0
for name in ("genie_jax", "data_pipelines"):
  for module in pkgutil.walk_packages(
      importlib.import_module(name).__path__, name + "."):
    if module.name.endswith(".__main__"):
      continue
    try:
      importlib.import_module(module.name)
      count += 1
    except ModuleNotFoundError as error:
      if error.name != "torch":
        raise
print(count)
"""


class Failed(Exception):
  """A step of a cell ended with an error."""


def main():
  """Runs the cells that the command line names; exits with 1 if one fails."""
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--cell", choices=CELLS, help="one cell instead of all")
  parser.add_argument("--uv", default="uv", help="the uv to install with")
  parser.add_argument("--workers", type=int, default=2, help="of pytest")
  parser.add_argument("tests", nargs="*", help="tests/ when left out")
  args = parser.parse_args()
  report = json.loads(REPORT.read_text()) if REPORT.exists() else {}
  names = [args.cell] if args.cell else CELLS
  for name in names:
    print(f"== {name}", flush=True)
    tests = args.tests or ["tests"]
    report[name] = run_cell(name, args.uv, args.workers, tests)
    REPORT.parent.mkdir(exist_ok=True)
    REPORT.write_text(json.dumps(report, indent=2, sort_keys=True) + "\n")
  print(table({name: report[name] for name in names}))
  sys.exit(not all(report[name]["passed"] for name in names))


def run_cell(name, uv, workers, tests):
  """Returns what a cell's row of the report says."""
  rule, version = name.split("-")
  python = FOLDER / name / "bin" / "python"
  row = {"passed": False, "command": ["pytest", *tests], "step": "install"}
  began = time.monotonic()
  try:
    run(
      [
        uv,
        "venv",
        "--quiet",
        "--clear",
        "--python",
        interpreter(version),
        python.parent.parent,
      ]
    )
    install = [uv, "pip", "install", "--quiet", "--python", python]
    # Bounds of setup.cfg alone: no lock file.
    run([*install, "--resolution", RULES[rule], "--editable", ".[dev]"])
    library = install_tpu_compiler(install, python)
    row["versions"] = json.loads(
      run(
        [uv, "pip", "list", "--quiet", "--python", python, "--format", "json"],
        output=True,
      )
    )
    row["versions"] = {
      package["name"]: package["version"]
      for package in row["versions"]
      if package["name"] != "genie-jax"
    }
    row["step"] = "import"
    row["modules_imported"] = int(
      run([python, "-c", IMPORT_ALL], output=True, JAX_PLATFORMS="cpu")
    )
    row["step"] = "tests"
    text = run(
      [
        python,
        "-m",
        "pytest",
        "-m",
        "not slow",
        "-q",
        *(["-n", str(workers), "--dist", "worksteal"] if workers > 1 else []),
        *tests,
      ],
      output=True,
      echo=True,
      TPU_LIBRARY_PATH=str(library),
    )
    row["tests"] = text.strip().splitlines()[-1].strip("= ")
    row |= {"passed": True, "step": "done"}
  except Failed as failure:
    row["error"] = str(failure)
    print(row["error"], flush=True)
  row["seconds"] = round(time.monotonic() - began)
  return row


def install_tpu_compiler(install, python):
  """Installs the compiler of the `plan` extra; returns its library's path.

  Next to the environment and not in it: where JAX finds it, every start looks
  for TPUs first. Tests that need it are skipped where it does not install.
  """
  folder = python.parent.parent / "libtpu"
  setup = configparser.ConfigParser()
  setup.read(ROOT / "setup.cfg")
  wanted = setup["options.extras_require"]["plan"].split("\n")
  try:
    run(
      [
        *install,
        "--no-deps",
        "--target",
        folder,
        *[line for line in wanted if line],
      ]
    )
  except Failed as failure:
    print(f"no TPU compiler, its tests are skipped: {failure}", flush=True)
  return folder / "libtpu" / "libtpu.so"


def interpreter(version):
  """Returns a Python of a version: of the PATH, of pyenv, or uv's own."""
  pyenv = pathlib.Path(os.environ.get("PYENV_ROOT", "~/.pyenv")).expanduser()
  candidates = [
    shutil.which(f"python{version}"),
    *sorted(map(str, pyenv.glob(f"versions/{version}.*/bin/python{version}"))),
  ]
  for candidate in filter(None, candidates):
    # A command of pyenv fails where its version is not switched on.
    if (
      subprocess.run(
        [candidate, "-c", ""], capture_output=True, check=False
      ).returncode
      == 0
    ):
      return candidate
  return version


def run(command, *, output=False, echo=False, **environment):
  """Runs a command in the root folder and returns its output, if asked.

  Args:
    command: Words.
    output: Whether to return what it prints instead of showing it.
    echo: Whether to show it as well.
    **environment: Variables in addition to those of this process.

  Raises:
    Failed: It did not end with 0; has its last lines.
  """
  command = [str(word) for word in command]
  if not output:
    print("+", " ".join(command), flush=True)
  lines = []
  with subprocess.Popen(
    command,
    cwd=ROOT,
    env=os.environ | environment,
    text=True,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
  ) as process:
    for line in process.stdout:
      lines.append(line)
      if echo or not output:
        print(line, end="", flush=True)
  if process.returncode:
    raise Failed(
      f"{command[0]} ended with {process.returncode}: "
      + "".join(lines[-15:]).strip()
    )
  return "".join(lines)


def table(report):
  """Returns the rows of a report as text in columns."""
  rows = [("cell", "result", *SHOWN, "tests")]
  for name, row in report.items():
    versions = row.get("versions", {})
    result = "passed" if row["passed"] else f"failed at {row['step']}"
    tests = row.get("tests", "")
    if not tests and "error" in row:
      # The last line of pytest counts the failures.
      last = row["error"].splitlines()[-1].strip("= ")
      tests = last if re.search(r"\d+ (failed|error)", last) else ""
    rows.append((name, result, *[versions.get(p, "") for p in SHOWN], tests))
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  return "\n".join(
    "  ".join(
      cell.ljust(width) for cell, width in zip(row, widths, strict=True)
    ).rstrip()
    for row in rows
  )


if __name__ == "__main__":
  main()
