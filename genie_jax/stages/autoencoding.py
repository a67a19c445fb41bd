"""Losses, statistics and updates shared by all stages with a quantizer."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from genie_jax.core import errors, images
from genie_jax.nn import quantizers
from genie_jax.train import stage

_PIXELS = "squared_error"


def check(config: ml_collections.ConfigDict) -> None:
  """Checks the groups `quantizer` and `codebook` of a config.

  A quantizer that the config names as "module:attribute" is imported.

  Raises:
    UserError: There is no such quantizer, or `config.codebook` is invalid.
  """
  name = quantizers.DEFAULT
  if "quantizer" in config:  # Older configs do not have this group.
    name = config.quantizer.get("name")
  quantizers.of(name, trusted=True).check_training(config.codebook)


class Codes:
  """Trains the quantizer of a stage's model.

  The quantizer's state is `extra["codes"]`, its parameters are
  `params["codes"]`.

  Attributes:
    quantizer: The quantizer.
    loss_scales: The losses of a model with this quantizer, and their scales.
  """

  def __init__(
    self, quantizer: quantizers.Quantizer, config: ml_collections.ConfigDict
  ):
    """Prepares training.

    Args:
      quantizer: From `model.make_quantizer()`.
      config: The training config.
    """
    self.quantizer = quantizer
    self.loss_scales = _loss_scales(quantizer, config.loss)
    self._only_reported = quantizer.losses_without_gradient(config.codebook)
    # Statistics are those of a step, not of one of its microbatches.
    self._config = ml_collections.ConfigDict(
      {
        **config.codebook.to_dict(),
        "microbatches": config.optimizer.accumulate,
      }
    )

  def fresh(self) -> dict[str, Any]:
    """Returns `extra` before the first batch."""
    return {"codes": self.quantizer.fresh()}

  def warm(self, params: Any, extra: Any) -> dict[str, Any]:
    """Returns `extra` for trained parameters of a model; see `Stage.warm`."""
    return {**extra, "codes": self.quantizer.warm(params.get("codes", {}))}

  def losses(self, quantized: quantizers.Quantized) -> dict[str, jax.Array]:
    """Returns the quantizer's losses, some of them without a gradient."""
    return {
      name: jax.lax.stop_gradient(loss) if name in self._only_reported else loss
      for name, loss in quantized.losses.items()
    }

  def update(
    self, extra: Any, quantized: quantizers.Quantized, rng: jax.Array
  ) -> tuple[dict[str, Any], Any]:
    """Returns `extra` after a batch, and the `aux` of `after_update`."""
    state, aux = self.quantizer.update(
      extra["codes"], quantized, rng, self._config
    )
    return {"codes": state}, aux

  def after_update(
    self, params: Any, extra: Any, aux: Any, rng: jax.Array
  ) -> tuple[Any, dict[str, Any]]:
    """Returns the model's parameters and `extra` after a step."""
    del rng
    own, state = self.quantizer.after_update(
      params.get("codes", {}), extra["codes"], aux, self._config
    )
    return ({**params, "codes": own} if own else params), {"codes": state}

  def metrics(self, extra: Any) -> dict[str, stage.Term]:
    """Returns the quantizer's metrics, for example the use of its codes."""
    found = self.quantizer.metrics(extra["codes"])
    return {name: stage.Term.of(value) for name, value in found.items()}


def losses(
  predicted: jax.Array,
  target: jax.Array,
  quantizer_losses: Mapping[str, jax.Array],
  *,
  weights: jax.Array | None = None,
) -> dict[str, stage.Term]:
  """Returns the plain VQ-VAE objective (arXiv:1711.00937, equation 3).

  The last two terms are the losses of the VQ quantizer; other quantizers
  replace them with their own losses.

  Args:
    predicted: float [B, T, H, W, C] in [0, 1].
    target: The same shape.
    quantizer_losses: Name -> float32 [...], from `Codes.losses`.
    weights: float32 [H, W, 1], how much each pixel counts; None for equal
      weights.
  """
  error = jnp.square(predicted.astype(jnp.float32) - target)
  return {_PIXELS: stage.Term.of(error, weights)} | {
    name: stage.Term.of(loss) for name, loss in quantizer_losses.items()
  }


def pixel_weights(config: ml_collections.ConfigDict) -> jax.Array | None:
  """Returns the weight of each pixel's error, float32 [H, W, 1], or None.

  In games whose camera follows the player, he is always in the middle of the
  frame and only some pixels large, so the plain error hardly counts him.
  Differs from the paper, whose error is that of the whole frame.

  Args:
    config: With `centre`: `side`, of the square in the middle in pixels, and
      `weight`, of its pixels; all others have weight 1. Older configs have no
      such group.

  Raises:
    UserError: The square is larger than the frame, or the weight not positive.
  """
  if "centre" not in config or config.centre.weight == 1:
    return None
  height, width = config.world.height, config.world.width
  side, weight = config.centre.side, config.centre.weight
  if not 0 < side <= min(height, width) or weight <= 0:
    raise errors.UserError(
      f"config.centre has side={side} and weight={weight}; give a side of 1 to "
      f"{min(height, width)} pixels and a positive weight (1 for none)."
    )
  made = np.ones((height, width, 1), np.float32)
  top, left = (height - side) // 2, (width - side) // 2
  made[top : top + side, left : left + side] = weight
  return jnp.asarray(made)


def _loss_scales(
  quantizer: quantizers.Quantizer, scales: ml_collections.ConfigDict
) -> dict[str, float]:
  """Returns `config.loss` without the losses of other quantizers.

  Raises:
    UserError: A loss of this quantizer has no scale.
  """
  for name in quantizer.LOSSES:
    if name not in scales:
      raise errors.UserError(
        f"config.loss.{name} is missing; set it to the scale of this loss of "
        f"{type(quantizer).__name__}."
      )
  others = {
    name for other in quantizers.names() for name in quantizers.of(other).LOSSES
  } - set(quantizer.LOSSES)
  given: dict[str, float] = scales.to_dict()
  return {name: scale for name, scale in given.items() if name not in others}


def as_float(frames: jax.Array) -> jax.Array:
  """Returns uint8 frames as float32 in [0, 1]."""
  return frames.astype(jnp.float32) / 255


def error_frames(truth: np.ndarray, predicted: np.ndarray) -> np.ndarray:
  """Returns uint8 images of the error, amplified 3 times; grey is no error."""
  difference = np.asarray(predicted, np.float32) - np.asarray(truth)
  return images.to_uint8(0.5 + 1.5 * difference)
