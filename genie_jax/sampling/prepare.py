"""Prepares models and weights for playing: casts once, disables remat."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.core
import flax.linen as nn
import jax
import jax.numpy as jnp

from genie_jax.nn import st_transformer
from genie_jax.weights import int8

_STACK_FIELDS = {
  field.name for field in dataclasses.fields(st_transformer.STTransformer)
} - {"parent", "name"}
_LAYERS = "layers"  # Name of the parameters of an `STTransformer`.


def default_dtype() -> str:
  """Returns the dtype for matrix products on the default device.

  Accelerators are twice as fast in bfloat16 and read half the bytes; a CPU
  emulates bfloat16 and is faster in float32.
  """
  return "float32" if jax.default_backend() == "cpu" else "bfloat16"


def rolled(module: nn.Module) -> nn.Module:
  """Returns the model without unrolling of the loop over layers.

  For passes over many frames, where unrolling is not faster and takes five
  times as long to compile. A model without such a loop is returned unchanged.
  """
  return _with_stacks(module, unroll=1)


def for_play(
  module: nn.Module, params: Any, dtype: str | None = None
) -> tuple[Any, Any]:
  """Returns a model and its weights in the form in which a player runs them.

  A model without `STTransformer` fields is played unchanged, in its own
  dtypes.

  Args:
    module: A model. Its optional attribute `kernels_in_dtype` names the
      projections outside its stacks whose kernels it casts to the stacks'
      dtype in every call.
    params: Its parameters.
    dtype: Dtype of activations, "float32" or "bfloat16"; by default
      `default_dtype()`.

  Returns:
    The same model without rematerialisation, hashable; and the parameters
    with the matrices of the layers cast to `dtype`. The model would cast them
    in every call, so results are bit-identical.
  """
  if not _stacks(module):
    return hashable(module), params
  dtype = dtype or default_dtype()
  in_dtype = {_LAYERS, *getattr(module, "kernels_in_dtype", ())}

  def cast(path, leaf):
    names = [str(key.key) for key in path]
    if isinstance(leaf, int8.Int8):
      return leaf  # Dequantized inside the compiled step.
    if names[-1] != "kernel" or not in_dtype & set(names):
      return leaf
    return jnp.asarray(leaf, dtype)

  return (
    hashable(_with_stacks(module, dtype=dtype, remat="none")),
    jax.tree_util.tree_map_with_path(
      cast, params, is_leaf=lambda x: isinstance(x, int8.Int8)
    ),
  )


def hashable(module: Any) -> Any:
  """Returns an equal module that `jax.jit` accepts as a static argument.

  A module's fields may be dicts or lists, which are not hashable. The results
  for two modules with equal fields are equal, so they share compiled programs.
  """
  fields = {
    name: _frozen(field)
    for name in module.__dataclass_fields__
    if isinstance(field := getattr(module, name), dict | list)
  }
  return module.clone(**fields) if fields else module


def _stacks(module: nn.Module) -> list[str]:
  """Returns the names of a model's fields that configure an `STTransformer`."""
  return [
    name
    for name in module.__dataclass_fields__
    if isinstance(value := vars(module).get(name), Mapping)
    and {"num_layers", "width"} <= set(value) <= _STACK_FIELDS
  ]


def _with_stacks(module: nn.Module, **changes: Any) -> nn.Module:
  """Returns a model with fields of all its stacks changed."""
  fields: dict[str, Any] = {
    name: flax.core.freeze({**vars(module)[name], **changes})
    for name in _stacks(module)
  }
  return module.clone(**fields)


def _frozen(value: Any) -> Any:
  if isinstance(value, dict):
    return flax.core.freeze(
      {name: _frozen(inner) for name, inner in value.items()}
    )
  if isinstance(value, list):
    return tuple(_frozen(inner) for inner in value)
  return value
