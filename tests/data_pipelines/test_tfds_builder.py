"""Tests that the TFDS builder works with ArrayRecord and no TensorFlow."""

import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import pytest

from data_pipelines.procgen import collect

_ROOT = pathlib.Path(__file__).resolve().parents[2]
_READ = """
import json, sys
import numpy as np
import tensorflow_datasets as tfds
builder = tfds.builder_from_directory(sys.argv[1])
sizes, sums = {}, []
for split in ("train", "validation", "test"):
  source = builder.as_data_source(split)
  sizes[split] = len(source)
  for clip in source:
    sums.append([int(clip["level"]), int(clip["start"]),
                 int(clip["frames"].sum()), clip["actions"].tolist(),
                 list(clip["frames"].shape), str(clip["frames"].dtype)])
assert "tensorflow" not in sys.modules
print(json.dumps([sizes, sums]))
"""


@pytest.fixture(scope="module")
def built(procgen, tmp_path_factory):
  """Returns the folder of the tiny configuration, built by the command."""
  # Not imported in this process: while it is imported, Python's own modules
  # cannot be, which objects that are freed at that time may need.
  if importlib.util.find_spec("tensorflow_datasets") is None:
    pytest.skip("needs tensorflow-datasets")
  folder = tmp_path_factory.mktemp("tfds")
  done = subprocess.run(
    [
      sys.executable,
      "-m",
      "data_pipelines.tfds_build",
      "data_pipelines/coinrun/tfds_builder.py",
      "--config",
      "tiny",
      "--file_format",
      "array_record",
      "--data_dir",
      str(folder),
    ],
    cwd=_ROOT,
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr[-3000:]
  return folder / "coinrun_clips" / "tiny" / "1.0.0"


def test_a_built_data_set_is_read_without_tensorflow(built):
  done = subprocess.run(
    [sys.executable, "-c", _READ, str(built)],
    capture_output=True,
    text=True,
    env=os.environ | {"TFDS_LOG_LEVEL": "3"},
  )
  assert done.returncode == 0, done.stderr[-3000:]
  sizes, clips = json.loads(done.stdout.splitlines()[-1])
  options = collect.Options(2, 2, 2, 64)
  assert sizes["train"] and sizes["validation"] and sizes["test"]
  assert {clip[0] for clip in clips} == {0, 1, 10000, 10001, 10100, 10101}
  for level, start, total, actions, shape, dtype in clips:
    recorded = collect.play(level, options)
    frames, played = recorded.frames, recorded.actions
    first = recorded.first
    assert (shape, dtype) == ([16, 64, 64, 3], "uint8")
    assert total == int(frames[start : start + 16].sum())
    assert actions == played[start : start + 15].tolist()
    assert not first[start + 1 : start + 16].any()


def test_files_are_array_records_with_bytes_not_videos(built):
  assert list(built.glob("*train.array_record-*"))
  features = json.loads((built / "features.json").read_text())
  frames = features["featuresDict"]["features"]["frames"]
  assert frames["tensor"]["encoding"] == "bytes"
