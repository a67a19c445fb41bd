"""What stages with a quantizer share: losses, statistics, updates."""

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

  A quantizer that the config names "module:attribute" is imported.

  Raises:
    UserError: There is no such quantizer, or it cannot learn so.
  """
  name = quantizers.DEFAULT
  if "quantizer" in config:  # Not in configs from before there were several.
    name = config.quantizer.get("name")
  quantizers.of(name, trusted=True).check_training(config.codebook)


class Codes:
  """The quantizer of a stage's model, as the stage trains it.

  Its state is `extra["codes"]`, its parameters are `params["codes"]`.

  Attributes:
    quantizer: The quantizer.
    loss_scales: The losses of a model with it, and their scales.
  """

  def __init__(
    self, quantizer: quantizers.Quantizer, config: ml_collections.ConfigDict
  ):
    """Takes `model.make_quantizer()` and the training config."""
    self.quantizer = quantizer
    self.loss_scales = _loss_scales(quantizer, config.loss)
    self._config = config.codebook

  def fresh(self) -> dict[str, Any]:
    """Returns `extra` before the first batch."""
    return {"codes": self.quantizer.fresh()}

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
    """Returns what the quantizer reports, for example the use of its codes."""
    found = self.quantizer.metrics(extra["codes"])
    return {name: stage.Term.of(value) for name, value in found.items()}


def losses(
  predicted: jax.Array, target: jax.Array, quantized: quantizers.Quantized
) -> dict[str, stage.Term]:
  """Returns the plain VQ-VAE objective (arXiv:1711.00937, equation 3).

  With another quantizer, its losses take the place of the last two terms.

  Args:
    predicted: float [B, T, H, W, C] in [0, 1].
    target: The same shape.
    quantized: What the quantizer gave.
  """
  error = jnp.square(predicted.astype(jnp.float32) - target)
  return {_PIXELS: stage.Term.of(error)} | {
    name: stage.Term.of(loss) for name, loss in quantized.losses.items()
  }


def _loss_scales(
  quantizer: quantizers.Quantizer, scales: ml_collections.ConfigDict
) -> dict[str, float]:
  """Returns `config.loss` without the losses that only others have.

  Raises:
    UserError: A loss of this quantizer has no scale.
  """
  for name in quantizer.LOSSES:
    if name not in scales:
      raise errors.UserError(
        f"config.loss.{name} is missing; {type(quantizer).__name__} has this "
        "loss, so give its scale."
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
  """Returns uint8 pictures of the error: grey is none, three times enlarged."""
  difference = np.asarray(predicted, np.float32) - np.asarray(truth)
  return images.to_uint8(0.5 + 1.5 * difference)
