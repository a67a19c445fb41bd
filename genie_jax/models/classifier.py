"""A residual network that tells good clips from bad ones (ResNet-18).

Genie, appendix B.1, names "a ResNet18 (11M parameters)" and nothing more. The
layers are those of He et al. (arXiv:1512.03385, table 1, 18 layers).

Differs from the paper of that network: the network sees runs of adjacent
frames, each as the first frame and the change to each next one, because a
paused, a static and a sped-up game cannot be told from play by one picture; its
features are averaged over the runs of a clip; and GroupNorm (arXiv:1803.08494)
takes the place of BatchNorm, so that the network is a function of its
parameters alone, a clip's score does not depend on the other clips of a batch,
and a step is the same on any mesh. GroupNorm divides by the size of a clip's
own features, which would hide how much a clip moves, so the first layer and the
shortcuts are not normalised.

Shapes:
  B  clips     T  frames, as runs of adjacent ones     R  frames of a run
  P  runs, T / R
  H W C  rows, columns, channels of a frame                   D  channels
"""

import itertools
from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from genie_jax.core import errors
from genie_jax.models import build as build_lib
from genie_jax.nn import initializers
from genie_jax.sharding import rules

# Blocks of each of the four groups of layers: 1 + 2 * 8 + 1 = 18 layers.
_BLOCKS = (2, 2, 2, 2)
# Groups of GroupNorm, as in its paper, or fewer of four channels each.
_GROUPS, _LEAST_CHANNELS = 32, 4
RUNS = (2, 3, 4, 6)  # Lengths of a run of adjacent frames.
_SCALE = 4.0  # Pixels from 0 to 1 have a standard deviation of about 1 / 4.


class Convolution(nn.Module):
  """A convolution without a bias, whose kernel has logical axis names.

  Attributes:
    features: Channels of the output.
    size: Rows and columns of the kernel.
    stride: Of the output's rows and columns.
    dtype: Of the product.
  """

  features: int
  size: int
  stride: int = 1
  dtype: Any = jnp.bfloat16

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps x: [n, H, W, D] to [n, H / stride, W / stride, features]."""
    axes = (None, None, None, "embed")
    kernel = self.param(
      "kernel",
      initializers.labelled(nn.initializers.he_normal(), axes),
      (self.size, self.size, x.shape[-1], self.features),
      jnp.float32,
    )
    kernel = rules.gather(kernel.astype(self.dtype), axes)
    edge = self.size // 2
    return jax.lax.conv_general_dilated(
      x.astype(self.dtype),
      kernel,
      (self.stride, self.stride),
      ((edge, edge), (edge, edge)),
      dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def _norm(name: str, channels: int, *, scale: float = 1.0, dtype: Any):
  label = lambda init: initializers.labelled(init, ("norm",))
  return nn.GroupNorm(
    num_groups=min(_GROUPS, max(1, channels // _LEAST_CHANNELS)),
    scale_init=label(nn.initializers.constant(scale)),
    bias_init=label(nn.initializers.zeros),
    dtype=dtype,
    name=name,
  )


class Block(nn.Module):
  """Two convolutions of 3 x 3 and a shortcut.

  Attributes:
    features: Channels of the output.
    stride: Of the first convolution, and of the shortcut.
    dtype: Of the products.
  """

  features: int
  stride: int = 1
  dtype: Any = jnp.bfloat16

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps x: [n, H, W, D] to [n, H / stride, W / stride, features]."""
    width, kind = self.features, self.dtype
    y = Convolution(width, 3, self.stride, kind, name="first")(x)
    y = nn.relu(_norm("first_norm", width, dtype=kind)(y))
    y = Convolution(width, 3, 1, kind, name="second")(y)
    # A small scale starts each block near its shortcut.
    y = _norm("second_norm", width, scale=0.2, dtype=kind)(y)
    if x.shape != y.shape:
      x = Convolution(width, 1, self.stride, kind, name="shortcut")(x)
    return nn.relu(x + y)


class Classifier(nn.Module):
  """Scores clips: positive logits for good ones, negative for bad ones.

  Attributes:
    height: H.
    width: W.
    channels: C.
    features: Channels of the first layer; 64 for ResNet-18.
    shrink: Factor by which frames are made smaller first, by averaging.
    run: R, one of RUNS.
    dtype: "bfloat16" or "float32", of the products; the sum over a clip and the
      last layer are float32.
  """

  height: int
  width: int
  channels: int
  features: int = 64
  shrink: int = 1
  run: int = 2
  dtype: str = "bfloat16"

  @nn.compact
  def __call__(self, frames: jax.Array) -> jax.Array:
    """Scores clips.

    Args:
      frames: float [B, T, H, W, C] in [0, 1]; frames R p to R p + R - 1 are
        adjacent frames of the clip, T is a multiple of R.

    Returns:
      float32 [B], logits.
    """
    chex.assert_shape(
      frames, (None, None, self.height, self.width, self.channels)
    )
    if frames.shape[1] % self.run:
      raise errors.UserError(
        f"The classifier reads runs of {self.run} frames, so it needs a "
        f"multiple of {self.run} frames, not {frames.shape[1]}."
      )
    kind = jnp.dtype(self.dtype)
    x = self._runs(frames)
    x = rules.constrain(x, ("act_batch", None, None, None))
    x = nn.relu(Convolution(self.features, 7, 2, kind, name="stem")(x))
    edges: Any = ((1, 1), (1, 1))  # Flax annotates it as text.
    x = nn.max_pool(x, (3, 3), (2, 2), edges)
    for group, count in enumerate(_BLOCKS):
      for number in range(count):
        x = Block(
          self.features << group,
          2 if group and not number else 1,
          kind,
          name=f"group{group}_block{number}",
        )(x)
    x = x.astype(jnp.float32).mean((1, 2))  # [B * P, D]
    x = x.reshape(frames.shape[0], -1, x.shape[-1]).mean(1)  # [B, D]
    # Starts at the logit 0: an untrained network knows nothing.
    return initializers.Projection(
      (1,),
      (None,),
      scale=0.0,
      bias=True,
      dtype=jnp.float32,
      name="to_logit",
    )(x)[:, 0]

  def _runs(self, frames: jax.Array) -> jax.Array:
    """Returns [B * P, H, W, R C]: the first frame, and the changes."""
    shape, size = frames.shape, self.shrink
    if size > 1:
      rows, columns = shape[2] // size, shape[3] // size
      frames = frames[:, :, : rows * size, : columns * size]
      frames = frames.reshape(*shape[:2], rows, size, columns, size, -1)
      frames = frames.mean((3, 5))
    frames = frames.reshape(-1, self.run, *frames.shape[2:])
    each = [frames[:, number] for number in range(self.run)]
    return _SCALE * jnp.concatenate(
      [
        each[0] - 0.5,
        *(after - before for before, after in itertools.pairwise(each)),
      ],
      axis=-1,
    )


def build(config: dict[str, Any]) -> Classifier:
  """Builds the classifier of a config with `world` and `model`.

  Raises:
    UserError: A field is missing, unknown or out of range.
  """
  world, model = config["world"], config["model"]
  for name in ("height", "width", "channels"):
    _positive(f"config.world.{name}", world.get(name))
  for name in ("features", "shrink"):
    if name in model:
      _positive(f"config.model.{name}", model[name])
  if model.get("run", 2) not in RUNS:
    raise errors.UserError(
      f"config.model.run={model['run']!r:.40} must be one of "
      f"{', '.join(map(str, RUNS))}."
    )
  if model.get("dtype", "bfloat16") not in ("bfloat16", "float32"):
    raise errors.UserError(
      f"config.model.dtype={model['dtype']!r:.40} is unknown; use bfloat16 or "
      "float32."
    )
  if min(world["height"], world["width"]) // model.get("shrink", 1) < 8:
    raise errors.UserError(
      f"config.model.shrink={model.get('shrink', 1)} leaves less than 8 rows "
      f"or columns of a frame of {world['height']} x {world['width']}; use a "
      "smaller factor."
    )
  return build_lib.make(
    Classifier,
    {
      **{name: world[name] for name in ("height", "width", "channels")},
      **model,
    },
  )


def _positive(where: str, value: Any) -> None:
  if type(value) is not int or value < 1:
    raise errors.UserError(
      f"{where}={value!r:.40} must be a positive whole number."
    )
