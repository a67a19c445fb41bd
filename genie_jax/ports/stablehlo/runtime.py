"""Runs the StableHLO programs of a world with JAX, without the models' code.

    world = runtime.load("world")
    state = world.reset(world.encode(pictures[:, None])[:, 0], seeds=[0, 1])
    state, frames = world.step(state, actions=[3, 2])

Shapes:
  B  players      W  maximum frames per clip
"""

import dataclasses
import pathlib
import struct
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax import export

from genie_jax.core import errors, files, schema
from genie_jax.weights import tensor_files
from genie_jax.worlds import world_manifest

FORMAT_VERSION = 1
FOLDER = "stablehlo"
LIST = "programs.json"
_NAMES = ("encode", "decode", "reset", "step")
_LIST = {
  "window": schema.COUNT,
  "frame_shape": (schema.COUNT,) * 3,
  "grid": (schema.COUNT,) * 2,
  "num_actions": schema.COUNT,
  "weights": {name: [str] for name in _NAMES},
}
# What JAX and the library of its format raise for damaged programs.
_UNREADABLE = (
  ArithmeticError,
  AssertionError,
  AttributeError,
  LookupError,
  OSError,
  TypeError,
  ValueError,
  struct.error,
)


@dataclasses.dataclass(frozen=True)
class Programs:
  """A world's programs and weights.

  Attributes:
    window: W.
    frame_shape: (H, W, C).
    grid: (h, w), token grid of a frame.
    num_actions: Number of actions.
    manifest: The world's manifest.json.
  """

  window: int
  frame_shape: tuple[int, ...]
  grid: tuple[int, ...]
  num_actions: int
  manifest: dict[str, Any]
  _calls: Mapping[str, Callable[..., Any]]
  _weights: Mapping[str, dict[str, jax.Array]]

  def encode(self, frames: np.ndarray) -> np.ndarray:
    """Returns tokens, int32 [B, T, h, w], of uint8 frames [B, T, H, W, C].

    T is at most `window`.
    """
    return self._padded("encode", np.asarray(frames, np.uint8))

  def decode(self, tokens: np.ndarray) -> np.ndarray:
    """Returns uint8 frames [B, T, H, W, C] of tokens [B, T, h, w].

    T is at most `window`.
    """
    return self._padded("decode", np.asarray(tokens, np.int32))

  def reset(self, tokens: np.ndarray, seeds: Sequence[int]) -> list[jax.Array]:
    """Starts players from one frame each.

    Args:
      tokens: int32 [B, h, w].
      seeds: One seed per player; a `World` that is reset with the same seed
        draws the same frames.

    Returns:
      The players' state for `step`.
    """
    key = lambda seed: jax.random.fold_in(
      jax.random.key(seed, impl="threefry2x32"), 0
    )
    keys = [np.asarray(jax.random.key_data(key(seed))) for seed in seeds]
    return self._call("reset", np.asarray(tokens, np.int32), np.stack(keys))

  def step(
    self, state: list[jax.Array], actions: Sequence[int]
  ) -> tuple[list[jax.Array], np.ndarray]:
    """Presses a button of each player.

    Args:
      state: From `reset` or `step`; it is not changed.
      actions: B actions in [0, num_actions).

    Returns:
      The players' next state, and their frames, uint8 [B, H, W, C].

    Raises:
      UserError: An action is out of range.
    """
    pressed = np.asarray(actions, np.int32)
    if ((pressed < 0) | (pressed >= self.num_actions)).any():
      raise errors.UserError(
        f"Actions {pressed.tolist()} are out of range: this world has "
        f"{self.num_actions} actions, 0 to {self.num_actions - 1}."
      )
    state, frames = self._call("step", state, pressed)
    return state, np.asarray(frames)

  def _padded(self, name: str, clips: np.ndarray) -> np.ndarray:
    """Runs a program on clips of up to W frames, padded at the end.

    The models are causal in time, so padding does not change earlier frames.
    """
    count = clips.shape[1]
    if not 1 <= count <= self.window:
      raise errors.UserError(
        f"Clips of {count} frames do not fit: this world's programs take 1 "
        f"to {self.window} frames."
      )
    wide = [(0, 0)] * clips.ndim
    wide[1] = (0, self.window - count)
    return np.asarray(self._call(name, np.pad(clips, wide)))[:, :count]

  def _call(self, name: str, *inputs: Any) -> Any:
    return self._calls[name](self._weights[name], *inputs)


def load(folder: files.PathLike) -> Programs:
  """Loads the programs and the weights of a world.

  Programs are code of whoever made the world: load only those that you trust.

  Raises:
    UserError: The folder is not a world, is damaged, was exported without
      --stablehlo, or has programs that this JAX cannot read.
  """
  folder = pathlib.Path(folder)
  manifest = world_manifest.read_manifest(folder)
  if f"{FOLDER}/{LIST}" not in manifest["files"]:
    raise errors.UserError(
      f"{folder} has no programs; export it with --stablehlo."
    )
  world_manifest.check_files(folder, manifest)
  path = folder / FOLDER / LIST
  listed = files.read_json(path, {"format_version": schema.NATURAL})
  if listed["format_version"] != FORMAT_VERSION:
    raise errors.UserError(
      f"{folder}/{FOLDER}/{LIST} has format_version "
      f"{listed['format_version']}, this version reads "
      f"{FORMAT_VERSION}; use a newer genie_jax, or export the world again."
    )
  schema.check(listed, _LIST, str(path), "export the world again")
  world_manifest.check_fingerprint(folder, manifest)
  weights = _weights(folder)
  for name in _NAMES:
    if unknown := set(listed["weights"][name]) - set(weights):
      raise errors.UserError(
        f"{path} needs the tensor {min(unknown)!r:.80}, which the world does "
        "not have; export the world again."
      )
  calls = {}
  for name in _NAMES:
    path = folder / FOLDER / f"{name}.stablehlo"
    try:
      calls[name] = jax.jit(
        export.deserialize(bytearray(path.read_bytes())).call
      )
    except _UNREADABLE as error:
      raise errors.UserError(
        f"{path} cannot be read by JAX {jax.__version__} (it was written by "
        f"{listed.get('jax_version')}); export the world again."
      ) from error
  return Programs(
    listed["window"],
    tuple(listed["frame_shape"]),
    tuple(listed["grid"]),
    listed["num_actions"],
    manifest,
    calls,
    {
      name: {tensor: weights[tensor] for tensor in listed["weights"][name]}
      for name in _NAMES
    },
  )


def _weights(folder: pathlib.Path) -> dict[str, jax.Array]:
  """Returns all parameters as float32, converted one by one."""
  stored, found = tensor_files.read(folder), {}
  for name, tensor in stored.items():
    base, dot, kind = name.rpartition(".")
    if dot and kind == "scales":
      continue
    value = np.asarray(tensor).astype(np.float32)
    if dot:
      value *= np.asarray(stored[f"{base}.scales"])
    found[base if dot else name] = jax.device_put(value)
  return found
