r"""Compares the speed of cached sampling with recomputing the window.

Run:       python benchmarks/sampling.py --json sampling.json
           On a GPU, also with --rollouts 32 --rounds 9.
Size:      the case study of experiments/coinrun/dynamics.py and tokenizer.py:
           T = 16, 16 x 16 tokens, 12 x 512 dynamics, 8 x 512 decoder, 25
           refinements; random weights, which take the same time as learned
           ones. --size smoke uses the smoke modes of these configs, for a try.
Rollouts:  --rollouts N steps N players in one call (`player.step_many`), and
           the baseline draws a batch of N; frames per second are of all N.
Baseline:  our own model in one jitted call per frame: the whole window through
           the plain `__call__` in every refinement, the same frame sampler
           with the same noise, then the whole window decoded. Dtype, attention
           and weights are the same, and weights are also cast in advance.
Targets:   12 times the baseline's frames per second before the window slides
           and in rolling mode; 7 times in exact mode with a full window. The
           upper bounds are 15.4 and 9.8, from the number of passes over one
           frame.

All take turns several times in one process. Speeds are medians, and speedups
are medians of the ratios within each turn, of wall time and of the process's
CPU time, which depends less on other programs (`speedup_cpu`). `cached_fps` and
`speedup` are those before the window slides; `latency_ms` is the time per frame
of one player alone. Logits and tokens of both ways are compared in the same
process, and memory is measured over many steps of a small world.
"""

import argparse
import dataclasses
import functools
import gc
import json
import os
import pathlib
import platform
import statistics
import time
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from genie_jax.core import config as config_lib
from genie_jax.core import files
from genie_jax.models import build, store
from genie_jax.sampling import maskgit, player, prepare, slide

_ROOT = pathlib.Path(__file__).parent.parent
_SMALL = _ROOT / "experiments/coinrun/results/world"


def case_study(
  dtype: str | None, size: str = "case"
) -> tuple[player.Models, dict[str, Any]]:
  """Returns the models of the case study and random weights."""
  mode = "" if size == "case" else f":{size}"
  load = lambda name: config_lib.load(
    str(_ROOT / f"experiments/coinrun/{name}.py{mode}")
  ).to_dict()
  config = load("dynamics")
  world, key = config["world"], jax.random.key(0)
  dynamics = build.dynamics(config)
  tokens = jnp.zeros((1, 2, *dynamics.grid), jnp.int32)
  weights = {
    "dynamics": jax.jit(dynamics.init)(
      key, tokens, tokens[:, 1:, 0, 0], tokens == 0
    )
  }
  tokenizer = build.tokenizer(load("tokenizer"))
  weights["tokenizer"] = jax.jit(tokenizer.init)(
    key, jnp.zeros((1, 2, world["height"], world["width"], 3))
  )
  modules, params = {}, {}
  for name, module in (("tokenizer", tokenizer), ("dynamics", dynamics)):
    modules[name], params[name] = prepare.for_play(
      module, nn.unbox(weights[name])["params"], dtype
    )
  window = world["num_frames"]
  return player.Models(
    modules["tokenizer"], modules["dynamics"], window, window
  ), params


@functools.partial(jax.jit, static_argnames="models")
def recomputed(models, params, past, actions, keys, sampling):
  """Draws one frame after each `past` [B, W - 1, h, w] without a cache."""

  def logits_of(tokens, hidden):
    seen = jnp.concatenate([past, tokens[:, None]], 1)
    unknown = jnp.zeros(seen.shape, bool).at[:, -1].set(hidden)
    return models.dynamics.apply(
      {"params": params["dynamics"]}, seen, actions, unknown
    )[:, -1]

  number = past.shape[1]
  frame = sampling.draw(
    logits_of,
    past.shape[2:],
    jax.vmap(lambda key: jax.random.fold_in(key, number))(keys),
  )
  seen = jnp.concatenate([past, frame[:, None]], 1)
  frames = models.tokenizer.apply(
    {"params": params["tokenizer"]}, seen, method="decode"
  )
  return frame, jnp.round(frames[:, -1] * 255).astype(jnp.uint8)


reset = jax.jit(player.reset, static_argnames="models")
step = jax.jit(player.step, static_argnames="models", donate_argnames="state")
step_many = jax.jit(
  player.step_many, static_argnames="models", donate_argnames="states"
)


def logit_difference(models, params, past, actions, key) -> dict[str, float]:
  """Compares the logits of a half-drawn frame, cached and recomputed."""
  run = jax.jit(models.dynamics.apply)
  scored = jax.jit(player.next_logits, static_argnames="models")
  frame = jax.random.randint(key, past.shape[1:], 0, models.dynamics.num_codes)
  hidden = jax.random.bernoulli(key, 0.5, frame.shape)
  seen = jnp.concatenate([past, frame[None]])[None]
  unknown = jnp.zeros(seen.shape, bool).at[:, -1].set(hidden)
  whole = run({"params": params["dynamics"]}, seen, actions[None], unknown)[
    0, -1
  ]
  state = reset(models, params, past, actions[:-1], key)
  cached = scored(models, params, state, actions[-1], frame, hidden)
  return {
    "max_logit_difference": float(jnp.abs(whole - cached).max()),
    "logit_deviation": float(whole.std()),
  }


@dataclasses.dataclass(frozen=True)
class Way:
  """One way to draw frames.

  Attributes:
    models: The models, with the way's `slide`.
    prompt: Frames of the prompt.
    count: Frames to time per turn.
    players: Number of players that are stepped at once.
  """

  models: player.Models
  prompt: int
  count: int
  players: int


def ways_of(models: player.Models, rollouts: int) -> dict[str, Way]:
  """Returns the ways that take turns; those named "one_..." have one player."""
  sliding = lambda mode, drop=1: dataclasses.replace(
    models, slide=slide.Slide(mode, drop)
  )
  window = models.window
  # A window's second-to-last frame is the last one that is passed once more to
  # be cached.
  kinds = {
    "cached": (sliding("exact"), window - 2, 1),
    "rolling": (sliding("rolling"), window, 2),
    "exact": (sliding("exact"), window, 1),
  }
  if window > 4:
    kinds["exact_drop_4"] = (sliding("exact", 4), window, 4)
  ways = {name: Way(*kind, rollouts) for name, kind in kinds.items()}
  if rollouts > 1:
    ways |= {f"one_{name}": Way(*kind, 1) for name, kind in kinds.items()}
  return ways


def measure(args: argparse.Namespace) -> dict[str, Any]:
  """Measures all ways in turns; returns the speeds and their ratios."""
  models, params = case_study(args.dtype, args.size)
  params = jax.device_put(params)
  window, grid = models.window, models.dynamics.grid
  key = jax.random.key(1)
  keys = jax.random.split(key, args.rollouts)
  tokens = jax.random.randint(
    key, (args.rollouts, window, *grid), 0, models.dynamics.num_codes
  )
  actions = jax.random.randint(
    key, (args.rollouts, window - 1), 0, models.dynamics.num_latent_actions
  )
  sampling = maskgit.MaskGIT(args.refinements)
  ways = ways_of(models, args.rollouts)

  def players(way):
    return tuple(
      reset(
        way.models,
        params,
        tokens[i, : way.prompt],
        actions[i, : way.prompt - 1],
        keys[i],
      )
      for i in range(way.players)
    )

  def program(way):
    """Returns `players -> players, frames`, compiled."""
    states = players(way)
    if way.players == 1:
      done = step.lower(
        way.models, params, states[0], actions[0, -1], sampling
      ).compile()

      def run(states):
        state, frame = done(params, states[0], actions[0, -1], sampling)
        return (state,), frame[None]

      return run
    done = step_many.lower(
      way.models, params, states, actions[:, -1], sampling
    ).compile()

    def run_many(states):
      states, frames = done(params, states, actions[:, -1], sampling)
      return tuple(states), frames

    return run_many

  past = tokens[:, : window - 1]
  plain = recomputed.lower(
    models, params, past, actions, keys, sampling
  ).compile()
  programs = {name: program(way) for name, way in ways.items()}

  def timed(count, draw):
    began = time.perf_counter(), time.process_time()
    for _ in range(count):
      last = draw()
    return {
      "wall": (time.perf_counter() - began[0]) / count,
      "cpu": (time.process_time() - began[1]) / count,
    }, last

  def turn(name):
    states = jax.block_until_ready(players(ways[name]))

    def draw():
      nonlocal states
      states, frames = programs[name](states)
      np.asarray(frames)  # Includes the transfer of pixels to the host.

    return timed(ways[name].count, draw)[0]

  def baseline():
    return timed(
      1,
      lambda: [
        np.asarray(x) for x in plain(params, past, actions, keys, sampling)
      ],
    )

  seconds = {name: [] for name in ("recomputed", *ways)}
  # On an accelerator, the first round also loads the programs. On a CPU it is
  # like the others, and takes minutes.
  warm_ups = 0 if jax.default_backend() == "cpu" else 1
  for number in range(args.rounds + warm_ups):
    took = {}
    took["recomputed"], (drawn, _) = baseline()
    for name in ways:
      took[name] = turn(name)
    print(json.dumps(took), flush=True)
    if number >= warm_ups:
      for name, value in took.items():
        seconds[name].append(value)
  # At the same position in the window as the baseline.
  close = players(dataclasses.replace(ways["cached"], prompt=window - 1))
  same = [state.tokens[-1] for state in programs["cached"](close)[0]]
  median = lambda name: statistics.median(
    took["wall"] for took in seconds[name]
  )
  fps = lambda name: args.rollouts / median(name)
  ratio = lambda name, clock="wall": statistics.median(
    plain[clock] / ours[clock]
    for plain, ours in zip(seconds["recomputed"], seconds[name], strict=True)
  )
  several = [name for name in ways if not name.startswith("one_")]
  alone = "one_" if args.rollouts > 1 else ""
  return {
    "dtype": dict(models.dynamics.transformer)["dtype"],
    "size": args.size,
    "rollouts": args.rollouts,
    "refinements": args.refinements,
    "cached_fps": fps("cached"),
    "recomputed_fps": fps("recomputed"),
    "speedup": ratio("cached"),
    "speedup_cpu": ratio("cached", "cpu"),
    "latency_ms": {name: 1000 * median(f"{alone}{name}") for name in several},
    **logit_difference(models, params, tokens[0, :-1], actions[0], key),
    "equal_tokens": float((np.stack(same) == drawn).mean()),
    "modes": {
      name: {
        "fps": fps(name),
        "speedup": ratio(name),
        "speedup_cpu": ratio(name, "cpu"),
      }
      for name in several
    },
    "seconds_a_call": seconds,
  }


def memory(num_steps: int) -> dict[str, Any]:
  """Steps the shipped world's models many times and measures memory."""
  parts = store.load(_SMALL).parts
  ready = {
    name: prepare.for_play(parts[name].module, parts[name].params)
    for name in ("tokenizer", "dynamics")
  }
  params = jax.device_put({name: ready[name][1] for name in ready})
  found = {}
  for mode in slide.MODES:
    models = player.Models(
      ready["tokenizer"][0], ready["dynamics"][0], 8, 8, slide.Slide(mode)
    )
    sampling = maskgit.MaskGIT(1)
    state = reset(
      models,
      params,
      jnp.zeros((1, 8, 8), jnp.int32),
      jnp.zeros((0,), jnp.int32),
      jax.random.key(0),
    )
    readings = []
    for number in range(num_steps + 1):
      state, frame = step(
        models, params, state, jnp.int32(number % 6), sampling
      )
      if number in (100, num_steps):
        frame.block_until_ready()
        gc.collect()
        readings.append(
          {
            "rss_mib": _resident_mib(),
            "live_arrays": len(jax.live_arrays()),
            "live_mib": sum(x.nbytes for x in jax.live_arrays()) / 2**20,
          }
        )
    found[mode] = {
      "steps": num_steps,
      "after_100": readings[0],
      "at_the_end": readings[1],
    }
  return found


def _resident_mib() -> float:
  pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
  return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--json", metavar="F", help="also write the result")
  parser.add_argument("--rounds", type=int, default=3)
  parser.add_argument(
    "--rollouts",
    type=int,
    default=1,
    metavar="N",
    help="players stepped in one call",
  )
  parser.add_argument("--size", default="case", choices=("case", "smoke"))
  parser.add_argument("--refinements", type=int, default=25)
  parser.add_argument(
    "--dtype",
    default=None,
    choices=("float32", "bfloat16"),
    help="of matrix products (default: depends on the device)",
  )
  parser.add_argument(
    "--memory-steps",
    type=int,
    default=10_000,
    metavar="N",
    help="0 skips the measurement of memory",
  )
  args = parser.parse_args()
  result = {
    "machine": f"{platform.machine()}, {os.cpu_count()} cores, "
    f"{jax.devices()[0].device_kind}",
    "load_average_before": os.getloadavg(),
    **measure(args),
    "load_average_after": os.getloadavg(),
    "memory": memory(args.memory_steps) if args.memory_steps else None,
    "targets": {"cached": 12, "rolling": 12, "exact": 7},
  }
  print(json.dumps(result, indent=2))
  if args.json:
    files.write_json(args.json, result)


if __name__ == "__main__":
  main()
