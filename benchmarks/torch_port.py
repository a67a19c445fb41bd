r"""Compares the time per frame in PyTorch and in JAX on the same machine.

Run:       python benchmarks/torch_port.py --json torch_port.json
Measured:  one step of a world with a full window, float32 on a CPU, in one
           process. The two take turns frame by frame, so that other programs
           slow both equally. Both start from the world's first prompt and use
           the same buttons; each draws its own noise.
Figures:   medians over the frames of wall time, of CPU time (of all threads),
           and of the ratio within each turn. OMP_WAIT_POLICY=PASSIVE is set,
           because PyTorch's threads would otherwise spin while they wait for
           one another, and waiting would count as CPU time.
"""

import argparse
import functools
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

_WAIT_POLICY = "OMP_WAIT_POLICY"


def timed(step: Callable[[], Any]) -> tuple[float, float]:
  """Returns wall and CPU seconds of a call."""
  wall, cpu = time.perf_counter(), time.process_time()
  step()
  return time.perf_counter() - wall, time.process_time() - cpu


def measure(name: str, frames: int, threads: int) -> dict[str, Any]:
  """Plays in both, and returns the figures.

  Args:
    name: A world's name or folder.
    frames: Frames to measure, after the window is full.
    threads: Number of PyTorch's threads.
  """
  # Imported late: PyTorch reads the policy when it starts its threads.
  import torch

  import genie_jax
  from genie_jax.core import images
  from genie_jax.ports import torch as genie_torch

  torch.set_num_threads(threads)
  ours = genie_jax.load_world(name, dtype="float32", cache=True)
  theirs = genie_torch.load_world(name)
  prompt = images.load_prompt(ours.prompts[0], *ours.frame_shape[:2])
  states = {"jax": ours.reset(prompt), "torch": theirs.reset(prompt)}
  worlds = {"jax": ours, "torch": theirs}

  def step(which: str, action: int) -> None:
    states[which], _ = worlds[which].step(states[which], action)

  taken: dict[str, list[tuple[float, float]]] = {"jax": [], "torch": []}
  for number in range(ours.num_frames + frames):
    action = number % ours.num_actions
    for which, seconds in taken.items():
      seconds.append(timed(functools.partial(step, which, action)))
  figures: dict[str, Any] = {}
  for index, kind in enumerate(("wall", "cpu")):
    each = {
      which: [pair[index] for pair in seconds[ours.num_frames :]]
      for which, seconds in taken.items()
    }
    for which, seconds in each.items():
      figures[f"{which}_{kind}_seconds"] = statistics.median(seconds)
    ratios = [
      there / here
      for here, there in zip(each["jax"], each["torch"], strict=True)
    ]
    figures[f"{kind}_ratio"] = statistics.median(ratios)
  return {
    "world": ours.fingerprint,
    "frames": frames,
    "torch_threads": threads,
    "torch": torch.__version__,
    "load_average": os.getloadavg()[0],
    **figures,
  }


def main() -> None:
  """Prints the figures, and writes them as JSON."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--world", default="coinrun", metavar="NAME")
  parser.add_argument("--frames", type=int, default=40, metavar="N")
  parser.add_argument(
    "--threads",
    type=int,
    default=1,
    metavar="N",
    help="PyTorch's threads (default: 1)",
  )
  parser.add_argument("--json", metavar="FILE")
  args = parser.parse_args()
  os.environ.setdefault(_WAIT_POLICY, "PASSIVE")
  figures = measure(args.world, args.frames, args.threads)
  for name, value in figures.items():
    print(
      f"{name}: {value:.4g}" if isinstance(value, float) else f"{name}: {value}"
    )
  if args.json:
    from genie_jax.core import files

    files.write_json(args.json, figures)


if __name__ == "__main__":
  main()
