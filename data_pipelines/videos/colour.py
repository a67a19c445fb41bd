"""Colours of films: which matrix they use, and HDR as ordinary RGB.

A film in HDR has pixel values that mean other amounts of light. They are mapped
after scaling, where there are few pixels: to light, to the colours of BT.709
and then, with one fixed curve, to the range of an ordinary screen. libavfilter
has filters for this only in builds with libzimg, and PyAV's has not.

Shapes:
  H W  rows, columns of a frame
"""

import functools

import av
import numpy as np

# Transfer characteristics, primaries and matrices of ITU-T H.273.
_PQ, _HLG = 16, 18
_BT2020 = 9
_UNSPECIFIED = (0, 2, 3)
_MATRICES = {1: "bt709", 4: "fcc", 5: "bt601", 6: "bt601", 7: "smpte240m"}
_MATRICES |= {9: "bt2020", 10: "bt2020"}
# Rows from which players take an unspecified matrix to be that of HDTV.
_HD_ROWS = 720

# Candela a square metre of diffuse white in HDR, ITU-R BT.2408.
_WHITE = 203.0
# What the brightest pixel of an HLG film stands for on a reference screen.
_HLG_PEAK = 1000.0
# Light of BT.2020 to light of BT.709, ITU-R BT.2407.
_TO_BT709 = np.array(
  [
    [1.6605, -0.5876, -0.0728],
    [-0.1246, 1.1329, -0.0083],
    [-0.0182, -0.1006, 1.1187],
  ],
  np.float32,
)
_LEVELS = 65_536


def is_hdr(frame: av.VideoFrame) -> bool:
  """Returns whether a frame needs `to_sdr`."""
  return int(frame.color_trc) in (_PQ, _HLG)


def matrix(frame: av.VideoFrame) -> str:
  """Returns libswscale's name of the matrix from YUV to RGB."""
  stated = int(frame.colorspace)
  if stated in _MATRICES:
    return _MATRICES[stated]
  return "bt709" if frame.height >= _HD_ROWS else "bt601"


def to_sdr(rgb: np.ndarray, frame: av.VideoFrame) -> np.ndarray:
  """Returns a frame in HDR as an ordinary one.

  Args:
    rgb: uint16 [H, W, 3], all 16 bits used.
    frame: The frame that it was converted from, for its metadata.

  Returns:
    uint8 [H, W, 3], sRGB.
  """
  light = _light(int(frame.color_trc))[rgb]
  if int(frame.color_primaries) in (_BT2020, *_UNSPECIFIED):
    light = light @ _TO_BT709.T
  light = light.clip(0)
  # Reinhard's curve on the brightest channel keeps the hue; diffuse white ends
  # at 0.8 of the range, and what is brighter shares the rest.
  brightest = light.max(-1, keepdims=True)
  mapped = light * (1 / (1 + brightest / 4))
  return _srgb()[(mapped.clip(0, 1) * (_LEVELS - 1)).astype(np.uint16)]


@functools.cache
def _light(transfer: int) -> np.ndarray:
  """Returns float32 [65536]: light of each value, 1 for diffuse white."""
  value = np.arange(_LEVELS, dtype=np.float64) / (_LEVELS - 1)
  if transfer == _PQ:  # SMPTE ST 2084.
    m1, m2 = 2610 / 16384, 2523 / 4096 * 128
    c1, c2, c3 = 3424 / 4096, 2413 / 4096 * 32, 2392 / 4096 * 32
    power = value ** (1 / m2)
    linear = (np.maximum(power - c1, 0) / (c2 - c3 * power)) ** (1 / m1)
    return (linear * 10_000 / _WHITE).astype(np.float32)
  a, b, c = 0.17883277, 0.28466892, 0.55991073  # ITU-R BT.2100.
  linear = np.where(
    value <= 0.5, value**2 / 3, (np.exp((value - c) / a) + b) / 12
  )
  # The screen's own curve, here for each channel alone.
  return (linear**1.2 * _HLG_PEAK / _WHITE).astype(np.float32)


@functools.cache
def _srgb() -> np.ndarray:
  """Returns uint8 [65536]: the sRGB value of each amount of light."""
  light = np.arange(_LEVELS, dtype=np.float64) / (_LEVELS - 1)
  value = np.where(
    light <= 0.0031308, light * 12.92, 1.055 * light ** (1 / 2.4) - 0.055
  )
  return np.round(value * 255).astype(np.uint8)
