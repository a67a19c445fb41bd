"""Models of the scaling study and their parameter counts (Genie, section 3.1).

No single rule for the shape of a block reproduces all of the paper's parameter
counts: in two rows, the two attentions of every layer alone have more. The
width of the feed-forward layer is therefore our own choice, and the table
compares every count with the paper's.
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

# Columns of a TPU's matrix unit; other widths would be padded to a multiple.
_LANES = 128

# The world of the platformer models. A frame of 90 x 160 pixels is padded to
# 23 x 40 patches of 4 x 4 pixels, so it has 920 tokens.
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
  """A dynamics model of the paper.

  Attributes:
    name: The paper's name.
    layers: Number of space-time blocks.
    heads: Number of attention heads.
    width: Width of the residual stream.
    head_dim: Width of a head's keys, queries and values.
    paper_parameters: The paper's parameter count.
    paper_flops: The paper's training FLOPs; None if it states none.
    batch_size: Clips per batch.
    steps: Optimizer steps.
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


# The models of tables 10 and 11, of the batch size study, and the final model.
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
  """Returns the size with a name.

  Raises:
    UserError: The name is unknown.
  """
  if name not in SIZES:
    raise errors.UserError(
      f"Unknown size {name!r}{errors.closest(name, SIZES)}; use one of "
      f"{', '.join(SIZES)}."
    )
  return SIZES[name]


def mlp_dim(width: int) -> int:
  """Returns the width of the feed-forward layer.

  It is two fifths of the width of the residual stream, rounded to a multiple of
  128. With it the final model has 10.1B parameters, as in the paper; with the
  usual factor of four it would have 19B.
  """
  return max(1, round(2 * width / 5 / _LANES)) * _LANES


def stack(layers: int, width: int, heads: int, head_dim: int) -> dict[str, Any]:
  """Returns the config fields of a space-time transformer of the paper."""
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
  """Returns the parameter count of a model, from shapes alone.

  Args:
    part: "tokenizer", "lam" or "dynamics".
    fields: The config fields "world" and "model".
  """
  leaves = jax.tree.leaves(store.abstract_params(part, fields))
  return sum(math.prod(leaf.shape) for leaf in leaves)


def rows(sizes: Sequence[Size] | None = None) -> list[dict[str, Any]]:
  """Returns the scaling table, with our counts and the paper's.

  `flops` are the training FLOPs by our own count: three times the FLOPs of the
  matrix products of a forward pass, without recomputation, over all steps.

  Args:
    sizes: The sizes to list; all of SIZES by default.
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
  """Formats the result of `rows` as a table of at most 80 columns."""
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
  """Formats a parameter count like the paper, with one more digit."""
  if number >= 1e9:
    return f"{number / 1e9:.2f}B"
  return f"{number / 1e6:.1f}M"
