"""A few true keys in the loss of a latent action model: NOT unsupervised.

A world model that learns its actions from video alone uses no keys. Where a
small share of the transitions can be labelled, their keys tell the model which
code to use for each key (LAOM, arXiv:2502.00379, adds a head instead). It is
off unless `config.labels.weight` is positive.

Shapes:
  A  latent actions     E  width of a code
"""

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax

from genie_jax.core import errors
from genie_jax.data import manifest as manifest_lib
from genie_jax.train import stage

LOSS = "labels"
# Codes and inputs have length 1, so that logits are between these.
_LARGEST_LOGIT = 10.0


def used(config: ml_collections.ConfigDict) -> bool:
  """Returns whether a config uses labels.

  Raises:
    UserError: The fields of `config.labels` are out of range.
  """
  if "labels" not in config:
    return False
  share, weight = config.labels.share, config.labels.weight
  if not 0 < share <= 1 or weight < 0:
    raise errors.UserError(
      f"config.labels has share={share} and weight={weight}; give a share of "
      "transitions above 0 and at most 1, and a weight of at least 0 (0 uses "
      "no labels)."
    )
  return weight > 0


def classes(manifest: manifest_lib.Manifest, num_codes: int) -> np.ndarray:
  """Returns the code of each key, int32 [keys].

  Keys with the same effect share a code; later codes stay free.

  Args:
    manifest: Of the clips.
    num_codes: A.

  Raises:
    UserError: The clips have no keys, or more than there are codes.
  """
  if manifest.num_actions is None:
    raise errors.UserError(
      f"{manifest.name} has no true actions, which config.labels.weight > 0 "
      "needs; set it to 0, or give clips with actions."
    )
  keys = np.arange(manifest.num_actions)
  for key, same in manifest.action_aliases.items():
    keys[key] = same
  if "keys" in manifest.made_by:
    keys = np.asarray(manifest.made_by["keys"]["effect"])
  _, codes = np.unique(keys, return_inverse=True)
  if codes.max() >= num_codes:
    raise errors.UserError(
      f"{manifest.name} has {codes.max() + 1} keys with different effects, but "
      f"there are {num_codes} codes; set config.world.num_latent_actions to at "
      "least as many."
    )
  return codes.astype(np.int32)


def chosen(source: jax.Array, start: jax.Array, transitions: int, share: float):
  """Returns which transitions of windows are labelled.

  The choice depends on the level and the frame alone, so that a transition is
  labelled in all windows and epochs or in none.

  Args:
    source: int32 [B], the level.
    start: int32 [B], the frame at which the window starts.
    transitions: T - 1.
    share: Share of transitions.

  Returns:
    bool [B, T - 1].
  """
  frame = start[:, None] + jnp.arange(transitions)
  x = source[:, None].astype(jnp.uint32) * jnp.uint32(0x9E3779B1)
  x += frame.astype(jnp.uint32)
  # A mixing function: every bit of the input changes half of the output's.
  x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
  x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
  x ^= x >> 16
  return x.astype(jnp.float32) < share * 2.0**32


def loss(
  inputs: jax.Array, vectors: jax.Array, keys: jax.Array, mask: jax.Array
) -> stage.Term:
  """Returns the cross-entropy of the code that a labelled key stands for.

  It is a mean over all transitions, 0 where there is no label: a batch with few
  labels has a small loss, and not a noisy one.

  Args:
    inputs: float32 [B, T-1, E], what the quantizer compares with its codes.
    vectors: float32 [A, E], of the codes.
    keys: int32 [B, T-1], the code of each key.
    mask: bool [B, T-1], the labelled transitions.
  """
  logits = _LARGEST_LOGIT * inputs @ vectors.T
  cost = optax.softmax_cross_entropy_with_integer_labels(logits, keys)
  return stage.Term.of(cost * mask)
