r"""Measures how much each model of a ladder reacts to its buttons.

After:   genie scaling ladder experiments/scaling/miniature.py --out OUT ...
Run:     python -m experiments.scaling.control --ladder OUT --clips CLIPS \
             --out experiments/scaling/results/miniature_control.json

Loss is not what a player feels. For every run at the common token budget this
exports its world and states, beside its held-out loss:

  changed_token_accuracy    share of the tokens of a next frame that differ from
                            the frame before and are predicted, from the log
                            of its training
  delta_psnr                PSNR of the fourth drawn frame with the buttons of
                            the clip, minus that with random ones
  delta_previous_code_psnr  PSNR of the first drawn frame with the buttons of
                            the clip, minus that with the button before repeated

Differences of PSNR are in dB, over validation levels, with 95 % intervals over
levels. CLIPS are those that the tokens of the ladder were made from.
"""

import argparse
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

from genie_jax.core import errors, files, provenance
from genie_jax.evals import clips as clips_lib
from genie_jax.evals import evaluated_world, intervals, rollouts
from genie_jax.scaling import runs
from genie_jax.worlds import export, world_folder

VERSION = 1


def measure(
  subject: evaluated_world.Subject, clips: clips_lib.Clips, seed: int
) -> dict[str, Any]:
  """Returns the differences of PSNR of one world.

  Args:
    subject: The world.
    clips: Held-out clips of at least the world's number of frames.
    seed: Of the noise, the random buttons and the bootstrap.

  Returns:
    `delta_psnr` and `delta_previous_code_psnr`, each {"value", "low", "high"}
    in dB.
  """
  tokens = subject.encode(clips.frames)
  buttons = subject.buttons(clips.frames, None, {})
  choices = subject.choices({})
  delta = rollouts.delta(
    subject,
    tokens[:, :1],
    clips.frames,
    buttons,
    choices,
    clips.levels,
    seed=seed,
  )
  previous = rollouts.delta_previous(
    subject,
    tokens,
    clips.frames,
    subject.decode(tokens),
    buttons,
    choices,
    clips.levels,
    seed=seed,
  )
  return {
    "delta_psnr": _fields(delta["delta"]),
    "delta_previous_code_psnr": _fields(
      previous["frames"]["1"]["all_pixels"]["previous"]
    ),
  }


def _fields(found: intervals.Interval) -> dict[str, float]:
  return {
    name: round(float(getattr(found, name)), 4)
    for name in ("value", "low", "high")
  }


def main(argv: Sequence[str] | None = None) -> int:
  """Measures all rungs and writes the file; returns 0."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--ladder", required=True, help="folder of the ladder")
  parser.add_argument("--clips", required=True, help="clips folder")
  parser.add_argument("--out", required=True, help="file to write")
  parser.add_argument("--levels", type=int, default=60)
  parser.add_argument("--num-clips", type=int, default=240)
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument(
    "--runs-of-seed", type=int, help="measure only the runs of this seed"
  )
  args = parser.parse_args(argv)
  folder = pathlib.Path(args.ladder)
  study = runs.Study.read(folder / "runs.json")
  rungs = [
    run
    for run in study.runs
    if run.role == "rung" and args.runs_of_seed in (None, run.seed)
  ]
  rows = []
  for run in sorted(rungs, key=lambda run: (run.params, run.seed)):
    world = folder / "worlds" / run.name
    export.export([run.workdir], world, prompts=args.clips, num_prompts=1)
    found = world_folder.load(world).world
    subject = evaluated_world.from_parts(
      found.parts,
      sampling=found.sampling,
      actions=found.actions,
      fingerprint=found.fingerprint,
      slide=found.slide,
    )
    clips = clips_lib.pick(
      args.clips,
      "validation",
      num_frames=subject.num_frames,
      num_clips=args.num_clips,
      num_levels=args.levels,
      with_actions=False,
      seed=args.seed,
    )
    row = {
      "name": run.name,
      "size": run.size,
      "seed": run.seed,
      "params": run.params,
      "flops": run.flops,
      "final_loss": run.final_loss,
      "changed_token_accuracy": run.extra["changed_token_accuracy"],
      **measure(subject, clips, args.seed),
    }
    rows.append(row)
    print(
      f"{row['name']:24} loss {row['final_loss']:.3f}, changed tokens "
      f"{100 * row['changed_token_accuracy']:.1f} %, delta "
      f"{row['delta_psnr']['value']:+.2f} dB, over the button before "
      f"{row['delta_previous_code_psnr']['value']:+.2f} dB",
      flush=True,
    )
  words = ["python", "-m", "experiments.scaling.control"]
  files.write_json(
    args.out,
    {
      "version": VERSION,
      "provenance": provenance.collect([*words, *(argv or sys.argv[1:])]),
      "split": "validation",
      "levels": args.levels,
      "num_clips": args.num_clips,
      "rows": rows,
    },
  )
  return 0


if __name__ == "__main__":
  with errors.reported("control") as done:
    done.code = main()
  sys.exit(done.code)
