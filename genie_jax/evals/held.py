"""What the buttons of a world do to its picture, for games that cannot be run.

Where the game itself can be played, `counterfactuals` names the buttons. Films
have no game, so the buttons are compared with one another: each is held from
the same held-out frames with the same noise, and named by how the picture
scrolls (`scroll.name_buttons`). An effect counts in moments in which some
buttons have it and some have not, and chance is a button that is drawn at
random. Buttons that all do the same therefore have no names.

A picture that only flickers has shifts as well, and there is no game to compare
it with. So the motion of a rollout counts only if its shifts take away at least
a quarter of the difference between frames that they would take away if the
picture did nothing but scroll (`scroll.explained`).

Intervals are over the moments, as few films are held out; they do not say how
the buttons would do in other films.

Shapes:
  M  moments     A  buttons     F  frames drawn
"""

from typing import Any

import numpy as np

from genie_jax.evals import counterfactuals, metric, rollouts, scroll

_MOMENTS = 48
_FRAMES = 8
# Drawn pictures that stand still and flicker reach 0.27 at most, those that
# scroll and flicker a little at least 0.34 (docs/evaluation.md).
_LEAST_EXPLAINED = 0.25


def applies(work: metric.Work) -> bool:
  """Returns whether only the world can say what its buttons do."""
  return isinstance(counterfactuals.find(work), str)


def measure(work: metric.Work) -> metric.Result:
  """Holds each button in up to 48 moments of the held-out clips."""
  subject, options = work.subject, work.options
  count = min(_MOMENTS, options.num_moments, len(work.tokens))
  chosen = np.linspace(0, len(work.tokens) - 1, count).round().astype(int)
  buttons = np.arange(subject.num_buttons)
  _, frames, _ = rollouts.hold(
    subject,
    work.tokens[chosen, :1],
    buttons,
    np.zeros((0, _FRAMES), np.int32),
    seed=options.seed,
  )
  named = name(frames, seed=options.seed)
  return metric.Result(
    {"moments": count, "frames": _FRAMES, "buttons": named},
    rows=tuple(map(_row, named)),
  )


def name(frames: np.ndarray, *, seed: int) -> list[dict[str, Any]]:
  """Names the buttons of rollouts; returns as `scroll.name_buttons` does.

  Args:
    frames: uint8 [A, M, 1 + F, H, W, C], the frame before the button first.
    seed: Of the bootstrap.
  """
  moved = scroll.motion(
    frames.reshape(-1, *frames.shape[2:]), least=_LEAST_EXPLAINED
  )
  moved = moved.reshape(*frames.shape[:2], 2).swapaxes(0, 1)  # [M, A, 2]
  return scroll.name_buttons(moved, moved, np.arange(len(moved)), seed=seed)


def _row(found: dict[str, Any]) -> metric.Row:
  percent = lambda share: f"{100 * share:.0f} %"
  value, interval, compared = found["name"], "", ""
  if found["share"] is not None:
    value += f", {percent(found['share'])}"
    interval = " to ".join(map(percent, found["interval"]))
    chance = found["effects"][found["name"]]["chance"]
    compared = f"a random button of this world {percent(chance)}"
  right, up = (found["scroll"][axis]["value"] for axis in ("right", "up"))
  return metric.Row(
    f"Button {found['button']} in this world",
    value,
    interval,
    compared,
    f"Mean motion of the picture in pixels per frame: {right:+.2f} right, "
    f"{up:+.2f} up.",
  )
