import numpy as np
import pytest
from skimage import metrics

from genie_jax.evals import reconstruction


@pytest.fixture
def pair():
  rng = np.random.default_rng(0)
  truth = rng.integers(0, 256, (6, 2, 16, 16, 3), dtype=np.uint8)
  noise = rng.integers(-20, 21, truth.shape)
  return truth, (truth + noise).clip(0, 255).astype(np.uint8)


def test_pooled_psnr_is_that_of_all_errors_together(pair):
  truth, drawn = pair
  drawn[0] = 0  # One bad clip: a mean of PSNRs would hide it.
  levels = np.array([0, 0, 1, 1, 2, 2])
  found = reconstruction.pooled_psnr(
    reconstruction.clip_errors(truth, drawn), levels, seed=0
  )
  error = np.mean((truth / 255.0 - drawn / 255.0) ** 2)
  # Squares are float32: about seven digits.
  assert found.value == pytest.approx(-10 * np.log10(error), abs=1e-5)
  assert found.low <= found.value <= found.high
  by_clip = np.mean(
    [
      metrics.peak_signal_noise_ratio(a, b)
      for a, b in zip(truth, drawn, strict=True)
    ]
  )
  assert found.value < by_clip - 1


def test_an_exact_copy_has_a_finite_psnr(pair):
  truth, _ = pair
  errors = reconstruction.clip_errors(truth, truth)
  assert reconstruction.psnr(errors) == pytest.approx([100.0] * 6)


def test_ssim_equals_the_published_constants_frame_by_frame(pair):
  truth, drawn = pair
  found = reconstruction.ssim(truth, drawn, np.arange(6), seed=0)
  flat = lambda x: x.reshape(-1, 16, 16, 3)
  expected = np.mean(
    [
      metrics.structural_similarity(
        a,
        b,
        gaussian_weights=True,
        sigma=1.5,
        data_range=255,
        use_sample_covariance=False,
        channel_axis=-1,
      )
      for a, b in zip(flat(truth), flat(drawn), strict=True)
    ]
  )
  assert found.value == pytest.approx(expected, abs=1e-12)
  assert reconstruction.ssim(
    truth, truth, np.arange(6), seed=0
  ).value == pytest.approx(1.0)


def test_margin_is_paired_so_a_constant_gain_has_no_spread():
  baseline = np.random.default_rng(0).uniform(0.001, 0.1, 40)
  found = reconstruction.margin(
    baseline / 2, baseline, np.arange(40) // 2, seed=0
  )
  gain = 10 * np.log10(2)
  assert (found.value, found.low, found.high) == pytest.approx(
    (gain, gain, gain), abs=1e-9
  )


def test_the_centre_is_the_middle_of_the_frame():
  frames = np.arange(2 * 64 * 32 * 3).reshape(2, 64, 32, 3)
  found = reconstruction.centre(frames)
  np.testing.assert_array_equal(found, frames[:, 26:38, 13:19])
  assert reconstruction.centre(frames[:, :2, :2]).shape == (2, 1, 1, 3)
