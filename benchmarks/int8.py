r"""What 8-bit weights cost: logits, next tokens, frames, and speed.

Run:       python benchmarks/int8.py --clips clips --json int8.json \
               --world experiments/coinrun/results/world
Data:      windows of real held-out frames (the test split if there is one).
Measured:  the same world with its matrices in float32, as stored, and as
           integers. Cross entropy is of all tokens of a frame, given the true
           frames before it and with none of its own shown; greedy frames are
           those most likely tokens, decoded. PSNR is against the true frames.
Speed:     frames a second of one player with a full window, of the world with
           its matrices in float32, bfloat16 and as integers, which take turns;
           medians, and the median of the ratios to float32 within each turn,
           of wall time and of CPU time, which other programs disturb less.
           Every step turns all integers back into floats: `turning_back_ms` is
           what this takes alone, which is weight memory read and written again.
           Products are as a world loaded so has them: float32, bfloat16,
           and beside integers what suits the device (float32 on a CPU).
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
_ROWS = 8  # Clips of a batch.


def clips(folder: str, count: int, num_frames: int) -> np.ndarray:
  """Returns uint8 [count, T, H, W, C] from all over the held-out split."""
  found = manifest.Manifest.read(folder)
  split = next(name for name in _SPLITS if name in found.splits)
  source = sources.WindowSource(folder, split, num_frames, keys=("frames",))
  places = np.linspace(0, len(source), count, endpoint=False).astype(int)
  return source.gather(np.unique(places))["frames"]


@functools.partial(jax.jit, static_argnames="module")
def _logits(module, params, tokens, actions):
  """Returns logits [B, T-1, N, V] of frames 2..T, each hidden whole."""
  params = int8.dequantize(params)

  def of(target):
    hidden = jnp.zeros(tokens.shape, bool).at[:, target].set(True)
    logits = module.apply({"params": params}, tokens, actions, hidden)
    return logits[:, target].reshape(len(tokens), -1, logits.shape[-1])

  return jax.lax.map(of, jnp.arange(1, tokens.shape[1])).swapaxes(0, 1)


def psnr(found: np.ndarray, wanted: np.ndarray) -> float:
  """Returns decibels between frames of 8 bits."""
  error = np.square(found.astype(np.float64) - wanted.astype(np.float64))
  return 10 * math.log10(255**2 / error.mean())


def measure(world: Any, reference: Any, frames: np.ndarray) -> dict[str, Any]:
  """Returns the figures of one world.

  Args:
    world: What is measured.
    reference: The world whose tokens and actions both are given.
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
  """Lets worlds take turns; returns the speed of each.

  Args:
    worlds: Name -> world; ratios are to the one named "float32".
    prompt: uint8 [T, H, W, C] that fills the window.
    num_frames: Frames of a turn.
    rounds: Turns of each.
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
  """Measures and prints, and writes JSON."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.add_argument("--world", required=True)
  parser.add_argument("--clips", required=True)
  parser.add_argument("--num-clips", type=int, default=64)
  parser.add_argument(
    "--speed-frames", type=int, default=20, help="of a turn; 0 for no speed"
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
