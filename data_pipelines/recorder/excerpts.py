r"""Writes short, small films of recordings, with more bad films of each.

Run:     python -m data_pipelines.recorder.excerpts FILMS --out EXCERPTS \
             --games supertux,mrrescue,alex4,packages

A classifier needs few seconds of many places, and frames of 160 x 90 pixels.
The beginning of each recorded film is written again at 10 frames per second
with 180 rows, and each film of play also sped up, cropped and covered. Films
that were made from others are made anew rather than copied. `EXCERPTS` has a
table of labels like `FILMS`; films that exist are kept.
"""

import argparse
import math
import pathlib
import sys
from collections.abc import Iterator, Sequence

import av
import numpy as np

from data_pipelines.recorder import derive, film, plan
from genie_jax.core import errors, files, progress

_FPS, _ROWS = 10, 180
_VARIANTS = ("sped_up", "cropped", "overlay")


def shortened(path: pathlib.Path, seconds: float) -> Iterator[np.ndarray]:
  """Yields the beginning of a film, at 10 frames per second and 180 rows.

  A frame stands for each tenth of a second: the first that is not earlier.

  Args:
    path: The film.
    seconds: Longest length.

  Yields:
    uint8 [180, W, 3]; W is even and keeps the shape of the picture.
  """
  with av.open(str(path)) as container:
    if not container.streams.video:
      raise EOFError("it has no pictures")
    stream = container.streams.video[0]
    columns = 2 * round(_ROWS * stream.width / stream.height / 2)
    count, first = 0, None
    for frame in container.decode(stream):
      assert frame.time is not None
      first = frame.time if first is None else first
      now = frame.time - first
      if count >= round(seconds * _FPS):
        return
      # Times of libav are rounded, so a tenth may end a little early.
      if now + 1e-3 < count / _FPS:
        continue
      small = frame.reformat(
        columns, _ROWS, format="rgb24", interpolation="AREA"
      ).to_ndarray()
      while count / _FPS <= now + 1e-3 and count < round(seconds * _FPS):
        yield small
        count += 1


def jobs(
  folder: pathlib.Path, names: Sequence[str], seconds: float, out: pathlib.Path
) -> list[plan.Job]:
  """Returns the films to write, those that others are made from first.

  Args:
    folder: What the recorder wrote.
    names: Games whose films are used; "procgen" stands for all of its games.
    seconds: Longest length.
    out: Where films are written.

  Raises:
    UserError: The folder has no table of labels, or no film of a game.
  """
  table = folder / "labels.csv"
  rows = plan.read_labels(table)
  found: list[plan.Job] = []
  for name in names:
    mine = [
      row
      for row in rows
      if row["game"].partition("-")[0] == name
      and row["bad_kind"] not in derive.EDITS
    ]
    if not mine:
      raise errors.UserError(f"--games {name}: {table} has no film of it.")
    found += [_excerpt(row, folder, seconds) for row in mine]
  good = [job for job in found if not job.bad_kind]
  return found + [
    plan.derived(kind, job, number, out)
    for number, job in enumerate(good)
    for kind in _VARIANTS
  ]


def _excerpt(row: dict[str, str], folder: pathlib.Path, seconds: float):
  def write(path: pathlib.Path) -> None:
    film.write_array(path, shortened(folder / row["file"], seconds), _FPS)

  return plan.Job(
    row["file"], row["game"], row["session"], row["bad_kind"], seconds, write
  )


def main(argv: Sequence[str] | None = None) -> int:
  """Entry point of `python -m data_pipelines.recorder.excerpts`."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  add = parser.add_argument
  add("folder", type=pathlib.Path, metavar="FILMS")
  add("--out", type=pathlib.Path, required=True, metavar="DIR")
  add("--games", default="supertux,mrrescue,alex4,packages", metavar="NAME,...")
  add("--seconds", type=float, default=32.0, help="of each film (default: 32)")
  args = parser.parse_args(argv)
  with errors.reported("excerpts") as done:
    done.code = _run(args)
  return done.code


def _run(args: argparse.Namespace) -> int:
  if not 0 < args.seconds < math.inf:
    raise errors.UserError(
      f"--seconds must be positive and finite, not {args.seconds}."
    )
  files.check_writable(args.out, "--out")
  planned = jobs(args.folder, args.games.split(","), args.seconds, args.out)
  for job in progress.track(planned, unit="film", description="excerpts"):
    path = args.out / job.file
    if not path.exists():
      try:
        job.write(path)
      except (OSError, EOFError) as error:  # libav's errors are OSErrors.
        raise errors.UserError(
          f"{job.file} of {args.folder} cannot be read "
          f"({type(error).__name__}: {error}); record it again."
        ) from error
  count = plan.write_labels(args.out, planned)
  print(f"{args.out}: {count} films, listed in {args.out / 'labels.csv'}")
  return 0


if __name__ == "__main__":
  sys.exit(main())
