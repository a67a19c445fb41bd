"""PSNR and SSIM of reconstructed frames.

Frames are compared as a player sees them, with 8 bits per channel.
"""

import numpy as np
from skimage import metrics

from genie_jax.evals import intervals

# An exact copy has no finite PSNR; errors below this are reported as 100 dB.
_SMALLEST_ERROR = 1e-10
# A constant of Wang et al. (2004), as given in scikit-image's manual.
_SSIM_SIGMA = 1.5
_CENTRE = 3 / 16  # Share of height and width: 12 of 64 pixels.


def psnr(squared_error: np.ndarray) -> np.ndarray:
  """Returns the PSNR in decibels of mean squared errors of [0, 1] pixels."""
  return -10 * np.log10(np.maximum(squared_error, _SMALLEST_ERROR))


def squared_error(truth: np.ndarray, drawn: np.ndarray) -> np.ndarray:
  """Returns squared errors of uint8 frames as float32 in [0, 1], same shape."""
  gap = truth.astype(np.float32) - drawn.astype(np.float32)
  return np.square(gap / 255)


def centre(frames: np.ndarray) -> np.ndarray:
  """Returns the middle of frames: 12 x 12 pixels of 64 x 64.

  In games whose camera follows the player, it is the player and the pixels
  around him.

  Args:
    frames: uint8 [..., H, W, C].

  Returns:
    uint8 [..., h, w, C], at least one pixel.
  """
  height, width = frames.shape[-3:-1]
  tall, wide = (max(1, round(_CENTRE * side)) for side in (height, width))
  top, left = (height - tall) // 2, (width - wide) // 2
  return frames[..., top : top + tall, left : left + wide, :]


def clip_errors(truth: np.ndarray, drawn: np.ndarray) -> np.ndarray:
  """Returns each clip's mean squared error.

  Args:
    truth: uint8 [B, ...].
    drawn: uint8, same shape.

  Returns:
    float64 [B].
  """
  return np.array(
    [
      squared_error(a, b).mean(dtype=np.float64)
      for a, b in zip(truth, drawn, strict=True)
    ]
  )


def pooled_psnr(
  errors: np.ndarray, levels: np.ndarray, *, seed: int
) -> intervals.Interval:
  """Returns the PSNR of the error pooled over frames (not a mean of PSNRs).

  Args:
    errors: [B], mean squared error of each clip; all clips have equal size.
    levels: [B].
    seed: Seed of the bootstrap.
  """
  return intervals.bootstrap(
    lambda sums: psnr(sums["error"] / sums["count"]),
    {
      "error": intervals.by_level(errors, levels),
      "count": intervals.by_level(np.ones(len(errors)), levels),
    },
    seed=seed,
  )


def margin(
  errors: np.ndarray, baseline: np.ndarray, levels: np.ndarray, *, seed: int
) -> intervals.Interval:
  """Returns by how many decibels the pooled PSNR exceeds a baseline's.

  Args:
    errors: [B], mean squared error of each clip.
    baseline: [B], the baseline's errors on the same clips.
    levels: [B].
    seed: Seed of the bootstrap.
  """
  return intervals.bootstrap(
    lambda sums: psnr(sums["error"]) - psnr(sums["baseline"]),
    {
      "error": intervals.by_level(errors, levels) / len(errors),
      "baseline": intervals.by_level(baseline, levels) / len(errors),
    },
    seed=seed,
  )


def ssim(
  truth: np.ndarray, drawn: np.ndarray, levels: np.ndarray, *, seed: int
) -> intervals.Interval:
  """Returns the mean structural similarity over frames (Wang et al. 2004).

  The window is a Gaussian of sigma 1.5 over 11 pixels, the covariance is that
  of the population, and colour channels are compared separately, as in
  scikit-image's manual.

  Args:
    truth: uint8 [B, T, H, W, C], sides of at least 11 pixels.
    drawn: uint8, same shape.
    levels: [B].
    seed: Seed of the bootstrap.
  """
  clips = np.array(
    [
      np.mean(
        [
          metrics.structural_similarity(
            a,
            b,
            gaussian_weights=True,
            sigma=_SSIM_SIGMA,
            use_sample_covariance=False,
            data_range=255,
            channel_axis=-1,
          )
          for a, b in zip(true_clip, drawn_clip, strict=True)
        ]
      )
      for true_clip, drawn_clip in zip(truth, drawn, strict=True)
    ]
  )
  return intervals.ratio(clips, np.ones(len(clips)), levels, seed=seed)
