"""Writes a world's models as StableHLO programs with `jax.export`.

There are four programs: encode, decode, reset and step. Their first input is
the weights, as {tensor name: float32 array}, so programs are small and do not
depend on the dtype in which the world stores its tensors. The first axis of
every other input is the batch, of any size. `runtime` runs the programs without
the package's models.

Shapes:
  B  players                    W  frames in the window
"""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from genie_jax.core import errors, files
from genie_jax.models import build, store
from genie_jax.ports.stablehlo import runtime
from genie_jax.sampling import player, prepare, samplers, slide
from genie_jax.weights import param_tree

PLATFORMS = ("cpu", "cuda", "tpu")
# The default of jax.random. It is stored, because a key's bits can be used only
# with their implementation.
_KEYS = "threefry2x32"


def write(
  folder: files.PathLike,
  parts: Mapping[str, store.Part],
  sampling: samplers.FrameSampler,
  slide: slide.Slide,
) -> None:
  """Writes the programs and programs.json, without reading weights.

  Args:
    folder: The folder to write; created if missing.
    parts: "tokenizer" and "dynamics"; others are ignored.
    sampling: The frame sampler, compiled into the programs.
    slide: How a full window makes room, compiled into the programs.

  Raises:
    UserError: flatbuffers is not installed.
  """
  try:
    import flatbuffers  # noqa: F401  Needed by `serialize`.
  except ImportError as error:
    raise errors.UserError(
      "Programs need a package that is not installed; `pip install "
      "'genie_jax[stablehlo]'`, or leave --stablehlo out."
    ) from error
  folder = pathlib.Path(folder)
  world = parts["dynamics"].config["world"]
  grid = build.token_grid(world)
  models = _models(parts, slide)
  window = models.decoder_window
  frame = (world["height"], world["width"], world["channels"])
  weights = {
    name: _weights({name: parts[name]}) for name in ("tokenizer", "dynamics")
  }
  both = weights["tokenizer"] | weights["dynamics"]
  state = _state_of(models, both, grid)
  ints = functools.partial(jax.ShapeDtypeStruct, dtype=np.int32)
  made = {
    "encode": (
      _rows(functools.partial(_encode, models)),
      weights["tokenizer"],
      [jax.ShapeDtypeStruct((window, *frame), np.uint8)],
    ),
    "decode": (
      _rows(functools.partial(_decode, models)),
      weights["tokenizer"],
      [ints((window, *grid))],
    ),
    "reset": (
      _rows(functools.partial(_reset, models)),
      both,
      [ints(grid), jax.ShapeDtypeStruct((2,), np.uint32)],
    ),
    "step": (
      functools.partial(_step, models, sampling, state.structure),
      both,
      [state.leaves, ints(())],
    ),
  }
  for name, (function, needed, inputs) in made.items():
    files.write_atomic(
      folder / f"{name}.stablehlo", _exported(function, needed, inputs)
    )
  files.write_json(
    folder / runtime.LIST,
    {
      "format_version": runtime.FORMAT_VERSION,
      "jax_version": jax.__version__,
      "platforms": list(PLATFORMS),
      "keys": _KEYS,
      "window": window,
      "frame_shape": list(frame),
      "grid": list(grid),
      "num_actions": world["num_latent_actions"],
      "weights": {
        name: sorted(needed) for name, (_, needed, _) in (made.items())
      },
    },
  )


class _State:
  """Shapes of the leaves of a player's state, and its tree structure."""

  def __init__(self, like: player.State):
    self.leaves, self.structure = jax.tree.flatten(_plain(like))


def _state_of(
  models: player.Models, weights: Mapping[str, Any], grid: tuple[int, int]
) -> _State:
  ints = functools.partial(jax.ShapeDtypeStruct, dtype=np.int32)
  like = jax.eval_shape(
    functools.partial(_start, models),
    weights,
    ints(grid),
    jax.ShapeDtypeStruct((2,), np.uint32),
  )
  return _State(like)


def _models(
  parts: Mapping[str, store.Part], slide: slide.Slide
) -> player.Models:
  # Float32, so that the frames are the same on every platform.
  ready = {
    name: prepare.for_play(parts[name].module, {}, "float32")[0]
    for name in ("tokenizer", "dynamics")
  }
  window = lambda name: parts[name].config["world"]["num_frames"]
  return player.Models(
    ready["tokenizer"],
    ready["dynamics"],
    window("dynamics"),
    window("tokenizer"),
    slide,
  )


def _weights(
  parts: Mapping[str, store.Part],
) -> dict[str, jax.ShapeDtypeStruct]:
  return {
    f"{name}/{path}": jax.ShapeDtypeStruct(tuple(leaf.shape), np.float32)
    for name, part in parts.items()
    for path, leaf in param_tree.flatten(dict(part.params)).items()
  }


def _exported(
  function: Callable[..., Any], weights: Any, inputs: list[Any]
) -> bytes:
  """Returns a serialized program with a symbolic batch size.

  Args:
    function: Takes weights, and inputs with a first axis [B].
    weights: Shapes of the weights.
    inputs: Shapes of the inputs without the batch axis.
  """
  (batch,) = export.symbolic_shape("batch")
  rows = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct((batch, *x.shape), x.dtype), inputs
  )
  return bytes(
    export.export(jax.jit(function), platforms=PLATFORMS)(
      weights, *rows
    ).serialize()
  )


def _rows(function: Callable[..., Any]) -> Callable[..., Any]:
  """Maps a function over the first axis of all inputs except the weights."""
  return lambda weights, *inputs: jax.vmap(
    functools.partial(function, weights)
  )(*inputs)


def _encode(models, weights, frames):
  params = param_tree.unflatten(weights)["tokenizer"]
  return prepare.rolled(models.tokenizer).apply(
    {"params": params}, frames[None].astype(jnp.float32) / 255, method="encode"
  )[0]


def _decode(models, weights, tokens):
  params = param_tree.unflatten(weights)["tokenizer"]
  shown = prepare.rolled(models.tokenizer).apply(
    {"params": params}, tokens[None], method="decode"
  )[0]
  return jnp.round(shown * 255).astype(jnp.uint8)


def _reset(models, weights, tokens, key):
  return jax.tree.leaves(_plain(_start(models, weights, tokens, key)))


def _start(models, weights, tokens, key):
  return _plain(
    player.reset(
      models,
      param_tree.unflatten(weights),
      tokens[None],
      jnp.zeros((0,), jnp.int32),
      jax.random.wrap_key_data(key, impl=_KEYS),
    )
  )


def _step(models, sampling, structure, weights, leaves, actions):
  # Not mapped over players: `vmap` turns a `cond` into a `select`, so the slide
  # would be computed in every frame.
  state = jax.tree.unflatten(structure, leaves)
  state = state.replace(key=jax.random.wrap_key_data(state.key, impl=_KEYS))
  state, frames = player.step_stacked(
    models, param_tree.unflatten(weights), state, actions, sampling
  )
  return jax.tree.leaves(_plain(state)), frames


def _plain(state: player.State) -> player.State:
  """Returns a state with the key's data, uint32 [2], instead of a typed key."""
  if jnp.issubdtype(state.key.dtype, jax.dtypes.prng_key):
    return dataclasses.replace(state, key=jax.random.key_data(state.key))
  return state
