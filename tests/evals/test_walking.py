"""Tests of the judge of walking, with a game of known motion."""

import dataclasses
import types

import numpy as np
import pytest
import scrolling_game

from genie_jax.data import counterfactuals as data_lib
from genie_jax.data import manifest, shards
from genie_jax.evals import metric, walking

SIDE, KEYS = 32, 4
MEANINGS = {
  "horizontal": [-1, 0, 1, 0],
  "jump": [0, 0, 0, 1],
  "effect": [0, 1, 2, 3],
}


def texture(seed: int) -> np.ndarray:
  rng = np.random.default_rng(seed)
  return rng.integers(0, 200, (60, 60), np.uint8).repeat(4, 0).repeat(4, 1)


def picture(ground: np.ndarray, right: int, up: int) -> np.ndarray:
  row, column = 100 - up, 100 + right
  frame = ground[row : row + SIDE, column : column + SIDE].copy()
  frame[14:18, 14:18] = 255
  return np.repeat(frame[..., None], 3, -1)


def path(keys, walks=2, lands=True, drifts=0):
  """Returns where a player is after each key, [F, 2]."""
  right = up = 0
  places = []
  for key in keys:
    right += walks * MEANINGS["horizontal"][key] + drifts
    if key == 3:
      up = min(up + 3, 12)
    elif lands:
      up = max(up - 2, 0)
    places.append((right, up))
  return places


def moment(number: int) -> data_lib.Moment:
  ground = texture(number)
  # In every fifth moment a wall to the left, so that the key does nothing.
  wall = number % 5 == 0
  keys = np.repeat(np.arange(KEYS + 1)[:, None], walking.HELD, 1)
  keys[-1] = 1
  futures = np.stack(
    [
      [
        picture(ground, *place)
        for place in path(
          [1 if wall and key == 0 else key for key in row.tolist()]
        )
      ]
      for row in keys
    ]
  )
  distinct, future_of = data_lib.merge_equal(futures)
  return data_lib.Moment(
    level=100 + number // 2,
    step=number,
    history=picture(ground, 0, 0)[None],
    history_keys=np.zeros(0, np.int32),
    history_states=np.zeros((1, 5), np.float32),
    keys=keys.astype(np.int32),
    distinct=distinct,
    future_of=future_of,
    states=np.zeros((KEYS + 1, walking.HELD, 5), np.float32),
  )


MOMENTS = [moment(number) for number in range(12)]


def world(keys=(0, 1, 2, 3), forgets=False, **faults):
  """Returns a world whose button b is key keys[b], with faults."""
  starts = [scrolling_game.encode(m.history[-1]) for m in MOMENTS]

  def rollout(prompt, buttons, clip_ids, seed):
    del clip_ids, seed
    assert prompt.shape[1] == 1
    drawn = []
    for first, pressed in zip(prompt[:, 0], buttons, strict=True):
      (number,) = [n for n, x in enumerate(starts) if np.array_equal(x, first)]
      places = path([keys[button] for button in pressed], **faults)
      # A world that forgets shows something else once it has seen much.
      grounds = [
        texture(number + 1000 if forgets and t >= 16 else number)
        for t in range(len(places))
      ]
      drawn.append(
        [
          scrolling_game.encode(picture(ground, *place))
          for ground, place in zip(grounds, places, strict=True)
        ]
      )
    return np.concatenate([prompt, np.array(drawn)], 1)

  return dataclasses.replace(
    scrolling_game.still(), rollout=rollout, num_buttons=len(keys)
  )


def shares(subject):
  tried = walking.try_out(
    subject, MOMENTS, walking.game_keys(MEANINGS), {}, seed=0
  )
  found = walking.summary(tried, seed=0)
  return {name: part.value for name, part in found["shares"].items()}, found


@pytest.mark.parametrize("keys", [(0, 1, 2, 3), (3, 2, 1, 0), (1, 1, 3, 0, 2)])
def test_a_perfect_world_walks_under_any_numbering_of_buttons(keys):
  found, whole = shares(world(keys))
  assert found == dict.fromkeys((*walking.ROLES, "there_and_back"), 1.0)
  # Moments with a wall do not count.
  assert whole["moments"] == {
    "right": 12, "left": 9, "jump": 12, "rest": 12, "there_and_back": 12
  }  # fmt: skip
  for role in ("right", "left"):
    assert whole["speed"][role]["ratio"].value == pytest.approx(1)
  assert whole["speed"]["right"]["game"] == 2
  assert whole["speed"]["left"]["world"] == -2
  assert set(whole["tokenizer"].values()) and all(
    part.value == 1 for part in whole["tokenizer"].values()
  )
  assert keys[whole["buttons"]["jump"][0]] == 3


def test_a_still_world_only_rests():
  found, whole = shares(world((1, 1, 1, 1)))
  assert found == {
    "right": 0, "left": 0, "jump": 0, "rest": 1, "there_and_back": 0
  }  # fmt: skip
  assert whole["speed"]["right"]["ratio"].value == 0


def test_a_world_that_scrolls_by_itself_has_no_left_and_no_rest():
  found, _ = shares(world((1, 1, 1, 1), drifts=2))
  assert found == {
    "right": 1, "left": 0, "jump": 0, "rest": 0, "there_and_back": 0
  }  # fmt: skip


def test_a_slow_world_does_not_walk_and_its_speed_says_by_how_much():
  # The ratio of speeds, 1 to 2, is that of the whole pixels moved.
  found, whole = shares(world(walks=1))
  assert found["right"] == found["left"] == 1
  assert whole["speed"]["right"]["ratio"].value == pytest.approx(0.5)
  found, whole = shares(world(walks=0))
  assert found["right"] == found["left"] == 0
  assert found["jump"] == 1


def test_a_player_who_stays_in_the_air_has_not_jumped():
  found, _ = shares(world(lands=False))
  assert found["jump"] == 0 and found["right"] == 1


@pytest.mark.parametrize(
  ("height", "ground", "down"), [(0, 0, True), (5, 0, False), (0, 1, False)]
)
def test_a_landing_that_is_misread_is_compared_with_the_start(
  monkeypatch, height, ground, down
):
  """All jumps are read as ending 5 pixels above the ground."""
  read = np.array([*range(0, 22, 3), *range(20, 5, -3), *[5] * 8])
  assert len(read) == walking.LANDING + 1
  monkeypatch.setattr(
    walking.scroll,
    "places",
    lambda clips: np.stack([0 * read, read], -1)[None].repeat(len(clips), 0),
  )
  starts = np.stack([picture(texture(number), 0, 0) for number in (0, 1)])
  true = [*read[:-8], *[height] * 8]
  clips = np.stack(
    [
      [picture(texture(number if up > 5 else shown), 0, up) for up in true]
      for number, shown in ((0, ground), (1, 1 - ground))
    ]
  )
  found = walking.lands(clips, starts, np.array([1, 2]))
  assert found.tolist() == [down, down]


def test_a_world_that_forgets_does_not_show_its_start_again():
  found, _ = shares(world(forgets=True))
  assert found["there_and_back"] == 0
  assert found["right"] == found["left"] == found["jump"] == 1


def test_buttons_are_chosen_on_other_levels():
  levels = np.array([1, 1, 2, 2])
  # Button 0 does it in level 1 only, button 1 in level 2 only.
  table = np.array([[1, 0], [1, 0], [0, 1], [0, 1]], bool)
  chosen = walking.choose_buttons({"right": table}, levels)["right"]
  assert chosen.tolist() == [1, 1, 0, 0]
  assert not table[np.arange(4), chosen].any()


def write(folder, made_by):
  episodes = []
  with shards.ShardWriter(folder / "test" / shards.shard_name(0, 1)) as writer:
    for record, found in enumerate(MOMENTS):
      writer.write(data_lib.pack(found, 10))
      episodes.append([found.level, record, found.step, found.num_frames])
  manifest.Manifest(
    kind=data_lib.KIND,
    name="walking",
    fps=10,
    frame_shape=(SIDE, SIDE, 3),
    frames_per_record=MOMENTS[0].num_frames,
    splits={
      "test": manifest.split_summary(
        [{**writer.entry, "episodes": episodes}],
        sum(row[3] for row in episodes),
      )
    },
    num_actions=KEYS,
    action_aliases={},
    made_by={data_lib.KIND: data_lib.made_by(1, walking.HELD, KEYS), **made_by},
  ).write(folder)


def work(folder, **options):
  return types.SimpleNamespace(
    folder=folder, subject=world(), options=metric.Options(**options)
  )


def test_the_metric_reads_standing_starts_and_has_headline_figures(tmp_path):
  write(tmp_path / data_lib.STANDING, {"keys": MEANINGS})
  found = walking.measure(work(tmp_path))
  assert found.details["measured"] and found.details["levels"] == 6
  assert found.headline["walking_left"] == 1
  assert found.headline["walking_left_low"] == 1
  assert found.headline["walking_right_speed"] == pytest.approx(1)
  assert [row.value for row in found.rows[:5]] == ["100 %"] * 5
  # Players look the same in all levels, so their colours say nothing.
  assert found.headline["walking_colours"] == 0.5
  assert found.pictures["there_and_back"].shape[:2] == (4, 37)


def test_without_standing_starts_the_report_says_how_to_get_them(tmp_path):
  found = walking.measure(work(tmp_path))
  assert not found.details["measured"] and not found.headline
  assert "--standing" in found.rows[0].note
  write(tmp_path / data_lib.STANDING, {})
  found = walking.measure(work(tmp_path))
  assert "which keys walk" in found.details["reason"]
  found = walking.measure(work(tmp_path, split="validation"))
  assert "fewer than two levels" in found.details["reason"]
