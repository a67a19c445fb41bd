"""The `genie` line with digests of batches and masks among its metrics.

    python -m tests.multihost.digests train ...

A digest is a sum of integers weighted by their place, modulo 2^32: the same in
whatever order devices and processes add up. Its two halves are metrics, as
float32 holds 16 bits exactly.
"""

import contextlib
import sys
from collections.abc import Iterator

import jax
import jax.numpy as jnp

from genie_jax.cli import main
from genie_jax.stages import dynamics, masking
from genie_jax.train import stage

NAMES = ("tokens", "actions", "hidden", "judged")
METRICS = tuple(f"digest/{name}_{half}" for name in NAMES
                for half in ("high", "low"))


def digest(x: jax.Array) -> jax.Array:
  """Returns one uint32 of an array of integers or bools."""
  weight = jnp.arange(x.size, dtype=jnp.uint32).reshape(x.shape)
  # Neither the sum nor the order of two places is to cancel out.
  weight = (weight + 1) * jnp.uint32(0x9E3779B1)
  weight = (weight ^ (weight >> 15)) * jnp.uint32(0x2C1B3C6D)
  return ((x.astype(jnp.uint32) + 1) * (weight | 1)).sum(dtype=jnp.uint32)


@contextlib.contextmanager
def kept() -> Iterator[None]:
  """Adds to each step of the dynamics stage the digests of what it sees."""
  terms, draw = dynamics.token_terms, masking.draw
  drawn = []

  def noted(*args):
    drawn.append(draw(*args))
    return drawn[-1]

  def token_terms(model, params, tokens, actions, rng, mask):
    losses, metrics = terms(model, params, tokens, actions, rng, mask)
    seen = (tokens, actions, *drawn.pop())
    for name, x in zip(NAMES, seen, strict=True):
      whole = digest(x)
      metrics[f"digest/{name}_high"] = stage.Term.of(whole >> 16)
      metrics[f"digest/{name}_low"] = stage.Term.of(whole & 0xFFFF)
    return losses, metrics

  dynamics.token_terms, masking.draw = token_terms, noted
  try:
    yield
  finally:
    dynamics.token_terms, masking.draw = terms, draw


if __name__ == "__main__":
  with kept():
    sys.exit(main.main(sys.argv[1:]))
