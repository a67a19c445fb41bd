"""Tests of decoding rollouts of any length."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from genie_jax.models import build
from genie_jax.sampling import decoding

STACK = dict(
  num_layers=1, width=16, num_heads=2, head_dim=8, mlp_dim=16, dtype="float32"
)
WINDOW = 3


def make_tokenizer():
  tokenizer = build.tokenizer(
    {
      "world": dict(
        num_frames=WINDOW,
        height=8,
        width=12,
        channels=3,
        token_patch=4,
        num_codes=13,
        num_latent_actions=5,
        fps=10,
      ),
      "model": dict(code_dim=4, encoder=STACK, decoder=STACK),
    }
  )
  params = nn.unbox(
    jax.jit(tokenizer.init)(jax.random.key(0), jnp.zeros((1, 2, 8, 12, 3)))
  )["params"]
  return tokenizer, params


def test_each_frame_is_decoded_with_at_most_a_window_of_history():
  tokenizer, params = make_tokenizer()
  tokens = jax.random.randint(jax.random.key(1), (2, 6, 2, 3), 0, 13)
  frames = decoding.decode(tokenizer, params, tokens, window=WINDOW)
  assert frames.shape == (2, 6, 8, 12, 3)
  whole = jax.jit(
    lambda seen: tokenizer.apply({"params": params}, seen, method="decode")
  )
  for t in range(6):
    seen = tokens[:, max(0, t - WINDOW + 1) : t + 1]
    alone = whole(seen)[:, -1]
    # Only the order of float32 sums differs.
    np.testing.assert_allclose(frames[:, t], alone, atol=1e-5)


def test_a_clip_shorter_than_the_window_is_decoded_in_one_pass():
  tokenizer, params = make_tokenizer()
  tokens = jax.random.randint(jax.random.key(1), (1, 2, 2, 3), 0, 13)
  frames = decoding.decode(tokenizer, params, tokens, window=WINDOW)
  whole = tokenizer.apply({"params": params}, tokens, method="decode")
  np.testing.assert_allclose(frames, whole, atol=1e-5)
