"""Parameters with logical axis names, and the projection used by all layers."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from genie_jax.sharding import rules


def labelled(
  init: nn.initializers.Initializer, axes: Sequence[str | None]
) -> nn.initializers.Initializer:
  """Returns an initialiser like `init` that also sets logical axis names."""
  return nn.with_logical_partitioning(init, tuple(axes))


class Projection(nn.Module):
  """A linear map of the last axes, whose kernel has logical axis names.

  Attributes:
    shape: Shape of the output axes.
    axes: Logical names of the output axes.
    inputs: The number of trailing axes of the input that are contracted.
    input_axes: Logical names of the contracted axes.
    scale: Factor on the standard deviation of the fan-in initialiser; with 0
      the untrained layer outputs zeros.
    bias: Whether to add a bias.
    apart: Whether to return a list with one array for each entry of the first
      output axis, with the other output axes merged. Splitting one large
      product afterwards would write every value twice.
    start: Hashable function without arguments that returns the initial kernel,
      in place of a random one.
    dtype: Dtype of the product.
  """

  shape: tuple[int, ...]
  axes: tuple[str | None, ...]
  inputs: int = 1
  input_axes: tuple[str | None, ...] = ("embed",)
  scale: float = 1.0
  bias: bool = False
  apart: bool = False
  start: Any = None
  dtype: Any = jnp.bfloat16

  @nn.compact
  def __call__(self, x: jax.Array) -> Any:
    """Maps x: [..., *inputs] to [..., *shape], or to a list if `apart`."""
    contracted = x.shape[-self.inputs :]
    deviation = self.scale / np.sqrt(np.prod(contracted))
    init = (
      nn.initializers.normal(deviation)
      if self.start is None
      else (
        lambda rng, shape, dtype: jnp.asarray(self.start(), dtype).reshape(
          shape
        )
      )
    )
    kernel = self.param(
      "kernel",
      labelled(init, (*self.input_axes, *self.axes)),
      (*contracted, *self.shape),
      jnp.float32,
    )
    lead = x.shape[: -self.inputs]
    x = x.astype(self.dtype)
    kernel = kernel.astype(self.dtype)
    if not any(self.input_axes) or not any(self.axes):
      # Projections to or from pixels or codes. Kernels of stacked layers are
      # not gathered here: the partitioner gathers them a few at a time.
      kernel = rules.gather(kernel, (*self.input_axes, *self.axes))
    if self.apart:
      parts = jnp.moveaxis(kernel, self.inputs, 0)  # [parts, *inputs, ...]
      return [
        jnp.tensordot(x, part.reshape(*contracted, -1), self.inputs)
        for part in parts
      ]
    if rules.is_split():
      y = jnp.tensordot(x, kernel, self.inputs)
    else:
      # One product of two matrices: on a CPU the gradient of `tensordot` is
      # 2.5 times slower. Split axes cannot be merged without moving data.
      rows = x.reshape(np.prod(lead, dtype=int), -1)
      y = (rows @ kernel.reshape(rows.shape[-1], -1)).reshape(
        *lead, *self.shape
      )
    if self.bias:
      bias = self.param(
        "bias",
        labelled(nn.initializers.zeros, self.axes),
        self.shape,
        jnp.float32,
      )
      y += bias.astype(self.dtype)
    return y
