"""The I3D network that video distances compare clips with.

I3D (Carreira and Zisserman, arXiv:1705.07750) is an Inception network with
kernels over time as well, trained to tell the 400 actions of Kinetics. The
features of a clip are its 400 logits, before the softmax, averaged over time.

Shapes:
  B  clips     T  frames of a clip     H W  pixels of a frame, any size
  C  channels of a layer
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from genie_jax.evals import evaluated_world

NUM_FEATURES = 400
# Fewer leave nothing for the last average over two moments.
MIN_FRAMES = 10
_SIDE = 224
_EPSILON = 1e-3  # Of its batch normalization, which has no scale.
_BATCH = 4  # Clips of one call; more are not faster on a CPU.
_MAX_POOL_3 = ((1, 3, 3), (1, 2, 2))

# Block -> channels of: branch 0; branch 1, reduced and out; branch 2, reduced
# and out; branch 3.
_MIXED = {
  "Mixed_3b": (64, 96, 128, 16, 32, 32),
  "Mixed_3c": (128, 128, 192, 32, 96, 64),
  "Mixed_4b": (192, 96, 208, 16, 48, 64),
  "Mixed_4c": (160, 112, 224, 24, 64, 64),
  "Mixed_4d": (128, 128, 256, 24, 64, 64),
  "Mixed_4e": (112, 144, 288, 32, 64, 64),
  "Mixed_4f": (256, 160, 320, 32, 128, 128),
  "Mixed_5b": (256, 160, 320, 32, 128, 128),
  "Mixed_5c": (384, 192, 384, 48, 128, 128),
}
# Max pooling before a block: window and stride in time, height and width.
_POOLS = {
  "Mixed_4b": ((3, 3, 3), (2, 2, 2)),
  "Mixed_5b": ((2, 2, 2), (2, 2, 2)),
}
_LOGITS = "Logits/Conv3d_0c_1x1"

Params = Mapping[str, tuple[np.ndarray, np.ndarray]]


def kernel_shapes() -> dict[str, tuple[int, int, int, int, int]]:
  """Returns each convolution's kernel shape: time, height, width, in, out."""
  shapes = {
    "Conv3d_1a_7x7": (7, 7, 7, 3, 64),
    "Conv3d_2b_1x1": (1, 1, 1, 64, 64),
    "Conv3d_2c_3x3": (3, 3, 3, 64, 192),
  }
  width = 192
  for block, (a, b_in, b, c_in, c, d) in _MIXED.items():
    shapes |= {
      f"{block}/Branch_0/Conv3d_0a_1x1": (1, 1, 1, width, a),
      f"{block}/Branch_1/Conv3d_0a_1x1": (1, 1, 1, width, b_in),
      f"{block}/Branch_1/Conv3d_0b_3x3": (3, 3, 3, b_in, b),
      f"{block}/Branch_2/Conv3d_0a_1x1": (1, 1, 1, width, c_in),
      f"{block}/Branch_2/Conv3d_0b_3x3": (3, 3, 3, c_in, c),
      f"{block}/Branch_3/Conv3d_0b_1x1": (1, 1, 1, width, d),
    }
    width = a + b + c + d
  return {**shapes, _LOGITS: (1, 1, 1, width, NUM_FEATURES)}


def array_shapes() -> dict[str, tuple[int, ...]]:
  """Returns the shapes of the stored arrays: kernels, biases, statistics."""
  shapes: dict[str, tuple[int, ...]] = {}
  for unit, kernel in kernel_shapes().items():
    shapes[f"{unit}/kernel"] = kernel
    names = ("bias",) if unit == _LOGITS else ("bias", "mean", "var")
    shapes |= {f"{unit}/{name}": kernel[-1:] for name in names}
  return shapes


def fold(arrays: Mapping[str, np.ndarray]) -> Params:
  """Returns each convolution's kernel and bias, with normalization folded in.

  Args:
    arrays: float32 arrays with the names and shapes of `array_shapes`.

  Returns:
    Name -> float32 kernel [time, height, width, in, out] and bias [out].
  """
  params = {}
  for unit in kernel_shapes():
    kernel = arrays[f"{unit}/kernel"].astype(np.float64)
    bias = arrays[f"{unit}/bias"].astype(np.float64)
    if unit != _LOGITS:
      scale = 1 / np.sqrt(arrays[f"{unit}/var"].astype(np.float64) + _EPSILON)
      kernel, bias = kernel * scale, bias - arrays[f"{unit}/mean"] * scale
    params[unit] = (kernel.astype(np.float32), bias.astype(np.float32))
  return params


def features(params: Params, frames: np.ndarray) -> np.ndarray:
  """Returns the features of clips.

  Args:
    params: Of `fold`.
    frames: uint8 [n, T, H, W, 3], T of at least `MIN_FRAMES`.

  Returns:
    float64 [n, 400].

  Raises:
    ValueError: The clips are too short.
  """
  if frames.shape[1] < MIN_FRAMES:
    raise ValueError(
      f"I3D needs clips of at least {MIN_FRAMES} frames, but these have "
      f"{frames.shape[1]}; use longer clips."
    )
  on_device = jax.device_put(dict(params))
  found = evaluated_world.in_batches(
    lambda rows: logits(on_device, rows), min(_BATCH, len(frames)), frames
  )
  return found.astype(np.float64)


@jax.jit
def logits(params: Params, frames: jax.Array) -> jax.Array:
  """Returns the logits of clips, averaged over time.

  Args:
    params: Of `fold`.
    frames: uint8 [B, T, H, W, 3].

  Returns:
    float32 [B, 400].
  """
  x = _unit(params, "Conv3d_1a_7x7", prepare(frames), stride=2)
  x = _max_pool(x, *_MAX_POOL_3)
  x = _unit(params, "Conv3d_2b_1x1", x)
  x = _unit(params, "Conv3d_2c_3x3", x)
  x = _max_pool(x, *_MAX_POOL_3)
  for block in _MIXED:
    if block in _POOLS:
      x = _max_pool(x, *_POOLS[block])
    x = _mixed(params, block, x)
  x = x.mean((2, 3))  # [B, T / 8, C]; what is left of a frame is 7 x 7.
  x = (x[:, 1:] + x[:, :-1]) / 2  # The network's average over two moments.
  kernel, bias = params[_LOGITS]
  return (_dot(x, kernel[0, 0, 0]) + bias).mean(1)


def prepare(frames: jax.Array) -> jax.Array:
  """Returns frames as the network's input, as StyleGAN-V does.

  That is (arXiv:2112.14683) bilinear interpolation without smoothing, and
  values in [-1, 1].

  Args:
    frames: uint8 [B, T, H, W, 3].

  Returns:
    float32 [B, T, 224, 224, 3].
  """
  shape = (*frames.shape[:2], _SIDE, _SIDE, 3)
  x = frames.astype(jnp.float32) / 127.5 - 1
  return jax.image.resize(x, shape, "bilinear", antialias=False)


def _mixed(params: Params, block: str, x: jax.Array) -> jax.Array:
  """Applies four branches and joins their channels."""
  unit = lambda name, y: _unit(params, f"{block}/{name}", y)
  around = _max_pool(x, (3, 3, 3), (1, 1, 1))
  reduced = [unit(f"Branch_{i}/Conv3d_0a_1x1", x) for i in (1, 2)]
  return jnp.concatenate(
    [
      unit("Branch_0/Conv3d_0a_1x1", x),
      unit("Branch_1/Conv3d_0b_3x3", reduced[0]),
      unit("Branch_2/Conv3d_0b_3x3", reduced[1]),
      unit("Branch_3/Conv3d_0b_1x1", around),
    ],
    -1,
  )


def _unit(
  params: Params, name: str, x: jax.Array, stride: int = 1
) -> jax.Array:
  """Applies a convolution in space and time, its bias and a ReLU.

  The frames under each tap in time are stacked as channels of one convolution
  in space: on a CPU, XLA's convolutions in three dimensions take 2.2 times as
  long (2.41 against 1.10 CPU-seconds for a clip of 16 frames).

  Args:
    params: Of `fold`.
    name: Of the convolution.
    x: float32 [B, T, H, W, C].
    stride: In time and space.

  Returns:
    float32 [B, T / stride, H / stride, W / stride, out], sizes rounded up.
  """
  kernel, bias = params[name]
  taps = kernel.shape[0]
  if kernel.shape[:3] == (1, 1, 1):
    return jax.nn.relu(_dot(x, kernel[0, 0, 0]) + bias)
  batch, length = x.shape[:2]
  out = -(-length // stride)
  # Zeros before and after, of which an odd one comes after.
  missing = max((out - 1) * stride + taps - length, 0)
  pad = (missing // 2, missing - missing // 2)
  x = jnp.pad(x, ((0, 0), pad, (0, 0), (0, 0), (0, 0)))
  last = (out - 1) * stride + 1
  x = jnp.concatenate([x[:, i : i + last : stride] for i in range(taps)], -1)
  stacked = jnp.moveaxis(kernel, 0, 2)  # [height, width, time, in, out]
  y = lax.conv_general_dilated(
    x.reshape(batch * out, *x.shape[2:]),
    stacked.reshape(*kernel.shape[1:3], -1, kernel.shape[-1]),
    (stride, stride),
    "SAME",
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
    precision=lax.Precision.HIGHEST,
  )
  return jax.nn.relu(y.reshape(batch, out, *y.shape[1:]) + bias)


def _dot(x: jax.Array, kernel: jax.Array) -> jax.Array:
  # Full float32 on every device: a GPU's default would round the factors.
  return jnp.dot(x, kernel, precision=lax.Precision.HIGHEST)


def _max_pool(
  x: jax.Array, window: tuple[int, int, int], stride: tuple[int, int, int]
) -> jax.Array:
  return lax.reduce_window(
    x, -jnp.inf, lax.max, (1, *window, 1), (1, *stride, 1), "SAME"
  )
