"""The `genie` line with digests of batches and masks among its metrics.

    python -m tests.multihost.digests train ...

A digest is a sum of integers weighted by their place, small enough for float32
to hold it exactly: the same in whatever order devices and processes add up. It
is a metric as all others are. (Sums of another dtype are exchanges of their
own, beside which processes on CPUs were seen to wait for each other in vain.)
"""

import contextlib
import sys
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from genie_jax.cli import main
from genie_jax.stages import dynamics, masking
from genie_jax.train import stage

NAMES = ("tokens", "actions", "hidden", "judged")
# Two sums of 23 bits each, with other weights.
SUMS = (0, 1)
METRICS = tuple(f"digest/{name}_{which}" for name in NAMES for which in SUMS)

# Of codes: those of the smoke modes.
_MOST = 64
_WEIGHTS = 251


def digest(x: jax.Array, which: int) -> stage.Term:
  """Returns a sum of an array of integers below 64, or of bools."""
  assert x.size * _MOST * _WEIGHTS < 2**24
  place = np.arange(x.size, dtype=np.uint64).reshape(x.shape)
  # Neither two places nor two changes are to cancel out.
  mixed = (place * len(SUMS) + which + 1) * 0x9E3779B1 % 2**32
  mixed = (mixed ^ mixed >> 15) * 0x2C1B3C6D % 2**32
  weight = (mixed >> 8) % _WEIGHTS + 1
  return stage.Term.of((x.astype(jnp.float32) + 1) * weight.astype(np.float32))


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
      for which in SUMS:
        metrics[f"digest/{name}_{which}"] = digest(x, which)
    return losses, metrics

  dynamics.token_terms, masking.draw = token_terms, noted
  try:
    yield
  finally:
    dynamics.token_terms, masking.draw = terms, draw


if __name__ == "__main__":
  with kept():
    sys.exit(main.main(sys.argv[1:]))
