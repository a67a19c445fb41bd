"""Names buttons by what they were measured to do.

The player's motion is judged by its sign only, and a motion has all effects
that fit it: who moves up and to the left has the effects "left and jump",
"left" and "jump". Both measures of buttons use the same rule: `scroll`, on
rollouts of a world, and `control`, on real clips with true states.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from genie_jax.worlds import buttons

UNCLEAR = buttons.UNCLEAR

# Name -> (horizontal, vertical) motion, None for any.
_EFFECTS: dict[str, tuple[int | None, int | None]] = {
  "left and jump": (-1, 1),
  "right and jump": (1, 1),
  "left": (-1, None),
  "right": (1, None),
  "jump": (None, 1),
  "fall": (None, -1),
  "nothing": (0, 0),
}
EFFECTS = tuple(_EFFECTS)
NAMES = (*EFFECTS, UNCLEAR)


def effects(signs: np.ndarray) -> dict[str, np.ndarray]:
  """Returns which effects a motion has.

  Args:
    signs: [..., 2], -1, 0 or 1: to the right and upwards.

  Returns:
    Name of each of `EFFECTS` -> bool [...].
  """
  every = np.ones(signs.shape[:-1], bool)
  return {
    name: np.logical_and(
      *(
        every if needed is None else signs[..., axis] == needed
        for axis, needed in enumerate(pair)
      )
    )
    for name, pair in _EFFECTS.items()
  }


def closest(found: Mapping[str, Mapping[str, float]]) -> str | None:
  """Returns the effect that exceeds chance most, or None without effects.

  Args:
    found: As of `named`.
  """
  return max(
    found, key=lambda x: found[x]["value"] - found[x]["chance"], default=None
  )


def named(found: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
  """Names a button by an effect that it has mostly, and surely above chance.

  Of several such effects it is the one that exceeds chance most, because a
  button that goes right also falls off ledges, and does nothing in front of
  walls.

  Args:
    found: Name of an effect -> the share of cases in which the button has it,
      as "value", the interval's "low" and "high", and "chance".

  Returns:
    "name", one of `NAMES`; "share" and "interval" [low, high] of the effect
    that names the button, None if it is "unclear"; and "effects", which is
    `found`.
  """
  name = closest(
    {
      name: part
      for name, part in found.items()
      if part["value"] > 0.5 and part["low"] > part["chance"]
    }
  )
  best = found[name] if name is not None else None
  return {
    "name": UNCLEAR if name is None else name,
    "share": best["value"] if best else None,
    "interval": [best["low"], best["high"]] if best else None,
    "effects": dict(found),
  }
