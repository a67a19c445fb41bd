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


def squares(x: jax.Array, grid: tuple[int, int], reach: int) -> jax.Array:
  """Returns the square of places around each place of a grid.

  Args:
    x: [B, T, N, D], vectors of the N = h * w places.
    grid: (h, w).
    reach: How far the square extends from its middle.

  Returns:
    [B, T, N, S, D] with S = (2 * reach + 1)^2, row by row; places outside the
    grid are zero.
  """
  (h, w), lead, width = grid, x.shape[:2], x.shape[-1]
  edge = (reach, reach)
  padded = jnp.pad(
    x.reshape(*lead, h, w, width), ((0, 0), (0, 0), edge, edge, (0, 0))
  )
  steps = range(2 * reach + 1)
  copies = [
    padded[:, :, row : row + h, column : column + w]
    for row in steps
    for column in steps
  ]
  return jnp.stack(copies, -2).reshape(*lead, h * w, len(copies), width)
