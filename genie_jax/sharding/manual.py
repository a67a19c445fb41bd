"""Types of arrays inside of a `shard_map`."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def differ_with(tree: Any, *others: jax.Array) -> Any:
  """Returns arrays typed as differing by device where others do.

  Inside of a `shard_map` the type of an array says over which mesh axes its
  values may differ, and what a scan carries or a cond returns must have one
  type throughout. Elsewhere, and in the compiled program, this does nothing.

  Args:
    tree: Arrays of any kind.
    others: Arrays or keys of any shape, none empty.

  Returns:
    The same values.
  """
  if not jax.sharding.get_abstract_mesh().manual_axes:
    return tree
  numbers = [
    jax.random.key_data(x)
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
    else x
    for x in others
  ]
  # A choice between two equals, which the compiler removes.
  chosen = sum(x.ravel()[0].astype(jnp.int32) for x in numbers) == 0
  return jax.tree.map(lambda x: jnp.where(chosen, x, x), tree)


def cond(
  predicate: jax.Array,
  true_function: Callable[..., Any],
  false_function: Callable[..., Any],
  *operands: Any,
) -> Any:
  """Does what `jax.lax.cond` does, also inside of a `shard_map`.

  There the results of both branches are typed as differing where the
  predicate does.
  """
  return jax.lax.cond(
    predicate,
    lambda *args: differ_with(true_function(*args), predicate),
    lambda *args: differ_with(false_function(*args), predicate),
    *operands,
  )
