"""MaskGIT in PyTorch, with all randomness as an input.

Shapes:
  N  tokens in one frame (h * w)    R  refinement steps    V  codes
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch

from genie_jax.core import errors
from genie_jax.sampling import schedule as schedule_lib

ORDERS = ("random", "confidence")


@dataclasses.dataclass(frozen=True)
class Noise:
  """The noise of one frame.

  Attributes:
    tokens: float32 Gumbel noise; for order "random" [1, N, V], used in every
      refinement, for "confidence" [R, N, V].
    order: float32; for order "random" [1, N], uniform in [0, 1), for
      "confidence" [R, N], Gumbel noise.
  """

  tokens: torch.Tensor
  order: torch.Tensor


@dataclasses.dataclass(frozen=True)
class MaskGIT:
  """The frame sampler of the paper; fields as in the JAX `maskgit.MaskGIT`."""

  refinements: int = 25
  schedule: str = "cosine"
  order: str = "random"
  temperature: float = 1.0
  choice_temperature: float = 4.5
  top_k: int = 0
  top_p: float = 1.0

  @classmethod
  def from_config(cls, fields: Mapping[str, Any]) -> "MaskGIT":
    """Checks the `sampling` group of config.json and returns its sampler.

    Raises:
      UserError: A field is unknown or out of range.
    """
    errors.check_fields("sampling", fields, cls.__dataclass_fields__)
    made = cls(**fields)
    if made.order not in ORDERS:
      raise errors.UserError(
        f"sampling.order is {made.order!r}; use one of {', '.join(ORDERS)}."
      )
    schedule_lib.hidden_counts(1, made.refinements, made.schedule)
    return made

  def noise(
    self, grid: tuple[int, int], num_codes: int, device: torch.device
  ) -> Noise:
    """Draws the noise of a frame from torch's global generator."""
    places = grid[0] * grid[1]
    random = lambda *shape: torch.rand(*shape, device=device)
    gumbel = lambda *shape: (
      -(-random(*shape).clamp(min=1e-30).log()).clamp(min=1e-30).log()
    )
    if self.order == "random":
      return Noise(gumbel(1, places, num_codes), random(1, places))
    steps = min(self.refinements, places)
    return Noise(gumbel(steps, places, num_codes), gumbel(steps, places))

  def draw(
    self,
    score: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    grid: tuple[int, int],
    noise: Noise,
  ) -> torch.Tensor:
    """Draws one frame; all tokens are hidden at first.

    Args:
      score: Takes int64 tokens and bool hidden, both [h, w]; returns logits
        [h, w, V].
      grid: (h, w).
      noise: The noise of the frame.

    Returns:
      int64 [h, w].
    """
    places = grid[0] * grid[1]
    counts = schedule_lib.hidden_counts(places, self.refinements, self.schedule)
    device = noise.tokens.device
    tokens = torch.zeros(places, dtype=torch.int64, device=device)
    hidden = torch.ones(places, dtype=torch.bool, device=device)
    for number, num_hidden in enumerate(counts.tolist(), 1):
      logits = score(tokens.reshape(grid), hidden.reshape(grid))
      logits = logits.reshape(places, -1)
      at = 0 if self.order == "random" else number - 1
      kept = _likely(logits, self)
      drawn = (kept + self.temperature * noise.tokens[at]).argmax(-1)
      rank_by = noise.order[at]
      if self.order == "confidence":
        falling = 1.0 - number / len(counts)
        rank_by = (
          self.choice_temperature * falling * rank_by
          + (logits.log_softmax(-1).gather(-1, drawn[:, None])[:, 0])
        )
      rank_by = torch.where(hidden, rank_by, math.inf)
      rank = rank_by.argsort(stable=True).argsort(stable=True)
      still_hidden = rank < num_hidden
      tokens = torch.where(hidden & ~still_hidden, drawn, tokens)
      hidden = still_hidden
    return tokens.reshape(grid)


def _likely(logits: torch.Tensor, sampling: MaskGIT) -> torch.Tensor:
  """Sets logits [..., V] excluded by top-k or top-p to -inf."""
  if 0 < sampling.top_k < logits.shape[-1]:
    least = logits.topk(sampling.top_k).values[..., -1:]
    logits = logits.masked_fill(logits < least, -math.inf)
  if sampling.top_p < 1:
    falling = logits.sort(descending=True).values
    shares = (falling / max(sampling.temperature, 1e-6)).softmax(-1)
    before = shares.cumsum(-1) - shares
    least = falling.masked_fill(before >= sampling.top_p, math.inf).amin(
      -1, keepdim=True
    )
    logits = logits.masked_fill(logits < least, -math.inf)
  return logits
