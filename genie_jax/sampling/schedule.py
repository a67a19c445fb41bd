"""The number of tokens that stay hidden after each refinement step."""

import math

import numpy as np

from genie_jax.core import errors

# Share of the tokens that stay hidden after the share `done` of the steps.
_CURVES = {
  "cosine": lambda done: math.cos(math.pi / 2 * done),
  "linear": lambda done: 1.0 - done,
  "square_root": lambda done: 1.0 - math.sqrt(done),
}
SCHEDULES = tuple(_CURVES)


def hidden_counts(
  num_tokens: int, refinements: int, schedule: str = "cosine"
) -> np.ndarray:
  """Returns how many tokens stay hidden after each refinement step.

  Every step reveals at least one token and the last reveals all, so the counts
  decrease strictly to 0 (MaskGIT, section 3.2). A frame with fewer tokens than
  `refinements` has only as many steps as tokens, because a step that reveals
  no token would be a wasted pass of the model.

  Args:
    num_tokens: Tokens in one frame, N.
    refinements: Requested refinement steps, at least 1.
    schedule: "cosine" reveals few tokens early and many late, "linear" the
      same number in each step, "square_root" many early and few late.

  Returns:
    int32 [min(refinements, num_tokens)].

  Raises:
    UserError: `refinements` is below 1 or the schedule is unknown.
  """
  if schedule not in _CURVES:
    raise errors.UserError(
      f"sampling.schedule is {schedule!r}"
      f"{errors.closest(schedule, SCHEDULES)}; use one of "
      f"{', '.join(SCHEDULES)}."
    )
  if refinements < 1:
    raise errors.UserError(
      f"sampling.refinements is {refinements}; it must be at least 1 (the "
      "paper uses 25)."
    )
  steps = min(refinements, num_tokens)
  counts, left = [], num_tokens
  for step in range(1, steps + 1):
    curve = math.floor(_CURVES[schedule](step / steps) * num_tokens)
    # At least one token must remain for each later step, and at least one is
    # revealed in this step.
    left = min(max(curve, steps - step), left - 1)
    counts.append(left)
  return np.asarray(counts, np.int32)
