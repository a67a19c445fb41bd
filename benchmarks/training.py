r"""Measures training steps against another commit, or without optimisations.

  python benchmarks/training.py --against HEAD~1 --json steps.json
  python benchmarks/training.py --ladder --json ladder.json

--against runs each config in two processes, one on this tree and one on a
checkout of the other commit. They take turns step by step, so that other
programs slow both equally. The result is the median of the ratios of all turns;
above 1, this tree is faster.

--ladder switches off the optimisations of a config's step on this device, one
at a time; all variants take turns in the same way. FLOP/s count the model
without recomputation; MFU is null if the device's peak is unknown.

The default configs are those of the CoinRun case study (Genie, appendix F) with
one clip per step, so that a step on a CPU takes seconds.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parent.parent
STAGES = ("tokenizer", "lam", "dynamics")
_CONFIG = "experiments/coinrun/{}.py"

# Platform -> rung -> changes to the model's config.
_STACKS = ("encoder", "decoder", "transformer")
_LADDER = {
  "cpu": {
    "as a laptop's configs have it": {
      "dtype": "float32",
      "remat": "none",
      "unroll": 4,
    },
    "bfloat16": {"dtype": "bfloat16", "remat": "none", "unroll": 4},
    "layers not unrolled": {"dtype": "float32", "remat": "none", "unroll": 1},
    "all recomputed": {"dtype": "float32", "remat": "full", "unroll": 4},
    "as on an accelerator": {"dtype": "bfloat16", "remat": "full", "unroll": 1},
  },
  "gpu": {
    "as the config has it": {},
    "float32": {"dtype": "float32"},
    "attention without kernels": {"attention": "plain"},
    "nothing recomputed": {"remat": "none"},
    "only attention kept": {"remat": "attention"},
  },
}
_LADDER["tpu"] = _LADDER["gpu"]


def run_worker(config: str, changes: dict[str, Any], overrides) -> None:
  """Compiles a step, then takes one per input line and prints its seconds."""
  import jax
  import numpy as np

  from genie_jax.core import config as config_lib
  from genie_jax.sharding import mesh as mesh_lib
  from genie_jax.stages import registry
  from genie_jax.train import optimizer as optimizer_lib
  from genie_jax.train import state as state_lib
  from genie_jax.train import step as step_lib

  found = config_lib.load(str(pathlib.Path(config).resolve()), overrides)
  found = found.unlock()
  if "start" in found:
    found.start = "random"  # Other values read a tokenizer from a folder.
  for name in _STACKS:
    if name in found.model:
      found.model[name].update(changes)
  stage = registry.make(found)
  mesh = mesh_lib.make(found.mesh, jax.devices()[:1])
  optimizer = optimizer_lib.make(found.optimizer, found.steps, stage.no_decay)
  like = state_lib.abstract(stage, optimizer, mesh)
  state = state_lib.create(stage, optimizer, like, found.seed)
  rows = found.data.batch_size
  rng = np.random.default_rng(0)
  most = {
    "tokens": found.world.num_codes,
    "latent_actions": found.world.num_latent_actions,
  }
  batch = {
    name: rng.integers(0, most.get(name, 256), (rows, *feature.shape)).astype(
      feature.dtype
    )
    for name, feature in stage.features.items()
  }
  step = step_lib.make_train_step(stage, optimizer, mesh, like, rows)
  state, metrics = step(state, batch)
  jax.block_until_ready(metrics)
  device = jax.devices()[0]
  stats = device.memory_stats() or {}
  print(
    json.dumps(
      {
        "flops": stage.flops_per_clip * rows,
        "device": device.device_kind,
        "clips": rows,
        "peak_bytes": stats.get("peak_bytes_in_use"),
      }
    ),
    flush=True,
  )
  for _ in sys.stdin:
    begin = time.perf_counter()
    state, metrics = step(state, batch)
    jax.block_until_ready((state, metrics))
    print(time.perf_counter() - begin, flush=True)


class Worker:
  """A process that takes a training step on request."""

  def __init__(
    self,
    tree: pathlib.Path,
    config: str,
    changes: dict[str, Any],
    overrides: Sequence[str],
  ):
    self._process = subprocess.Popen(
      [
        sys.executable,
        str(pathlib.Path(__file__).resolve()),
        "--worker",
        json.dumps([config, changes, list(overrides)]),
      ],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      text=True,
      cwd=tree,
      # Several workers share a GPU, so none may allocate all of its memory.
      env={
        **os.environ,
        "PYTHONPATH": str(tree),
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
      },
    )
    self.about = json.loads(self._line())

  def step(self) -> float:
    """Returns the seconds of one step."""
    self._process.stdin.write("\n")
    self._process.stdin.flush()
    return float(self._line())

  def close(self) -> None:
    self._process.stdin.close()
    self._process.wait()

  def _line(self) -> str:
    line = self._process.stdout.readline()
    if not line:
      raise SystemExit(
        f"A worker ended with {self._process.wait()}; see its output above."
      )
    return line


def take_turns(
  workers: dict[str, Worker], rounds: int
) -> dict[str, list[float]]:
  """Returns the seconds of each worker's steps, one step per round."""
  seconds = {name: [] for name in workers}
  for number in range(rounds):
    # The order is reversed in every second round, so that none is always first.
    names = list(workers)[:: -1 if number % 2 else 1]
    for name in names:
      seconds[name].append(workers[name].step())
  return seconds


def against(
  commit: str, configs: Sequence[str], overrides: Sequence[str], rounds: int
) -> dict[str, Any]:
  """Returns the steps per second of two trees, and their ratio."""
  rows = {}
  with tempfile.TemporaryDirectory() as folder:
    other = pathlib.Path(folder) / "tree"
    subprocess.run(
      ["git", "worktree", "add", "--detach", str(other), commit],
      cwd=ROOT,
      check=True,
      capture_output=True,
    )
    try:
      for config in configs:
        workers = {
          "before": Worker(other, config, {}, overrides),
          "now": Worker(ROOT, config, {}, overrides),
        }
        found = take_turns(workers, rounds)
        for worker in workers.values():
          worker.close()
        ratios = [
          before / now
          for before, now in zip(found["before"], found["now"], strict=True)
        ]
        rows[config] = {
          **{
            f"steps_per_second_{name}": 1 / statistics.median(values)
            for name, values in found.items()
          },
          "ratio": statistics.median(ratios),
          "ratio_quartiles": statistics.quantiles(ratios, n=4)[::2],
          "device": workers["now"].about["device"],
          "rounds": rounds,
        }
        print(
          f"{config}: {rows[config]['ratio']:.3f} times as fast "
          f"(quartiles {rows[config]['ratio_quartiles'][0]:.3f} to "
          f"{rows[config]['ratio_quartiles'][1]:.3f})",
          flush=True,
        )
    finally:
      subprocess.run(
        ["git", "worktree", "remove", "--force", str(other)],
        cwd=ROOT,
        check=True,
      )
  return {"against": commit, "configs": rows}


def ladder(
  config: str, platform: str, overrides: Sequence[str], rounds: int
) -> dict[str, Any]:
  """Returns a step's seconds with each optimisation switched off."""
  from genie_jax.core import chips

  workers = {
    name: Worker(ROOT, config, changes, overrides)
    for name, changes in _LADDER[platform].items()
  }
  found = take_turns(workers, rounds)
  first = next(iter(found))
  rows = {}
  for name, values in found.items():
    about = workers[name].about
    workers[name].close()
    seconds = statistics.median(values)
    peak = chips.device_peak_flops(about["device"])
    rate = about["flops"] / seconds
    rows[name] = {
      "step_seconds": seconds,
      "flops_per_second": rate,
      "mfu": rate / peak if peak else None,
      "times_as_long": statistics.median(
        mine / its for mine, its in zip(values, found[first], strict=True)
      ),
      "peak_bytes": about["peak_bytes"],
      "device": about["device"],
      "clips": about["clips"],
    }
    print(
      f"{name:32} {seconds:8.3f} s  {rate / 1e9:8.1f} GFLOP/s  "
      f"{rows[name]['times_as_long']:.2f} x",
      flush=True,
    )
  return {"config": config, "rounds": rounds, "rungs": rows}


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  what = parser.add_mutually_exclusive_group(required=True)
  what.add_argument("--against", metavar="COMMIT")
  what.add_argument("--ladder", action="store_true")
  what.add_argument("--worker", help=argparse.SUPPRESS)
  parser.add_argument(
    "--config",
    action="append",
    default=[],
    help="may be repeated; default: all stages of the case study",
  )
  parser.add_argument("--batch-size", type=int, default=1)
  parser.add_argument("--rounds", type=int, default=5)
  parser.add_argument("--json", help="also write the figures to this file")
  args = parser.parse_args()
  if args.worker:
    run_worker(*json.loads(args.worker))
    return
  overrides = [f"--config.data.batch_size={args.batch_size}"]
  configs = args.config or [_CONFIG.format(stage) for stage in STAGES]
  if args.ladder:
    platform = subprocess.run(
      [
        sys.executable,
        "-c",
        "from genie_jax.sharding import rules; print(rules.platform())",
      ],
      cwd=ROOT,
      check=True,
      capture_output=True,
      text=True,
      env={**os.environ, "PYTHONPATH": str(ROOT)},
    ).stdout.split()[-1]
    found = {
      config: ladder(config, platform, overrides, args.rounds)
      for config in configs
    }
  else:
    found = against(args.against, configs, overrides, args.rounds)
  if args.json:
    pathlib.Path(args.json).write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
  main()
