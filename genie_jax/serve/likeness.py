"""Whether a picture is like those that a world knows.

A world can show only what its tokenizer can reconstruct. The first frame of a
game is the reconstruction of its picture, so comparing the two costs no run of
the model. A picture is unlike the world if the PSNR of its reconstruction is
more than `MARGIN` below that of every prompt of the world.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

MARGIN = 3.0  # In dB: an error with twice the power.
# Variance of the error of rounding to a grey level.
_ROUNDING = 1 / 12


@dataclasses.dataclass(frozen=True)
class Likeness:
  """How well the first frame of a game shows its picture.

  Attributes:
    psnr: PSNR of the frame in dB.
    least: The least PSNR of the world's prompts in dB.
  """

  psnr: float
  least: float

  @property
  def unlike(self) -> bool:
    """Whether the picture is unlike those that the world knows."""
    return self.psnr < self.least - MARGIN


def psnr(picture: np.ndarray, shown: np.ndarray) -> float:
  """Returns the PSNR in dB of a frame, at most 59 dB (that of rounding).

  Args:
    picture: uint8 [H, W, C].
    shown: The frame that shows it, uint8 [H, W, C].
  """
  error = np.mean((picture.astype(np.float64) - shown) ** 2)
  return float(10 * np.log10(255**2 / max(error, _ROUNDING)))


def least(world: Any, prompts: Sequence[np.ndarray]) -> float | None:
  """Returns the least PSNR of a world's prompts, None without prompts.

  Args:
    world: The world, which must be compiled.
    prompts: uint8 [H, W, C] each.
  """
  return min(
    (psnr(prompt, world.show(world.reset(prompt))) for prompt in prompts),
    default=None,
  )
