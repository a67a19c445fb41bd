"""Tests of splits and ratings of recorded films."""

import collections
import csv

import pyarrow as pa
import pytest
from pyarrow import parquet

from data_pipelines.platformers import recorded
from genie_jax.data import clip_list, manifest, ratings
from tests.fixtures import rated_folder


@pytest.fixture()
def films(tmp_path):
  """A recording of three games, with films that were made from others."""
  rows = [
    (f"{game}/{n}{kind and '.' + kind}.mp4", game, f"{game}-{n}", kind)
    for game, count in (("tux", 8), ("procgen-ninja", 3), ("alex", 2))
    for n in range(count)
    for kind in ("", "sped_up")
  ]
  rows += [(f"tux/menu-{n}.mp4", "tux", f"tux-menu{n}", "menu") for n in (0, 1)]
  with open(tmp_path / "labels.csv", "w", newline="") as file:
    writer = csv.writer(file)
    writer.writerow(["file", "kind", "bad_kind", "game", "session"])
    for name, game, session, kind in rows:
      writer.writerow([name, "bad" if kind else "good", kind, game, session])
  return tmp_path


def test_a_session_is_in_one_split_and_every_game_is_tested(films):
  rows = recorded.split([films], seed=1)
  splits = collections.defaultdict(set)
  for row in rows:
    splits[row["session"]].add(row["split"])
  assert all(len(found) == 1 for found in splits.values())
  of = collections.defaultdict(set)
  for row in rows:
    of[recorded.family(row["game"]), row["kind"]].add(row["split"])
  every = {"train", "validation", "test"}
  assert of["tux", "good"] == of["procgen", "good"] == every
  assert of["alex", "good"] == {"train", "test"}
  assert recorded.split([films], seed=1) == rows


def test_clips_get_the_rating_of_their_film(films, tmp_path, capsys):
  table = tmp_path / "films.csv"
  assert recorded.main(["split", str(films), "--out", str(table)]) == 0
  paths = [row["path"] for row in recorded.read_films(table)][:4]
  clips = tmp_path / "clips"
  rated_folder.write(clips, (4, 1, 1))
  for split, count in (("train", 4), ("validation", 1), ("test", 1)):
    parquet.write_table(
      pa.table(
        {
          "clip_id": [f"{split}{n}" for n in range(count)] + ["gone"],
          "record": [*range(0, 2 * count, 2), -1],
          "kept": [True] * count + [False],
          "path": [*paths[:count], paths[0]],
        }
      ),
      clips / split / "00000-of-00001.parquet",
    )
  out = tmp_path / "labels.csv"
  words = ["ratings", "--films", str(table), "--clips", str(clips)]
  assert recorded.main([*words, "--out", str(out)]) == 0
  found = ratings.read(out)
  assert set(found.rated) == {
    clip.id for clip in clip_list.clips(manifest.Manifest.read(clips))
  }
  assert [found.rated[f"train{n}"] for n in range(4)] == [5, 1, 5, 1]
  assert recorded.main([*words, "--without", "tux", "--out", str(out)]) == 0
  assert not ratings.read(out).rated
  assert recorded.main([*words, "--without", "tuxx", "--out", str(out)]) == 2
  assert "did you mean 'tux'" in capsys.readouterr().err


@pytest.mark.parametrize(
  "labels, flags, words",
  [
    ("file,kind,bad_kind,game,session\n", ["--seed", "-1"], "--seed must be"),
    ("file,kind,bad_kind,game,session\na.mp4\n", [], "fewer columns"),
  ],
)
def test_a_wrong_split_is_one_line(labels, flags, words, tmp_path, capsys):
  (tmp_path / "labels.csv").write_text(labels)
  out = str(tmp_path / "films.csv")
  assert recorded.main(["split", str(tmp_path), "--out", out, *flags]) == 2
  error = capsys.readouterr().err
  assert error.count("\n") == 1 and words in error
