"""`genie data videos`: cuts anyone's films into clips."""

import argparse
import importlib.util
import os
import re
import shlex
import sys
from typing import Any

_EXAMPLE = """\
examples:
  genie data videos --videos films --out clips
  genie data videos --videos 'films/**/*.mp4' --out clips --size 128x72 --fps 15
  genie data videos --videos films.csv --out clips --max-bad 5%

A table (.csv, .tsv or .parquet) has a column `path` and may have `split`
(train, validation, test or nothing) and `actions`.

If the run was interrupted, run the same command again to resume it.
docs/videos.md states every rule: what is cut, cropped and dropped, and why.
"""


def add_arguments(commands: Any) -> None:
  """Adds the sub-command to the sub-commands of `genie data`."""
  parser = commands.add_parser(
    "videos",
    help="cut anyone's films into clips",
    description="Cuts films into clips: at shots, without black bars, black, "
    "static and duplicate clips. Films that cannot be read are listed.",
    epilog=_EXAMPLE,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  add = parser.add_argument
  add(
    "--videos",
    required=True,
    metavar="WHERE",
    help="a folder, a pattern in quotes, a film, or a table with a column path",
  )
  add("--out", required=True, metavar="DIR", help="folder to write")
  add(
    "--name",
    default="videos",
    metavar="NAME",
    help="name of the data set (default: videos)",
  )
  add(
    "--fps",
    type=float,
    default=10.0,
    metavar="N",
    help="frames per second of the clips (default: 10)",
  )
  add(
    "--size",
    default="160x90",
    metavar="WxH",
    help="width and height of the frames (default: 160x90)",
  )
  add(
    "--fit",
    default="crop",
    metavar="HOW",
    help="how films of another shape fill the frame: crop, pad or stretch "
    "(default: crop)",
  )
  add(
    "--keep-bars",
    action="store_true",
    help="do not look for black bars around the picture",
  )
  add(
    "--clip-frames",
    type=int,
    default=160,
    metavar="N",
    help="frames of a clip (default: 160)",
  )
  add(
    "--min-frames",
    type=int,
    default=None,
    metavar="N",
    help="fewest frames of the shorter clip at the end of a shot (default: 16, "
    "or --clip-frames if that is less)",
  )
  add(
    "--cut-threshold",
    type=float,
    default=27.0,
    metavar="X",
    help="score from which a frame begins a new shot; less finds more cuts "
    "(default: 27)",
  )
  add(
    "--keep-static",
    action="store_true",
    help="keep clips in which hardly anything moves",
  )
  add(
    "--keep-duplicates",
    action="store_true",
    help="keep clips that another film has as well",
  )
  add(
    "--codec",
    default="h264",
    metavar="NAME",
    help="h264, or zstd for lossless frames of eleven times the size (default: "
    "h264)",
  )
  add(
    "--actions",
    default="auto",
    metavar="HOW",
    help="recorded actions beside films (NAME.jsonl, .csv or .parquet): auto "
    "stores them if all films have some, ignore, or require (default: auto)",
  )
  for split in ("validation", "test"):
    add(
      f"--{split}-share",
      type=float,
      default=0.1,
      metavar="X",
      help=f"share of the films in {split} (default: 0.1)",
    )
  add(
    "--unit-hours",
    type=float,
    default=1.0,
    metavar="X",
    help="most hours of film in a file (default: 1)",
  )
  add(
    "--max-bad",
    default=None,
    metavar="N",
    help="exit with code 1 if more films are bad: a number, or a share such as "
    "5%% (default: any number is listed and survived)",
  )
  add(
    "--film-memory",
    type=int,
    default=2048,
    metavar="MB",
    help="memory that decoding one film may use (default: 2048)",
  )
  add(
    "--film-seconds",
    type=float,
    default=None,
    metavar="S",
    help="time that one film may take (default: 5 minutes and four times its "
    "duration)",
  )
  add(
    "--workers",
    type=int,
    default=None,
    metavar="N",
    help="number of processes on this machine; the data does not depend on it "
    "(default: one per core)",
  )
  add(
    "--beam-options",
    default="",
    metavar="'...'",
    help="options of Apache Beam, to use another runner: write "
    "--beam-options='--runner=FlinkRunner --flink_master=HOST:PORT'",
  )


def run(args: argparse.Namespace) -> int:
  """Cuts the films; returns the exit code."""
  from genie_jax.core import errors

  _check_installed()
  from data_pipelines.videos import collect
  from data_pipelines.videos import options as options_lib

  size = re.fullmatch(r"(\d{1,6})x(\d{1,6})", args.size)
  if not size:
    raise errors.UserError(
      f"--size {args.size!r} must be the width and the height, for example "
      "160x90."
    )
  most_bad = _most_bad(args.max_bad)
  shortest = args.min_frames
  options = options_lib.Options(
    fps=args.fps,
    width=int(size[1]),
    height=int(size[2]),
    fit=args.fit,
    crop_bars=not args.keep_bars,
    clip_frames=args.clip_frames,
    min_frames=min(16, args.clip_frames) if shortest is None else shortest,
    cut_threshold=args.cut_threshold,
    keep_static=args.keep_static,
    keep_duplicates=args.keep_duplicates,
    codec=args.codec,
    actions=args.actions,
    validation_share=args.validation_share,
    test_share=args.test_share,
    unit_hours=args.unit_hours,
  )
  try:
    beam_options = shlex.split(args.beam_options)
  except ValueError as error:
    raise errors.UserError(
      f"--beam-options {args.beam_options!r} has a quote without its other "
      f"half ({error})."
    ) from error
  workers = args.workers
  if workers is None:
    workers = len(os.sched_getaffinity(0))
  try:
    report = collect.collect(
      args.videos,
      args.out,
      options,
      options_lib.Limits(args.film_memory, args.film_seconds),
      workers,
      beam_options,
      args.name,
    )
  except errors.RunFailed as error:
    return _failed(error)
  print(collect.describe(report, args.out))
  # A film that was divided in time is one film.
  bad = len({row.name for row in report.summary.bad})
  films = report.summary.films
  limit = most_bad(films)
  if bad > limit:
    return _failed(
      f"{bad} of {films} films are bad, more than --max-bad {args.max_bad} "
      f"allows; {args.out} is finished without them, and its sources.parquet "
      "says what is wrong with each."
    )
  return 0


def _check_installed() -> None:
  """Raises UserError where a library for films is missing."""
  from genie_jax.core import errors

  for name in ("apache_beam", "imagehash", "pyarrow", "scenedetect"):
    if importlib.util.find_spec(name) is None:
      raise errors.UserError(
        f"genie data videos needs {name}; type `pip install "
        "'genie_jax[videos]'`."
      )


def _failed(message: object) -> int:
  print(f"genie data: {message}", file=sys.stderr)
  return 1


def _most_bad(text: str | None):
  """Returns what gives the number of bad films that may be of all films."""
  from genie_jax.core import errors

  if text is None:
    return lambda films: films
  share = re.fullmatch(r"(\d+(?:\.\d+)?)%|(0?\.\d+)", text)
  if share:
    value = float(share[1]) / 100 if share[1] else float(share[2])
    if value > 1:
      raise errors.UserError(
        f"--max-bad {text!r} is more than all films; give at most 100%."
      )
    return lambda films: value * films
  if re.fullmatch(r"\d+", text):
    return lambda films: int(text)
  raise errors.UserError(
    f"--max-bad {text!r} must be a number of films such as 3, or a share such "
    "as 5% or 0.05."
  )


def main() -> int:
  """Entry point of `python -m genie_jax.cli.data_videos`."""
  from genie_jax.cli import main as main_lib

  return main_lib.main(["data", "videos", *sys.argv[1:]])


if __name__ == "__main__":
  sys.exit(main())
