"""Models and weights made ready for playing: cast once, nothing recomputed."""

from typing import Any, TypeVar

import flax.core
import flax.linen as nn
import jax
import jax.numpy as jnp

from genie_jax.weights import int8

Module = TypeVar("Module", bound=nn.Module)

_STACKS = ("transformer", "encoder", "decoder")


def default_dtype() -> str:
  """Returns the dtype of products on this machine's default device.

  Accelerators are twice as fast in bfloat16 and read half the bytes; a CPU
  emulates its products and is slower than in float32.
  """
  return "float32" if jax.default_backend() == "cpu" else "bfloat16"


def rolled(module: nn.Module) -> nn.Module:
  """Returns the model with one layer in a turn of the loop over layers.

  For passes over many frames, where unrolled layers win nothing and take five
  times as long to compile.
  """
  return module.clone(
    **{
      name: flax.core.freeze({**vars(module)[name], "unroll": 1})
      for name in _STACKS
      if name in module.__dataclass_fields__
    }
  )


def for_play(
  module: nn.Module, params: Any, dtype: str | None = None
) -> tuple[nn.Module, Any]:
  """Returns a model and its weights as a player runs them.

  Args:
    module: A Tokenizer, Lam or Dynamics.
    params: Its parameters.
    dtype: Of activations, "float32" or "bfloat16"; `default_dtype()` when
      left out.

  Returns:
    The same model without rematerialisation, hashable; and the parameters
    with the matrices of the layers in `dtype`, which the model would cast in
    every call: the same results, bit for bit.
  """
  dtype = dtype or default_dtype()
  stacks = {}
  for name in _STACKS:
    if name in module.__dataclass_fields__:
      stacks[name] = flax.core.freeze(
        {**vars(module)[name], "dtype": dtype, "remat": "none"}
      )

  def cast(path, leaf):
    names = [str(key.key) for key in path]
    if isinstance(leaf, int8.Int8):
      return leaf  # Turned back inside the compiled step.
    if names[-1] != "kernel" or not {"layers", "to_logits"} & set(names):
      return leaf
    return jnp.asarray(leaf, dtype)

  return (
    hashable(module.clone(**stacks)),
    jax.tree_util.tree_map_with_path(
      cast, params, is_leaf=lambda x: isinstance(x, int8.Int8)
    ),
  )


def hashable(module: Module) -> Module:
  """Returns an equal module that `jax.jit` accepts as a static argument.

  A module's fields may be dicts, which have no hash. Two modules with equal
  fields are equal here too, and so share what was compiled for one of them.
  """
  fields = {
    name: flax.core.freeze(dict(field))
    for name in module.__dataclass_fields__
    if isinstance(field := getattr(module, name), dict)
  }
  return module.clone(**fields) if fields else module
