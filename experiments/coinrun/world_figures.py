r"""Collects the figures of a world from its evaluation, under fixed names.

After:   genie eval --world WORLD --true-actions-world WORLD_TRUE \
             --baseline-world OLD_WORLD --clips CLIPS --out EVAL --fvd \
             --drift-frames 160 --drift-levels 60
Run:     python -m experiments.coinrun.world_figures EVAL/metrics.json \
             --seeds 0 --out experiments/coinrun/results/world.json

The file has the figures by which the world that ships is judged (`FIGURES`),
then everything of metrics.json. A figure that was not measured is null. With
`--also OTHER/metrics.json`, a figure that the first evaluation did not measure
is that of another evaluation of the same world on the same clips; "also" then
says which.
"""

import argparse
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from genie_jax.core import errors, files
from genie_jax.evals import questions

# Name -> path in metrics.json; of an interval, its value, low or high end.
FIGURES = {
  "action_nmi": "details.control.effect.all.nmi.value",
  "attainable_action_nmi": "details.control.effect.all.attainable_nmi.value",
  "previous_code_nmi": "details.control.effect.all.previous_nmi.value",
  "horizontal_nmi": "details.control.horizontal.all.nmi.value",
  "attainable_horizontal_nmi": (
    "details.control.horizontal.all.attainable_nmi.value"
  ),
  "ground_horizontal_nmi": "details.control.horizontal.ground.nmi.value",
  "attainable_ground_horizontal_nmi": (
    "details.control.horizontal.ground.attainable_nmi.value"
  ),
  "purity_low": "details.actions.purity.low",
  "majority_share_high": "details.control.effect.all.majority.high",
  "counterfactual_match": "details.counterfactuals.after.8.score.value",
  "counterfactual_match_low": "details.counterfactuals.after.8.score.low",
  "counterfactual_chance_high": "details.counterfactuals.after.8.chance.high",
  "counterfactual_ceiling": "details.counterfactuals.after.8.ceiling.value",
  "true_actions_counterfactual_match": (
    "details.true_actions.counterfactuals.after.8.score.value"
  ),
  "true_actions_counterfactual_low": (
    "details.true_actions.counterfactuals.after.8.score.low"
  ),
  "tokenizer_psnr": "details.reconstruction.tokenizer_psnr.value",
  "kmeans_psnr": "details.reconstruction.kmeans_psnr.value",
  "hero_psnr": "details.reconstruction.centre_psnr.value",
  "hero_psnr_before": "details.baseline.centre_psnr.value",
  "delta_psnr": "delta_psnr",
  "delta_previous_code_psnr": "delta_previous_psnr",
  "delta_previous_code_psnr_low": "delta_previous_psnr_low",
  "true_actions_delta_previous_psnr": (
    "details.true_actions.delta_previous.frames.1.all_pixels.previous.value"
  ),
  "kvd": "details.fvd.rows.world.kvd.value",
  "kvd_low": "details.fvd.rows.world.kvd.low",
  "kvd_high": "details.fvd.rows.world.kvd.high",
  "reconstruction_kvd": "details.fvd.rows.tokenizer.kvd.value",
  "frozen_kvd": "details.fvd.rows.frozen.kvd.value",
  "palette_share": "palette_share",
}


# What says where the figures of an evaluation come from.
_ORIGIN = ("command", "commit", "date")
# Of two evaluations that are joined, these must be equal.
_SAME = ("world_fingerprint", "data_fingerprint", "split", "seed")


def join(
  found: Mapping[str, Any], metrics: Mapping[str, Any], other: Mapping[str, Any]
) -> dict[str, Any]:
  """Returns the figures that another evaluation adds, and where it is from.

  Args:
    found: From `figures`.
    metrics: The evaluation of `found`.
    other: The other evaluation.

  Raises:
    UserError: They are of different worlds or clips.
  """
  for name in _SAME:
    if metrics[name] != other[name]:
      raise errors.UserError(
        f"The evaluations have {name} {metrics[name]!r:.40} and "
        f"{other[name]!r:.40}; join only those of one world on the same clips."
      )
  more = {
    name: value
    for name, value in figures(other).items()
    if found[name] is None and value is not None
  }
  if not more:
    return {}
  return more | {
    "also": {"figures": list(more)} | {name: other[name] for name in _ORIGIN}
  }


def figures(metrics: Mapping[str, Any]) -> dict[str, Any]:
  """Returns `FIGURES` of an evaluation and the share of KVD that remains.

  `kvd_share` is (kvd - reconstruction) / (frozen - reconstruction): 0 if the
  rollouts are as near to the game as the tokenizer allows, 1 if they are as far
  from it as frozen frames.
  """
  found = {
    name: questions.find(metrics, path) for name, path in FIGURES.items()
  }
  kvd, base, frozen = (
    found[name] for name in ("kvd", "reconstruction_kvd", "frozen_kvd")
  )
  found["kvd_share"] = (
    None if None in (kvd, base, frozen) else (kvd - base) / (frozen - base)
  )
  return found


def main(words: Sequence[str] | None = None) -> None:
  """Entry point of `python -m experiments.coinrun.world_figures`."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("metrics", type=pathlib.Path)
  parser.add_argument(
    "--seeds",
    type=int,
    nargs="+",
    required=True,
    help="training seeds that the figures are of",
  )
  parser.add_argument(
    "--also",
    type=pathlib.Path,
    help="metrics.json of another evaluation of the same world on the same "
    "clips, for figures that the first did not measure",
  )
  parser.add_argument("--out", type=pathlib.Path, required=True)
  args = parser.parse_args(words)
  metrics = files.read_json(args.metrics)
  found = figures(metrics)
  if args.also:
    try:
      found |= join(found, metrics, files.read_json(args.also))
    except errors.UserError as error:
      parser.exit(2, f"world_figures: {error}\n")
  found |= {"seeds": args.seeds}
  files.write_json(args.out, {**found, **metrics, **found})
  for name, value in found.items():
    print(f"{name:36}{value if value is not None else 'not measured'}")


if __name__ == "__main__":
  main()
