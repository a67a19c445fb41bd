"""Tests of `genie data select` with tables of scores that do not fit."""

import json

import pyarrow as pa
import pytest
from pyarrow import parquet

from genie_jax.cli import main
from genie_jax.data import clip_list, manifest
from tests.fixtures import stage_data

FIELDS = ("split", "shard", "source", "record", "start", "length")


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
  """Returns a folder of clips."""
  folder = tmp_path_factory.mktemp("scores") / "clips"
  stage_data.write_clips(folder, (16, 16, 3))
  return folder


def write(path, clips, columns=None, description=None):
  """Writes a table as `genie data score` does, with some parts replaced."""
  found = manifest.Manifest.read(clips)
  known = clip_list.clips(found)
  table = pa.table(
    {
      "clip_id": [clip.id for clip in known],
      **{name: [getattr(clip, name) for clip in known] for name in FIELDS},
      "probability": [0.95] * len(known),
      "rating": pa.array([None] * len(known), pa.int8()),
      **(columns(known) if columns else {}),
    }
  )
  stated = {
    "clips": found.fingerprint,
    "clip_frames": clip_list.CLIP_FRAMES,
    "classifier": "0" * 64,
    "calibration": {"slope": 1.0, "intercept": 0.0, "clips": 0},
  }
  text = description(stated) if description else json.dumps(stated)
  table = table.replace_schema_metadata({clip_list.TABLE_METADATA: text})
  parquet.write_table(table, path)
  return path


def selected(clips, scores, out):
  """Runs the command; returns its exit code."""
  words = ("--clips", clips, "--scores", scores, "--out", out)
  return main.main(["data", "select", *map(str, words)])


def test_scores_that_fit_are_selected(tmp_path, clips):
  scores = write(tmp_path / "scores.parquet", clips)
  assert selected(clips, scores, tmp_path / "out") == 0
  found = manifest.Manifest.read(tmp_path / "out")
  assert len(clip_list.clips(found)) == 3


@pytest.mark.parametrize(
  "columns, message",
  [
    (lambda known: {"shard": ["none"] * len(known)}, "not clips of"),
    (lambda known: {"record": [10**6] * len(known)}, "not clips of"),
    (lambda known: {"length": [-5] * len(known)}, "not clips of"),
    (lambda known: {"split": ["none"] * len(known)}, "not clips of"),
    (
      lambda known: (
        {name: [getattr(known[0], name)] * len(known) for name in FIELDS}
        | {"clip_id": [known[0].id] * len(known)}
      ),
      "some twice",
    ),
    (
      lambda known: {
        "probability": pa.array([None] * len(known), pa.float64())
      },
      "not from 0 to 1",
    ),
    (lambda known: {"probability": ["high"] * len(known)}, "not from 0 to 1"),
    (
      lambda known: {"probability": [float("nan")] * len(known)},
      "not from 0 to 1",
    ),
  ],
)
def test_rows_that_do_not_fit_are_one_clear_line(
  tmp_path, capsys, clips, columns, message
):
  scores = write(tmp_path / "scores.parquet", clips, columns)
  assert selected(clips, scores, tmp_path / "out") == 2
  err = capsys.readouterr().err
  assert len(err.splitlines()) == 1 and message in err
  assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
  "description, message",
  [
    (lambda stated: "{", "damaged description"),
    (lambda stated: "[]", "damaged description"),
    (lambda stated: b"\xff", "damaged description"),
    (lambda stated: "{}", "does not state 'clips'"),
    (
      lambda stated: json.dumps(
        {k: v for k, v in stated.items() if k != "classifier"}
      ),
      "does not state 'classifier'",
    ),
  ],
)
def test_a_damaged_description_is_one_clear_line(
  tmp_path, capsys, clips, description, message
):
  scores = write(tmp_path / "scores.parquet", clips, description=description)
  assert selected(clips, scores, tmp_path / "out") == 2
  err = capsys.readouterr().err
  assert len(err.splitlines()) == 1 and message in err


def test_a_table_without_rows_is_one_clear_line(tmp_path, capsys, clips):
  scores = write(tmp_path / "scores.parquet", clips)
  table = parquet.read_table(scores)
  parquet.write_table(table.slice(0, 0), scores)
  assert selected(clips, scores, tmp_path / "out") == 2
  assert "or has none" in capsys.readouterr().err


@pytest.mark.parametrize("below", ["file", "file/out"])
def test_an_output_that_is_a_file_or_below_one_is_refused(
  tmp_path, capsys, clips, below
):
  scores = write(tmp_path / "scores.parquet", clips)
  (tmp_path / "file").write_text("mine")
  assert selected(clips, scores, tmp_path / below) == 2
  assert "file is not a folder" in capsys.readouterr().err
