"""Whether the frames that a world dreams show the key that was commanded.

An inverse-dynamics model, trained on true keys, reads a key from the frames
around each transition, and is right if that is the key of the real clip. The
world starts from a few true frames and then gets the buttons of the clip. The
model's accuracy there is given next to that on

  real            the real clips, which is what the model can read at all
  tokenizer       the same clips encoded and decoded
  random_buttons  the world with random buttons; keys are held, so a world that
                  ignores its buttons and lets motion continue is often right
  shuffled        the real clips, the frames of each in random order; a key that
                  is held for the whole clip can still be seen in one frame
  other_clip      the real clips against the keys of clips of other levels

Shapes:
  n  clips     T  frames of a clip     P  frames of the prompt
"""

import dataclasses
from typing import Any

import numpy as np

from genie_jax.evals import actions, control, intervals, metric

# Frames of the prompt: with them, position and velocity can be seen, so what
# differs afterwards is the button.
PROMPT_FRAMES = 4


@dataclasses.dataclass(frozen=True)
class Accuracy:
  """How often the right label is read, of one question in one situation.

  Attributes:
    by_source: Name of the frames -> share of transitions.
    majority: Share of the most frequent label.
    transitions: Number of transitions.
  """

  by_source: dict[str, intervals.Interval]
  majority: intervals.Interval
  transitions: int


def accuracy(
  read: dict[str, np.ndarray],
  labels: np.ndarray,
  levels: np.ndarray,
  *,
  first: int,
  seed: int,
) -> dict[str, Accuracy]:
  """Compares labels that were read from frames with those of the keys.

  Args:
    read: Name of the frames -> int [n, T-1], the labels that were read.
    labels: int [n, T-1], from 0.
    levels: int [n].
    first: First transition of a clip that counts, the same for all frames.
    seed: Seed of the bootstrap.

  Returns:
    "all" and "after_change" (the first transitions after a change of the
    label) -> accuracies; situations without transitions are left out.
  """
  late = np.broadcast_to(np.arange(labels.shape[1]) >= first, labels.shape)
  found: dict[str, Accuracy] = {}
  for name, mask in {
    "all": late,
    "after_change": late & control.after_change(labels),
  }.items():
    if not mask.any():
      continue
    share = lambda right, mask=mask: intervals.ratio(
      (right & mask).sum(1), mask.sum(1), levels, seed=seed
    )
    most = np.bincount(labels[mask]).argmax()
    found[name] = Accuracy(
      by_source={key: share(value == labels) for key, value in read.items()},
      majority=share(labels == most),
      transitions=int(mask.sum()),
    )
  return found


def shuffle(frames: np.ndarray, seed: int) -> np.ndarray:
  """Returns clips whose frames are in random order, each clip in its own.

  Args:
    frames: [n, T, ...].
    seed: Seed of the orders.
  """
  count, length = frames.shape[:2]
  order = np.random.default_rng(seed).random((count, length)).argsort(1)
  return frames[np.arange(count)[:, None], order]


def applies(work: metric.Work) -> bool:
  """Returns whether the clips state their keys and what they do."""
  return work.clips.actions is not None and "keys" in work.manifest.made_by


def measure(work: metric.Work) -> metric.Result:
  """Reads keys from real, reconstructed and dreamt clips."""
  options, subject, reader = work.options, work.subject, work.key_reader
  meanings = actions.key_labels(work.manifest.made_by["keys"])
  questions = [name for name in control.QUESTIONS if name in meanings]
  if reader is None:
    return metric.Result(
      {"steps": 0},
      rows=tuple(
        metric.Row(_title(question, "all"), "not measured", note="--idm-steps")
        for question in questions
      ),
    )
  count = slice(0, options.num_idm_clips)
  frames, levels = work.clips.frames[count], work.clips.levels[count]
  assert work.clips.actions is not None  # `applies`.
  keys = work.clips.actions[count]
  prompt = min(PROMPT_FRAMES, frames.shape[1] // 2)
  buttons = work.buttons[count]
  drawn = np.random.default_rng(options.seed).choice(
    subject.choices(work.manifest.action_aliases), buttons.shape
  )
  ids = np.arange(len(frames), dtype=np.int32)
  dream = lambda pressed: subject.decode(
    subject.rollout(
      work.tokens[count][:, :prompt],
      pressed.astype(np.int32),
      ids,
      options.seed,
    )
  )
  read = {
    name: reader.read(shown)
    for name, shown in {
      "real": frames,
      "tokenizer": work.rebuilt[count],
      "world": dream(buttons),
      "random_buttons": dream(drawn),
      "shuffled": shuffle(frames, options.seed),
    }.items()
  }
  read["other_clip"] = {
    question: found[_other_levels(levels)]
    for question, found in read["real"].items()
  }
  details: dict[str, Any] = {
    "steps": reader.steps,
    "transitions": reader.transitions,
    "prompt_frames": prompt,
  }
  rows: list[metric.Row] = []
  for question in questions:
    found = accuracy(
      {name: labels[question] for name, labels in read.items()},
      meanings[question][keys],
      levels,
      first=prompt - 1,
      seed=options.seed,
    )
    details[question] = {
      name: dataclasses.asdict(figures) for name, figures in found.items()
    }
    rows += [_row(question, name, figures) for name, figures in found.items()]
  return metric.Result(details, rows=tuple(rows))


def _other_levels(levels: np.ndarray) -> np.ndarray:
  """Returns a clip of another level for each clip; itself if there is none."""
  order = np.argsort(levels, kind="stable")
  most = np.unique(levels, return_counts=True)[1].max()
  # In the order of levels, `most` places further is another level.
  other = np.empty_like(order)
  other[order] = np.roll(order, -most)
  return other


def _title(question: str, situation: str) -> str:
  return (
    f"Key read from dreamt frames ({control.TITLES[question].lower()}), "
    f"{control.PLACES[situation]}: accuracy"
  )


def _row(question: str, situation: str, found: Accuracy) -> metric.Row:
  shares = {name: f"{x.value:.3f}" for name, x in found.by_source.items()}
  world = found.by_source["world"]
  return metric.Row(
    _title(question, situation),
    shares["world"],
    f"{world.low:.3f} to {world.high:.3f}",
    f"random buttons {shares['random_buttons']}, real clips {shares['real']}, "
    f"tokenizer {shares['tokenizer']}, frames shuffled {shares['shuffled']}, "
    f"keys of another clip {shares['other_clip']}, "
    f"most frequent key {found.majority.value:.3f}",
    "More than with random buttons is obedience and not motion that continues."
    if (question, situation) == ("effect", "all")
    else "",
  )
