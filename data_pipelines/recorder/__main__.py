r"""Records films of real games with scripted keys, good ones and bad ones.

Run:     python -m data_pipelines.recorder --games supertux,mrrescue,procgen \
             --minutes 10 --out FILMS
Needs:   apt-get install -y --no-install-recommends supertux mrrescue alex4 \
             xvfb xdotool
         (as root, Debian or Ubuntu; only for the games that are recorded)

games:
  supertux  SuperTux under a virtual screen, with sound off
  mrrescue  Mr. Rescue, the same
  alex4     Alex 4, the same
  procgen   the 16 games of procgen, played by its walker
  atari     42 games of Atari (pip install ale-py); not to be published
  packages  real videos that Python packages ship, as bad films

Each film of play has a table of keys beside it (data_pipelines/recorder/
film.py). `OUT/labels.csv` says which films are good: file, kind (good or bad),
bad_kind, game, session. Split by session. `OUT/play-GAME.csv` lists the good
films of a game with their keys, for `genie world --videos`.

Films that exist are kept, so an interrupted recording is taken up again by the
same command; films of real games differ from run to run, because their clock
does. Licences: ASSETS.md.
"""

import argparse
import math
import pathlib
import sys
from collections.abc import Sequence
from concurrent import futures

from data_pipelines.recorder import derive, plan
from genie_jax.core import errors, files, progress


def main(argv: Sequence[str] | None = None) -> int:
  """Entry point of `python -m data_pipelines.recorder`."""
  parser = argparse.ArgumentParser(
    prog="python -m data_pipelines.recorder",
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  add = parser.add_argument
  add(
    "--games",
    default="supertux,mrrescue,procgen",
    metavar="NAME,...",
    help="what to record (default: supertux,mrrescue,procgen)",
  )
  add("--minutes", type=float, default=10.0, help="of good play for each game")
  add("--out", type=pathlib.Path, required=True, metavar="DIR")
  add(
    "--film-seconds",
    type=float,
    default=150.0,
    help="length of a film (default: 150)",
  )
  add("--seed", type=int, default=0, help="of the players (default: 0)")
  add(
    "--parallel",
    type=int,
    default=1,
    help="films at the same time; each real game needs about half a core "
    "(default: 1)",
  )
  add(
    "--variants",
    default="",
    metavar="KIND,...",
    help="bad films that are made from each film of play: "
    f"{', '.join(derive.EDITS)} (default: one, of all kinds in turn)",
  )
  add(
    "--small",
    action="store_true",
    help="films of procgen and Atari have few pixels: faster, and enough for a "
    "classifier",
  )
  args = parser.parse_args(argv)
  with errors.reported("recorder") as done:
    done.code = _run(args)
  return done.code


def _run(args: argparse.Namespace) -> int:
  for flag in ("minutes", "film_seconds", "parallel"):
    if not 0 < getattr(args, flag) < math.inf:
      raise errors.UserError(
        f"--{flag.replace('_', '-')} must be positive and finite, not "
        f"{getattr(args, flag)}."
      )
  if args.seed < 0:
    raise errors.UserError(f"--seed must be at least 0, not {args.seed}.")
  files.check_writable(args.out, "--out")
  planned = plan.jobs(
    args.games.split(","),
    args.minutes,
    args.film_seconds,
    args.seed,
    args.out,
    variants=args.variants.split(",") if args.variants else (),
    small=args.small,
  )
  args.out.mkdir(parents=True, exist_ok=True)
  failed: list[str] = []
  total = sum(job.seconds for job in planned)
  with progress.track(
    total=round(total), unit="s of film", description="recording"
  ) as bar:
    # Films that are made from others come last.
    for derived in (False, True):
      group = [job for job in planned if bool(job.after) == derived]
      with futures.ThreadPoolExecutor(args.parallel) as pool:
        for job, problem in pool.map(lambda j: _write(j, args.out), group):
          bar.update(round(job.seconds))
          if problem:
            failed.append(f"{job.file}: {problem}")
          # The tables of 58 games would take longer than a small film.
          plan.write_labels(args.out, planned, with_play=False)
  count = plan.write_labels(args.out, planned)
  print(f"{args.out}: {count} films, listed in {args.out / 'labels.csv'}")
  for line in failed:
    print(f"not written: {line}", file=sys.stderr)
  return 1 if len(failed) == len(planned) else 0


def _write(job: plan.Job, folder: pathlib.Path) -> tuple[plan.Job, str]:
  """Writes one film unless it exists; returns what went wrong, or ""."""
  path = folder / job.file
  if path.exists():
    return job, ""
  if job.after and not (folder / job.after).exists():
    return job, f"{job.after} is missing"
  try:
    job.write(path)
  except (OSError, EOFError) as error:  # libav's errors are OSErrors.
    return job, f"{type(error).__name__}: {error}"
  return job, "" if path.exists() else "the game ended at once"


if __name__ == "__main__":
  sys.exit(main())
