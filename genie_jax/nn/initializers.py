"""Parameters with logical axis names, and the projection all layers use."""

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
  """Returns `init` whose array carries logical axis names."""
  return nn.with_logical_partitioning(init, tuple(axes))


class Projection(nn.Module):
  """A linear map of the last axes, as one einsum with a named kernel.

  Attributes:
    shape: Shape of the output axes.
    axes: Logical names of the output axes.
    inputs: How many of the last axes of the input are contracted.
    input_axes: Logical names of the contracted axes.
    scale: Factor on the standard deviation of the fan-in initialiser; 0 makes
      the layer start as zero.
    bias: Whether to add a bias.
    apart: Whether to return one array for each entry of the first output
      axis, with the other output axes merged. One product that is cut up
      afterwards writes everything twice.
    start: Hashable function of no arguments that returns the kernel to start
      from, in place of a random one.
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
    """Maps x: [..., *inputs] to an array [..., *shape], or a list of parts."""
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
      # To or from pixels or codes. Layers in a stack are left alone: there the
      # partitioner gathers a few weights at once.
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
      # One flat matrix product: on a CPU the gradient of the general one is
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
