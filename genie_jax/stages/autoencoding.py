"""What the two VQ-VAE stages share: losses, code statistics, revival."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from genie_jax.core import errors, images
from genie_jax.nn import vq
from genie_jax.train import stage

# How a codebook learns: by the gradient of its loss (the paper's plain
# VQ-VAE), or as the moving average of the inputs that chose each code.
_UPDATES = ("gradient", "average")


def check(config: Any) -> None:
  """Raises UserError unless `config.codebook` makes sense."""
  if config.learn_by not in _UPDATES:
    raise errors.UserError(
      f"config.codebook.learn_by={config.learn_by!r} is unknown"
      f"{errors.closest(str(config.learn_by), _UPDATES)}; use one of "
      f"{', '.join(_UPDATES)}."
    )
  for name in ("share_decay", "centre_decay"):
    if not 0 <= config[name] < 1:
      raise errors.UserError(
        f"config.codebook.{name}={config[name]} must be at least 0 and "
        "less than 1."
      )


def losses(
  predicted: jax.Array, target: jax.Array, quantized: vq.Quantized
) -> dict[str, stage.Term]:
  """Returns the plain VQ-VAE objective (arXiv:1711.00937, equation 3).

  Args:
    predicted: float [B, T, H, W, C] in [0, 1].
    target: The same shape.
    quantized: What the quantizer gave.
  """
  return {
    "squared_error": stage.Term.of(
      jnp.square(predicted.astype(jnp.float32) - target)
    ),
    "codebook": stage.Term.of(quantized.codebook_loss),
    "commitment": stage.Term.of(quantized.commitment_loss),
  }


def code_metrics(statistics: vq.CodeStatistics) -> dict[str, stage.Term]:
  """Returns running use and perplexity of a codebook."""
  # A code used a tenth as often as an even share counts as used.
  used = statistics.share > 0.1 / statistics.share.size
  return {
    "code_usage": stage.Term.of(used),
    "code_perplexity": stage.Term.of(statistics.perplexity()),
  }


def update_statistics(
  statistics: vq.CodeStatistics,
  quantized: vq.Quantized,
  rng: jax.Array,
  config: Any,
) -> tuple[vq.CodeStatistics, jax.Array]:
  """Returns statistics after a batch, and inputs that may replace codes.

  Args:
    statistics: The running use.
    quantized: The batch's quantisation.
    rng: Key for drawing the replacements.
    config: `config.codebook`: `share_decay` of the running use and
      `centre_decay` of the centres.
  """
  count = statistics.share.shape[0]
  statistics = statistics.update(
    quantized, config.share_decay, config.centre_decay
  )
  return statistics, vq.candidates(quantized, rng, count)


def codebook_update(
  config: Any,
) -> Callable[[Any, Any, jax.Array, jax.Array], tuple[Any, Any]]:
  """Returns the `after_update` of a stage whose model has one codebook.

  Args:
    config: `config.codebook`: `learn_by` "gradient" or "average", and
      `dead_below`, the part of an even share below which a code is dead.
  """

  def after_update(params, extra, replacements, rng):
    del rng
    codebook, statistics = params["codes"]["codebook"], extra["codes"]
    if config.learn_by == "average":
      codebook = statistics.centres(codebook)
    codebook, statistics = vq.revive(
      codebook, statistics, replacements, config.dead_below
    )
    return ({**params, "codes": {"codebook": codebook}}, {"codes": statistics})

  return after_update


def as_float(frames: jax.Array) -> jax.Array:
  """Returns uint8 frames as float32 in [0, 1]."""
  return frames.astype(jnp.float32) / 255


def error_frames(truth: np.ndarray, predicted: np.ndarray) -> np.ndarray:
  """Returns uint8 pictures of the error: grey is none, three times enlarged."""
  difference = np.asarray(predicted, np.float32) - np.asarray(truth)
  return images.to_uint8(0.5 + 1.5 * difference)
