"""A virtual screen with a game on it: its picture, and keys that are pressed.

The X server Xvfb draws into memory. Its picture is read with libav's x11grab,
which the wheel of PyAV has, and keys are pressed by xdotool. On Debian and
Ubuntu: apt-get install -y --no-install-recommends xvfb xdotool
"""

import contextlib
import os
import pathlib
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence

import av

from genie_jax.core import errors

FPS = 30


def need(programs: Mapping[str, str]) -> None:
  """Checks that programs are installed.

  Args:
    programs: Program -> the Debian package that has it.

  Raises:
    UserError: Some are missing; the message has the command to install them.
  """
  path = f"{os.environ.get('PATH', '')}:/usr/games"
  missing = {
    package
    for program, package in programs.items()
    if shutil.which(program, path=path) is None
  }
  if missing:
    names = " ".join(sorted(missing))
    raise errors.UserError(
      f"Recording needs programs that are not installed; run as root: apt-get "
      f"install -y --no-install-recommends {names}"
    )


class Screen:
  """A running X server with one game.

  Attributes:
    width: Pixels.
    height: Pixels.
    game: The process of the game.
  """

  def __init__(
    self, display: str, game: subprocess.Popen, width: int, height: int
  ):
    self.width, self.height, self.game = width, height, game
    self._display = display
    self._xdotool = subprocess.Popen(
      ["xdotool", "-"],
      stdin=subprocess.PIPE,
      stdout=subprocess.DEVNULL,
      stderr=subprocess.DEVNULL,
      env=dict(os.environ, DISPLAY=display),
      text=True,
    )
    self._held: frozenset[str] = frozenset()
    # The window below the pointer gets the keys: there is no window manager.
    self._tell(f"mousemove {width // 2} {height // 2}")

  def hold(self, keys: Iterable[str]) -> bool:
    """Holds these keys and no others; returns whether that is a change."""
    wanted = frozenset(keys)
    changed = wanted != self._held
    for key in sorted(self._held - wanted):
      self._tell(f"keyup {key}")
    for key in sorted(wanted - self._held):
      self._tell(f"keydown {key}")
    self._held = wanted
    return changed

  def tap(self, key: str, seconds: float = 0.1) -> None:
    """Presses a key for a moment, besides those that are held."""
    self._tell(f"keydown {key}")
    time.sleep(seconds)
    self._tell(f"keyup {key}")

  def frames(self) -> Iterator[av.VideoFrame]:
    """Yields the picture at `FPS` for as long as the game runs.

    `frame.time` is the time of the clock, in seconds.
    """
    options = {
      "video_size": f"{self.width}x{self.height}",
      "framerate": str(FPS),
      "draw_mouse": "0",
    }
    with av.open(self._display, format="x11grab", options=options) as grabbed:
      for frame in grabbed.decode(video=0):
        if self.game.poll() is not None:
          return
        yield frame

  def close(self) -> None:
    """Lets go of all keys."""
    with contextlib.suppress(BrokenPipeError):
      self.hold(())
      assert self._xdotool.stdin is not None
      self._xdotool.stdin.close()
    _end(self._xdotool)

  def _tell(self, command: str) -> None:
    assert self._xdotool.stdin is not None
    self._xdotool.stdin.write(command + "\n")
    self._xdotool.stdin.flush()


@contextlib.contextmanager
def start(
  command: Sequence[str],
  width: int,
  height: int,
  home: pathlib.Path,
) -> Iterator[Screen]:
  """Starts an X server and a game on it, and ends both with the block.

  Args:
    command: The game and its arguments.
    width: Of the screen, in pixels.
    height: Of the screen, in pixels.
    home: The game's home folder; the user's own settings are not read.

  Raises:
    UserError: The X server does not start.
  """
  with contextlib.ExitStack() as stack:
    display = stack.enter_context(_server(width, height))
    environment = dict(
      os.environ,
      DISPLAY=display,
      HOME=str(home),
      XDG_DATA_HOME=str(home / "share"),
      XDG_CONFIG_HOME=str(home / "config"),
      SDL_AUDIODRIVER="dummy",
      ALSOFT_DRIVERS="null",
      LIBGL_ALWAYS_SOFTWARE="1",
      # One game must not take all cores for its picture.
      LP_NUM_THREADS="1",
      PATH=f"{os.environ.get('PATH', '')}:/usr/games",
    )
    game = subprocess.Popen(
      list(command),
      env=environment,
      cwd=home,
      stdin=subprocess.DEVNULL,
      stdout=subprocess.DEVNULL,
      stderr=subprocess.DEVNULL,
    )
    stack.callback(_end, game)
    screen = Screen(display, game, width, height)
    stack.callback(screen.close)
    yield screen


@contextlib.contextmanager
def _server(width: int, height: int) -> Iterator[str]:
  """Runs Xvfb on a free display, whose name is yielded."""
  reader, writer = os.pipe()
  with tempfile.TemporaryFile() as log:
    server = subprocess.Popen(
      [
        "Xvfb",
        "-displayfd",
        str(writer),
        "-screen",
        "0",
        f"{width}x{height}x24",
        "-nolisten",
        "tcp",
      ],
      stdin=subprocess.DEVNULL,
      stdout=log,
      stderr=log,
      pass_fds=[writer],
    )
    os.close(writer)
    try:
      with os.fdopen(reader) as numbers:
        number = numbers.readline().strip()
      if not number:
        log.seek(0)
        lines = log.read().decode(errors="replace").split("\n")
        raise errors.UserError(
          f"Xvfb does not start: {' '.join(lines[-3:]).strip()}"
        )
      yield f":{number}"
    finally:
      _end(server)


def _end(process: subprocess.Popen) -> None:
  """Ends a process, by force if it does not end by itself."""
  process.terminate()
  try:
    process.wait(timeout=3)
  except subprocess.TimeoutExpired:
    process.kill()
    process.wait()
