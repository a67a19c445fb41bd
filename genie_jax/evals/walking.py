"""Whether a world walks: held buttons against the game's keys.

All rollouts begin with one frame of the game in which the player stands with
room on both sides (`genie data procgen --standing`), as a person begins in the
browser. Only moments count in which the game's own key does the same. How the
player moves is read from the picture (`scroll`), in the game's frames as in the
world's. Five things are tried:

  right, left     one button is held, and the picture moves by at least a pixel
                  per frame
  jump            one button is held for four frames, then that of rest: the
                  player rises by six pixels and comes down again
  rest            one button is held, and the picture stays
  there and back  right, then left until the player has returned: the picture
                  is nearer to the start than to the start of another level

A world whose picture falls apart can move as fast as the game. So the player's
colours at the end of the walk there and back are compared with those at its
start (`identity`).

Which button is meant is not known. For each thing it is the one that does it
most often in the first half of the levels; it is judged in the second half, and
the other way around, so that the choice cannot flatter.

Shapes:
  M  moments     A  buttons     F  frames drawn     n  clips
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from genie_jax.core import errors
from genie_jax.data import counterfactuals as data_lib
from genie_jax.data import manifest as manifest_lib
from genie_jax.evals import (
  evaluated_world,
  identity,
  intervals,
  metric,
  scroll,
)

HELD = 12  # Frames for which a button is held.
SPEED = 1.0  # Pixels per frame that count as walking.
STILL = 0.25  # Pixels per frame below which the picture stays.
TAP = 4  # Frames for which the jump is held.
LANDING = 20  # Frames after which the player must be down again.
LIFT = 6.0  # Pixels that count as a jump.
LANDED = 2.0  # Pixels from the start that count as down again.
_NEAR_GROUND = 8  # Pixels by which the reading of a whole jump may be wrong.
NEARER = 3.0  # dB that the picture must be nearer to its own start.
_LAST = 8  # Frames at the end of a walk whose colours are compared.
ROLES = ("right", "left", "jump", "rest")
# Role -> (horizontal, jump) of the key that does it, in `made_by["keys"]`.
_KEYS = {"right": (1, 0), "left": (-1, 0), "jump": (0, 1), "rest": (0, 0)}


def does(found: np.ndarray) -> dict[str, np.ndarray]:
  """Returns what a player does while a button is held.

  Args:
    found: [..., HELD + 1, 2], from `scroll.places`.

  Returns:
    Role -> bool [...].
  """
  across, up = found[..., -1, 0] / HELD, found[..., -1, 1] / HELD
  return {
    "right": across >= SPEED,
    "left": across <= -SPEED,
    "jump": found[..., : TAP + 5, 1].max(-1) >= LIFT,
    "rest": np.hypot(across, up) < STILL,
  }


def lands(
  clips: np.ndarray, starts: np.ndarray, levels: np.ndarray
) -> np.ndarray:
  """Returns whether a player rises and comes down again, bool [n].

  A fast jump of twenty frames is read with an error of a few pixels where the
  picture is not sharp. So a player who is read as being near the ground after
  his highest point is also down if his picture, compared directly with that of
  the start, is at its place and surely of the start.

  Args:
    clips: uint8 [n, LANDING + 1, H, W, C].
    starts: uint8 [n, H, W, C], the true first frames.
    levels: [n], at least two different ones.
  """
  up = scroll.places(clips)[..., 1]
  after = np.arange(up.shape[1]) > up.argmax(1)[:, None]
  down = after & (np.abs(up) <= LANDED)
  clip, frame = np.nonzero(after & (np.abs(up) <= _NEAR_GROUND) & ~down)
  seen, own = clips[clip, frame], starts[clip]
  shift = scroll.pair_shifts(own, seen, (scroll.MOST[0], _NEAR_GROUND))
  other = starts[_another_level(levels)][clip]
  surely = psnr(seen, own) - psnr(seen, other) >= NEARER
  down[clip, frame] = surely & (np.abs(shift[:, 1]) <= LANDED)
  return (up.max(1) >= LIFT) & down.any(1)


def choose_buttons(
  done: Mapping[str, np.ndarray], levels: np.ndarray
) -> dict[str, np.ndarray]:
  """Returns the button of each role in each moment, chosen on other levels.

  Args:
    done: Role -> bool [M, A], whether a button does it.
    levels: [M].

  Returns:
    Role -> int [M], indices of buttons.
  """
  odd = np.unique(levels, return_inverse=True)[1] % 2
  chosen = {}
  for role, table in done.items():
    best = [int(table[odd != half].mean(0).argmax()) for half in (0, 1)]
    chosen[role] = np.array(best)[odd]
  return chosen


def psnr(first: np.ndarray, second: np.ndarray) -> np.ndarray:
  """Returns the PSNR of frames uint8 [n, H, W, C] in dB, float [n]."""
  gap = (first.astype(np.float64) - second) / 255
  error = np.square(gap).mean((1, 2, 3))
  return -10 * np.log10(np.maximum(error, 1e-10))


@dataclasses.dataclass(frozen=True)
class Tried:
  """What was tried in each moment.

  Attributes:
    levels: int [M].
    buttons: Role -> int [M], the chosen buttons.
    does: Role -> bool [M], whether the chosen button does it; also
      "there_and_back".
    game: Role -> bool [M], whether the game's key does it.
    speed: Role "right" and "left" -> float [M, 2], pixels per frame in the
      world and in the game.
    tokenizer: Role -> bool [M], whether the game's frames after the tokenizer
      are read as doing it.
    colours: float [M], how often the player at the end of these rollouts is
      nearest to his own start (`identity.kept`).
    shown: uint8 [M, F, H, W, C], the rollouts there and back.
  """

  levels: np.ndarray
  buttons: Mapping[str, np.ndarray]
  does: Mapping[str, np.ndarray]
  game: Mapping[str, np.ndarray]
  speed: Mapping[str, np.ndarray]
  tokenizer: Mapping[str, np.ndarray]
  colours: np.ndarray
  shown: np.ndarray


def try_out(
  subject: evaluated_world.Subject,
  moments: Sequence[data_lib.Moment],
  keys: Mapping[str, int],
  aliases: Mapping[int, int],
  *,
  seed: int,
) -> Tried:
  """Plays a world from standing starts.

  Args:
    subject: The world.
    moments: M moments of at least two levels.
    keys: Role -> key of the game.
    aliases: Key -> the one with the same effect.
    seed: Of the noise, the same for all buttons.
  """
  starts = np.stack([moment.history[-1] for moment in moments])
  levels = np.array([moment.level for moment in moments])
  tokens = subject.encode(starts[:, None])
  ids = np.arange(len(moments), dtype=np.int32)
  choices = subject.choices(aliases)

  def play(buttons):
    drawn = subject.rollout(tokens, buttons.astype(np.int32), ids, seed)
    return subject.decode(drawn)

  hold = lambda button, frames: np.repeat(
    np.asarray(button)[:, None], frames, 1
  )
  held = np.stack(
    [
      scroll.places(play(hold(np.full(len(moments), button), HELD)))
      for button in choices
    ],
    1,
  )
  chosen = choose_buttons(does(held), levels)
  row = np.arange(len(moments))
  found = {role: does(held)[role][row, chosen[role]] for role in ROLES}
  pressed = {role: choices[index] for role, index in chosen.items()}
  found["jump"] = lands(
    play(
      np.concatenate(
        [hold(pressed["jump"], TAP), hold(pressed["rest"], LANDING - TAP)], 1
      )
    ),
    starts,
    levels,
  )
  walk = play(
    np.concatenate(
      [hold(pressed["right"], HELD), hold(pressed["left"], 2 * HELD)], 1
    )
  )
  found["there_and_back"] = returns(walk, starts, levels)

  futures = {
    role: np.stack(
      [
        np.concatenate([moment.history[-1:], moment.future(key)[:HELD]])
        for moment in moments
      ]
    )
    for role, key in keys.items()
  }
  true = {role: scroll.places(clips) for role, clips in futures.items()}
  rebuilt = {
    role: scroll.places(evaluated_world.reconstruct(subject, clips))
    for role, clips in futures.items()
  }
  return Tried(
    levels,
    pressed,
    found,
    {role: does(part)[role] for role, part in true.items()},
    {
      role: np.stack(
        [held[row, chosen[role], -1, 0] / HELD, true[role][:, -1, 0] / HELD], 1
      )
      for role in ("right", "left")
    },
    {role: does(part)[role] for role, part in rebuilt.items()},
    identity.kept(walk[:, 0], walk[:, -_LAST:]),
    walk,
  )


def returns(
  walk: np.ndarray, starts: np.ndarray, levels: np.ndarray
) -> np.ndarray:
  """Returns whether a walk there and back shows its start again, bool [M].

  Args:
    walk: uint8 [M, 1 + 3 * HELD, H, W, C]: the start, right, then left.
    starts: uint8 [M, H, W, C], the true first frames.
    levels: [M], at least two different ones.
  """
  across = scroll.places(walk)[:, HELD:, 0]
  back = across <= 0
  arrived = back.any(1) & (across[:, 0] >= SPEED * HELD)
  # Of the frames up to the first beyond the start, the one nearest to it.
  last = np.where(back.any(1), back.argmax(1), across.shape[1] - 1)
  till = np.arange(across.shape[1]) <= last[:, None]
  nearest = np.where(till, np.abs(across), across.size).argmin(1)
  row = np.arange(len(walk))
  seen = walk[row, HELD + nearest]
  others = starts[_another_level(levels)]
  gain = psnr(seen, starts) - psnr(seen, others)
  return arrived & (gain >= NEARER)


def _another_level(levels: np.ndarray) -> np.ndarray:
  """Returns for each of n clips the next one of another level, int [n]."""
  row = np.arange(len(levels))
  return np.array(
    [
      next(n for n in np.roll(row, -m - 1) if levels[n] != levels[m])
      for m in row
    ]
  )


def summary(tried: Tried, *, seed: int) -> dict[str, Any]:
  """Returns shares of moments and speeds, with intervals over levels.

  Args:
    tried: What was tried.
    seed: Of the bootstrap.

  Returns:
    "shares" and "tokenizer", name -> Interval: of the moments in which the
    game's key does the same, for "there_and_back" that to the right. "moments",
    name -> how many these are. "speed", "right" and "left" -> {"world",
    "game", "ratio"}, where "ratio" is an Interval. "colours", Interval of the
    mean of `Tried.colours`. "buttons", role -> chosen ones.
  """
  share = lambda done, counted: intervals.ratio(
    done & counted, counted, tried.levels, seed=seed
  )
  speed = {}
  for role, both in tried.speed.items():
    world, game = (np.where(tried.game[role], part, 0.0) for part in both.T)
    speed[role] = {
      "world": float(world.sum() / max(tried.game[role].sum(), 1)),
      "game": float(game.sum() / max(tried.game[role].sum(), 1)),
      # Both are negative to the left.
      "ratio": intervals.ratio(
        world * np.sign(game), np.abs(game), tried.levels, seed=seed
      ),
    }
  counted = {**tried.game, "there_and_back": tried.game["right"]}
  return {
    "shares": {
      name: share(done, counted[name]) for name, done in tried.does.items()
    },
    "tokenizer": {
      name: share(done, counted[name]) for name, done in tried.tokenizer.items()
    },
    "moments": {name: int(part.sum()) for name, part in counted.items()},
    "speed": speed,
    "colours": intervals.ratio(
      tried.colours, np.ones(len(tried.levels)), tried.levels, seed=seed
    ),
    "buttons": {
      role: np.unique(part).tolist() for role, part in tried.buttons.items()
    },
  }


def find(work: metric.Work) -> manifest_lib.Manifest | str:
  """Returns the manifest of the standing starts, or why there are none.

  Raises:
    UserError: The folder is damaged or has frames of another shape.
  """
  folder = data_lib.address(work.folder, data_lib.STANDING)
  if not manifest_lib.exists(folder):
    return (
      f"{folder} does not exist; to collect standing starts, repeat the `genie "
      "data procgen` command of the clips with --standing 2"
    )
  found = data_lib.read_manifest(folder)
  found.check({"frame_shape": work.subject.frame_shape})
  split = work.options.split
  if split not in found.splits or len(found.sources(split)) < 2:
    return f"{folder} has fewer than two levels of split {split!r}"
  if data_lib.form(found)["frames"] < HELD:
    raise errors.UserError(
      f"{folder} has futures of {data_lib.form(found)['frames']} frames, but "
      f"walking is judged after {HELD}; collect it again."
    )
  if not {"horizontal", "jump"} <= set(found.made_by.get("keys", {})):
    return f"{folder} does not say which keys walk and jump"
  return found


def applies(work: metric.Work) -> bool:
  """Returns True: without standing starts, the report says so.

  Raises:
    UserError: As `find` does.
  """
  find(work)
  return True


def measure(work: metric.Work) -> metric.Result:
  """Plays the world from standing starts."""
  found = find(work)
  if isinstance(found, str):
    return metric.not_measured("Walking", found)
  options = work.options
  moments = data_lib.read(
    found, options.split, options.num_moments, options.seed
  )
  tried = try_out(
    work.subject,
    moments,
    game_keys(found.made_by["keys"]),
    dict(found.action_aliases),
    seed=options.seed,
  )
  result = summary(tried, seed=options.seed)
  colours = result["colours"]
  headline = {
    "walking_colours": colours.value,
    "walking_colours_low": colours.low,
  }
  for name, part in result["shares"].items():
    headline |= {f"walking_{name}": part.value, f"walking_{name}_low": part.low}
  for role, part in result["speed"].items():
    headline[f"walking_{role}_speed"] = part["ratio"].value
  return metric.Result(
    {
      "measured": True,
      "fingerprint": found.fingerprint,
      "levels": len(np.unique(tried.levels)),
      **result,
    },
    headline,
    _rows(result),
    {"there_and_back": tried.shown[:4]},
  )


def game_keys(meanings: Mapping[str, Sequence[int]]) -> dict[str, int]:
  """Returns the game's key of each role.

  Args:
    meanings: "horizontal", "jump" and "effect" of each key, from a manifest.
  """
  # Of keys with the same effect, the one whose number names the effect.
  pairs = list(
    zip(
      meanings["horizontal"],
      meanings["jump"],
      [key == effect for key, effect in enumerate(meanings["effect"])],
      strict=True,
    )
  )
  return {role: pairs.index((*pair, True)) for role, pair in _KEYS.items()}


_TEXTS = {
  "right": ("Right: a held button walks", "at least 1 pixel per frame"),
  "left": ("Left: a held button walks", "at least 1 pixel per frame"),
  "jump": (
    "Jump: 4 frames, then rest",
    "rises by 6 pixels and comes down within 20 frames",
  ),
  "rest": ("Rest: a held button stays", "below 0.25 pixels per frame"),
  "there_and_back": (
    "There and back: right, then left",
    "3 dB nearer to its start than to another level's",
  ),
}


def _rows(result: Mapping[str, Any]) -> tuple[metric.Row, ...]:
  rows = []
  for name, part in result["shares"].items():
    title, rule = _TEXTS[name]
    speed, rebuilt = result["speed"].get(name), result["tokenizer"].get(name)
    note = f"{result['moments'][name]} standing starts; {rule}."
    if speed:
      note += (
        f" Mean speed {speed['world']:+.2f} pixels per frame, in the game "
        f"{speed['game']:+.2f}."
      )
    rows.append(
      metric.Row(
        title,
        f"{100 * part.value:.0f} %",
        f"{100 * part.low:.0f} to {100 * part.high:.0f} %",
        ""
        if rebuilt is None
        else f"the game after the tokenizer {100 * rebuilt.value:.0f} %",
        note,
      )
    )
  colours = result["colours"]
  rows.append(
    metric.Row(
      "There and back: the player's own colours at the end",
      f"{100 * colours.value:.0f} %",
      f"{100 * colours.low:.0f} to {100 * colours.high:.0f} %",
      "chance 50 %, frozen 100 %",
      "Nearer to those of his own start than to those of a start in which the "
      "player looks different.",
    )
  )
  return tuple(rows)
