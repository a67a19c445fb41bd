"""Tests of how many files of the package a value passes through.

A walk is the chain of the package's files on the call stack, from the entry
point to the place where the value is used, files that only forward it included.
Short walks are a property of the design that is easily lost, so their lengths
are measured while the commands run.
"""

import contextlib
import functools
import itertools
import os
import pathlib
import sys

import jax
import pytest

import genie_jax
from genie_jax.cli import main
from genie_jax.models import dynamics
from genie_jax.serve import branch, engine
from genie_jax.sharding import rendezvous
from tests.fixtures import foreign_config, stage_data, tiny_folders, tiny_world
from tests.serve import players

PACKAGE = pathlib.Path(genie_jax.__file__).parent
parts, models = tiny_folders.parts, tiny_folders.models


@functools.cache
def project_file(filename):
  """Returns a path within the package, or None for other files."""
  path = pathlib.Path(filename)
  return (
    str(path.relative_to(PACKAGE)) if path.is_relative_to(PACKAGE) else None
  )


def walk(frame, wanted=lambda frame: True):
  """Returns the package's files on a stack, outermost first.

  Adjacent frames of one file count once.

  Args:
    frame: The innermost frame.
    wanted: Tells for a frame of the package whether it counts.
  """
  names = []
  while frame is not None:
    name = project_file(frame.f_code.co_filename)
    if name is not None and wanted(frame):
      names.append(name)
    frame = frame.f_back
  return tuple(name for name, _ in itertools.groupby(reversed(names)))


@contextlib.contextmanager
def profiled(function):
  """Calls `function(frame, event, argument)` for each call of this thread."""
  before = sys.getprofile()
  sys.setprofile(function)
  try:
    yield
  finally:
    sys.setprofile(before)


def test_parameters_reach_an_exported_world_through_ten_files(
  parts, models, tmp_path
):
  workdir = tiny_world.write_workdir(
    tmp_path / "run",
    "dynamics",
    parts["dynamics"].config["model"],
    parts["dynamics"].params,
  )
  read, written = set(), set()

  def record(frame, event, argument):
    if event == "call" and "/orbax/" in frame.f_code.co_filename:
      read.update(walk(frame))
    elif event == "c_call" and argument.__name__ == "write":
      name = getattr(argument.__self__, "name", "")
      if ".safetensors" in str(name):
        written.update(walk(frame))

  line = ["export", "--out", str(tmp_path / "world")]
  for folder in (workdir, *models.values()):
    line += ["--workdir", str(folder)]
  with profiled(record):
    assert main.main(line) == 0
  assert "checkpoints/reader.py" in read
  assert "weights/tensor_files.py" in written
  walked = read | written
  assert "cli/export.py" in walked
  assert len(walked) <= 10, sorted(walked)


class Recording(list):
  """A list that notes the walk of each value that is appended."""

  def __init__(self, values, walks):
    super().__init__(values)
    self.walks = walks

  def append(self, value):
    self.walks.append(walk(sys._getframe(1)))
    super().append(value)


def test_a_key_reaches_the_network_through_six_files(
  parts, tmp_path, monkeypatch
):
  tiny_world.write_world(tmp_path / "world", parts)
  asked, drawn = [], []
  init = branch.Line.__init__

  def recording_init(line, *args, **kwargs):
    init(line, *args, **kwargs)
    line.actions = Recording(line.actions, asked)

  monkeypatch.setattr(branch.Line, "__init__", recording_init)
  network = dynamics.Dynamics.setup

  def recording_setup(module):
    drawn.append(walk(sys._getframe(1)))
    network(module)

  made = engine.open_world(tmp_path / "world")
  jax.clear_caches()  # The network is called while a step is traced.
  with players.serving(made) as (_, host), players.Player(host) as player:
    player.start()
    monkeypatch.setattr(dynamics.Dynamics, "setup", recording_setup)
    player.play([1])
  assert asked and drawn
  # The app reads each message. The middleware around it was entered once, when
  # the connection was opened.
  key = {
    name for names in asked for name in names[names.index("serve/app.py") :]
  }
  assert key == {"serve/app.py", "serve/session.py"}
  for frames in drawn:
    assert "sampling/player.py" in frames, frames
    before = set(
      itertools.takewhile(lambda name: not name.startswith("models/"), frames)
    )
    assert len(before | key) <= 6, (sorted(key), frames)


def has_argument(frame, value):
  code = frame.f_code
  count = code.co_argcount + code.co_kwonlyargcount
  values = [frame.f_locals.get(name) for name in code.co_varnames[:count]]
  return value in [
    str(given)
    for given in values
    if isinstance(given, (str, int, tuple, os.PathLike))
  ]


@pytest.mark.slow  # Most of the time is the cost of profiling.
def test_no_flag_of_train_passes_through_a_file_twice(tmp_path, monkeypatch):
  shape = (16, 24, 3)
  stage_data.write_clips(tmp_path / "clips", shape)
  monkeypatch.setattr(rendezvous, "meet", lambda *args: None)
  monkeypatch.setattr(jax.distributed, "initialize", lambda *args, **kw: None)
  monkeypatch.setattr(jax.distributed, "shutdown", lambda: None)
  config = f"{pathlib.Path(foreign_config.__file__)}:tokenizer"
  data = f"--config.data.path={tmp_path / 'clips'}"
  before = tmp_path / "before"
  fixed = ["train", data, "--config.steps=2", "--config.data.batch_size=8"]
  line = [*fixed, "--config", config, "--workdir", str(before)]
  assert main.main(line) == 0
  flags = {
    "--config": config,
    "--workdir": str(tmp_path / "run"),
    "--init-from": str(before),
    "--compilation-cache": str(tmp_path / "cache"),
    "--profile-steps": "1-2",
    "--coordinator": "127.0.0.1:8476",
    "--num-processes": "7919",  # Numbers that nothing else has.
    "--process-id": "7907",
    "--initialization-timeout": "7901",
    "--heartbeat-timeout": "7883",
  }
  values = flags | {
    "--profile-steps": "(1, 2)",
    "--config": config.split(":")[0],
  }
  walks = {flag: set() for flag in flags}

  def record(frame, event, argument):
    del argument
    if event == "call" and project_file(frame.f_code.co_filename):
      for flag, value in values.items():
        if has_argument(frame, value):
          carries = functools.partial(has_argument, value=value)
          walks[flag].add(walk(frame, carries))

  with profiled(record):
    assert main.main([*fixed, *itertools.chain(*flags.items())]) == 0
  for flag, found in walks.items():
    assert found, f"{flag} was not passed to any function"
    for files in found:
      assert len(set(files)) == len(files), (flag, files)
