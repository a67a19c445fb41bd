"""Records one film of a real game: play, a menu, or a paused game."""

import contextlib
import dataclasses
import itertools
import pathlib
import tempfile
import time
from collections.abc import Iterator

import av
import numpy as np

from data_pipelines.recorder import film as film_lib
from data_pipelines.recorder import games, players, screen

_VIEW = (80, 45)  # Width and height of what the player sees.
# A film of play ends when nothing has scrolled for so long: the hero is stuck.
_STUCK_SECONDS = 10.0
_START_SECONDS = 30.0
_INTRO_TAP_SECONDS = 0.5
_PAUSE_TRIES = 6
_STILL = 0.15  # Mean difference of grey levels below which nothing moves.
_DARK = 25  # Mean grey level below which a game still shows its title.


@dataclasses.dataclass(frozen=True)
class Recorded:
  """What was recorded.

  Attributes:
    frames: Number of frames.
    seconds: Length of the film.
    scrolling: Share of the time in which the view scrolled; 0 for menus.
  """

  frames: int
  seconds: float
  scrolling: float


def play(
  game: games.Game, level: str, seed: int, seconds: float, path: pathlib.Path
) -> Recorded:
  """Records play of one level, with the table of keys beside the film.

  The film ends early when the level is over or the player is stuck.
  """
  rows: list[tuple[float, frozenset[str]]] = []
  player = players.Player(game.keys, game.style, seed)
  with _running(game, lambda home: game.play(level, seed, home)) as shown:
    _skip_intro(game, shown)

    def tick(clock: float, view: np.ndarray) -> bool:
      held = player.step(view)
      if shown.hold(held) or not rows:
        rows.append((time.time() - clock, held))
      return player.still_seconds < _STUCK_SECONDS

    frames, length = _film(shown, seconds, path, tick, rows)
  return Recorded(frames, length, player.moving_ticks / max(1, player.ticks))


def menu(
  game: games.Game, seed: int, seconds: float, path: pathlib.Path
) -> Recorded:
  """Records somebody who moves through the menus."""
  rng = np.random.default_rng(seed)
  with _running(game, lambda home: game.menu(seed, home)) as shown:
    time.sleep(6.0)
    shown.tap(game.pause)  # Splash screens end with a key.
    time.sleep(1.0)
    for key in game.menus[seed % len(game.menus)]:
      shown.tap(key)
      time.sleep(0.9)
    wait = 0.0

    def tick(clock: float, view: np.ndarray) -> bool:
      nonlocal wait
      wait -= players.TICK_SECONDS
      if wait <= 0:
        wait = rng.uniform(0.4, 3.0)
        shown.tap(str(rng.choice(["Down", "Up"], p=[0.6, 0.4])))
      return True

    frames, length = _film(shown, seconds, path, tick)
  return Recorded(frames, length, 0.0)


def paused(
  game: games.Game, level: str, seed: int, seconds: float, path: pathlib.Path
) -> Recorded:
  """Records a game that was paused after some seconds of play."""
  player = players.Player(game.keys, game.style, seed)
  with _running(game, lambda home: game.play(level, seed, home)) as shown:
    _skip_intro(game, shown)
    rng = np.random.default_rng(seed)
    end = time.time() + rng.uniform(4.0, 15.0)
    for step, frame in enumerate(shown.frames()):
      if step % 3 == 0:
        shown.hold(player.step(_view(frame)))
      if time.time() > end:
        break
    shown.hold(())
    _pause(game, shown)
    frames, length = _film(shown, seconds, path, lambda clock, view: True)
  return Recorded(frames, length, 0.0)


@contextlib.contextmanager
def _running(game: games.Game, command) -> Iterator[screen.Screen]:
  """Starts a game in a temporary home folder."""
  with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
    home = pathlib.Path(folder)
    with screen.start(command(home), game.width, game.height, home) as shown:
      yield shown


def _skip_intro(game: games.Game, shown: screen.Screen) -> None:
  """Waits until the game shows something, and presses the intro's keys."""
  end = time.time() + _START_SECONDS
  for step, frame in enumerate(shown.frames()):
    if step > 30 and (_view(frame).max() > 60 or time.time() > end):
      break
  for key in game.intro:
    if isinstance(key, str):
      # Games do not look at keys while a picture fades in.
      shown.tap(key, _INTRO_TAP_SECONDS)
    else:
      time.sleep(key)
  for frame in shown.frames():
    if _view(frame).mean() > _DARK or time.time() > end:
      break


def _pause(game: games.Game, shown: screen.Screen) -> None:
  """Opens the menu in the middle of play.

  A game does not look at keys while the hero dies or a level begins, so the
  key is pressed again until the picture stands still.

  Raises:
    EOFError: The game cannot be paused.
  """
  for _ in range(_PAUSE_TRIES):
    shown.tap(game.pause)
    time.sleep(1.5)
    views = (_view(f) for f in itertools.islice(shown.frames(), 0, 31, 10))
    pairs = itertools.pairwise(view.astype(np.int16) for view in views)
    if all(np.abs(one - two).mean() < _STILL for one, two in pairs):
      return
  raise EOFError("the game cannot be paused")


def _film(
  shown: screen.Screen, seconds: float, path: pathlib.Path, tick, rows=None
) -> tuple[int, float]:
  """Writes what the screen shows; returns the frames and the seconds.

  Args:
    shown: The screen.
    seconds: Longest length.
    path: The film.
    tick: Called ten times a second with the clock's time of the first frame
      and the view; the film ends when it returns False.
    rows: The table of keys, written before the film gets its name.
  """
  count, begin, now, due = 0, 0.0, 0.0, 0.0
  with film_lib.FilmWriter(
    path, shown.width, shown.height, screen.FPS
  ) as writer:
    for frame in shown.frames():
      assert frame.time is not None
      begin = begin or frame.time
      now = frame.time - begin
      if now >= due:
        due = max(due + players.TICK_SECONDS, now)
        if not tick(begin, _view(frame)):
          break
      writer.write(frame, now)
      count += 1
      if now >= seconds:
        break
    if rows is not None:
      film_lib.write_keys(path, rows)
  return count, now


def _view(frame: av.VideoFrame) -> np.ndarray:
  """Returns the picture as uint8 [45, 80], grey."""
  return frame.reformat(*_VIEW, format="gray").to_ndarray()
