"""Tests of shifted frames, against loops over pixels."""

import numpy as np

from genie_jax.nn import motion, patches

REACH = (2, 1)


def frames(seed=0):
  rng = np.random.default_rng(seed)
  return rng.random((2, 3, 4, 8, 3), np.float32)


def moved(clip, down, right):
  """Returns clips whose pixel (y, x) is the old (y + down, x + right)."""
  height, width = clip.shape[2:4]
  rows = np.clip(np.arange(height) + down, 0, height - 1)
  columns = np.clip(np.arange(width) + right, 0, width - 1)
  return clip[:, :, rows][:, :, :, columns]


def every_shift():
  return [
    (down, right)
    for down in range(-REACH[0], REACH[0] + 1)
    for right in range(-REACH[1], REACH[1] + 1)
  ]


def test_there_is_a_copy_for_each_shift():
  copies = np.asarray(motion.shifted_patches(frames(), REACH, 2))
  assert copies.shape == (2, 3, motion.num_shifts(REACH), 8, 12)
  for number, shift in enumerate(every_shift()):
    np.testing.assert_array_equal(
      copies[:, :, number], patches.patchify(moved(frames(), *shift), 2)
    )
  middle = copies.shape[2] // 2
  np.testing.assert_array_equal(
    copies[:, :, middle], patches.patchify(frames(), 2)
  )


def test_the_true_shift_has_the_least_mismatch():
  clip = frames()
  for number, shift in enumerate(every_shift()):
    clip[:, 1:2] = moved(clip[:, :1], *shift)
    costs = np.asarray(motion.mismatch(clip, REACH, 2))
    assert costs.shape == (2, 3, 8, motion.num_shifts(REACH))
    assert (costs[:, 0] == 0).all()
    lowest = costs[:, 1].min(-1)
    # Several shifts may agree at the edge, where pixels repeat.
    np.testing.assert_allclose(costs[:, 1, :, number], lowest, atol=1e-6)
    np.testing.assert_allclose(costs.mean(-1), 0, atol=1e-6)


def test_a_mismatch_depends_on_the_frame_before_only():
  before, clip = motion.mismatch(frames(), REACH, 2), frames()
  clip[:, 0] = 1 - clip[:, 0]
  change = np.abs(motion.mismatch(clip, REACH, 2) - before).max((0, 2, 3))
  assert change[1] > 0.01 and change[2] == 0


def test_a_blend_is_the_weighted_mean_of_the_copies():
  logits = np.random.default_rng(1).normal(
    size=(2, 3, 8, motion.num_shifts(REACH))
  )
  weights = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
  wanted = sum(
    weights[..., number, None] * patches.patchify(moved(frames(), *shift), 2)
    for number, shift in enumerate(every_shift())
  )
  np.testing.assert_allclose(
    motion.blend(frames(), logits, REACH, 2), wanted, atol=1e-5
  )
