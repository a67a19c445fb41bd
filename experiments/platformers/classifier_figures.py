r"""The figures of classifiers that were trained on recorded films.

Run:     python -m experiments.platformers.classifier_figures \
             --films films.csv --clips CLIPS --scores scores.parquet \
             --left-out mrrescue=without-mrrescue.parquet --out FILE.json

`--scores` are those of a classifier that was trained on all games, judged on
the test split: sessions that it never saw. Each `--left-out GAME=FILE` are the
scores of a classifier that was trained and calibrated without that game, judged
on all of its clips. Beside each stand trivial rules (decision trees on mean
change, brightness and contrast), fitted to the training clips of the same
games.
"""

import argparse
import collections
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from data_pipelines.platformers import recorded
from genie_jax.core import errors, files, provenance
from genie_jax.data import clip_list
from genie_jax.evals import clip_figures

_CONFIDENCE = 0.9


def judged(
  rows: dict[str, np.ndarray], chosen: np.ndarray, fitted: np.ndarray
) -> dict[str, Any]:
  """Returns the figures of some clips, and of trivial rules beside them.

  Args:
    rows: Columns of the clips: "probability", "label", "session", "game",
      "bad_kind" and `clip_figures.FEATURES`.
    chosen: bool [n], the clips that are judged.
    fitted: bool [n], the clips that trivial rules are fitted to.
  """
  probability, label = rows["probability"], rows["label"]
  found = clip_figures.figures(
    probability[chosen], label[chosen], rows["session"][chosen], _CONFIDENCE
  )
  said = probability >= 0.5
  found["by_kind"] = {
    kind or "good": {
      "clips": int(some.sum()),
      "said_good": clip_figures.precision_and_recall(
        said[some], np.ones(int(some.sum()), bool), rows["session"][some]
      )["recall"],
      "kept": float((probability[some] >= _CONFIDENCE).mean()),
    }
    for kind in sorted(set(rows["bad_kind"][chosen]))
    for some in [chosen & (rows["bad_kind"] == kind)]
  }
  found["by_game"] = {
    game: {
      "good_clips": int((some & (label == 1)).sum()),
      "bad_clips": int((some & (label == 0)).sum()),
      "sessions": len(np.unique(rows["session"][some])),
      "accuracy": float((said == label)[some].mean()),
      **clip_figures.precision_and_recall(
        said[some], label[some] == 1, rows["session"][some]
      ),
    }
    for game in sorted(set(rows["game"][chosen]))
    for some in [chosen & (rows["game"] == game)]
  }
  found["baselines"] = clip_figures.baselines(
    {name: rows[name] for name in clip_figures.FEATURES},
    label,
    rows["session"],
    fitted,
    chosen,
  )
  return found


def read(
  scores: str, films: list[recorded.Row], film_of: dict[str, str]
) -> dict[str, np.ndarray]:
  """Returns the columns of the clips that `judged` needs.

  Raises:
    UserError: The table is not of these clips.
  """
  path = pathlib.Path(scores)
  names = ("clip_id", "split", "probability", *clip_figures.FEATURES)
  table = clip_list.read_table(path, names)
  by_path = {row["path"]: row for row in films}
  unknown = [clip for clip in table["clip_id"] if clip not in film_of]
  if unknown:
    raise errors.UserError(
      f"{scores} has clip {unknown[0]}, which is not in the folder of clips; "
      "score this folder."
    )
  rows = [by_path[film_of[clip]] for clip in table["clip_id"]]
  columns = {name: np.array(table[name]) for name in names}
  for name in ("bad_kind", "session"):
    columns[name] = np.array([row[name] for row in rows])
  columns["game"] = np.array([recorded.family(row["game"]) for row in rows])
  columns["label"] = np.array([int(row["kind"] == "good") for row in rows])
  return columns


def main(argv: Sequence[str] | None = None) -> int:
  """Entry point of `python -m experiments.platformers.classifier_figures`."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--films", required=True)
  parser.add_argument("--clips", required=True)
  parser.add_argument("--scores", required=True)
  parser.add_argument("--left-out", action="append", default=[])
  parser.add_argument("--command", action="append", default=[])
  parser.add_argument("--out", required=True)
  args = parser.parse_args(argv)
  try:
    films = recorded.read_films(args.films)
    film_of = recorded.film_of_clip(args.clips)
    rows = read(args.scores, films, film_of)
    training = rows["split"] == "train"
    report: dict[str, Any] = {
      **provenance.collect(
        ["python", "-m", "experiments.platformers.classifier_figures"]
      ),
      "commands": args.command,
      "description": clip_list.table_metadata(pathlib.Path(args.scores)),
      "clips": {
        split: dict(
          collections.Counter(
            f"{game}: {kind or 'good'}"
            for game, kind in zip(
              rows["game"][rows["split"] == split],
              rows["bad_kind"][rows["split"] == split],
              strict=True,
            )
          )
        )
        for split in ("train", "validation", "test")
      },
      "held_out_sources": judged(rows, rows["split"] == "test", training),
      "left_out_games": {},
    }
    for each in args.left_out:
      game, _, scores = each.partition("=")
      rows = read(scores, films, film_of)
      mine = rows["game"] == game
      if not mine.any():
        raise errors.UserError(f"--left-out {each}: no clip is of this game.")
      report["left_out_games"][game] = judged(
        rows, mine, (rows["split"] == "train") & ~mine
      )
    files.write_json(args.out, report)
  except errors.UserError as error:
    print(f"classifier_figures: {error}", file=sys.stderr)
    return 2
  for name, found in (
    ("held-out sources", report["held_out_sources"]),
    *report["left_out_games"].items(),
  ):
    print(name, found["good"], found["kept"])
    for rule, row in found["baselines"].items():
      print("  ", rule, row)
  return 0


if __name__ == "__main__":
  sys.exit(main())
