"""Converts frames to flattened patches and back.

Shapes:
  h, w  patches down and across, the height rounded up to whole patches
  P     values in one patch: patch * patch * C
"""

import chex
import jax
import jax.numpy as jnp
import numpy as np


def grid(height: int, width: int, patch: int) -> tuple[int, int]:
  """Returns (h, w), the number of patches down and across a frame.

  For example, patches of 4 pixels cover a frame of 90 x 160 with 23 x 40.
  """
  return -(-height // patch), -(-width // patch)


def patchify(frames: jax.Array, patch: int) -> jax.Array:
  """Cuts frames into patches.

  Frames whose sides are not multiples of the patch are padded by repeating
  their last row or column. Genie pads 90 rows to 92 and does not state with
  which values; repeated rows keep the statistics of a patch natural.
  `unpatchify` crops the padding, so it does not enter any loss.

  Args:
    frames: [B, T, H, W, C].
    patch: Side of a patch in pixels.

  Returns:
    [B, T, h * w, P].
  """
  chex.assert_rank(frames, 5)
  b, t, height, width, c = frames.shape
  h, w = grid(height, width, patch)
  frames = jnp.pad(
    frames,
    ((0, 0), (0, 0), (0, h * patch - height), (0, w * patch - width), (0, 0)),
    mode="edge",
  )
  x = frames.reshape(b, t, h, patch, w, patch, c)
  x = x.transpose(0, 1, 2, 4, 3, 5, 6)
  return x.reshape(b, t, h * w, patch_dim(patch, c))


def unpatchify(
  patches: jax.Array, height: int, width: int, patch: int
) -> jax.Array:
  """Joins patches to frames, and crops the padding that `patchify` added.

  Args:
    patches: [B, T, h * w, P].
    height: H.
    width: W.
    patch: Side of a patch in pixels.

  Returns:
    [B, T, H, W, C].
  """
  b, t = patches.shape[:2]
  h, w = grid(height, width, patch)
  x = patches.reshape(b, t, h, w, patch, patch, -1)
  x = x.transpose(0, 1, 2, 4, 3, 5, 6)
  return x.reshape(b, t, h * patch, w * patch, -1)[:, :, :height, :width]


def shrink(frames: jax.Array, factor: int) -> jax.Array:
  """Averages squares of factor x factor pixels.

  Args:
    frames: [B, T, H, W, C], sides divisible by `factor`.
    factor: Side of the square; 1 changes nothing.

  Returns:
    [B, T, H / factor, W / factor, C].
  """
  if factor == 1:
    return frames
  b, t, height, width, c = frames.shape
  return frames.reshape(
    b, t, height // factor, factor, width // factor, factor, c
  ).mean((3, 5))


def patch_dim(patch: int, channels: int) -> int:
  """Returns P."""
  return int(np.prod((patch, patch, channels)))
