"""Tests of cutting frames into patches and joining them again."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genie_jax.nn import patches


def draw(*shape):
  return np.random.default_rng(0).random(shape, dtype=np.float32)


@pytest.mark.parametrize(
  "height, width, patch",
  [(8, 8, 4), (90, 160, 4), (90, 160, 16), (5, 7, 3), (2, 3, 8)],
)
def test_joining_patches_undoes_cutting_for_any_size(height, width, patch):
  frames = draw(2, 2, height, width, 3)
  h, w = patches.grid(height, width, patch)
  cut = patches.patchify(frames, patch)
  assert cut.shape == (2, 2, h * w, patches.patch_dim(patch, 3))
  np.testing.assert_array_equal(
    patches.unpatchify(cut, height, width, patch), frames
  )


def test_the_papers_frames_have_920_tokens_and_60_action_patches():
  assert patches.grid(90, 160, 4) == (23, 40)
  assert patches.grid(90, 160, 16) == (6, 10)


def test_a_patch_holds_its_square_in_reading_order():
  frames = draw(1, 1, 4, 6, 2)
  cut = patches.patchify(frames, 2)
  for row, column in np.ndindex(2, 3):
    square = frames[
      0, 0, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2
    ].reshape(-1)
    np.testing.assert_array_equal(cut[0, 0, 3 * row + column], square)


def test_padding_repeats_the_last_row():
  frames = draw(1, 1, 3, 2, 1)
  cut = patches.patchify(frames, 2)
  np.testing.assert_array_equal(
    cut[0, 0, 1].reshape(2, 2)[1], frames[0, 0, 2, :, 0]
  )


def test_padded_rows_never_enter_a_loss():
  cut = jnp.asarray(draw(1, 1, 23 * 40, 48))
  target = draw(1, 1, 90, 160, 3) + 1

  def loss(cut):
    return jnp.square(patches.unpatchify(cut, 90, 160, 4) - target).sum()

  gradient = np.asarray(jax.jit(jax.grad(loss))(cut)).reshape(23, 40, 4, 4, 3)
  assert (gradient[-1, :, 2:] == 0).all()  # Rows 90 and 91.
  assert (gradient[-1, :, :2] != 0).all()
  assert (gradient[:-1] != 0).all()


def test_shrinking_averages_squares():
  frames = draw(2, 1, 4, 6, 3)
  found = patches.shrink(frames, 2)
  wanted = frames.reshape(2, 1, 2, 2, 3, 2, 3).mean((3, 5))
  np.testing.assert_allclose(found, wanted, rtol=1e-6)
  assert patches.shrink(frames, 1) is frames


def test_squares_hold_the_places_around_row_by_row():
  x = draw(2, 3, 12, 5)
  grid = x.reshape(2, 3, 3, 4, 5)
  wanted = np.zeros((2, 3, 3, 4, 9, 5), np.float32)
  for row, column, down, right in np.ndindex(3, 4, 3, 3):
    there = row + down - 1, column + right - 1
    if 0 <= there[0] < 3 and 0 <= there[1] < 4:
      wanted[:, :, row, column, 3 * down + right] = grid[:, :, *there]
  found = patches.squares(x, (3, 4), reach=1)
  np.testing.assert_array_equal(found, wanted.reshape(2, 3, 12, 9, 5))
