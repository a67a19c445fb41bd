"""Transfer of learning rates over width and depth: muP and CompleteP.

With these, one learning rate suits all sizes: it is tuned on a small base model
and used for large ones. muP (arXiv:2203.03466) covers width, CompleteP
(arXiv:2505.01618, with its depth exponent of 1) width and depth. Both state
forward multipliers as well. A multiplier c on a weight is equivalent to a
weight that is c times as large, initially and in each update of Adam, so here
only initial values and the optimizer differ. The forward pass, and with it the
format of checkpoints and worlds, is the same for all.

A model of `base_width` and `base_layers` is trained exactly as without
transfer. With m = width / base_width and d = layers / base_layers (1 for muP),
the factors are:

  parameter                     initial value   update        gradient
  embeddings, positions         1               1             m
  kernels into a branch         1               1 / m         m d
  kernels out of a branch       1 / sqrt(d)     1 / (m d)     m
  readout kernel                1 / sqrt(m)     1 / m         1
  readout bias                  1               1             1
  norms in a branch             1               1             m d
  norms of queries and keys     1               1             d
  final norm                    1               1             m

"Initial value" is relative to what the layers themselves do: kernels have a
standard deviation of 1 / sqrt(inputs), and those out of a branch another factor
of 1 / sqrt(3 layers), see `nn.st_transformer`. "Gradient" is applied before
Adam, and equals dividing Adam's epsilon by it: gradients shrink with m and d,
and a constant epsilon would stop the updates of large models (arXiv:2505.01618,
section 4). Weight decay is not multiplied, so its product with the learning
rate is the same at all sizes.

Heads must have the same width at all sizes; their number grows with the width,
and so must the MLP. The batch and the number of steps are not transferred.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import optax

from genie_jax.core import errors

NAMES = ("none", "mup", "completep")


@dataclasses.dataclass(frozen=True)
class Factors:
  """Factors of one parameter, see the module's docstring."""

  init: float
  update: float
  gradient: float


# Kind of parameter -> function of m and d.
RULES: Mapping[str, Callable[[float, float], Factors]] = {
  "embedding": lambda m, d: Factors(1.0, 1.0, m),
  "into_branch": lambda m, d: Factors(1.0, 1 / m, m * d),
  "out_of_branch": lambda m, d: Factors(d**-0.5, 1 / (m * d), m),
  "input_kernel": lambda m, d: Factors(1.0, 1 / m, m),
  "readout": lambda m, d: Factors(m**-0.5, 1 / m, 1.0),
  "readout_bias": lambda m, d: Factors(1.0, 1.0, 1.0),
  "branch_norm": lambda m, d: Factors(1.0, 1.0, m * d),
  "head_norm": lambda m, d: Factors(1.0, 1.0, d),
  "final_norm": lambda m, d: Factors(1.0, 1.0, m),
}

# End of a parameter's path in a dynamics model -> kind, and the axis whose
# length is the model's width (None if there is none).
_KINDS: Mapping[tuple[str, ...], tuple[str, int | None]] = {
  ("token_embedding",): ("embedding", -1),
  ("hidden_token",): ("embedding", -1),
  ("action_embedding",): ("embedding", -1),
  ("last_frame_scale",): ("embedding", -1),
  ("row_position",): ("embedding", -1),
  ("column_position",): ("embedding", -1),
  ("last_frame_around", "kernel"): ("input_kernel", -1),
  ("qkv", "kernel"): ("into_branch", 1),  # [layers, embed, 3, heads, head_dim]
  ("mlp_in", "kernel"): ("into_branch", 1),  # [layers, embed, mlp]
  ("out", "kernel"): ("out_of_branch", -1),
  ("mlp_out", "kernel"): ("out_of_branch", -1),
  ("space_norm", "scale"): ("branch_norm", -1),
  ("time_norm", "scale"): ("branch_norm", -1),
  ("mlp_norm", "scale"): ("branch_norm", -1),
  ("query_norm", "scale"): ("head_norm", None),
  ("key_norm", "scale"): ("head_norm", None),
  ("norm", "scale"): ("final_norm", -1),
  ("to_logits", "kernel"): ("readout", 0),
  ("to_logits", "bias"): ("readout_bias", None),
}


def factors(params: Any, name: str, base_width: int, base_layers: int) -> Any:
  """Returns the factors of each parameter of a dynamics model.

  Args:
    params: Nested dict of arrays or shapes, possibly boxed.
    name: A name in NAMES.
    base_width: Width of the model whose learning rate is used.
    base_layers: Number of its layers; only read for "completep".

  Returns:
    The same tree of `Factors`.

  Raises:
    UserError: A parameter is of a model for which no factors are known.
  """

  def leaf(path, box):
    value = nn.unbox(box)
    names = tuple(key.key for key in path)
    kind, axis = _KINDS.get(names[-2:], _KINDS.get(names[-1:], (None, None)))
    if kind is None or "dynamics" in names:
      raise errors.UserError(
        f"config.optimizer.transfer={name!r} has no factors for the parameter "
        f"{'/'.join(names)}; it is for the dynamics stage, use 'none'."
      )
    if name == "none":
      return Factors(1.0, 1.0, 1.0)
    width = 1.0 if axis is None else value.shape[axis] / base_width
    depth = 1.0
    if name == "completep" and "layers" in names:
      depth = value.shape[0] / base_layers
    return RULES[kind](width, depth)

  is_box = lambda x: isinstance(x, nn.LogicallyPartitioned)
  return jax.tree_util.tree_map_with_path(leaf, params, is_leaf=is_box)


def scale_init(
  params: Any, name: str, base_width: int, base_layers: int
) -> Any:
  """Returns boxed initial parameters times their factors."""
  if name == "none":
    return params
  found = factors(params, name, base_width, base_layers)
  return jax.tree.map(
    lambda factor, box: box.replace_boxed(box.value * factor.init),
    found,
    params,
    is_leaf=lambda x: isinstance(x, Factors),
  )


def scale_by(
  field: str, name: str, base_width: int, base_layers: int
) -> optax.GradientTransformation:
  """Returns a transformation that multiplies by one field of `Factors`."""

  def update(updates, params):
    del params
    return jax.tree.map(
      lambda factor, x: x * getattr(factor, field),
      factors(updates, name, base_width, base_layers),
      updates,
      is_leaf=lambda x: isinstance(x, Factors),
    )

  return optax.stateless(update)
