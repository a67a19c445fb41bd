"""The commands of `genie data` that rate, score and select clips."""

import argparse
import os
import pathlib
import sys
from typing import Any

from genie_jax.cli import play

_FILTER_EXAMPLE = """\
example:
  genie data filter --table metadata.csv --out filtered.csv

The table needs the columns title and description. The result has all its rows
and columns, and kept (true or false) and reason; the word lists are in
data_pipelines/platformers/keywords.toml.
"""
_LABEL_EXAMPLE = """\
example:
  genie data label clips
  genie data label clips --sample 10000 --labels ratings.csv

Keys on the page: 1 to 5, S skips, U undoes, the space bar pauses. Each rating
is stored at once; run the same command again to go on.
"""
_SCORE_EXAMPLE = """\
example:
  genie data score --classifier runs/classifier --clips clips \\
      --labels clips-labels.csv --out scores.parquet

With --labels, the probabilities are calibrated on the validation split, and
precision and recall are measured on the test split.
"""
_SELECT_EXAMPLE = """\
example:
  genie data select --clips clips --scores scores.parquet --out selected

The new folder lists the kept clips only. Its shards are hard links to those of
the clips (copies on another disk); none is written again. It has a data card,
card.html and card.md.
"""
# A sheet of more frames would be larger than browsers draw.
_MOST_CLIP_FRAMES = 2_000
_NAMES = ("filter", "label", "score", "select")


def add_arguments(commands: Any) -> None:
  """Adds the sub-commands to those of `genie data`."""
  filtered = _add(
    commands,
    "filter",
    "choose videos by words in their title and description",
    "Filters a table of videos by keywords (Genie, appendix B.1).",
    _FILTER_EXAMPLE,
  )
  add = filtered.add_argument
  add(
    "--table",
    required=True,
    metavar="FILE",
    help="table of videos, .csv or .parquet",
  )
  add(
    "--out",
    required=True,
    metavar="FILE",
    help="table to write, .csv or .parquet",
  )
  add(
    "--kept-only",
    action="store_true",
    help="write the kept rows only, as a table for `genie data videos`",
  )
  add(
    "--keywords",
    default=None,
    metavar="FILE.toml",
    help="your own word lists (default: those of the platformers)",
  )
  label = _add(
    commands,
    "label",
    "rate clips from 1 to 5 in the browser",
    "Serves a page on which a sample of clips is rated from 1 to 5 (Genie, "
    "appendix B.1).",
    _LABEL_EXAMPLE,
  )
  add = label.add_argument
  add("folder", metavar="DIR", help="folder of clips")
  add(
    "--labels",
    default=None,
    metavar="FILE.csv",
    help="table to append to (default: DIR-labels.csv)",
  )
  add(
    "--labeller",
    default=None,
    metavar="NAME",
    help="stored with each rating (default: your user name)",
  )
  add(
    "--sample",
    type=int,
    default=1_000,
    metavar="N",
    help="number of clips, drawn evenly from all sources (default: 1000)",
  )
  add(
    "--seed",
    type=int,
    default=0,
    metavar="N",
    help="seed of the sample (default: 0)",
  )
  _add_clip_frames(label)
  play.add_server_arguments(label)
  score = _add(
    commands,
    "score",
    "score each clip with a trained classifier",
    "Writes the probability that a clip is good, for each clip of a folder.",
    _SCORE_EXAMPLE,
  )
  add = score.add_argument
  add(
    "--classifier",
    required=True,
    metavar="DIR",
    help="workdir of the stage classifier, or a saved model",
  )
  add("--clips", required=True, metavar="DIR", help="folder of clips")
  add("--out", required=True, metavar="FILE.parquet", help="table to write")
  add(
    "--labels",
    default=None,
    metavar="FILE.csv",
    help="table of ratings, to calibrate and to measure; FILE.json beside "
    "--out gets the figures",
  )
  add(
    "--runs",
    type=int,
    default=8,
    metavar="N",
    help="runs of adjacent frames read from each clip (default: 8)",
  )
  add(
    "--batch",
    type=int,
    default=16,
    metavar="N",
    help="clips scored at once (default: 16)",
  )
  add(
    "--confidence",
    type=float,
    default=0.9,
    metavar="X",
    help="the decision rule for which figures are stated: kept are clips that "
    "are predicted good with at least this confidence (default: 0.9)",
  )
  _add_clip_frames(score)
  select = _add(
    commands,
    "select",
    "keep the clips that a classifier finds good",
    "Makes a folder of the clips that are predicted good with confidence.",
    _SELECT_EXAMPLE,
  )
  add = select.add_argument
  add("--clips", required=True, metavar="DIR", help="folder of clips")
  add(
    "--scores",
    required=True,
    metavar="FILE.parquet",
    help="table that `genie data score` wrote for this folder",
  )
  add("--out", required=True, metavar="DIR", help="folder to make")
  add(
    "--confidence",
    type=float,
    default=0.9,
    metavar="X",
    help="kept are clips that are predicted good with at least this "
    "confidence, 0.5 to 1 (default: 0.9)",
  )


def _add(
  commands: Any, name: str, summary: str, description: str, example: str
) -> argparse.ArgumentParser:
  return commands.add_parser(
    name,
    help=summary,
    description=description,
    epilog=example,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )


def _add_clip_frames(parser: argparse.ArgumentParser) -> None:
  parser.add_argument(
    "--clip-frames",
    type=int,
    default=160,
    metavar="N",
    help="longer episodes are divided into clips of N frames (default: 160, "
    "16 seconds at 10 frames per second)",
  )


def handles(name: str) -> bool:
  """Returns whether a sub-command of `genie data` is one of these."""
  return name in _NAMES


def run(args: argparse.Namespace) -> int:
  """Runs the sub-command; returns the exit code."""
  return {
    "filter": _filter,
    "label": _label,
    "score": _score,
    "select": _select,
  }[args.data_command](args)


def _filter(args: argparse.Namespace) -> int:
  from data_pipelines.platformers import keywords

  counts = keywords.filter_table(
    args.table,
    args.out,
    keywords.load(args.keywords),
    kept_only=args.kept_only,
  )
  total = sum(counts.values())
  kept = counts.get("", 0)
  print(f"{args.out}: kept {kept} of {total} videos")
  for reason, count in sorted(counts.items(), key=lambda item: -item[1]):
    if reason:
      print(f"  {count} dropped: {reason}")
  return 0


def _label(args: argparse.Namespace) -> int:
  import getpass

  from genie_jax.core import errors
  from genie_jax.data import clip_list, ratings
  from genie_jax.data import manifest as manifest_lib
  from genie_jax.serve import labelling, server

  play.check_server_flags(args)
  if args.sample < 1 or args.seed < 0:
    raise errors.UserError(
      f"--sample {args.sample} --seed {args.seed}: give at least 1 clip, and a "
      "seed of at least 0."
    )
  if not 2 <= args.clip_frames <= _MOST_CLIP_FRAMES:
    raise errors.UserError(
      f"--clip-frames {args.clip_frames}: give 2 to {_MOST_CLIP_FRAMES}."
    )
  manifest = manifest_lib.Manifest.read(args.folder)
  clips = clip_list.clips(manifest, args.clip_frames)
  sample = labelling.draw(clips, args.sample, args.seed)
  labels = args.labels
  if labels is None:
    labels = labels_beside(args.folder)
  labeller = args.labeller
  if labeller is None:
    try:
      labeller = getpass.getuser()
    except (KeyError, OSError) as error:
      raise errors.UserError(
        "This machine does not know your name; give --labeller NAME."
      ) from error
  with (
    ratings.Table(labels, labeller) as table,
    server.bind(args.host, args.port) as taken,
  ):
    if table.torn:
      play.say(
        f"Warning: {labels} ended within the line {table.torn!r:.60}, which "
        "was removed; the rating was not confirmed on the page."
      )
    table.ratings.check({clip.id for clip in clips}, labels)
    app = labelling.Labelling(
      manifest,
      sample,
      table,
      name=pathlib.Path(args.folder).resolve().name,
      labeller=labeller,
      names=[*args.names, os.uname().nodename],
    )
    state = app.state()
    play.say(
      f"{len(sample)} of {len(clips)} clips in the sample, "
      f"{state['rated']} rated, {state['skipped']} skipped; the table is "
      f"{labels}"
    )
    labelling.run(
      app,
      taken,
      host=args.host,
      open_browser=play.opens_browser(args),
      say=play.say,
    )
    play.say(f"Stopped; {len(table.ratings)} ratings are in {labels}.")
  return 0


def labels_beside(folder: str) -> str:
  """Returns the table of ratings of a folder of clips: DIR-labels.csv."""
  name = folder.rstrip("/")
  if name.rpartition("/")[2] in ("", ".", ".."):  # Not a hidden file inside.
    name = os.path.abspath(folder)
  return f"{name}-labels.csv"


def _score(args: argparse.Namespace) -> int:
  from genie_jax.core import errors

  for flag, value, least in (
    ("--runs", args.runs, 1),
    ("--batch", args.batch, 1),
  ):
    if value < least:
      raise errors.UserError(f"{flag} {value}: give at least {least}.")
  _check_confidence(args.confidence)
  # Imported here because importing JAX takes seconds, which errors in flags can
  # avoid.
  from genie_jax.evals import clip_scores

  report = clip_scores.score(
    args.classifier,
    args.clips,
    args.out,
    labels=args.labels,
    clip_frames=args.clip_frames,
    runs=args.runs,
    batch=args.batch,
    confidence=args.confidence,
  )
  print(clip_scores.summary(report))
  return 0


def _select(args: argparse.Namespace) -> int:
  from data_pipelines.platformers import select

  _check_confidence(args.confidence)
  made = select.select(args.clips, args.scores, args.out, args.confidence)
  print(made.summary())
  return 0


def _check_confidence(value: float) -> None:
  from genie_jax.core import errors

  if not 0.5 <= value < 1:
    raise errors.UserError(
      f"--confidence {value}: give at least 0.5, which keeps all clips that "
      "are predicted good, and less than 1."
    )


def main() -> int:
  """Entry point of `python -m genie_jax.cli.curation`."""
  from genie_jax.cli import main as main_lib

  return main_lib.main(["data", *sys.argv[1:]])


if __name__ == "__main__":
  sys.exit(main())
