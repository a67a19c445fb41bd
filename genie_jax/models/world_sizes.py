"""Bounds on the sizes that a saved model states.

Most sizes are those of a tensor, so a file that is too short for them is
refused. The sizes of frames and of the window are not: a small file could state
so many frames, pixels or tokens that the first step needs all memory of the
machine. The bounds are far above all known worlds: 120 x 68 tokens are a frame
of 1920 x 1080 pixels in patches of 16. This module imports no JAX.
"""

import math
from collections.abc import Mapping
from typing import Any

from genie_jax.core import errors

MAX_FRAMES = 1 << 12  # In the window.
MAX_TOKENS = 1 << 13  # Or patches, in a frame.
MAX_WINDOW_TOKENS = 1 << 20
MAX_WINDOW_VALUES = 1 << 29  # Values of all pixels in the window.
MAX_LOGITS = 1 << 28  # Tokens of a frame times codes.

# The fields of `config.world` that a model has.
FIELDS = (
  "num_frames",
  "height",
  "width",
  "channels",
  "token_patch",
  "num_codes",
  "num_latent_actions",
)


def check(where: str, fields: Mapping[str, Any]) -> None:
  """Checks the sizes of a model.

  Args:
    where: The file and the part, for messages.
    fields: {"world", "model"} of the part.

  Raises:
    UserError: A size is not a whole number above 0, or too large.
  """
  world, model = fields["world"], fields["model"]
  # Building a model checks which fields are there.
  sizes = {name: world.get(name, 1) for name in FIELDS}
  for name, value in sizes.items():
    if type(value) is not int or value < 1:
      raise errors.UserError(
        f"{where}: {name}={value!r:.40} is not a whole number above 0; export "
        "it again."
      )
  frames, area = sizes["num_frames"], sizes["height"] * sizes["width"]

  def grid(side: int) -> int:
    return math.prod(-(-sizes[name] // side) for name in ("height", "width"))

  sides = [sizes["token_patch"]]
  if type(patch := model.get("patch")) is int and patch > 0:
    sides.append(patch)  # Of a latent action model.
  tokens = grid(min(sides))
  for what, found, most in (
    ("frames in the window", frames, MAX_FRAMES),
    ("tokens in a frame", tokens, MAX_TOKENS),
    ("tokens in the window", frames * tokens, MAX_WINDOW_TOKENS),
    (
      "values of pixels in the window",
      frames * area * sizes["channels"],
      MAX_WINDOW_VALUES,
    ),
    ("logits of a frame", tokens * sizes["num_codes"], MAX_LOGITS),
  ):
    if found > most:
      raise errors.UserError(
        f"{where} has {found} {what}, more than {most}; choose smaller frames, "
        "larger patches or fewer frames in config.world."
      )
