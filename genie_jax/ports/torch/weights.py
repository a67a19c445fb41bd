"""Reads and checks a world's tensors, and converts them to float32."""

import pathlib
from collections.abc import Mapping
from typing import Any

import torch

from genie_jax.core import errors
from genie_jax.ports.torch import quantizers
from genie_jax.weights import tensor_files

FORMAT_VERSION = 2
_LAYER = (
  "mlp_in/kernel",
  "mlp_norm/scale",
  "mlp_out/kernel",
  "space/key_norm/scale",
  "space/out/kernel",
  "space/qkv/kernel",
  "space/query_norm/scale",
  "space_norm/scale",
  "time/key_norm/scale",
  "time/out/kernel",
  "time/qkv/kernel",
  "time/query_norm/scale",
  "time_norm/scale",
)


def read(
  folder: pathlib.Path, config: Any, device: torch.device
) -> dict[str, dict[str, Any]]:
  """Returns part -> nested dict of float32 tensors.

  Args:
    folder: A world whose files were checked.
    config: Its config.json.
    device: The device of the tensors, which are copied one by one.

  Raises:
    UserError: Tensors are missing or unknown, or the config has another
      version or does not describe a world.
  """
  try:
    if config["format_version"] not in range(1, FORMAT_VERSION + 1):
      raise errors.UserError(
        f"{folder}/config.json has format_version "
        f"{config['format_version']!r}, this version reads 1 to "
        f"{FORMAT_VERSION}; export the world again, or install a newer "
        "genie_jax."
      )
    wanted = {
      f"{name}/{path}"
      for name, fields in config["parts"].items()
      for path in expected(name, fields["model"], fields.get("quantizer"))
    }
    parts = dict.fromkeys(config["parts"])
  except (TypeError, KeyError, AttributeError) as error:
    raise errors.UserError(
      f"{folder}/config.json does not describe a world ({error!r:.80}); "
      "export it again."
    ) from error
  for name in ("tokenizer", "dynamics"):
    if name not in parts:
      raise errors.UserError(
        f"{folder} has no {name}, which a world needs; export it again."
      )
  stored = tensor_files.read(folder, framework="pt")
  found = {}
  for name, tensor in stored.items():
    base, dot, kind = name.rpartition(".")
    if not dot:
      found[name] = _joined(tensor).to(device, torch.float32)
    elif kind == "values" and f"{base}.scales" in stored:
      # In place, so that only one float copy is in memory.
      scales = _joined(stored[f"{base}.scales"]).to(device)
      found[base] = _joined(tensor).to(device, torch.float32) * scales
    elif kind != "scales" or f"{base}.values" not in stored:
      found[name] = None
  if wrong := sorted(wanted ^ set(found)):
    where = "lacks" if wrong[0] in wanted else "has an unknown"
    raise errors.UserError(
      f"{folder} {where} tensor {wrong[0]}, which does not fit its "
      "config.json; export it again."
    )
  return {name: _nested(found, f"{name}/") for name in parts}


def expected(
  name: str,
  model: Mapping[str, Any],
  quantizer: Mapping[str, Any] | None = None,
) -> set[str]:
  """Returns the paths of a part's tensors.

  Args:
    name: tokenizer, lam or dynamics.
    model: Its fields in config.json.
    quantizer: The fields of its quantizer in config.json, if there are any.

  Raises:
    UserError: The model or quantizer is not implemented in PyTorch.
  """
  if model.get("name", name) != name:
    raise errors.UserError(
      f"The {name} is the model {model['name']!r}, which is not implemented in "
      "PyTorch; play the world with genie_jax.load_world."
    )

  def stack(where, fields):
    norm = {f"{where}/norm/scale"} if fields.get("final_norm", True) else set()
    return norm | {f"{where}/layers/{path}" for path in _LAYER}

  both = lambda *names: {
    f"{name}/{leaf}" for name in names for leaf in ("kernel", "bias")
  }
  position = lambda *names: {
    f"{name}/{axis}_position" for name in names for axis in ("row", "column")
  }
  if name == "dynamics":
    found = {"action_embedding", "hidden_token", "token_embedding"}
    found |= {"last_frame_scale"} if model.get("last_frame", False) else set()
    if model.get("last_frame_reach", 0):
      found |= {"last_frame_around/kernel"}
    return (
      found
      | both("to_logits")
      | position("position")
      | stack("stack", model["transformer"])
    )
  shared = (
    {f"codes/{tensor}" for tensor in quantizers.of(quantizer).TENSORS}
    | both("to_code", "to_pixels")
    | position("encoder_position", "decoder_position")
    | stack("encoder_stack", model["encoder"])
    | stack("decoder_stack", model["decoder"])
  )
  if name == "lam":
    return (
      shared
      | {"action_token", "from_code/kernel"}
      | both("encoder_embed", "decoder_embed")
      | ({"encoder_match/kernel"} if model.get("match") else set())
      | (both("to_shifts") if model.get("predict") == "shift" else set())
    )
  if name != "tokenizer":
    raise errors.UserError(
      f"{name!r} is not part of a world; parts are tokenizer, lam and dynamics."
    )
  return shared | both("embed", "from_code")


def _joined(tensor: tensor_files.Stored) -> torch.Tensor:
  blocks = list(tensor.blocks())
  return blocks[0] if len(blocks) == 1 else torch.cat(blocks)


def _nested(flat: Mapping[str, torch.Tensor], prefix: str) -> dict[str, Any]:
  tree: dict[str, Any] = {}
  for name, tensor in flat.items():
    if name.startswith(prefix):
      *parents, last = name.removeprefix(prefix).split("/")
      node = tree
      for parent in parents:
        node = node.setdefault(parent, {})
      node[last] = tensor
  return tree
