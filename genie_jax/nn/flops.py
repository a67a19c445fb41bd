"""Model FLOPs: a formula for space-time transformers, a trace for others.

A multiply-add counts as two FLOPs. Only the FLOPs that the model itself needs
are counted: no recomputation, and only the causal half of attention in time.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
from jax.extend import core


def st_transformer(config: Any, num_frames: int, num_tokens: int) -> float:
  """Returns the FLOPs of one clip's forward pass.

  Args:
    config: The fields of `STTransformer`.
    num_frames: T.
    num_tokens: N.
  """
  inner = config["num_heads"] * config["head_dim"]
  width = config["width"]
  projections = 2 * (4 * width * inner)  # q, k, v and out, twice.
  mlp = 2 * width * config["mlp_dim"]
  attended = num_tokens + (num_frames + 1) / 2
  token = 2 * (projections + mlp) + 4 * attended * inner
  return float(config["num_layers"] * num_frames * num_tokens * token)


def linear(inputs: int, outputs: int, count: int) -> float:
  """Returns the FLOPs of a linear map applied to `count` vectors."""
  return 2.0 * inputs * outputs * count


def traced(function: Callable[..., Any], *inputs: Any) -> float:
  """Returns the FLOPs of a function's matrix products and convolutions.

  The body of a `jax.lax.scan` is counted once per iteration. The body of a
  `while_loop` is counted once, because the trace does not contain its length.

  Args:
    function: For example the forward pass of a model.
    *inputs: Arrays or `jax.ShapeDtypeStruct`s; the function is only traced.
  """
  return _of_jaxpr(jax.make_jaxpr(function)(*inputs).jaxpr)


def _of_jaxpr(jaxpr: Any) -> float:
  total = 0.0
  for equation in jaxpr.eqns:
    name, params = equation.primitive.name, equation.params
    size = sum(math.prod(x.aval.shape) for x in equation.outvars)
    if name == "dot_general":
      contracted, _ = params["dimension_numbers"][0]
      shape = equation.invars[0].aval.shape
      total += 2.0 * size * math.prod(shape[axis] for axis in contracted)
    elif name == "conv_general_dilated":
      kernel = equation.invars[1].aval.shape
      outputs = kernel[params["dimension_numbers"].rhs_spec[0]]
      total += 2.0 * size * math.prod(kernel) / outputs
    inner = [_of_jaxpr(found) for found in core.jaxprs_in_params(params)]
    if name == "scan":
      total += params["length"] * sum(inner)
    elif name == "cond":
      total += max(inner)
    else:
      total += sum(inner)
  return total
