"""Tests of which clips are taken for the same."""

import numpy as np
import pytest
from films import picture, play

from data_pipelines.videos import duplicates, looks


def clip(frames, film, noise=0, seed=0):
  """Returns what is known of a clip of these frames."""
  rng = np.random.default_rng(seed)
  watcher = looks.Watcher()
  for frame in frames:
    shake = rng.integers(-noise, noise + 1, frame.shape)
    watcher.see(np.clip(frame + shake, 0, 255).astype(np.uint8), False)
  found = watcher.looks()
  hashes = duplicates.parse_hashes(found.hashes)
  return duplicates.Clip(f"{film}-{seed}", film, hashes, found.thumbs)


@pytest.fixture(scope="module")
def game():
  """Returns 200 frames of a game."""
  return list(play(0, 200, 90, 160))


def test_another_encoding_of_the_same_shot_is_a_duplicate(game):
  clips = [clip(game[:160], "a"), clip(game[:160], "b", noise=6, seed=1)]
  assert duplicates.find(clips) == {"b-1": "a-0"}


def test_a_shot_that_begins_later_is_a_duplicate(game):
  clips = [clip(game[:160], "a"), clip(game[24:184], "b", noise=3, seed=1)]
  assert duplicates.find(clips) == {"b-1": "a-0"}


def test_clips_of_one_film_are_never_duplicates(game):
  clips = [clip(game[:160], "a"), clip(game[:160], "a", seed=1)]
  assert duplicates.find(clips) == {}


def test_another_play_before_the_same_picture_is_no_duplicate():
  wall = picture(0, 90, 160)

  def frames(seed):
    path = np.random.default_rng(seed).integers(0, 70, (20, 2))
    for row, column in path.repeat(8, 0):
      frame = wall.copy()
      frame[row : row + 12, 2 * column : 2 * column + 12] = 255
      yield frame

  one, other = clip(frames(1), "a"), clip(frames(2), "b")
  bits = np.bitwise_count(one.hashes ^ other.hashes)
  assert np.mean(bits <= 6) > 0.8  # By their hashes they are the same.
  assert duplicates.find([one, other]) == {}


def test_reversed_order_is_no_duplicate(game):
  clips = [clip(game[:160], "a"), clip(game[:160][::-1], "b")]
  assert duplicates.find(clips) == {}


def test_nothing_is_a_duplicate_of_a_duplicate(game):
  clips = [
    clip(game[:160], film, noise=2, seed=k) for k, film in enumerate("abc")
  ]
  assert duplicates.find(clips) == {"b-1": "a-0", "c-2": "a-0"}


def test_hashes_are_those_of_imagehash(game):
  import imagehash
  from PIL import Image

  grey = Image.fromarray(game[0]).convert("L")
  found = clip(game[:9], "a")
  assert int(found.hashes[0]) == int(str(imagehash.dhash(grey)), 16)
  assert found.thumbs.shape == (2, 8, 9)
