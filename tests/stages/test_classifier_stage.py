"""Tests of the classifier stage, its scores and the selection, end to end."""

import json
import os
import pathlib

import jax
import numpy as np
import pytest
from pyarrow import parquet

from genie_jax.checkpoints import reader
from genie_jax.cli import main
from genie_jax.core import config as config_lib
from genie_jax.core import errors
from genie_jax.data import clip_list, manifest, sources
from genie_jax.stages import classifier, registry
from genie_jax.train import workdir as workdir_lib
from tests.fixtures import rated_folder

CONFIG = "experiments/platformers/classifier.py:smoke"
STEPS = 60


@pytest.fixture(scope="module")
def data(tmp_path_factory):
  """A folder of clips, and a table of ratings of all of them."""
  root = tmp_path_factory.mktemp("classifier")
  labels = rated_folder.write(root / "clips")
  table = rated_folder.write_labels(root / "labels.csv", labels.items())
  return root / "clips", table


def words(data, *more):
  clips, table = data
  height, width, _ = rated_folder.SHAPE
  return [
    f"--config.data.path={clips}",
    f"--config.data.labels={table}",
    f"--config.world.height={height}",
    f"--config.world.width={width}",
    "--config.model.shrink=1",
    "--config.model.features=8",
    "--config.data.batch_size=8",
    "--config.augment.colour=0.1",
    "--config.augment.gamma=0.1",
    "--config.augment.exchange=False",
    "--config.optimizer.peak_lr=5e-3",
    *more,
  ]


def train(data, folder, steps, *more):
  return main.main(
    [
      "train",
      "--config",
      CONFIG,
      "--workdir",
      str(folder),
      *words(data, f"--config.steps={steps}", *more),
    ]
  )


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
  """A workdir of STEPS steps."""
  folder = tmp_path_factory.mktemp("run") / "run"
  checkpoints = f"--config.checkpoint_every={STEPS // 2}"
  evaluations = f"--config.eval_every={STEPS}"
  assert train(data, folder, STEPS, checkpoints, evaluations) == 0
  return folder


@pytest.fixture(scope="module")
def scores(data, run):
  """The table of scores of all clips, with the figures beside it."""
  path = run.parent / "scores.parquet"
  code = main.main(
    [
      "data",
      "score",
      *("--classifier", str(run), "--clips", str(data[0])),
      *("--labels", str(data[1]), "--out", str(path)),
      *("--batch", "8", "--confidence", "0.7"),
    ]
  )
  assert code == 0
  return path


def test_training_lowers_the_held_out_loss_below_that_of_guessing(run):
  lines = [
    json.loads(line)
    for line in (run / "metrics.jsonl").read_text().splitlines()
  ]
  found = next(
    line["eval/held_out_loss"]
    for line in reversed(lines)
    if "eval/held_out_loss" in line
  )
  assert found < 0.5 < np.log(2)
  assert any((run / "previews").iterdir())


@pytest.mark.slow
def test_a_run_resumes_and_ends_with_the_same_bytes(data, run, tmp_path):
  folder = tmp_path / "run"
  every = f"--config.checkpoint_every={STEPS // 2}"
  evaluations = f"--config.eval_every={STEPS}"
  # The schedule of the whole run, ended after half of its steps.
  (folder / "checkpoints").mkdir(parents=True)
  half = run / "checkpoints" / str(STEPS // 2)
  assert half.is_dir()
  for path in half.rglob("*"):
    target = folder / path.relative_to(run)
    if path.is_dir():
      target.mkdir(parents=True, exist_ok=True)
    else:
      target.parent.mkdir(parents=True, exist_ok=True)
      os.link(path, target)
  (folder / "config.json").write_text((run / "config.json").read_text())
  assert train(data, folder, STEPS, every, evaluations) == 0
  one, two = (reader.load_params(each)[0] for each in (run, folder))
  jax.tree.map(np.testing.assert_array_equal, one, two)


def test_a_run_is_refused_with_other_ratings(data, run, tmp_path, capsys):
  labels = {
    clip: 5
    for clip in (
      line.split(",")[0] for line in data[1].read_text().splitlines()
    )
    if clip != "clip"
  }
  first = next(iter(labels))
  labels[first.replace("train-0-0", "train-0-2")] = 1
  rows = [(clip, 1 if n % 3 else 5) for n, clip in enumerate(labels)]
  other = rated_folder.write_labels(tmp_path / "t.csv", rows)
  assert train((data[0], other), run, STEPS) == 2
  assert "config.data" in capsys.readouterr().err


def test_scores_tell_play_from_stills_of_sources_never_seen(scores, data):
  report = json.loads(scores.with_suffix(".json").read_text())
  test = report["splits"]["test"]
  assert (test["good_clips"], test["bad_clips"], test["sources"]) == (4, 4, 8)
  assert test["good"]["precision"]["value"] > 0.9
  assert test["good"]["recall"]["value"] > 0.9
  assert report["calibration"]["clips"] == 8
  # In this folder the mean change alone tells them apart; brightness does not.
  assert report["baselines"]["motion"]["accuracy"] == 1
  assert report["baselines"]["always good"]["accuracy"] == 0.5
  table = parquet.read_table(scores).to_pydict()
  assert len(table["clip_id"]) == 80
  assert set(table["rating"]) == {1, 5}
  for probability, confidence, good in zip(
    table["probability"], table["confidence"], table["good"], strict=True
  ):
    assert good == (probability >= 0.5)
    assert confidence == max(probability, 1 - probability)


def test_scoring_twice_gives_the_same_bytes(scores, data, run, tmp_path):
  again = tmp_path / "again.parquet"
  main.main(
    [
      "data",
      "score",
      *("--classifier", str(run), "--clips", str(data[0])),
      *("--labels", str(data[1]), "--out", str(again)),
      *("--batch", "8", "--confidence", "0.7"),
    ]
  )
  assert again.read_bytes() == scores.read_bytes()


def test_selected_clips_are_a_folder_that_is_linked_verified_and_readable(
  scores, data, tmp_path, capsys
):
  out = tmp_path / "selected"
  select = [
    "data",
    "select",
    *("--clips", str(data[0]), "--scores", str(scores)),
    *("--out", str(out), "--confidence", "0.6"),
  ]
  assert main.main(select) == 0
  found = manifest.Manifest.read(out)
  kept = {clip.id for clip in clip_list.clips(found)}
  table = parquet.read_table(scores).to_pydict()
  wanted = {
    clip
    for clip, probability in zip(
      table["clip_id"], table["probability"], strict=True
    )
    if probability >= 0.6
  }
  # Their names are places, which have not changed.
  assert kept == wanted and 0 < len(kept) < 80
  assert found.made_by["selected"]["confidence"] == 0.6
  assert found.made_by["selected"]["clips"] == len(kept)
  for path, _ in found.shards("train"):
    assert path.samefile(pathlib.Path(data[0]) / "train" / path.name)
  assert main.main(["data", "inspect", str(out)]) == 0
  windows = sources.WindowSource(out, "train", 8, 8, ("frames",))
  assert len(windows) == 4 * len(found.sources("train"))
  frames = windows[0]["frames"]
  truth = rated_folder.frames_of(int(windows[0]["source"]), True)
  np.testing.assert_array_equal(frames, truth[:8])
  capsys.readouterr()
  assert main.main(select) == 0  # It is already there.
  assert main.main([*select[:-1], "0.7"]) == 2
  assert "is not empty" in capsys.readouterr().err


def test_a_data_card_has_counts_hours_figures_and_pictures(
  scores, data, tmp_path
):
  out = tmp_path / "selected"
  main.main(
    [
      "data",
      "select",
      *("--clips", str(data[0]), "--scores", str(scores)),
      *("--out", str(out), "--confidence", "0.6"),
    ]
  )
  text = (out / "card.md").read_text()
  assert "| clips that were scored | 80 | 0.07 |" in text
  assert "40 with 5, 0 with 4" in text
  assert "baseline: motion" in text and "the confidence is 0.6" in text
  for name in ("kept", "dropped", "near_the_limit"):
    assert (out / "card" / f"{name}.png").is_file()
    assert f"card/{name}.png" in text
  page = (out / "card.html").read_text()
  assert page.count("data:image/png;base64,") == 3
  assert "http://" not in page and "https://" not in page


def test_scores_of_another_folder_are_refused(scores, tmp_path, capsys):
  rated_folder.write(tmp_path / "other", (4, 2, 2))
  code = main.main(
    [
      "data",
      "select",
      *("--clips", str(tmp_path / "other"), "--scores", str(scores)),
      *("--out", str(tmp_path / "selected")),
    ]
  )
  err = capsys.readouterr().err
  assert code == 2 and len(err.splitlines()) == 1
  assert "score this folder" in err
  assert not (tmp_path / "selected").exists()


@pytest.mark.parametrize(
  "override, message",
  [
    ("--config.data.num_frames=3", "must be a positive multiple of 4"),
    ("--config.augment.colour=1.0", "config.augment.colour is 1.0"),
    ("--config.augment.gamma=2.0", "config.augment.gamma is 2.0"),
    ("--config.data.labels=", "config.data.labels is empty"),
    ("--config.data.path=", "config.data.path is empty"),
    ("--config.data.mixture=(('a', 1.0),)", "reads one folder"),
    ("--config.world.height=48", r"frame_shape \[24, 32, 3\]"),
    ("--config.data.clip_frames=1", "has no motion"),
  ],
)
def test_an_invalid_config_is_one_clear_line(data, override, message):
  with pytest.raises(errors.UserError, match=message) as raised:
    config = config_lib.load(CONFIG, words(data, override))
    registry.make(config).open_source("train")
  assert "\n" not in str(raised.value)


def test_augmentation_keeps_shape_range_and_the_order_of_time():
  frames = np.random.default_rng(0).random((6, 4, 5, 8, 3)).astype(np.float32)
  made = np.asarray(
    classifier.augmented(frames, jax.random.key(1), mirror=True)
  )
  mirrored = 0
  for before, after in zip(frames, made, strict=True):
    same, turned = (after == before).all(), (after == before[:, :, ::-1]).all()
    assert same != turned  # All frames of a clip, or none.
    mirrored += turned
  assert 0 < mirrored < 6
  made = np.asarray(classifier.augmented(frames, jax.random.key(1), colour=0.3))
  assert made.min() >= 0 and made.max() <= 1
  factors = (made / frames)[(made < 1) & (frames > 0)]
  assert factors.min() > 0.69 and factors.max() < 1.31
  made = np.asarray(
    classifier.augmented(frames, jax.random.key(1), exchange=True)
  )
  np.testing.assert_array_equal(np.sort(made), np.sort(frames))
  assert not np.array_equal(made, frames)
  made = np.asarray(classifier.augmented(frames, jax.random.key(1), gamma=0.5))
  power = np.log(made) / np.log(frames)
  np.testing.assert_allclose(
    power, np.broadcast_to(power[:, :1, :1, :1, :1], power.shape), rtol=1e-2
  )
  assert power.min() > 0.6 and power.max() < 1.66 and power.std() > 0.05


def test_the_data_may_be_moved_when_a_run_resumes():
  fields = {"data": {"path": "a", "labels": "a.csv", "fingerprint": "f" * 64}}
  moved = {"data": {"path": "b", "labels": "b.csv", "fingerprint": "f" * 64}}
  workdir_lib.compare(pathlib.Path("run"), fields, moved)
  with pytest.raises(errors.UserError, match="data of fingerprint"):
    moved["data"]["fingerprint"] = "0" * 64
    workdir_lib.compare(pathlib.Path("run"), fields, moved)
