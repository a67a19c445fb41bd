r"""Trains tokenizers and LAMs with each quantizer, and prints one table.

Collect:   genie data coinrun --out CLIPS --levels 100 --frames-per-level 500 \
               --validation-levels 20 --test-levels 1
Run:       python benchmarks/quantizers.py --clips CLIPS --out RUNS --json F
Try it:    add `--mode smoke` (a few steps)

Every row trains the configs of the demo (experiments/coinrun: tokenizer_images,
then tokenizer, and lam) with the same seed, steps and clips; only the quantizer
differs. A row is NAME, or NAME:LEVELS, or NAME:LEVELS:LEVELS with the levels of
the tokenizer and of the LAM, for example `--row fsq:4x4x4x4x4:4x2`. Figures are
of held-out levels of the split `validation`:

  PSNR       of frames after a round trip through tokens, pooled over clips
  codes      number that occur, and perplexity: the number of equally frequent
             codes with the same entropy
  LAM PSNR   of the next frame given the inferred action, and its gain over a
             random action, which is 0 for a LAM that ignores its actions
  actions    number of latent actions that occur
  NMI        of latent and true actions, 0 to 1
  CPU s      CPU seconds of training, all threads: both runs of the tokenizer,
             and the LAM. Other programs on the machine change the wall time,
             which --json has too, but hardly this.

The same command resumes a stopped run; seconds add up.
"""

import argparse
import dataclasses
import os
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import training_runs

from genie_jax.core import files
from genie_jax.data import manifest as manifest_lib
from genie_jax.evals import actions as actions_lib
from genie_jax.evals import clips as clips_lib
from genie_jax.evals import codebook, reconstruction
from genie_jax.sampling import prepare
from genie_jax.stages import lam as lam_lib
from genie_jax.worlds import trained_models

TOKENIZER = ("tokenizer_images", "tokenizer")  # The runs that train it.
_BATCH = 8  # Clips per call.


@dataclasses.dataclass(frozen=True)
class Row:
  """A quantizer and the config overrides of its runs.

  Attributes:
    label: The argument of `--row`.
    tokenizer: Overrides of the tokenizer's configs.
    lam: Overrides of the LAM's config.
  """

  label: str
  tokenizer: tuple[str, ...]
  lam: tuple[str, ...]

  @classmethod
  def parse(cls, label: str) -> "Row":
    """Reads NAME[:LEVELS[:LEVELS]]; levels are joined by x."""
    name, *levels = label.split(":")
    texts = [*levels, "", ""][:2]
    return cls(label, *(cls._overrides(name, text) for text in texts))

  @staticmethod
  def _overrides(name: str, levels: str) -> tuple[str, ...]:
    found = tuple(int(part) for part in levels.split("x") if part)
    return (
      f"--config.quantizer.name={name}",
      f"--config.quantizer.levels={found}",
    )


def train(row: Row, args: argparse.Namespace) -> dict[str, dict[str, float]]:
  """Trains a row's models; returns wall and CPU seconds of each run."""
  folder = args.out / row.label.replace(":", "_")
  runs = {
    "tokenizer_images": row.tokenizer,
    "tokenizer": (
      *("--init-from", str(folder / "tokenizer_images")),
      *row.tokenizer,
    ),
    "lam": row.lam,
  }
  return {
    name: training_runs.train(
      f"{name}.py:{args.mode}",
      folder / name,
      [
        f"--config.data.path={args.clips}",
        f"--config.seed={args.seed}",
        *extra,
      ],
    )
    for name, extra in runs.items()
  }


def measure_tokenizer(
  folder: pathlib.Path, args: argparse.Namespace
) -> dict[str, Any]:
  """Measures a trained tokenizer on held-out clips."""
  part, _ = trained_models.part(folder, "tokenizer")
  module, world = prepare.hashable(part.module), part.config["world"]
  clips = pick(args, world["num_frames"], with_actions=False)

  @jax.jit
  def run(params, frames):
    made = module.apply({"params": params}, as_float(frames))
    shown = jnp.round(made.frames.clip(0, 1) * 255).astype(jnp.uint8)
    return shown, made.tokens

  params = jax.device_put(part.params)
  both = [run(params, rows) for rows in batches(clips.frames)]
  shown, tokens = (
    np.concatenate([np.asarray(one[i]) for one in both]) for i in range(2)
  )
  errors = reconstruction.clip_errors(clips.frames, shown)
  psnr = reconstruction.pooled_psnr(errors, clips.levels, seed=args.seed)
  used = codebook.counts(tokens, world["num_codes"])
  return {
    "psnr": dataclasses.asdict(psnr),
    "codes_in_use": int((used > 0).sum()),
    **codebook.summary(used),
    "quantizer": part.config.get("quantizer", {"name": "vq"}),
    "parameters": int(sum(x.size for x in jax.tree.leaves(part.params))),
  }


def measure_lam(
  folder: pathlib.Path, args: argparse.Namespace
) -> dict[str, Any]:
  """Measures a trained LAM on held-out clips."""
  found = trained_models.read(folder)
  part, frames = found.parts["lam"], found.config["data"]["num_frames"]
  module, world = prepare.hashable(part.module), part.config["world"]
  clips = pick(args, frames, with_actions=True)
  params = jax.device_put(part.params)

  @jax.jit
  def run(params, frames, key):
    scaled = as_float(frames)
    terms = lam_lib.action_terms(module, params, scaled, key)
    return terms, module.apply({"params": params}, scaled, method="encode")

  keys = jax.random.split(jax.random.key(args.seed), len(clips.frames))
  both = [
    run(params, rows, keys[i]) for i, rows in enumerate(batches(clips.frames))
  ]
  terms = jax.tree.map(lambda *x: sum(x), *(one for one, _ in both))
  psnr = {
    name: float(reconstruction.psnr(np.asarray(term.mean())))
    for name, term in terms.items()
  }
  latent = np.concatenate([np.asarray(one) for _, one in both])
  agreement = actions_lib.agreement(
    latent.ravel(),
    clips.actions.ravel(),
    np.repeat(clips.levels, latent.shape[1]),
    world["num_latent_actions"],
    aliases=manifest_lib.Manifest.read(args.clips).action_aliases,
    seed=args.seed,
  )
  used = codebook.counts(latent, world["num_latent_actions"])
  return {
    "psnr": psnr["squared_error"],
    "gain_over_random_actions": (
      psnr["squared_error"] - psnr["random_action_squared_error"]
    ),
    "gain_over_copying": psnr["squared_error"] - psnr["copy_squared_error"],
    "codes_in_use": int((used > 0).sum()),
    **codebook.summary(used),
    "nmi": dataclasses.asdict(agreement.nmi),
    "quantizer": part.config.get("quantizer", {"name": "vq"}),
    "parameters": int(sum(x.size for x in jax.tree.leaves(part.params))),
  }


def pick(
  args: argparse.Namespace, num_frames: int, with_actions: bool
) -> clips_lib.Clips:
  """Returns the same held-out clips for every row."""
  return clips_lib.pick(
    args.clips,
    "validation",
    num_frames=num_frames,
    num_clips=args.num_clips,
    num_levels=args.levels,
    with_actions=with_actions,
    seed=args.seed,
  )


def batches(frames: np.ndarray) -> list[np.ndarray]:
  """Returns clips in batches; the last one may be smaller."""
  starts = range(0, len(frames), _BATCH)
  return [frames[start : start + _BATCH] for start in starts]


def as_float(frames: jax.Array) -> jax.Array:
  """Returns uint8 frames as float32 in [0, 1]."""
  return frames.astype(jnp.float32) / 255


def table(rows: list[dict[str, Any]]) -> str:
  """Returns the rows as Markdown."""
  lines = [
    "| quantizer | tokenizer PSNR, dB | codes in use | perplexity | CPU s "
    "| LAM PSNR, dB (over random) | actions in use | NMI | CPU s |",
    "|---|---|---|---|---|---|---|---|---|",
  ]
  for row in rows:
    tokens, lam, seconds = row["tokenizer"], row["lam"], row["seconds"]
    psnr, nmi = tokens["psnr"], lam["nmi"]
    lines.append(
      f"| {row['row']} "
      f"| {psnr['value']:.2f} ({psnr['low']:.2f} to {psnr['high']:.2f}) "
      f"| {tokens['codes_in_use']} of {tokens['num_codes']} "
      f"| {tokens['perplexity']:.0f} "
      f"| {sum(seconds[run]['cpu'] for run in TOKENIZER):.0f} "
      f"| {lam['psnr']:.2f} ({lam['gain_over_random_actions']:+.2f}) "
      f"| {lam['codes_in_use']} of {lam['num_codes']} | {nmi['value']:.3f} "
      f"| {seconds['lam']['cpu']:.0f} |"
    )
  return "\n".join(lines)


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--clips", required=True, metavar="DIR")
  parser.add_argument(
    "--out", required=True, type=pathlib.Path, metavar="DIR", help="workdirs"
  )
  parser.add_argument("--json", metavar="F", help="also write the result")
  parser.add_argument("--mode", choices=("tiny", "smoke"), default="tiny")
  parser.add_argument(
    "--row", action="append", metavar="R", help="default: vq and fsq"
  )
  parser.add_argument("--levels", type=int, default=20, help="held out")
  parser.add_argument("--num-clips", type=int, default=256)
  parser.add_argument("--seed", type=int, default=0)
  args = parser.parse_args()
  found: list[dict[str, Any]] = []
  for row in map(Row.parse, args.row or ("vq", "fsq")):
    load = os.getloadavg()
    seconds = train(row, args)
    folder = args.out / row.label.replace(":", "_")
    found.append(
      {
        "row": row.label,
        "tokenizer": measure_tokenizer(folder / "tokenizer", args),
        "lam": measure_lam(folder / "lam", args),
        "seconds": seconds,
        "load_average": [load, os.getloadavg()],
      }
    )
    print(table(found), flush=True)
    if args.json:
      files.write_json(
        args.json,
        {
          "mode": args.mode,
          "seed": args.seed,
          "clips": manifest_lib.Manifest.read(args.clips).fingerprint,
          "num_clips": args.num_clips,
          "levels": args.levels,
          "cores": os.cpu_count(),
          "rows": found,
        },
      )


if __name__ == "__main__":
  main()
