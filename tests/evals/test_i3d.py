"""Tests of the I3D network against published values and plain computations.

The published values are distances of clips that are black to clips that are
white, 8 of each, as the README of github.com/JunyaoHu/
common_metrics_on_video_quality states them. Equal clips have no covariance, so
the distance is the squared distance of two vectors of logits.
"""

import numpy as np
import pytest
from jax import lax

from genie_jax.evals import distances, i3d, i3d_weights

# Of the weights with which the values below were measured.
_DIGEST = "dc4ab08012ed36ddaf6e490d39f00856f91bb0f95726c0f803d6435490f52877"


@pytest.fixture(scope="module")
def weights():
  """Returns the weights, or skips the tests that need them and says why."""
  try:
    return i3d_weights.load()
  except i3d_weights.UnavailableError as error:
    pytest.skip(str(error))


def black_against_white(weights, num_frames):
  one = np.zeros((1, num_frames, 64, 64, 3), np.uint8)
  logits = i3d.features(i3d.fold(weights), np.concatenate([one, ~one]))
  black, white = (row[None].repeat(8, 0) for row in logits)
  return distances.frechet(black, white)


def test_the_weights_are_those_of_the_measured_values(weights):
  assert sum(value.size for value in weights.values()) == 12_704_544
  assert i3d_weights.digest(weights) == _DIGEST


@pytest.mark.slow
def test_thirty_frames_have_the_distance_of_the_original_code(weights):
  # The original code and network in TensorFlow 1.15 give 151.39244; float32
  # logits in another order of summation give the same to 1e-5.
  assert black_against_white(weights, 30) == pytest.approx(151.39244, rel=5e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
  "num_frames, measured, published",
  [
    (10, 569.77, (570.07, 569.23)),
    (15, 133.90, (134.24, 133.70)),
    (20, 338.50, (338.18, 338.42)),
  ],
)
def test_other_lengths_have_the_distances_of_the_port_to_pytorch(
  weights, num_frames, measured, published
):
  found = black_against_white(weights, num_frames)
  assert found == pytest.approx(measured, rel=1e-4)
  # Two runs of the port, which differ by up to 0.4 % from each other.
  for value in published:
    assert found == pytest.approx(value, rel=0.004)


def test_shapes_are_those_of_the_checkpoint():
  shapes = i3d.array_shapes()
  assert sum(np.prod(shape) for shape in shapes.values()) == 12_704_544
  assert shapes["Mixed_5c/Branch_1/Conv3d_0b_3x3/kernel"] == (3, 3, 3, 192, 384)
  assert "Logits/Conv3d_0c_1x1/mean" not in shapes


@pytest.mark.parametrize("stride, taps", [(1, 3), (2, 7), (2, 3), (1, 1)])
@pytest.mark.parametrize("length", [9, 10])
def test_stacked_taps_equal_a_convolution_in_three_dimensions(
  stride, taps, length
):
  rng = np.random.default_rng(0)
  x = rng.normal(size=(2, length, 9, 12, 3)).astype(np.float32)
  kernel = rng.normal(size=(taps, taps, taps, 3, 4)).astype(np.float32)
  bias = rng.normal(size=4).astype(np.float32)
  found = i3d._unit({"a": (kernel, bias)}, "a", x, stride)
  expected = lax.conv_general_dilated(
    x,
    kernel,
    (stride,) * 3,
    "SAME",
    dimension_numbers=("NDHWC", "DHWIO", "NDHWC"),
  )
  expected = np.maximum(np.asarray(expected) + bias, 0)
  assert (expected > 0).mean() > 0.3
  # Sums of at most 1,029 products of float32.
  np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-3)


def test_normalization_is_folded_into_kernel_and_bias():
  rng = np.random.default_rng(0)
  arrays = {
    name: rng.uniform(0.5, 2, shape).astype(np.float32)
    for name, shape in i3d.array_shapes().items()
  }
  params = i3d.fold(arrays)
  unit = "Conv3d_2b_1x1"
  x = rng.normal(size=(1, 1, 2, 2, 64)).astype(np.float32)
  plain = x @ arrays[f"{unit}/kernel"][0, 0, 0]
  spread = np.sqrt(arrays[f"{unit}/var"] + 1e-3)
  expected = (plain - arrays[f"{unit}/mean"]) / spread + arrays[f"{unit}/bias"]
  np.testing.assert_allclose(
    i3d._unit(params, unit, x), np.maximum(expected, 0), rtol=1e-4, atol=1e-4
  )
  kernel, bias = params["Logits/Conv3d_0c_1x1"]
  np.testing.assert_array_equal(bias, arrays["Logits/Conv3d_0c_1x1/bias"])
  np.testing.assert_array_equal(kernel, arrays["Logits/Conv3d_0c_1x1/kernel"])


def test_frames_are_resized_from_centre_to_centre_without_smoothing():
  frames = np.random.default_rng(0).integers(
    0, 256, (1, 2, 5, 448, 3), dtype=np.uint8
  )

  def weights_of(size):
    # Pixel i of 224 is at this place among the pixels of the frame.
    place = np.clip((np.arange(224) + 0.5) * size / 224 - 0.5, 0, size - 1)
    return np.maximum(1 - np.abs(place[:, None] - np.arange(size)), 0)

  expected = np.einsum(
    "ih,jw,bthwc->btijc", weights_of(5), weights_of(448), frames / 127.5 - 1
  )
  found = np.asarray(i3d.prepare(frames))
  np.testing.assert_allclose(found, expected, atol=1e-5)
  assert -1 <= found.min() < -0.9 and 0.9 < found.max() <= 1


def test_clips_that_are_too_short_are_refused_with_both_numbers():
  with pytest.raises(ValueError, match=r"at least 10 frames.*have 9"):
    i3d.features({}, np.zeros((1, 9, 8, 8, 3), np.uint8))
