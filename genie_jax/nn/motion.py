"""Shifted copies of frames, to find and to predict motion.

Shapes:
  K  shifts: (2 * rows + 1) * (2 * columns + 1)     N  patches in one frame
  P  values in one patch
"""

import jax
import jax.numpy as jnp

from genie_jax.nn import patches


def num_shifts(reach: tuple[int, int]) -> int:
  """Returns K for a reach of (rows, columns) in each direction."""
  return (2 * reach[0] + 1) * (2 * reach[1] + 1)


def shifted_patches(
  frames: jax.Array, reach: tuple[int, int], patch: int
) -> jax.Array:
  """Returns patches of all shifted copies of frames.

  Pixels from outside repeat the frame's edge.

  Args:
    frames: [B, T, H, W, C].
    reach: (rows, columns), the largest shift in each direction in pixels.
    patch: Side of a patch in pixels.

  Returns:
    [B, T, K, N, P]; the copy in the middle, K // 2, is the frame itself.
  """
  rows, columns = reach
  height, width = frames.shape[2:4]
  padded = jnp.pad(
    frames,
    ((0, 0), (0, 0), (rows, rows), (columns, columns), (0, 0)),
    mode="edge",
  )
  copies = [
    patches.patchify(
      padded[:, :, row : row + height, column : column + width], patch
    )
    for row in range(2 * rows + 1)
    for column in range(2 * columns + 1)
  ]
  return jnp.stack(copies, 2)


def mismatch(
  frames: jax.Array, reach: tuple[int, int], patch: int
) -> jax.Array:
  """Compares each patch with the shifted frames before it.

  The differences show where a patch came from, as in the cost volumes of
  optical flow networks (PWC-Net, arXiv:1709.02371).

  Args:
    frames: [B, T, H, W, C] in [0, 1].
    reach: (rows, columns), the largest shift in pixels.
    patch: Side of a patch in pixels.

  Returns:
    [B, T, N, K], the mean absolute difference from each shifted copy, minus
    the mean over all copies; zeros for the first frame.
  """
  before = shifted_patches(frames[:, :-1], reach, patch)
  now = patches.patchify(frames[:, 1:], patch)
  costs = jnp.abs(before - now[:, :, None]).mean(-1)  # [B, T-1, K, N]
  costs -= costs.mean(2, keepdims=True)
  return jnp.pad(costs.swapaxes(2, 3), ((0, 0), (1, 0), (0, 0), (0, 0)))


def blend(
  frames: jax.Array, logits: jax.Array, reach: tuple[int, int], patch: int
) -> jax.Array:
  """Moves each patch's pixels by a weighted mean of shifts.

  This is the kernel of dynamic neural advection (arXiv:1605.07157).

  Args:
    frames: [B, T, H, W, C].
    logits: [B, T, N, K], of the weights of the shifts.
    reach: (rows, columns), the largest shift in pixels.
    patch: Side of a patch in pixels.

  Returns:
    [B, T, N, P].
  """
  copies = shifted_patches(frames, reach, patch)
  return jnp.einsum("btnk,btknp->btnp", jax.nn.softmax(logits), copies)
