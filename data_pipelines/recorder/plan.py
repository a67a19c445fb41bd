"""Which films a recording consists of, and their labels.

Films of the same place of a game (a level, a menu) belong to one session, also
those that are derived from others. Split by session, so that no place is in two
splits.
"""

import csv
import dataclasses
import io
import math
import pathlib
from collections.abc import Callable, Iterable, Sequence

from data_pipelines.recorder import (
  derive,
  games,
  packaged,
  record,
  simulators,
)
from genie_jax.core import errors, files

GAMES = (*games.GAMES, "procgen", "atari", "packages")

_COLUMNS = ("file", "kind", "bad_kind", "game", "session")
_MENU_EVERY, _PAUSED_EVERY = 3, 3  # Good films for each film of these kinds.
_BAD_SHARE = 0.5  # Length of a bad film, of that of a good one.


@dataclasses.dataclass(frozen=True)
class Job:
  """A film to write.

  Attributes:
    file: Path below the folder.
    game: Its game.
    session: See the module.
    bad_kind: What is wrong with the film; "" for good ones.
    after: The film that must exist before, or "".
    seconds: Longest length.
    write: Writes the film to a path.
  """

  file: str
  game: str
  session: str
  bad_kind: str
  seconds: float
  write: Callable[[pathlib.Path], object]
  after: str = ""

  @property
  def row(self) -> dict[str, str]:
    """The film's row in the table of labels."""
    return {
      "file": self.file,
      "kind": "bad" if self.bad_kind else "good",
      "bad_kind": self.bad_kind,
      "game": self.game,
      "session": self.session,
    }


def jobs(
  names: Sequence[str],
  minutes: float,
  film_seconds: float,
  seed: int,
  folder: pathlib.Path,
  *,
  variants: Sequence[str] = (),
  small: bool = False,
) -> list[Job]:
  """Returns the films of some games, good ones first in each game.

  Args:
    names: Names in `GAMES`.
    minutes: Minutes of good play for each game.
    film_seconds: Longest film of play.
    seed: Of the players; films have consecutive seeds.
    folder: Where films are written.
    variants: Kinds of bad films, each of which is made from each good film;
      without any, one film is made from each, of all kinds in turn.
    small: Whether films of simulated games are small, see `simulators`.

  Raises:
    UserError: A variant is unknown, or a program or package that a game needs
      is missing.
  """
  simulated = math.ceil(minutes * 60 / film_seconds), film_seconds, seed, small
  found: list[Job] = []
  for name in names:
    if name in games.GAMES:
      games.check(games.GAMES[name])
      found += _real(games.GAMES[name], minutes, film_seconds, seed)
    elif name == "procgen":
      found += _simulated(
        name, simulators.PROCGEN, simulators.procgen, *simulated
      )
    elif name == "atari":
      simulators.check_atari()
      found += _simulated(name, simulators.ATARI, simulators.atari, *simulated)
    elif name == "packages":
      found += _packaged()
    else:
      raise errors.UserError(
        f"--games has no {name!r}{errors.closest(name, GAMES)}; use some of "
        f"{', '.join(GAMES)}."
      )
  good = [job for job in found if not job.bad_kind]
  kinds = list(derive.EDITS)
  for name in variants:
    if name not in kinds:
      raise errors.UserError(
        f"--variants has no {name!r}{errors.closest(name, kinds)}; use some of "
        f"{', '.join(kinds)}."
      )
  return found + [
    derived(kind, job, number, folder)
    for number, job in enumerate(good)
    for kind in variants or [kinds[number % len(kinds)]]
  ]


def _real(
  game: games.Game, minutes: float, seconds: float, seed: int
) -> list[Job]:
  """Returns play, menus and pauses of a game on a virtual screen."""
  seconds = min(seconds, game.longest)
  count = math.ceil(minutes * 60 / seconds)
  found, bad_seconds = [], seconds * _BAD_SHARE
  for number in range(count):
    take, place = divmod(number, len(game.levels))
    level, number_seed = game.levels[place], seed + 1000 * place + take
    stem = f"{game.name}/{level.replace('/', '_')}-{seed + take}"
    session = f"{game.name}-{game.place(level)}"

    def play(path, level=level, number_seed=number_seed):
      return record.play(game, level, number_seed, seconds, path)

    found.append(Job(f"{stem}.mp4", game.name, session, "", seconds, play))
    if number % _PAUSED_EVERY == 1:

      def paused(path, level=level, number_seed=number_seed):
        return record.paused(game, level, number_seed, bad_seconds, path)

      found.append(
        Job(
          f"{stem}.paused.mp4",
          game.name,
          session,
          "paused",
          bad_seconds,
          paused,
        )
      )
    if number % _MENU_EVERY == 2:
      turn = number // _MENU_EVERY

      def menu(path, turn=turn):
        return record.menu(game, seed + turn, bad_seconds, path)

      found.append(
        Job(
          f"{game.name}/menu-{seed + turn}.mp4",
          game.name,
          f"{game.name}-menu{(seed + turn) % len(game.menus)}",
          "menu",
          bad_seconds,
          menu,
        )
      )
  return found


def _simulated(
  name: str,
  titles: Sequence[str],
  write,
  count: int,
  seconds: float,
  seed: int,
  small: bool,
) -> list[Job]:
  """Returns films of the games of a library, one after the other."""
  found = []
  for number in range(count):
    take, place = divmod(number, len(titles))
    title = titles[place]

    def play(path, title=title, take=take):
      return write(title, seed + take, seconds, path, small=small)

    found.append(
      Job(
        f"{name}/{title}-{seed + take}.mp4",
        f"{name}-{title}",
        # Atari's games have few places, procgen's levels are all different.
        f"{name}-{title}" + (f"-{seed + take}" if name == "procgen" else ""),
        "",
        seconds,
        play,
      )
    )
  return found


def _packaged() -> list[Job]:
  """Returns the videos of packages."""
  return [
    Job(
      f"packages/{name}.mp4",
      "packages",
      f"packages-{name.split('_')[0]}",
      "real_video",
      0.0,
      lambda path, name=name: packaged.write([name], path.parent),
    )
    for name in packaged.VIDEOS
  ]


def derived(kind: str, job: Job, seed: int, folder: pathlib.Path) -> Job:
  """Returns a bad film that is made from a good one."""
  file = f"{job.file.removesuffix('.mp4')}.{kind}.mp4"
  seconds = job.seconds * _BAD_SHARE

  def write(path):
    return derive.write(kind, folder / job.file, seed, seconds, path)

  return Job(file, job.game, job.session, kind, seconds, write, after=job.file)


def read_labels(path: pathlib.Path) -> list[dict[str, str]]:
  """Reads a table that `write_labels` wrote.

  Raises:
    UserError: It is missing or no such table.
  """
  try:
    with open(path, newline="", encoding="utf-8") as file:
      reader = csv.DictReader(file, strict=True)
      rows = list(reader)
  except FileNotFoundError as error:
    raise errors.UserError(
      f"{path} does not exist; give a folder that `python -m "
      "data_pipelines.recorder` wrote."
    ) from error
  except (csv.Error, UnicodeDecodeError) as error:
    raise errors.UserError(f"{path} is not CSV ({error}).") from error
  short = [row for row in rows if None in row.values()]
  if not set(_COLUMNS) <= set(reader.fieldnames or ()) or short:
    raise errors.UserError(
      f"{path} needs the columns {','.join(_COLUMNS)} in each row; give a "
      "folder that `python -m data_pipelines.recorder` wrote."
    )
  return rows


def write_labels(
  folder: pathlib.Path, planned: Sequence[Job], *, with_play: bool = True
) -> int:
  """Writes labels.csv for all films that exist; returns their number.

  Rows of earlier recordings to the same folder are kept. The good films of a
  game are also listed in play-GAME.csv, with their tables of keys, for
  `genie data videos --videos` and `genie world --videos`, unless `with_play` is
  False.
  """
  path = folder / "labels.csv"
  rows: dict[str, dict[str, str]] = {}
  if path.exists():
    rows = {row["file"]: row for row in read_labels(path)}
  rows |= {job.file: job.row for job in planned}
  kept = [rows[name] for name in sorted(rows) if (folder / name).exists()]
  _write(path, _COLUMNS, ([row[name] for name in _COLUMNS] for row in kept))
  play: dict[str, list[str]] = {}
  for row in kept:
    if row["kind"] == "good":
      play.setdefault(row["game"], []).append(row["file"])
  for game, names in play.items() if with_play else ():
    keys = [str(pathlib.Path(name).with_suffix(".csv")) for name in names]
    _write(
      folder / f"play-{game}.csv",
      ("path", "actions"),
      zip(names, keys, strict=True),
    )
  return len(kept)


def _write(
  path: pathlib.Path, columns: Sequence[str], rows: Iterable[Sequence[str]]
) -> None:
  text = io.StringIO()
  table = csv.writer(text, lineterminator="\n")
  table.writerow(columns)
  table.writerows(rows)
  files.write_atomic(path, text.getvalue())
