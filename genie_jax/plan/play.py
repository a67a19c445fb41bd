"""Plans playing a world: seconds and memory of one frame.

Compiles the function that a world calls for each frame (`sampling.player`). It
runs all passes of the frame sampler with a cache of the frames before, the pass
that adds the frame to the cache, the slide of the window, and the decoder.
"""

import math
import time
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
from jax.sharding import Mesh

from genie_jax.core import errors
from genie_jax.models import store
from genie_jax.plan import aot_compile, training
from genie_jax.plan import topology as topology_lib
from genie_jax.plan.cost import collectives, schedule
from genie_jax.sampling import player, prepare, samplers
from genie_jax.sampling import slide as slide_lib
from genie_jax.sharding import compiler_options
from genie_jax.sharding import mesh as mesh_lib
from genie_jax.stages import registry
from genie_jax.train import state

DTYPE = "bfloat16"


def plan(
  config: ml_collections.ConfigDict,
  tokenizer: ml_collections.ConfigDict,
  topology: topology_lib.Topology,
  players: int = 1,
  slide: str = "exact",
  options: Mapping[str, str] | None = None,
) -> tuple[dict[str, Any], str]:
  """Plans the computation of one frame of a world.

  All chips compute every frame together: heads, MLP columns and vocabulary are
  split over the mesh axis tensor.

  Args:
    config: Config of the dynamics stage; its field `sampling` configures the
      sampler.
    tokenizer: Config of the tokenizer stage.
    topology: The chips.
    players: Number of players that one call serves.
    slide: What happens when the window is full, a mode of `slides.MODES`. The
      planned time is that of a frame at which the window slides.
    options: Compiler options.

  Returns:
    The plan as JSON values, and the text of the compiled program ("" if it does
    not fit).

  Raises:
    UserError: A config is of another stage, or does not split over the
      devices.
  """
  for expected, found in (("dynamics", config), ("tokenizer", tokenizer)):
    if set(registry.parts(found.to_dict(), trusted=True)) != {expected}:
      raise errors.UserError(
        f"--sample needs the config of a {expected} stage, but got one of "
        f"stage {found.stage!r}."
      )
  mesh = mesh_lib.make(
    dict(data=1, fsdp=1, tensor=-1, frame=1), topology_lib.devices(topology)
  )
  models, params = _models(config, tokenizer, slide, mesh)
  sampler = samplers.make(config.sampling.to_dict(), trusted=True)
  replicated = mesh_lib.replicated(mesh)
  grid = models.dynamics.grid
  states = [
    jax.eval_shape(
      lambda params, tokens, key: player.reset(
        models, params, tokens, jnp.zeros((0,), jnp.int32), key
      ),
      params,
      jax.ShapeDtypeStruct((1, *grid), jnp.int32),
      jax.eval_shape(lambda: jax.random.key(0)),
    )
  ] * players

  def step(params: Any, states: Any, actions: jax.Array) -> Any:
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
      if players == 1:
        new, frame = player.step(models, params, states[0], actions[0], sampler)
        return [new], frame[None]
      return player.step_many(models, params, states, actions, sampler)

  compiled = jax.jit(
    step,
    donate_argnums=1,
    out_shardings=replicated,
    in_shardings=(
      jax.tree.map(lambda x: x.sharding, params),
      replicated,
      replicated,
    ),
    compiler_options=compiler_options.options(mesh),
  )
  report = _facts(config, models, sampler, params, topology, mesh, players)
  begin = time.perf_counter()
  try:
    program = compiled.lower(
      params, states, jax.ShapeDtypeStruct((players,), jnp.int32)
    ).compile(compiler_options=dict(options or {}))
  except jax.errors.JaxRuntimeError as error:
    too_large = aot_compile.out_of_memory(error, time.perf_counter() - begin)
    if too_large is None:
      raise
    report |= training.out_of_memory_report(too_large, topology)
    return report | dict.fromkeys(
      ("seconds_per_frame", "frames_per_second")
    ), ""
  report["compile_seconds"] = round(time.perf_counter() - begin, 1)
  memory = aot_compile.memory_of(
    program.memory_analysis(),
    params=aot_compile.device_bytes(params),
    optimizer=0,
  )
  report |= training.memory_report(memory, topology)
  text = program.as_text() or ""
  found = schedule.estimate(
    text,
    collectives.network(
      mesh.devices.flat, topology.dims, topology.wrap, topology.chip
    ),
  )
  return report | _time_report(found, report, topology), text


def _models(
  config: ml_collections.ConfigDict,
  tokenizer: ml_collections.ConfigDict,
  slide: str,
  mesh: Mesh,
) -> tuple[player.Models, dict[str, Any]]:
  """Returns the models as a world runs them, and their abstract weights."""
  modules, params = {}, {}
  for name, found in (("tokenizer", tokenizer), ("dynamics", config)):
    found = ml_collections.ConfigDict(found.to_dict())
    if "start" in found:
      found.start = "random"
    module = store.part(name, found.to_dict(), {}, trusted=True).module
    boxed, _ = jax.eval_shape(registry.make(found).init, jax.random.key(0))
    layouts = jax.tree.map(lambda x: x.sharding, state.place(boxed, mesh))
    # Loading a world makes the same cast.
    cast = jax.eval_shape(
      lambda tree, module=module: prepare.for_play(module, tree, DTYPE)[1],
      nn.unbox(boxed),
    )
    params[name] = jax.tree.map(
      lambda x, layout: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=layout),
      cast,
      layouts,
    )
    modules[name], _ = prepare.for_play(module, {}, DTYPE)
  models = player.Models(
    modules["tokenizer"],
    modules["dynamics"],
    config.world.num_frames,
    tokenizer.world.num_frames,
    slide_lib.Slide(slide),
  )
  return models, params


def _facts(
  config: ml_collections.ConfigDict,
  models: player.Models,
  sampler: samplers.FrameSampler,
  params: dict[str, Any],
  topology: topology_lib.Topology,
  mesh: Mesh,
  players: int,
) -> dict[str, Any]:
  """Returns the part of a plan that is known before the compilation."""
  tokens = math.prod(models.dynamics.grid)
  passes = sampler.num_passes(tokens)
  # A forward pass takes a third of the FLOPs of a training step.
  frame_flops = (
    registry.make(config).flops_per_clip / 3 / config.data.num_frames
  )
  return {
    "stage": "sampling",
    "topology": topology.name,
    "chips": topology.num_chips,
    "mesh": dict(mesh.shape),
    "players": players,
    "window": models.window,
    "slide": models.slide.mode,
    "refinements": passes,
    "tokens_per_frame": tokens,
    "dtype": DTYPE,
    "params": sum(math.prod(x.shape) for x in jax.tree.leaves(params)),
    # The passes of the sampler, and one that fills the cache.
    "model_flops_per_frame": frame_flops * (passes + 1),
    "hbm_limit_gib": topology.chip.hbm_gib,
    "assumptions": list(topology.chip.assumptions),
    "method": [
      *training.METHOD[:3],
      "not included: the host, the network, the encoding of pictures",
    ],
  }


def _time_report(
  found: schedule.Estimate,
  report: Mapping[str, Any],
  topology: topology_lib.Topology,
) -> dict[str, Any]:
  """Returns the part of a plan about time."""
  seconds = found.total
  peak = topology.chip.peak_flops * topology.num_chips
  players = report["players"]
  return {
    "seconds_per_frame": seconds,
    "seconds_compute": found.compute,
    "seconds_kernels": found.kernels,
    "seconds_exposed_comm": found.exposed,
    "frames_per_second": 1 / seconds,
    "frames_per_second_of_all_players": players / seconds,
    "mfu": players * report["model_flops_per_frame"] / (seconds * peak),
    "collectives": schedule.summary(found),
    "kernels": dict(found.kernel_seconds),
    "loops_of_unknown_length": found.unknown_loops,
  }


def render(report: Mapping[str, Any]) -> str:
  """Formats a plan as text."""
  lines = [
    f"sampling: {report['params'] / 1e9:.3f}B parameters in "
    f"{report['dtype']} on {report['topology']} ({report['chips']} chips)",
    f"{report['refinements']} refinements of {report['tokens_per_frame']} "
    f"tokens, window of {report['window']} frames, {report['slide']} slide, "
    f"players {report['players']}",
    "",
    *training.memory_lines(report),
    *training.copied_lines(report),
  ]
  if report["seconds_per_frame"] is not None:
    lines += [
      "",
      f"{report['seconds_per_frame']:.4f} s per frame: "
      f"{report['frames_per_second']:.2f} frames per second for each player, "
      f"{report['frames_per_second_of_all_players']:.2f} for all players",
      *(
        f"  {name:16}{report['seconds_' + key]:9.4f}"
        for name, key in (
          ("compute", "compute"),
          ("kernels", "kernels"),
          ("exposed comm", "exposed_comm"),
        )
      ),
      *(
        f"  kernel {name:36}{value:9.4f} s"
        for name, value in report["kernels"].items()
      ),
      *(
        f"  loop {name}: trip count unknown, counted once"
        for name in report["loops_of_unknown_length"]
      ),
      f"model FLOPs {report['model_flops_per_frame']:.4g} per frame, "
      f"MFU {report['mfu']:.1%}",
    ]
  lines += ["", f"compiled in {report['compile_seconds']} s"]
  lines += [f"  {line}" for line in report["method"]]
  lines += [f"  assumed: {line}" for line in report["assumptions"]]
  return "\n".join(lines)
