"""Whether latent actions say which key was pressed, by the game's true state.

A code can agree with the keys because it describes how the player already
moves: keys are held for many frames, and motion follows the keys. Each figure
is therefore given next to

  previous code  the code of the transition before, compared with this key; a
                 code that carries only what was known before is no better
  attainable     what can be seen limits what can be inferred. It is the larger
                 of two figures: that of the sign of the true change of
                 position, horizontal and vertical ("motion"), and that of a
                 supervised model that reads the key from the true frames
                 ("supervised", see `inverse_dynamics`)

and the first transitions after the key has changed are judged apart: there,
velocity still follows the old key.

Each code is also named by what the player does in the transitions in which it
occurs: their true motion is compared with that of all transitions.

Shapes:
  n  clips     T  frames of a clip     A  latent actions     L  levels
  m  transitions of a situation
"""

import dataclasses
from typing import Any

import numpy as np

from genie_jax.evals import actions, button_names, intervals, metric

# Transitions after a change of the key that are judged apart.
AFTER_CHANGE = 4
_STILL = 0.02  # Changes of position below this are none, in cells.
QUESTIONS = ("effect", "horizontal", "jump")


@dataclasses.dataclass(frozen=True)
class Transitions:
  """All transitions of clips, as [n, T-1] arrays.

  Attributes:
    codes: Latent actions, in [0, A).
    keys: The actions that were taken.
    motion: The sign of the change of position, in [0, 9).
    ground: Whether the player stood on something; None if that is not known.
    levels: int [n].
  """

  codes: np.ndarray
  keys: np.ndarray
  motion: np.ndarray
  ground: np.ndarray | None
  levels: np.ndarray


@dataclasses.dataclass(frozen=True)
class Figures:
  """Figures of one question in one situation.

  Attributes:
    nmi: Normalised mutual information of code and label, 0 to 1.
    previous_nmi: The same with the code of the transition before.
    gain_nmi: Their difference. Its interval is narrower than those of the two,
      which vary together from level to level.
    motion_nmi: The same with the true motion in place of the code.
    supervised_nmi: The same with supervised predictions of the label; None if
      there are none.
    attainable_nmi: The one of the last two with the larger value.
    accuracy: Share of transitions whose label is that of their code, by the
      map from codes to labels that is best for all transitions.
    previous_accuracy: The same with the code of the transition before.
    motion_accuracy: The same with the true motion.
    supervised_accuracy: The same with supervised predictions, or None.
    attainable_accuracy: The one of the last two with the larger value.
    majority: Share of the most frequent label.
    transitions: m.
  """

  nmi: intervals.Interval
  previous_nmi: intervals.Interval
  gain_nmi: intervals.Interval
  motion_nmi: intervals.Interval
  supervised_nmi: intervals.Interval | None
  attainable_nmi: intervals.Interval
  accuracy: intervals.Interval
  previous_accuracy: intervals.Interval
  motion_accuracy: intervals.Interval
  supervised_accuracy: intervals.Interval | None
  attainable_accuracy: intervals.Interval
  majority: intervals.Interval
  transitions: int


def transitions(
  codes: np.ndarray, keys: np.ndarray, states: np.ndarray, levels: np.ndarray
) -> Transitions:
  """Collects transitions from clips with true states.

  Args:
    codes: int [n, T-1].
    keys: int [n, T-1].
    states: float [n, T, 5]: x, y, their velocities, and support (1, 0, or -1
      if it is not known).
    levels: int [n].
  """
  sign = lambda change: np.where(np.abs(change) < _STILL, 0, np.sign(change))
  change = np.diff(states[..., :2], axis=1)
  motion = 3 * (sign(change[..., 0]) + 1) + sign(change[..., 1]) + 1
  support = states[:, :-1, 4]
  return Transitions(
    codes=np.asarray(codes),
    keys=np.asarray(keys),
    motion=motion.astype(np.int64),
    ground=None if (support < 0).any() else support > 0,
    levels=np.asarray(levels),
  )


def name_codes(
  found: Transitions, num_codes: int, *, seed: int
) -> list[dict[str, Any]]:
  """Names each code by what the player does while it occurs.

  Args:
    found: The transitions.
    num_codes: A.
    seed: Seed of the bootstrap.

  Returns:
    For each code {"button", "transitions", "usage", "name", "share",
    "interval", "effects"}: the code, the number of its transitions and their
    share of all, and `button_names.named`, where cases are the transitions of
    the code, and chance is the share among all transitions.
  """
  signs = np.stack(np.divmod(found.motion, 3), -1) - 1  # [n, T-1, 2]
  seen = button_names.effects(signs)
  rows = []
  for code in range(num_codes):
    mine = found.codes == code
    share = lambda has, mine=mine: intervals.ratio(
      (has & mine).sum(1), mine.sum(1), found.levels, seed=seed
    )
    effects = {
      name: {**share(has).to_dict(), "chance": float(has.mean())}
      for name, has in seen.items()
    }
    rows.append(
      {
        "button": code,
        "transitions": int(mine.sum()),
        "usage": float(mine.mean()),
        **button_names.named(effects),
      }
    )
  return rows


def after_change(labels: np.ndarray) -> np.ndarray:
  """Returns the AFTER_CHANGE transitions from each change of the label on.

  Args:
    labels: int [n, T-1].

  Returns:
    bool [n, T-1].
  """
  changed = np.zeros(labels.shape, bool)
  changed[:, 1:] = labels[:, 1:] != labels[:, :-1]
  recent = np.zeros(labels.shape, bool)
  for delay in range(AFTER_CHANGE):
    recent[:, delay:] |= changed[:, : labels.shape[1] - delay]
  return recent


def situations(found: Transitions, labels: np.ndarray) -> dict[str, np.ndarray]:
  """Returns which transitions belong to each situation, bool [n, T-1].

  The first transition of a clip has no code before it and is left out of all.

  Args:
    found: The transitions.
    labels: int [n, T-1], the label of each key.
  """
  seen = np.ones(labels.shape, bool)
  seen[:, 0] = False
  chosen = {"all": seen, "after_change": seen & after_change(labels)}
  if found.ground is not None:
    chosen["ground"] = seen & found.ground
    chosen["air"] = seen & ~found.ground
  return chosen


def judge(
  found: Transitions,
  labels: np.ndarray,
  num_codes: int,
  *,
  seed: int,
  supervised: np.ndarray | None = None,
) -> dict[str, Figures]:
  """Measures how much codes say about the labels of keys.

  It needs no world: codes of any latent action model can be judged.

  Args:
    found: The transitions.
    labels: int [n, T-1], from 0 (`actions.key_labels`).
    num_codes: A.
    seed: Seed of the bootstrap.
    supervised: int [n, T-1], the labels that a supervised model reads from
      the true frames (`inverse_dynamics.KeyReader.read`), or None.

  Returns:
    Situation -> figures; situations without transitions are left out.
  """
  before = np.roll(found.codes, 1, axis=1)  # The first one is never used.
  levels = np.broadcast_to(found.levels[:, None], labels.shape)
  _, levels = np.unique(levels, return_inverse=True)
  levels = levels.reshape(labels.shape)
  num_labels = int(labels.max()) + 1
  chosen = situations(found, labels)
  sides = {
    "": (found.codes, num_codes),
    "previous_": (before, num_codes),
    "motion_": (found.motion, 9),
  }
  if supervised is not None:
    sides["supervised_"] = (supervised, int(supervised.max()) + 1)
  rows: dict[str, Figures] = {}
  for name, mask in chosen.items():
    if not mask.any():
      continue
    fields: dict[str, Any] = {
      "transitions": int(mask.sum()),
      "supervised_nmi": None,
      "supervised_accuracy": None,
    }
    tables: dict[str, np.ndarray] = {}
    for side, (values, count) in sides.items():
      whole = _tables(values, labels, levels, chosen["all"], count, num_labels)
      best = whole.sum(0).argmax(-1)  # [A], the label of each code.
      table = _tables(values, labels, levels, mask, count, num_labels)
      tables[side] = table
      fields[f"{side}nmi"] = intervals.bootstrap(
        lambda sums: actions.nmi(sums["table"]), {"table": table}, seed=seed,
        unbiased=True,
      )  # fmt: skip
      right = table[:, np.arange(count), best].sum(-1)
      fields[f"{side}accuracy"] = _share(right, table, seed)
    fields["gain_nmi"] = intervals.bootstrap(
      lambda sums: actions.nmi(sums["code"]) - actions.nmi(sums["previous"]),
      {"code": tables[""], "previous": tables["previous_"]},
      seed=seed,
      unbiased=True,
    )
    for figure in ("nmi", "accuracy"):
      motion, read = fields[f"motion_{figure}"], fields[f"supervised_{figure}"]
      fields[f"attainable_{figure}"] = (
        motion if read is None or motion.value >= read.value else read
      )
    labelled = table.sum(1)  # [L, labels]
    fields["majority"] = _share(
      labelled[:, labelled.sum(0).argmax()], table, seed
    )
    rows[name] = Figures(**fields)
  return rows


def _tables(values, labels, levels, mask, num_values, num_labels) -> np.ndarray:
  """Counts masked transitions by level, value and label, [L, A, labels]."""
  shape = (int(levels.max()) + 1, num_values, num_labels)
  flat = np.ravel_multi_index((levels[mask], values[mask], labels[mask]), shape)
  return np.bincount(flat, minlength=np.prod(shape)).reshape(shape)


def _share(
  part: np.ndarray, table: np.ndarray, seed: int
) -> intervals.Interval:
  """Returns a share of all transitions, from counts per level [L]."""
  return intervals.bootstrap(
    lambda sums: sums["part"] / np.maximum(sums["all"], 1),
    {"part": part, "all": table.sum((1, 2))},
    seed=seed,
  )


def applies(work: metric.Work) -> bool:
  """Returns whether the clips state what keys do and have true states."""
  return work.subject.infer is not None and "keys" in work.manifest.made_by


def measure(work: metric.Work) -> metric.Result:
  """Judges the latent actions of held-out clips with true states."""
  options, subject = work.options, work.subject
  clips = metric.pick_action_clips(work, arrays=("states",))
  # `applies` leaves this metric out if either is missing.
  assert subject.infer is not None and clips.actions is not None
  found = transitions(
    subject.infer(clips.frames),
    clips.actions,
    clips.arrays["states"],
    clips.levels,
  )
  named = name_codes(found, subject.num_buttons, seed=options.seed)
  details: dict[str, Any] = {"buttons": named}
  rows = [_name_row(row) for row in named]
  reader = work.key_reader
  read = reader.read(clips.frames) if reader is not None else {}
  meanings = actions.key_labels(work.manifest.made_by["keys"])
  for question in QUESTIONS:
    if question not in meanings:
      continue
    judged = judge(
      found,
      meanings[question][found.keys],
      subject.num_buttons,
      seed=options.seed,
      supervised=read.get(question),
    )
    details[question] = {
      name: dataclasses.asdict(figures) for name, figures in judged.items()
    }
    rows += [_row(question, name, figures) for name, figures in judged.items()]
  return metric.Result(details, rows=tuple(rows))


TITLES = {
  "effect": "Key, those with equal effects merged",
  "horizontal": "Left, right or neither",
  "jump": "Jump or not",
}
PLACES = {
  "all": "all transitions",
  "ground": "on the ground",
  "air": "in the air",
  "after_change": f"the first {AFTER_CHANGE} after a change of the key",
}


def _name_row(found: dict[str, Any]) -> metric.Row:
  """Returns a row that says what the player does while a code occurs."""
  name = f"Code {found['button']} in real clips"
  if not found["transitions"]:
    return metric.Row(name, "never occurs")
  percent = lambda share: f"{100 * share:.0f} %"
  clear = found["share"] is not None
  # Of a code without a clear effect, the effect that comes closest.
  shown = found["name"] if clear else button_names.closest(found["effects"])
  assert shown is not None  # There is a share of each effect.
  part = found["effects"][shown]
  share = percent(part["value"])
  bounds = f"{100 * part['low']:.0f} to {percent(part['high'])}"
  usual = f"all transitions {percent(part['chance'])}"
  return metric.Row(
    name,
    f"{shown}, {share}" if clear else found["name"],
    bounds if clear else "",
    usual if clear else f"closest: {shown}, {share} ({bounds}); {usual}",
    f"The code of {100 * found['usage']:.1f} % of transitions.",
  )


def _row(question: str, situation: str, found: Figures) -> metric.Row:
  """Returns a row: NMI, or accuracy after a change of the key."""
  after = situation == "after_change"
  figure = "accuracy" if after else "nmi"
  gain = found.gain_nmi
  value, previous, attainable, motion, read = (
    getattr(found, f"{side}{figure}")
    for side in ("", "previous_", "attainable_", "motion_", "supervised_")
  )
  return metric.Row(
    f"{TITLES[question]}, {PLACES[situation]}: "
    f"{'accuracy' if after else 'NMI'}",
    f"{value.value:.3f}",
    f"{value.low:.3f} to {value.high:.3f}",
    f"previous code {previous.value:.3f}"
    + ("" if after else f" (more by {gain.low:.3f} to {gain.high:.3f})")
    + f", attainable {attainable.value:.3f} "
    f"(true motion {motion.value:.3f}, supervised "
    + (f"{read.value:.3f})" if read is not None else "not measured)")
    + (f", most frequent key {found.majority.value:.3f}" if after else ""),
    "More than the previous code is control and not state."
    if situation == "all" and question == "effect"
    else "",
  )
