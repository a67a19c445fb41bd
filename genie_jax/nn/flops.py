"""Model FLOPs of a space-time transformer, counted by hand.

A multiply-add counts as two. Only what the model needs is counted: no
recomputation, and the causal half of attention in time.
"""

from typing import Any


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
