"""Sizes of the scaling study, counted by shapes alone (Genie, section 3.1).

The paper's parameter counts fit no one shape of a block: two attentions of
every layer alone exceed two of its rows. So the width of the feed-forward
layer is ours to choose, and every count stands beside the paper's.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import ml_collections

from genie_jax.core import errors
from genie_jax.models import build, store
from genie_jax.stages import dynamics

# Columns of a TPU's matrix unit; a narrower remainder would be padded to it.
_LANES = 128

# The world of the platformer models. 90 rows of 4-pixel patches are padded to
# 23, so a frame has 23 x 40 = 920 tokens.
WORLD = {
  "num_frames": 16,
  "height": 90,
  "width": 160,
  "channels": 3,
  "fps": 10,
  "token_patch": 4,
  "num_codes": 1024,
  "num_latent_actions": 8,
}


@dataclasses.dataclass(frozen=True)
class Size:
  """One dynamics model of the paper.

  Attributes:
    name: As in the paper.
    layers: Space-time blocks.
    heads: Attention heads.
    width: Width of the residual stream.
    head_dim: Width of a head's keys, queries and values.
    paper_parameters: The paper's count.
    paper_flops: The paper's training FLOPs; None where it states none.
    batch_size: Clips of a batch.
    steps: Updates.
  """

  name: str
  layers: int
  heads: int
  width: int
  head_dim: int
  paper_parameters: float
  paper_flops: float | None = None
  batch_size: int = 256
  steps: int = 200_000


# Tables 10 and 11, the model of the batch size study, and the final one.
SIZES = {
  size.name: size
  for size in (
    Size("41M", 18, 8, 512, 64, 41e6, 2.05e20),
    Size("96M", 16, 16, 768, 64, 96e6, 3.58e20),
    Size("192M", 20, 18, 1024, 64, 192e6, 6.4e20),
    Size("404M", 21, 12, 1536, 128, 404e6, 1.2e21),
    Size("811M", 20, 20, 2048, 128, 811e6, 2.2e21),
    Size("1.6B", 28, 22, 2560, 128, 1.6e9, 4.04e21),
    Size("2.7B", 36, 22, 3072, 128, 2.7e9, 6.91e21),
    Size("2.3B", 34, 20, 2560, 128, 2.3e9),
    Size("10.1B", 48, 36, 5120, 128, 10.1e9, 6.6e22, 512, 125_000),
  )
}


def find(name: str) -> Size:
  """Returns the size of a name.

  Raises:
    UserError: There is no such size.
  """
  if name not in SIZES:
    raise errors.UserError(
      f"Unknown size {name!r}{errors.closest(name, SIZES)}; use one of "
      f"{', '.join(SIZES)}."
    )
  return SIZES[name]


def mlp_dim(width: int) -> int:
  """Returns the width of the feed-forward layer.

  Two fifths of the residual stream's, to the nearest multiple of 128: with it
  the final model has the paper's 10.1B parameters, where the usual four times
  would make it 19B.
  """
  return max(1, round(2 * width / 5 / _LANES)) * _LANES


def stack(layers: int, width: int, heads: int, head_dim: int) -> dict[str, Any]:
  """Returns the fields of a space-time transformer of the paper's make."""
  return dict(
    num_layers=layers,
    width=width,
    num_heads=heads,
    head_dim=head_dim,
    mlp_dim=mlp_dim(width),
    attention="auto",
    remat="full",
    dtype="bfloat16",
    unroll=1,
  )


def model(size: Size) -> dict[str, Any]:
  """Returns `config.model` of a dynamics model of this size."""
  return dict(
    actions_enter="add",
    transformer=stack(size.layers, size.width, size.heads, size.head_dim),
  )


def count(part: str, fields: Mapping[str, Any]) -> int:
  """Returns how many parameters a model has, without making one.

  Args:
    part: tokenizer, lam or dynamics.
    fields: {"world", "model"}.
  """
  leaves = jax.tree.leaves(store.abstract_params(part, fields))
  return sum(math.prod(leaf.shape) for leaf in leaves)


def rows(sizes: Sequence[Size] | None = None) -> list[dict[str, Any]]:
  """Returns the scaling table with our counts beside the paper's.

  `flops` is what training needs by our own count: matrix products of a
  forward pass, times three, no recomputation, over all steps.

  Args:
    sizes: Defaults to all of SIZES.
  """
  table = []
  for size in SIZES.values() if sizes is None else sizes:
    fields = {"world": WORLD, "model": model(size)}
    parameters = count("dynamics", fields)
    clip = dynamics.training_flops(
      ml_collections.ConfigDict(
        {**fields, "data": {"num_frames": WORLD["num_frames"]}}
      )
    )
    table.append(
      {
        "name": size.name,
        "layers": size.layers,
        "heads": size.heads,
        "width": size.width,
        "head_dim": size.head_dim,
        "mlp_dim": mlp_dim(size.width),
        "paper_parameters": int(size.paper_parameters),
        "parameters": parameters,
        "ratio": round(parameters / size.paper_parameters, 4),
        "batch_size": size.batch_size,
        "steps": size.steps,
        "tokens": size.batch_size
        * size.steps
        * WORLD["num_frames"]
        * math.prod(build.token_grid(WORLD)),
        "paper_flops": size.paper_flops,
        "flops": clip * size.batch_size * size.steps,
      }
    )
  return table


def render(table: Sequence[Mapping[str, Any]]) -> str:
  """Returns what `rows` gave as aligned text of at most 80 columns."""
  lines = [
    f"{'parameters':>47}{'training FLOPs':>27}",
    f"{'name':6}{'layers':>6} {'heads':>5} {'width':>5} {'k/q':>3} "
    f"{'mlp':>4} {'paper':>7} {'ours':>7} {'ratio':>5}  "
    f"{'paper':>8} {'ours':>8}",
  ]
  for row in table:
    stated = row["paper_flops"]
    flops = "-" if stated is None else f"{stated:.2e}"
    lines.append(
      f"{row['name']:6}{row['layers']:>6} {row['heads']:>5} "
      f"{row['width']:>5} {row['head_dim']:>3} {row['mlp_dim']:>4} "
      f"{_short(row['paper_parameters']):>7} {_short(row['parameters']):>7} "
      f"{row['ratio']:.3f}  {flops:>8} {row['flops']:.2e}"
    )
  return "\n".join(lines)


def _short(number: float) -> str:
  """Returns a count of parameters as the paper writes them, a digit longer."""
  if number >= 1e9:
    return f"{number / 1e9:.2f}B"
  return f"{number / 1e6:.1f}M"
