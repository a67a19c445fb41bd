r"""Measures how 8-bit weights change logits, next tokens, frames and speed.

Run:       python benchmarks/int8.py --clips clips --json int8.json \
               --world experiments/coinrun/results/world
Data:      windows of real held-out frames (of the test split if it exists).
Measured:  the same world with its matrices in float32, as stored, and as
           integers. Cross entropy is of all tokens of a frame, given the true
           frames before it and no token of its own; greedy frames are the
           decoded most likely tokens. PSNR is against the true frames.
Speed:     frames per second of one player with a full window. Worlds with
           matrices in float32, bfloat16 and as integers take turns; figures
           are medians, and medians of the ratios to float32 within each turn,
           of wall time and of CPU time, which depends less on other programs.
           Every step converts all integers to floats; `turning_back_ms` is the
           time of this conversion alone, which reads and writes all weights.
           Matrix products use the dtype of a world that is loaded in this way:
           float32, bfloat16, and with integers the default of the device
           (float32 on a CPU).
"""

import argparse
import functools
import math
import os
import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from genie_jax.core import files
from genie_jax.data import manifest, sources
from genie_jax.sampling import prepare
from genie_jax.weights import int8
from genie_jax.worlds import world_folder

_SPLITS = ("test", "validation", "train")
_ROWS = 8  # Clips per batch.


def clips(folder: str, count: int, num_frames: int) -> np.ndarray:
  """Returns evenly spaced held-out clips, uint8 [count, T, H, W, C]."""
  found = manifest.Manifest.read(folder)
  split = next(name for name in _SPLITS if name in found.splits)
  source = sources.WindowSource(folder, split, num_frames, keys=("frames",))
  places = np.linspace(0, len(source), count, endpoint=False).astype(int)
  return source.gather(np.unique(places))["frames"]


@functools.partial(jax.jit, static_argnames="module")
def _logits(module, params, tokens, actions):
  """Returns logits [B, T-1, N, V] of frames 2..T, each completely hidden."""
  params = int8.dequantize(params)

  def of(target):
    hidden = jnp.zeros(tokens.shape, bool).at[:, target].set(True)
    logits = module.apply({"params": params}, tokens, actions, hidden)
    return logits[:, target].reshape(len(tokens), -1, logits.shape[-1])

  return jax.lax.map(of, jnp.arange(1, tokens.shape[1])).swapaxes(0, 1)


def psnr(found: np.ndarray, wanted: np.ndarray) -> float:
  """Returns the PSNR between 8-bit frames, in decibels."""
  error = np.square(found.astype(np.float64) - wanted.astype(np.float64))
  return 10 * math.log10(255**2 / error.mean())


def measure(world: Any, reference: Any, frames: np.ndarray) -> dict[str, Any]:
  """Returns the figures of one world.

  Args:
    world: The world to measure.
    reference: The world whose tokens and actions are used.
    frames: uint8 [n, T, H, W, C].
  """
  sums = {"nats": 0.0, "count": 0}
  logits, greedy, shown, same = [], [], [], []
  for start in range(0, len(frames), _ROWS):
    some = frames[start : start + _ROWS]
    tokens = reference.encode(some)
    actions = reference.infer_actions(some)
    part = world.parts["dynamics"]
    found = _logits(prepare.hashable(part.module), part.params, tokens, actions)
    flat = tokens[:, 1:].reshape(*found.shape[:3])
    chosen = jax.nn.log_softmax(found)
    nats = -jnp.take_along_axis(chosen, flat[..., None], -1)
    sums["nats"] += float(nats.sum())
    sums["count"] += nats.size
    drawn = jnp.concatenate(
      [tokens[:, :1], found.argmax(-1).reshape(tokens[:, 1:].shape)], 1
    )
    logits.append(np.asarray(found))
    greedy.append(np.asarray(world.decode(drawn))[:, 1:])
    own = world.encode(some)
    same.append(np.asarray(own == tokens).mean())
    shown.append(np.asarray(world.decode(own)))
  return {
    "logits": np.concatenate(logits),
    "next_token_cross_entropy_nats": sums["nats"] / sums["count"],
    "greedy_next_frame_psnr_db": psnr(np.concatenate(greedy), frames[:, 1:]),
    "reconstruction_psnr_db": psnr(np.concatenate(shown), frames),
    "tokens_as_in_float": float(np.mean(same)),
    "megabytes": sum(
      int8.num_bytes(part.params) for part in world.parts.values()
    )
    / 1e6,
  }


def speed(
  worlds: dict[str, Any], prompt: np.ndarray, num_frames: int, rounds: int
) -> dict[str, Any]:
  """Returns the speeds of worlds, which take turns.

  Args:
    worlds: Name -> world; ratios are to the one named "float32".
    prompt: uint8 [T, H, W, C] that fills the window.
    num_frames: Frames per turn.
    rounds: Turns of each world.
  """
  states, seconds = {}, {name: [] for name in worlds}
  turning = jax.jit(int8.dequantize)
  for name, world in worlds.items():
    # The first steps compile, and slide a full window once.
    state = world.reset(prompt)
    for action in range(2):
      state, _ = world.step(state, action)
    states[name] = state
  for number in range(rounds):
    for name, world in worlds.items():
      state = states[name]
      began = time.perf_counter(), time.process_time()
      for step in range(num_frames):
        state, _ = world.step(state, (number + step) % world.num_actions)
      seconds[name].append(
        {
          "wall": (time.perf_counter() - began[0]) / num_frames,
          "cpu": (time.process_time() - began[1]) / num_frames,
        }
      )
      states[name] = state
  ratio = lambda name, clock: statistics.median(
    plain[clock] / own[clock]
    for plain, own in zip(seconds["float32"], seconds[name], strict=True)
  )
  found = {
    name: {
      "fps": 1 / statistics.median(took["wall"] for took in seconds[name]),
      "times_float32": ratio(name, "wall"),
      "times_float32_cpu": ratio(name, "cpu"),
      "seconds_a_frame": seconds[name],
    }
    for name in worlds
  }
  played = {
    name: worlds["int8"].parts[name].params
    for name in ("tokenizer", "dynamics")
  }
  jax.block_until_ready(turning(played))
  took = []
  for _ in range(rounds):
    began = time.perf_counter()
    jax.block_until_ready(turning(played))
    took.append(time.perf_counter() - began)
  found["int8"]["turning_back_ms"] = 1000 * statistics.median(took)
  return found


def main() -> None:
  """Measures, prints the figures, and writes them as JSON."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.add_argument("--world", required=True)
  parser.add_argument("--clips", required=True)
  parser.add_argument("--num-clips", type=int, default=64)
  parser.add_argument(
    "--speed-frames", type=int, default=20, help="per turn; 0 to skip speed"
  )
  parser.add_argument("--speed-rounds", type=int, default=9)
  parser.add_argument("--json", default=None)
  args = parser.parse_args()
  exact = world_folder.load(args.world, dtype="float32").world
  frames = clips(args.clips, args.num_clips, exact.num_frames)
  figures = {"clips": len(frames), "frames": exact.num_frames}
  wanted = measure(exact, exact, frames)
  reference = wanted.pop("logits")
  figures["as_stored"] = wanted
  small = world_folder.load(args.world, dtype="int8").world
  found = measure(small, exact, frames)
  logits = found.pop("logits")
  found["logits_relative_error"] = float(
    np.linalg.norm(logits - reference) / np.linalg.norm(reference)
  )
  found["logits_max_error"] = float(np.abs(logits - reference).max())
  figures["int8"] = found
  if args.speed_frames:
    half = world_folder.load(args.world, dtype="bfloat16").world
    figures["speed"] = {
      "device": jax.devices()[0].device_kind,
      "load_average": os.getloadavg(),
      **speed(
        {"float32": exact, "bfloat16": half, "int8": small},
        frames[0],
        args.speed_frames,
        args.speed_rounds,
      ),
    }
  for name, group in figures.items():
    print(name, group)
  if args.json:
    files.write_json(args.json, figures)


if __name__ == "__main__":
  main()
