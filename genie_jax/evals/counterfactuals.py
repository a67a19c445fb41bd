"""Plays a world against the game itself: each button against each key.

From the same true frames each button of the world is held for some frames, with
the same noise, and compared with what the game drew while each of its keys was
held (`genie_jax.data.counterfactuals`). A rollout counts if the future that is
nearest to it, among the game's different ones, is that of the button's own key.
Only pixels in which the futures differ are compared, so that the background
does not decide.

Latent buttons have no labels. One assignment of buttons to keys is chosen for
all moments: that with the most hits, one key for each button, on one half of
the levels. It is scored on the other half, and the other way around, so that
the choice cannot flatter. Each figure is given next to

  chance     the same with the buttons of each moment shuffled, exactly: the
             mean over all permutations
  tokenizer  the key's true future after the tokenizer, in place of the rollout

Distances are to the game's true frames: these are the same examination for all
worlds, whatever their tokenizer. Distances to the frames that the tokenizer
makes of the futures are scored as well ("reconstructed").

Shapes:
  M  moments     A  buttons     K  keys of the game     G  groups of keys
  P  frames of the prompt     F  frames held     D  distinct futures
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from genie_jax.core import errors
from genie_jax.data import counterfactuals as data_lib
from genie_jax.data import manifest as manifest_lib
from genie_jax.evals import (
  evaluated_world,
  intervals,
  key_matching,
  metric,
  scroll,
)


@dataclasses.dataclass(frozen=True)
class Frames:
  """What a world draws in each moment.

  Attributes:
    buttons: int [A], the buttons that are held.
    start: uint8 [M, H, W, C], the last frame of the prompt, decoded.
    drawn: uint8 [M, A, F, H, W, C].
    rebuilt: For each moment uint8 [D, F, H, W, C], its distinct futures after
      the tokenizer.
  """

  buttons: np.ndarray
  start: np.ndarray
  drawn: np.ndarray
  rebuilt: list[np.ndarray]


def play(
  subject: evaluated_world.Subject,
  moments: Sequence[data_lib.Moment],
  aliases: dict[int, int],
  *,
  seed: int,
) -> Frames:
  """Holds each button of a world in each moment, with the same noise.

  Args:
    subject: The world.
    moments: M moments.
    aliases: Key -> the one with the same effect.
    seed: Of the noise.

  Raises:
    UserError: The world has no button for a key of the history.
  """
  frames = moments[0].keys.shape[1]
  # Half a window, so that the first drawn frames do not yet drop any.
  count = min(len(moments[0].history), max(subject.num_frames // 2, 1))
  history = np.stack([moment.history[-count:] for moment in moments])
  keys = np.stack([moment.history_keys for moment in moments])
  past = np.zeros((len(moments), 0), np.int32)
  if count > 1:
    past = subject.buttons(history, keys[:, -(count - 1) :], aliases)
  tokens = evaluated_world.encode_long(subject, history)
  ids = np.arange(len(moments), dtype=np.int32)
  choices = subject.choices(aliases)
  drawn, start = [], history[:, -1]
  for button in choices:
    held = np.full((len(moments), frames), button, np.int32)
    shown = subject.decode(
      subject.rollout(
        tokens, np.concatenate([past, held], 1).astype(np.int32), ids, seed
      )
    )
    start = shown[:, count - 1]
    drawn.append(shown[:, count:])
  clips = np.concatenate(
    [
      np.concatenate(
        [
          np.broadcast_to(
            past_frames, (len(moment.distinct), *past_frames.shape)
          ),
          moment.distinct,
        ],
        1,
      )
      for past_frames, moment in zip(history, moments, strict=True)
    ]
  )
  rebuilt = evaluated_world.reconstruct(subject, clips)[:, count:]
  ends = np.cumsum([len(moment.distinct) for moment in moments])
  return Frames(
    choices, start, np.stack(drawn, 1), np.split(rebuilt, ends[:-1])
  )


def find(work: metric.Work) -> manifest_lib.Manifest | str:
  """Returns the manifest of the counterfactuals, or why there are none.

  Raises:
    UserError: The user named a folder that cannot be used, or the folder is
      damaged or has frames of another shape.
  """
  named, split = work.options.counterfactuals, work.options.split
  folder = data_lib.address(work.folder) if named is None else named
  reason = (
    f"{folder} has no counterfactuals; to collect them, repeat the `genie data "
    "procgen` command of the clips with --counterfactuals 4"
  )
  if manifest_lib.exists(folder):
    found = data_lib.read_manifest(folder)
    found.check({"frame_shape": work.subject.frame_shape})
    if split in found.splits and len(found.sources(split)) > 1:
      return found
    reason = (
      f"{folder} has fewer than two levels of split {split!r}; collect more, "
      "or choose another --split"
    )
  if named is not None:
    raise errors.UserError(f"--counterfactuals {reason}.")
  return reason


def applies(work: metric.Work) -> bool:
  """Returns True: without counterfactuals, the report says so.

  Raises:
    UserError: As `find` does, before other metrics take their time.
  """
  find(work)
  return True


def measure(work: metric.Work) -> metric.Result:
  """Compares each button with each key, from the same states of the game."""
  found = find(work)
  if isinstance(found, str):
    return metric.not_measured("Counterfactuals", found)
  options, subject = work.options, work.subject
  moments = data_lib.read(
    found, options.split, options.num_moments, options.seed
  )
  aliases = dict(found.action_aliases)
  shown = play(subject, moments, aliases, seed=options.seed)
  groups = key_matching.group_keys(moments)
  hits, soft = (
    key_matching.count_hits(
      moments, shown.drawn, shown.rebuilt, groups, reconstructed=reconstructed
    )
    for reconstructed in (False, True)
  )
  given = None
  if subject.infer is None:  # Buttons are keys.
    given = [
      (index, next(g for g, keys in enumerate(groups) if button in keys))
      for index, button in enumerate(shown.buttons)
      if any(button in keys for keys in groups)
    ]
  scores = key_matching.score(hits, seed=options.seed, pairs=given)
  pairs = (
    key_matching.match(key_matching.told(hits).sum(0))
    if given is None
    else given
  )
  names, key_names = _names(shown, moments, groups, options.seed)
  told = hits.classes[-1] > 1
  matched = [
    {
      "button": int(shown.buttons[button]),
      "keys": groups[group],
      "hits": float(hits.world[-1][told][:, button, group].mean()),
    }
    for button, group in pairs
  ]
  last = scores[str(hits.after[-1])]
  return metric.Result(
    {
      "measured": True,
      "fingerprint": found.fingerprint,
      "moments": len(moments),
      "levels": len(np.unique(hits.levels)),
      "groups": groups,
      "after": scores,
      "reconstructed": key_matching.score(soft, seed=options.seed, pairs=given),
      "match": matched,
      "buttons": names,
      "keys": key_names,
    },
    headline={
      "counterfactual_score": last["score"].value,
      "counterfactual_score_low": last["score"].low,
      "counterfactual_score_high": last["score"].high,
      "counterfactual_chance": last["chance"].value,
    },
    rows=(*_score_rows(scores), *_name_rows(names, key_names, matched)),
  )


def _names(
  shown: Frames,
  moments: Sequence[data_lib.Moment],
  groups: Sequence[Sequence[int]],
  seed: int,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
  """Names the buttons, and by the same measure the groups of keys."""
  count, buttons = shown.drawn.shape[:2]
  first = np.broadcast_to(
    shown.start[:, None, None], (count, buttons, 1, *shown.start.shape[1:])
  )
  whole = np.concatenate([first, shown.drawn], 2)
  moved = scroll.motion(whole.reshape(-1, *whole.shape[2:]))
  lead = [len(moment.distinct) for moment in moments]
  true = scroll.motion(
    np.concatenate(
      [
        np.concatenate(
          [np.repeat(moment.history[None, -1:], number, 0), moment.distinct], 1
        )
        for number, moment in zip(lead, moments, strict=True)
      ]
    )
  )
  firsts = [group[0] for group in groups]
  keys = np.stack(
    [
      part[moment.future_of[firsts]]
      for part, moment in zip(
        np.split(true, np.cumsum(lead)[:-1]), moments, strict=True
      )
    ]
  )  # [M, G, 2]
  levels = np.array([moment.level for moment in moments])
  named = scroll.name_buttons(
    moved.reshape(count, buttons, 2),
    keys,
    levels,
    seed=seed,
    numbers=shown.buttons.tolist(),
  )
  key_names = scroll.name_buttons(keys, keys, levels, seed=seed, numbers=firsts)
  return named, [
    {"keys": list(group), **{k: v for k, v in row.items() if k != "button"}}
    for group, row in zip(groups, key_names, strict=True)
  ]


def _percent(found: float) -> str:
  return f"{100 * found:.1f} %"


def _range(found: intervals.Interval) -> str:
  return f"{100 * found.low:.1f} to {100 * found.high:.1f} %"


def _score_rows(scores: dict[str, dict[str, Any]]) -> list[metric.Row]:
  return [
    metric.Row(
      f"Buttons against the game's keys, after {length} "
      f"frame{'s' if length != '1' else ''}",
      _percent(found["score"].value),
      _range(found["score"]),
      f"buttons shuffled {_percent(found['chance'].value)}, tokenizer "
      f"{_percent(found['ceiling'].value)}",
      "Rollouts nearest to the future of their own key, among "
      f"{found['classes']:.1f} different ones; {found['moments']} moments.",
    )
    for length, found in scores.items()
  ]


def _name_rows(
  names: list[dict[str, Any]],
  key_names: list[dict[str, Any]],
  matched: list[dict[str, Any]],
) -> list[metric.Row]:
  key_of = {row["button"]: row["keys"] for row in matched}
  true = {tuple(row["keys"]): row for row in key_names}
  move = lambda row: (
    f"{row['scroll']['right']['value']:+.2f} right, "
    f"{row['scroll']['up']['value']:+.2f} up"
  )
  rows = []
  for row in names:
    keys = key_of.get(row["button"])
    game = "matched with no key"
    if keys is not None:
      key = true[tuple(keys)]
      game = f"the game with key {keys[0]} ({key['name']}): {move(key)}"
    rows.append(
      metric.Row(
        f"Button {row['button']} in this world",
        row["name"]
        if row["share"] is None
        else f"{row['name']}, {100 * row['share']:.0f} %",
        ""
        if row["interval"] is None
        else "{:.0f} to {:.0f} %".format(*(100 * x for x in row["interval"])),
        game,
        f"Mean motion in pixels per frame: {move(row)}.",
      )
    )
  return rows
