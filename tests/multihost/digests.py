"""The `genie` command, with digests of batches and masks among its metrics.

    python -m tests.multihost.digests train ...

A digest is a sum of integers weighted by their positions. It is small enough to
be exact in float32, so the order in which devices and processes add it up does
not matter. It is summed like every other metric, in float32: separate sums of
another dtype have made processes on CPUs deadlock.
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
# Two sums of 23 bits each, with different weights.
SUMS = (0, 1)
METRICS = tuple(f"digest/{name}_{which}" for name in NAMES for which in SUMS)

# Values are below the number of codes in the smoke modes.
_NUM_VALUES = 64
_MAX_WEIGHT = 251


def digest(x: jax.Array, which: int) -> stage.Term:
  """Returns a digest of an array.

  Args:
    x: Integers below 64, or bools.
    which: One of SUMS, which selects the weights.
  """
  assert x.size * _NUM_VALUES * _MAX_WEIGHT < 2**24
  position = np.arange(x.size, dtype=np.uint64).reshape(x.shape)
  # Pseudo-random weights, so that two changes are unlikely to cancel out.
  mixed = (position * len(SUMS) + which + 1) * 0x9E3779B1 % 2**32
  mixed = (mixed ^ mixed >> 15) * 0x2C1B3C6D % 2**32
  weight = (mixed >> 8) % _MAX_WEIGHT + 1
  return stage.Term.of((x.astype(jnp.float32) + 1) * weight.astype(np.float32))


@contextlib.contextmanager
def recorded() -> Iterator[None]:
  """Adds digests of its batch and mask to each step of the dynamics stage."""
  terms, draw = dynamics.token_terms, masking.draw
  drawn = []

  def recording_draw(*args):
    drawn.append(draw(*args))
    return drawn[-1]

  def token_terms(model, params, tokens, actions, *rest, **options):
    losses, metrics = terms(model, params, tokens, actions, *rest, **options)
    inputs = (tokens, actions, *drawn.pop())
    for name, x in zip(NAMES, inputs, strict=True):
      for which in SUMS:
        metrics[f"digest/{name}_{which}"] = digest(x, which)
    return losses, metrics

  dynamics.token_terms, masking.draw = token_terms, recording_draw
  try:
    yield
  finally:
    dynamics.token_terms, masking.draw = terms, draw


if __name__ == "__main__":
  with recorded():
    sys.exit(main.main(sys.argv[1:]))
