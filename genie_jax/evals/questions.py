"""The questions that the report answers, each with its figures and bounds.

To add a question, add an entry to `QUESTIONS`. The rule that turns figures into
an answer is in `verdicts`.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from genie_jax.evals import control, verdicts

Details = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Figure:
  """A figure of a question.

  Attributes:
    evidence: The figure with its bounds.
    unit: "dB", "%" or "" for a plain number.
    trivial: What the trivial bound is, such as "copying the last frame".
    ceiling: What the ceiling is.
  """

  evidence: verdicts.Evidence
  unit: str
  trivial: str
  ceiling: str

  def show(self, value: float) -> str:
    """Formats a value of this figure with its unit."""
    if self.unit == "dB":
      return f"{value:+.2f} dB" if value else "0 dB"
    return f"{100 * value:.1f} %" if self.unit == "%" else f"{value:.3f}"


@dataclasses.dataclass(frozen=True)
class Question:
  """A question about a world.

  Attributes:
    title: The question.
    figures: From `details` of metrics.json to the figures that answer it; none
      if they were not measured.
    meaning: How to read the answer, one sentence.
    remedy: How to measure what is missing, one sentence.
    asked: Whether it applies to worlds of these actions, "latent" or "true".
  """

  title: str
  figures: Callable[[Details], Sequence[Figure]]
  meaning: str
  remedy: str
  asked: Callable[[str], bool] = lambda actions: True


def find(details: Details, path: str) -> Any:
  """Returns the figure at a path such as "control.effect.all", or None."""
  found: Any = details
  for name in path.split("."):
    if not isinstance(found, Mapping) or name not in found:
      return None
    found = found[name]
  return found


def _tokenizer(details: Details) -> list[Figure]:
  """The share of k-means' squared error that the tokenizer removes."""
  margin = find(details, "reconstruction.margin")
  if margin is None:
    return []
  removed = lambda decibels: 1 - 10 ** (-decibels / 10)
  evidence = verdicts.Evidence(
    "Squared error that the tokenizer removes",
    removed(margin["value"]),
    removed(margin["low"]),
    trivial=0.0,
    ceiling=1.0,
  )
  return [Figure(evidence, "%", "k-means of raw patches", "no error")]


def _codebook(details: Details) -> list[Figure]:
  found = find(details, "codebook.tokens")
  if found is None:
    return []
  evidence = verdicts.Evidence(
    "Codes in use",
    found["usage"],
    found["usage"],
    trivial=1 / found["num_codes"],
    ceiling=1.0,
  )
  return [Figure(evidence, "%", "one code", "all codes")]


def _prediction(details: Details) -> list[Figure]:
  found = find(details, "prediction.pixels")
  if found is None:
    return []
  evidence = verdicts.Evidence(
    "Gain on the pixels that change",
    found["gain"]["value"],
    found["gain"]["low"],
    trivial=0.0,
    ceiling=found["ceiling"]["value"] - found["copy_last"]["value"],
  )
  return [
    Figure(
      evidence, "dB", "copying the last frame", "the tokenizer's reconstruction"
    )
  ]


def _effect(details: Details) -> list[Figure]:
  delta = find(details, "controllability.delta_psnr")
  ceiling = find(details, "controllability.delta_ceiling")
  if delta is None or ceiling is None:
    return []
  evidence = verdicts.Evidence(
    "Delta PSNR, t = 4",
    delta["delta"]["value"],
    delta["delta"]["low"],
    trivial=0.0,
    ceiling=ceiling["value"] - delta["random"]["value"],
  )
  return [
    Figure(evidence, "dB", "random buttons", "the tokenizer's reconstruction")
  ]


def _control(details: Details) -> list[Figure]:
  found = find(details, "controllability.delta_previous.frames.1.all_pixels")
  if found is None:
    return []
  evidence = verdicts.Evidence(
    "Delta PSNR, t = 1",
    found["previous"]["value"],
    found["previous"]["low"],
    trivial=0.0,
    ceiling=found["psnr_ceiling"]["value"] - found["psnr_previous"]["value"],
  )
  return [
    Figure(
      evidence,
      "dB",
      "the button before, repeated",
      "the tokenizer's reconstruction",
    )
  ]


def _keys(details: Details) -> list[Figure]:
  shuffled = find(details, "actions.shuffled_nmi.high")
  found = find(details, "control.effect.all")
  if found is not None:
    previous = found["previous_nmi"]["high"]
    attainable = found["attainable_nmi"]
    evidence = verdicts.Evidence(
      "Mutual information with the keys",
      found["nmi"]["value"],
      found["nmi"]["low"],
      trivial=max(previous, shuffled or 0.0),
      ceiling=attainable["value"],
    )
    return [
      Figure(
        evidence,
        "",
        "the code before, or chance",
        "a supervised model that reads the frames"
        if attainable == found["supervised_nmi"]
        else "the true motion",
      )
    ]
  actions = find(details, "actions")
  if actions is None:
    return []
  nmi = verdicts.Evidence(
    "Mutual information with the keys",
    actions["nmi"]["value"],
    actions["nmi"]["low"],
    trivial=actions["shuffled_nmi"]["high"],
    ceiling=1.0,
  )
  purity = verdicts.Evidence(
    "Keys guessed from the code",
    actions["purity"]["value"],
    actions["purity"]["low"],
    trivial=actions["majority"],
    ceiling=1.0,
  )
  return [
    Figure(nmi, "", "shuffled keys", "codes that are keys"),
    Figure(purity, "%", "the most frequent key", "codes that are keys"),
  ]


def _counterfactuals(details: Details) -> list[Figure]:
  """The score after the longest hold, in which buttons matter most."""
  after = find(details, "counterfactuals.after")
  if not after:
    return []
  last = max(after, key=int)
  found = after[last]
  evidence = verdicts.Evidence(
    f"Rollouts nearest to the future of their own key, after {last} frames",
    found["score"]["value"],
    found["score"]["low"],
    trivial=found["chance"]["high"],
    ceiling=found["ceiling"]["value"],
  )
  return [
    Figure(evidence, "%", "buttons shuffled", "the tokenizer's reconstruction")
  ]


def _walking(details: Details) -> list[Figure]:
  """Both directions and the jump: a world that ignores buttons lacks one."""
  found = find(details, "walking.shares")
  if found is None:
    return []
  return [
    Figure(
      verdicts.Evidence(
        f"Standing starts from which one button does it: {role}",
        found[role]["value"],
        found[role]["low"],
        trivial=0.0,
        ceiling=find(details, f"walking.tokenizer.{role}.value"),
      ),
      "%",
      f"frozen frames; the figure is that of {role!r}, the lowest",
      "the game after the tokenizer",
    )
    for role in ("right", "left", "jump")
  ]


def _commanded(details: Details) -> list[Figure]:
  """The accuracy after a change of the key: held keys flatter any world."""
  found = find(details, "inverse_dynamics.effect.after_change")
  if found is None:
    return []
  by_source = found["by_source"]
  trivial = {
    "random buttons": by_source["random_buttons"]["high"],
    "keys of another clip": by_source["other_clip"]["high"],
    "the most frequent key": found["majority"]["high"],
  }
  largest = max(trivial, key=lambda name: trivial[name])
  evidence = verdicts.Evidence(
    "Keys read correctly from dreamt frames",
    by_source["world"]["value"],
    by_source["world"]["low"],
    trivial=trivial[largest],
    ceiling=by_source["tokenizer"]["value"],
  )
  return [Figure(evidence, "%", largest, "the tokenizer's reconstruction")]


def _alive(details: Details) -> list[Figure]:
  found = find(details, "controllability.late_motion.likeness")
  if found is None:
    return []
  evidence = verdicts.Evidence(
    "Motion late in free rollouts, relative to the game's or inverse",
    found["value"],
    found["low"],
    trivial=0.0,
    ceiling=1.0,
  )
  return [Figure(evidence, "", "frozen frames", "the game")]


def _drift(details: Details) -> list[Figure]:
  horizons = find(details, "drift.horizons")
  if not horizons:
    return []
  last = max(horizons, key=int)
  found = horizons[last]["likeness"]
  evidence = verdicts.Evidence(
    f"Likeness to the game after {last} frames",
    found["world"]["value"],
    found["world"]["low"],
    trivial=max(found["frozen"]["high"], found["other_level"]["high"]),
    ceiling=found["tokenizer"]["value"],
  )
  return [
    Figure(
      evidence,
      "",
      "frozen frames, or another level",
      "real clips after the tokenizer",
    )
  ]


QUESTIONS = (
  Question(
    "Does the tokenizer keep the picture?",
    _tokenizer,
    "Share of k-means' squared error that it removes, with equal bits.",
    "",
  ),
  Question(
    "Is the codebook in use?",
    _codebook,
    "Share of the codes that occur in held-out clips.",
    "",
  ),
  Question(
    "Does it predict the next frame?",
    _prediction,
    "PSNR on the pixels that change, above copying the last frame.",
    "",
  ),
  Question(
    "Do buttons change the frames?",
    _effect,
    "PSNR of the fourth frame with the right buttons, minus random ones.",
    "",
  ),
  Question(
    "Are buttons control, not state?",
    _control,
    "PSNR of the next frame with the right button, minus the button before.",
    "",
  ),
  Question(
    "Do buttons match the keys?",
    _keys,
    "How much a latent action tells about the key that was pressed.",
    "Give clips with the keys, such as those of `genie data coinrun`.",
    asked=lambda actions: actions == "latent",
  ),
  Question(
    "Do buttons do what the game's keys do?",
    _counterfactuals,
    "Held from the same state: share of rollouts that are nearer to what the "
    "game draws for their own key than for any other.",
    "Collect the clips with `--counterfactuals 4`.",
  ),
  Question(
    "Does the player walk both ways and jump?",
    _walking,
    "Share of standing starts from which one button moves the player to the "
    "right, one to the left, and one up and down again.",
    "Collect the clips with `--standing 2`.",
  ),
  Question(
    "Do dreamt frames show the commanded key?",
    _commanded,
    "How often a model that was trained on true keys reads the right one, in "
    f"the first {control.AFTER_CHANGE} transitions after the key changes.",
    "Collect the clips with `--states`, and leave out `--idm-steps 0`.",
  ),
  Question(
    "Does the world stay alive?",
    _alive,
    "Motion in the second half of free rollouts; 1 if it equals the game's.",
    "",
  ),
  Question(
    "Do long rollouts stay like the game?",
    _drift,
    "Colours, tokens, centre and motion of long free rollouts; 1 if all equal "
    "the game's.",
    "Give `--drift-frames 64`.",
  ),
)


def answer(details: Details, actions: str) -> list[dict[str, Any]]:
  """Answers all questions that apply.

  Args:
    details: `details` of metrics.json, JSON types.
    actions: Kind of actions of the world, "latent" or "true".

  Returns:
    For each question, JSON types: `question`, `verdict`, `share` (None if it
    was not measured), `value` and `text` for the report.
  """
  found = []
  for question in QUESTIONS:
    if not question.asked(actions):
      continue
    figures = list(question.figures(details))
    verdict, lowest = verdicts.weakest([each.evidence for each in figures])
    shown = next((each for each in figures if each.evidence is lowest), None)
    if shown is None:
      text, share, value = f"{question.meaning} {question.remedy}", None, "-"
    else:
      evidence = shown.evidence
      share, value = evidence.share, shown.show(evidence.value)
      if evidence.low != evidence.value:
        value += f" (at least {shown.show(evidence.low)})"
      text = (
        f"{question.meaning} Trivial: {shown.show(evidence.trivial)} "
        f"({shown.trivial}). Ceiling: {shown.show(evidence.ceiling)} "
        f"({shown.ceiling})."
      )
    found.append(
      {
        "question": question.title,
        "verdict": verdict,
        "share": share,
        "value": value,
        "text": text.strip(),
      }
    )
  return found
