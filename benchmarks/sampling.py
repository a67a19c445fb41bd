r"""Frames a second: cached sampling against recomputing the window.

Run:       python benchmarks/sampling.py --json sampling.json
Size:      the case study of experiments/coinrun/dynamics.py and tokenizer.py:
           T = 16, 16 x 16 tokens, 12 x 512 dynamics, 8 x 512 decoder, 25
           refinements; random weights, which cost the same as learned ones.
Baseline:  our own model in one jitted call a frame: the whole window through
           the plain `__call__` in every refinement, the same `draw_frame`
           with the same noise, then the whole window decoded. Same dtype,
           attention and weights, cast beforehand as well.
Targets:   12 times the baseline's frames a second before the window slides
           and in rolling mode; 7 times in exact mode with a full window. Work
           alone allows 15.4 and 9.8, counted in passes over one frame.

All take turns in one process, several times; speeds are medians, and so are
the ratios within each turn, once of wall time and once of the process's CPU
time, which other programs on the machine disturb less (`speedup_cpu`).
`cached_fps` and `speedup` are those before the window slides. The logits and
the tokens of both ways are compared in the same process, and memory is watched
over many steps of a small world.
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
from genie_jax.models import build, saved
from genie_jax.sampling import maskgit, player, prepare
from genie_jax.sampling import slide as slides

_ROOT = pathlib.Path(__file__).parent.parent
_SMALL = _ROOT / "experiments/coinrun/results/small/world"


def case_study(dtype: str | None) -> tuple[player.Models, dict[str, Any]]:
  """Returns the models of the case study and random weights."""
  load = lambda name: config_lib.load(
      str(_ROOT / f"experiments/coinrun/{name}.py")).to_dict()
  config = load("dynamics")
  world, key = config["world"], jax.random.key(0)
  dynamics = build.dynamics(config)
  tokens = jnp.zeros((1, 2, *dynamics.grid), jnp.int32)
  weights = {"dynamics": jax.jit(dynamics.init)(
      key, tokens, tokens[:, 1:, 0, 0], tokens == 0)}
  tokenizer = build.tokenizer(load("tokenizer"))
  weights["tokenizer"] = jax.jit(tokenizer.init)(
      key, jnp.zeros((1, 2, world["height"], world["width"], 3)))
  modules, params = {}, {}
  for name, module in (("tokenizer", tokenizer), ("dynamics", dynamics)):
    modules[name], params[name] = prepare.for_play(
        module, nn.unbox(weights[name])["params"], dtype)
  window = world["num_frames"]
  return player.Models(
      modules["tokenizer"], modules["dynamics"], window, window), params


@functools.partial(jax.jit, static_argnames="models")
def recomputed(models, params, past, actions, key, sampling):
  """Draws one frame after `past` [W - 1, h, w] with nothing kept."""
  def logits_of(tokens, hidden):
    seen = jnp.concatenate([past, tokens])[None]
    unknown = jnp.zeros(seen.shape, bool).at[:, -1].set(hidden)
    return models.dynamics.apply(
        {"params": params["dynamics"]}, seen, actions[None], unknown)[:, -1]
  number = len(past)
  frame = maskgit.draw_frame(
      logits_of, past.shape[1:], jax.random.fold_in(key, number)[None],
      sampling)
  seen = jnp.concatenate([past, frame])[None]
  frames = models.tokenizer.apply(
      {"params": params["tokenizer"]}, seen, method="decode")
  return frame[0], jnp.round(frames[0, -1] * 255).astype(jnp.uint8)


reset = jax.jit(player.reset, static_argnames="models")
step = jax.jit(
    player.step, static_argnames="models", donate_argnames="state")


def logit_difference(models, params, past, actions, key) -> dict[str, float]:
  """Compares the logits of a half-drawn frame, cached and recomputed."""
  run = jax.jit(models.dynamics.apply)
  scored = jax.jit(player.next_logits, static_argnames="models")
  frame = jax.random.randint(key, past.shape[1:], 0, models.dynamics.num_codes)
  hidden = jax.random.bernoulli(key, 0.5, frame.shape)
  seen = jnp.concatenate([past, frame[None]])[None]
  unknown = jnp.zeros(seen.shape, bool).at[:, -1].set(hidden)
  whole = run(
      {"params": params["dynamics"]}, seen, actions[None], unknown)[0, -1]
  state = reset(models, params, past, actions[:-1], key)
  cached = scored(models, params, state, actions[-1], frame, hidden)
  return {
      "max_logit_difference": float(jnp.abs(whole - cached).max()),
      "logit_deviation": float(whole.std())}


def measure(args: argparse.Namespace) -> dict[str, Any]:
  """Lets all ways take turns; returns the speeds and their ratios."""
  models, params = case_study(args.dtype)
  params = jax.device_put(params)
  window, grid = models.window, models.dynamics.grid
  key = jax.random.key(1)
  tokens = jax.random.randint(
      key, (window, *grid), 0, models.dynamics.num_codes)
  actions = jax.random.randint(
      key, (window - 1,), 0, models.dynamics.num_latent_actions)
  sampling = maskgit.Sampling(args.refinements)
  sliding = lambda mode, drop=1: dataclasses.replace(
      models, slide=slides.Slide(mode, drop))
  # Name -> models, prompt frames, and frames timed in a turn.
  ways = {
      # The last frame but one is the last that is passed once more.
      "cached": (sliding("exact"), window - 2, 1),
      "rolling": (sliding("rolling"), window, 2),
      "exact": (sliding("exact"), window, 1),
      "exact_drop_4": (sliding("exact", 4), window, 4),
  }

  def turn(name):
    which, prompt, count = ways[name]
    state = reset(
        which, params, tokens[:prompt], actions[:prompt - 1], key)
    jax.block_until_ready(state)
    began = time.perf_counter(), time.process_time()
    for _ in range(count):
      state, frame = step(which, params, state, actions[-1], sampling)
    jax.block_until_ready((state, frame))
    return {"wall": (time.perf_counter() - began[0]) / count,
            "cpu": (time.process_time() - began[1]) / count}

  def baseline():
    began = time.perf_counter(), time.process_time()
    drawn, frame = recomputed(
        models, params, tokens[:window - 1], actions, key, sampling)
    jax.block_until_ready((drawn, frame))
    return {"wall": time.perf_counter() - began[0],
            "cpu": time.process_time() - began[1]}, np.asarray(drawn)

  # Compiled beforehand: a turn to warm up would cost minutes.
  for which, prompt, _ in ways.values():
    state = reset(
        which, params, tokens[:prompt], actions[:prompt - 1], key)
    step.lower(which, params, state, actions[-1], sampling).compile()
  recomputed.lower(
      models, params, tokens[:window - 1], actions, key, sampling).compile()
  del state
  seconds = {name: [] for name in ("recomputed", *ways)}
  for _ in range(args.rounds):
    plain, drawn = baseline()
    took = {"recomputed": plain}
    for name in ways:
      took[name] = turn(name)
    for name, value in took.items():
      seconds[name].append(value)
    print(json.dumps(took), flush=True)
  state = reset(models, params, tokens[:-1], actions[:-1], key)
  state, _ = step(models, params, state, actions[-1], sampling)
  fps = lambda name: 1 / statistics.median(
      took["wall"] for took in seconds[name])
  ratio = lambda name, clock="wall": statistics.median(
      plain[clock] / ours[clock] for plain, ours in zip(
          seconds["recomputed"], seconds[name], strict=True))
  return {
      "dtype": dict(models.dynamics.transformer)["dtype"],
      "cached_fps": fps("cached"), "recomputed_fps": fps("recomputed"),
      "speedup": ratio("cached"), "speedup_cpu": ratio("cached", "cpu"),
      **logit_difference(models, params, tokens[:-1], actions, key),
      "equal_tokens": float((np.asarray(state.tokens[-1]) == drawn).mean()),
      "modes": {
          name: {"fps": fps(name), "speedup": ratio(name),
                 "speedup_cpu": ratio(name, "cpu")} for name in ways},
      "seconds_a_frame": seconds,
  }


def memory(num_steps: int) -> dict[str, Any]:
  """Steps the shipped world's models many times and watches memory."""
  parts = saved.load(_SMALL).parts
  ready = {name: prepare.for_play(parts[name].module, parts[name].params)
           for name in ("tokenizer", "dynamics")}
  params = jax.device_put({name: ready[name][1] for name in ready})
  found = {}
  for mode in slides.MODES:
    models = player.Models(
        ready["tokenizer"][0], ready["dynamics"][0], 8, 8, slides.Slide(mode))
    sampling = maskgit.Sampling(1)
    state = reset(
        models, params, jnp.zeros((1, 8, 8), jnp.int32),
        jnp.zeros((0,), jnp.int32), jax.random.key(0))
    readings = []
    for number in range(num_steps + 1):
      state, frame = step(
          models, params, state, jnp.int32(number % 6), sampling)
      if number in (100, num_steps):
        frame.block_until_ready()
        gc.collect()
        readings.append({
            "rss_mib": _resident_mib(), "live_arrays": len(jax.live_arrays()),
            "live_mib": sum(x.nbytes for x in jax.live_arrays()) / 2 ** 20})
    found[mode] = {"steps": num_steps, "after_100": readings[0],
                   "at_the_end": readings[1]}
  return found


def _resident_mib() -> float:
  pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
  return pages * os.sysconf("SC_PAGE_SIZE") / 2 ** 20


def main() -> None:
  parser = argparse.ArgumentParser(
      description=__doc__,
      formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--json", metavar="F", help="also write the result")
  parser.add_argument("--rounds", type=int, default=3)
  parser.add_argument("--refinements", type=int, default=25)
  parser.add_argument(
      "--dtype", default=None, choices=("float32", "bfloat16"),
      help="of the products (default: by device)")
  parser.add_argument(
      "--memory-steps", type=int, default=10_000, metavar="N",
      help="0 leaves memory out")
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
