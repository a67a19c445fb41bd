"""Decodes the tokens of a rollout to frames with a sliding window.

Shapes:
  W  frames in the decoder's window
"""

import functools
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np

from genie_jax.models import protocols
from genie_jax.sampling import prepare


def decode(
  tokenizer: protocols.TokenizerModel,
  params: Any,
  tokens: jax.Array | np.ndarray,
  *,
  window: int,
) -> jax.Array:
  """Decodes clips that may be longer than those the decoder was trained on.

  The first W frames are decoded at once, and each later frame together with
  the W - 1 frames before it, so that no frame has more history than in
  training.

  Args:
    tokenizer: The tokenizer.
    params: Its parameters.
    tokens: int32 [B, T, h, w], any T.
    window: W, the clip length that the tokenizer was trained on.

  Returns:
    float32 [B, T, H, W, C] in [0, 1].
  """
  chex.assert_rank(tokens, 4)
  return _decode(prepare.hashable(tokenizer), params, tokens, window)


@functools.partial(jax.jit, static_argnames=("tokenizer", "window"))
def _decode(tokenizer, params, tokens, window):
  run = functools.partial(tokenizer.apply, {"params": params}, method="decode")
  frames = run(tokens[:, :window])

  def last_of(start):
    seen = jax.lax.dynamic_slice_in_dim(tokens, start, window, 1)
    return run(seen)[:, -1]

  later = tokens.shape[1] - window
  if later > 0:
    rest = jax.lax.map(last_of, jnp.arange(1, later + 1))
    frames = jnp.concatenate([frames, rest.swapaxes(0, 1)], 1)
  return frames
