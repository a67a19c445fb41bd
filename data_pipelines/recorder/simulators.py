"""Films of games that a Python library plays: procgen and Atari.

procgen's frames have 64 x 64 pixels and Atari's 160 x 210; both are enlarged by
whole numbers. The rights to Atari's games are not clear, so these films are for
training only: publish neither the films nor pictures of them.
"""

import importlib
import importlib.util
import pathlib
from collections.abc import Iterator

import numpy as np

from data_pipelines.procgen import client, collect
from data_pipelines.recorder import film
from genie_jax.core import errors

_FIRST = (
  "coinrun",
  "ninja",
  "climber",
  "jumper",
  "starpilot",
  "fruitbot",
  "bigfish",
  "caveflyer",
)
PROCGEN = (*_FIRST, *(name for name in client.GAMES if name not in _FIRST))
# Games for one player in which something moves all the time.
ATARI = (
  "pitfall",
  "montezuma_revenge",
  "seaquest",
  "hero",
  "adventure",
  "alien",
  "amidar",
  "assault",
  "asterix",
  "atlantis",
  "bank_heist",
  "beam_rider",
  "berzerk",
  "carnival",
  "centipede",
  "chopper_command",
  "crazy_climber",
  "demon_attack",
  "donkey_kong",
  "enduro",
  "freeway",
  "frogger",
  "frostbite",
  "gopher",
  "jamesbond",
  "kangaroo",
  "krull",
  "kung_fu_master",
  "mario_bros",
  "ms_pacman",
  "phoenix",
  "pitfall2",
  "pooyan",
  "qbert",
  "riverraid",
  "road_runner",
  "robotank",
  "space_invaders",
  "tutankham",
  "up_n_down",
  "venture",
  "zaxxon",
)

_PROCGEN_SCALE, _PROCGEN_SMALL_SCALE = 5, 2
_LEVEL_SECONDS = 40.0
_DIRECTIONS = ("Left", "", "Right"), ("Down", "", "Up")

_ATARI_FPS = 60
# Frames of the console for each frame of the film.
_ATARI_EVERY, _ATARI_SMALL_EVERY = 2, 4
_ATARI_SCALE = 2
_ATARI_HOLDS = (0.2, 1.2)  # Seconds for which an action is held.
_ATARI_WORDS = {"LEFT": "Left", "RIGHT": "Right", "UP": "Up", "DOWN": "Down"}


def procgen(
  game: str,
  take: int,
  seconds: float,
  path: pathlib.Path,
  *,
  small: bool = False,
) -> list[int]:
  """Writes a film of some levels, played by the walker, with its keys.

  Args:
    game: A name in `client.GAMES`.
    take: Number of the film; films have different levels.
    seconds: Length.
    path: The film.
    small: Whether the film has 128 x 128 pixels instead of 320 x 320.

  Returns:
    The levels' seeds.
  """
  per_level = round(min(seconds, _LEVEL_SECONDS) * client.FPS)
  count = max(1, round(seconds * client.FPS / per_level))
  levels = [take * count + number for number in range(count)]
  options = collect.Options(
    frames_per_level=per_level, game=game, policy="walker"
  )
  played = [collect.play(level, options) for level in levels]
  keys = [_procgen_keys(a) for level in played for a in level.actions.tolist()]
  scale = _PROCGEN_SMALL_SCALE if small else _PROCGEN_SCALE
  frames = (_enlarge(f, scale) for p in played for f in p.frames)
  film.write_array(path, frames, client.FPS, keys)
  return levels


def _procgen_keys(action: int) -> tuple[str, ...]:
  """Returns the keys of an action of procgen."""
  if action >= 9:
    return ("d",)
  horizontal, vertical = divmod(action, 3)
  held = (_DIRECTIONS[0][horizontal], _DIRECTIONS[1][vertical])
  return tuple(key for key in held if key)


def check_atari() -> None:
  """Raises UserError if ale-py is not installed."""
  if importlib.util.find_spec("ale_py") is None:
    raise errors.UserError(
      "Films of Atari games need ale-py, which is not installed; run "
      "`pip install ale-py`, or leave `atari` out of --games."
    )


def atari(
  game: str,
  take: int,
  seconds: float,
  path: pathlib.Path,
  *,
  small: bool = False,
) -> None:
  """Writes a film of an Atari game, with actions held at random, and its keys.

  A new game begins when one is over.

  Args:
    game: A name in `ATARI`.
    take: Number of the film; films have different actions.
    seconds: Length.
    path: The film.
    small: Whether the film has the console's 160 x 210 pixels at 15 frames
      per second, instead of 320 x 420 at 30.
  """
  ale_py = importlib.import_module("ale_py")
  ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
  ale = ale_py.ALEInterface()
  ale.setInt("random_seed", take + 1)
  ale.setFloat("repeat_action_probability", 0.0)
  ale.loadROM(ale_py.roms.get_rom_path(game))
  rng = np.random.default_rng(take)
  actions = ale.getMinimalActionSet()
  every, scale = (
    (_ATARI_SMALL_EVERY, 1) if small else (_ATARI_EVERY, _ATARI_SCALE)
  )
  fps = _ATARI_FPS // every
  names: list[str] = []
  while len(names) < round(seconds * fps):
    action = actions[int(rng.integers(len(actions)))]
    hold = max(1, round(rng.uniform(*_ATARI_HOLDS) * fps))
    names += [action.name] * hold
  names = names[: round(seconds * fps)]

  def frames() -> Iterator[np.ndarray]:
    for name in names:
      yield _enlarge(ale.getScreenRGB(), scale)
      for _ in range(every):
        ale.act(ale_py.Action[name])
      if ale.game_over():
        ale.reset_game()

  film.write_array(path, frames(), fps, [_atari_keys(name) for name in names])


def _atari_keys(name: str) -> tuple[str, ...]:
  """Returns the keys of an action such as "UPRIGHTFIRE"."""
  held = {key for word, key in _ATARI_WORDS.items() if word in name}
  return tuple(sorted(held | ({"space"} if "FIRE" in name else set())))


def _enlarge(frame: np.ndarray, scale: int) -> np.ndarray:
  """Returns [H * scale, W * scale, 3] with square blocks of pixels."""
  return frame.repeat(scale, axis=0).repeat(scale, axis=1)
