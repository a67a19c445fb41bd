"""The real games that are recorded: how each starts, and which keys it has.

Each game starts inside a level, so that a film begins with play. Two small
changes keep the player in the game; both are made to a temporary copy:

  SuperTux    the level's script gives the hero back what a hit took, every
              second; he still dies in pits
  Mr. Rescue  the building is chosen by the seed, a fire does not kill, texts
              between floors are skipped, and a new game begins when one is
              over, or after 75 seconds

Alex 4 runs unchanged.
"""

import dataclasses
import pathlib
import re
import zipfile
from collections.abc import Callable, Sequence

from data_pipelines.recorder import players, screen

_TUX_LEVELS = pathlib.Path("/usr/share/games/supertux2/levels")
_RESCUE = pathlib.Path("/usr/share/games/mrrescue/mrrescue.love")


@dataclasses.dataclass(frozen=True)
class Game:
  """A game that runs on a virtual screen.

  Attributes:
    name: Short name, also that of its folder of films.
    width: Pixels of the picture.
    height: Pixels of the picture.
    programs: Program -> Debian package.
    levels: Levels that are played, in this order.
    keys: Keys that the player has.
    play: (level, seed, home folder) -> command that starts in the level.
    menu: (seed, home folder) -> command that starts in the main menu.
    intro: Keys and pauses in seconds between the start and play.
    menus: Ways into the menus: keys that are tapped, one a second.
    pause: The key that opens the menu in the middle of play.
    style: How the player plays.
    place: Level -> name of its place; films of a place belong together.
    longest: Seconds after which a game is likely to be over.
  """

  name: str
  width: int
  height: int
  programs: dict[str, str]
  levels: Sequence[str]
  keys: players.Keys
  play: Callable[[str, int, pathlib.Path], list[str]]
  menu: Callable[[int, pathlib.Path], list[str]]
  intro: Sequence[str | float]
  menus: Sequence[Sequence[str]]
  pause: str
  style: players.Style = dataclasses.field(default_factory=players.Style)
  place: Callable[[str], str] = lambda level: level.replace("/", "_")
  longest: float = float("inf")


_TOOLS = {"Xvfb": "xvfb", "xdotool": "xdotool"}


def _tux_command(home: pathlib.Path) -> list[str]:
  """Returns SuperTux without a level."""
  return [
    "supertux2",
    "--window",
    "--geometry",
    "640x360",
    "--renderer",
    "sdl",
    "--disable-sound",
    "--disable-music",
    "--userdir",
    str(home / "supertux"),
  ]


def _play_tux(level: str, seed: int, home: pathlib.Path) -> list[str]:
  """Returns SuperTux in a level whose hero recovers from hits."""
  source = _TUX_LEVELS / f"{level}.stl"
  text = source.read_text(errors="replace")
  # Each sector has a script; the loop runs beside the game.
  loop = 'while(true) { Tux.add_bonus(\\"grow\\"); wait(1.0); }'
  text, scripts = re.subn(
    r'\(init-script\s*"', f'(init-script "{_beside(loop)} ', text
  )
  if not scripts:
    text = re.sub(
      r"\(sector\b",
      lambda found: f'(sector\n    (init-script "{_beside(loop)}")',
      text,
    )
  copy = home / "supertux" / "levels" / source.parent.name / source.name
  copy.parent.mkdir(parents=True, exist_ok=True)
  copy.write_text(text)
  return [*_tux_command(home), str(copy)]


def _beside(loop: str) -> str:
  """Returns Squirrel code that runs a loop beside the level's own script."""
  return f"::recover <- newthread(function() {{ {loop} }}); ::recover.call();"


# After this time, flames fill the rooms.
_RESCUE_SECONDS = 75
_RESCUE_HOOK = """
local load, update = love.load, love.update
function love.load()
  load()
  math.randomseed({seed})
  level = {level}
  ingame.enter()
end
function love.update(dt)
  update(dt)
  if state == STATE_INGAME_MENU then return end
  local over = state ~= STATE_INGAME or ingame_state == INGAME_GAMEOVER
      or ingame_state == INGAME_WON
  if state == STATE_INGAME then
    player.temperature = math.min(player.temperature, 0.5)
    casualties = 0
    if ingame_state == INGAME_PRESCREEN then
      ingame_state, transition_time = INGAME_FADE_IN, 0
    elseif ingame_state ~= INGAME_ACTIVE then
      transition_time = transition_time + 2 * dt
    end
    over = over or time > {restart}
  end
  if over then
    level = {level}
    ingame.enter()
  end
end
"""


def _unpack_rescue(home: pathlib.Path) -> pathlib.Path:
  """Unpacks Mr. Rescue and sets its window to twice its pixels."""
  folder = home / "mrrescue"
  with zipfile.ZipFile(_RESCUE) as archive:
    archive.extractall(folder)
  config = folder / "config.lua"
  text = config.read_text()
  for before, after in (
    ("scale = 3", "scale = 2"),
    ("vsync = true", "vsync = false"),
  ):
    assert before in text, before
    text = text.replace(before, after)
  config.write_text(text)
  return folder


def _play_rescue(level: str, seed: int, home: pathlib.Path) -> list[str]:
  """Returns Mr. Rescue in a building; a level is "BUILDING-SEED"."""
  folder = _unpack_rescue(home)
  building, number = level.removeprefix("building").split("-")
  with open(folder / "main.lua", "a") as file:
    hook = _RESCUE_HOOK.replace("{seed}", str(int(number)))
    hook = hook.replace("{level}", str(int(building)))
    file.write(hook.replace("{restart}", str(_RESCUE_SECONDS)))
  return ["love", str(folder)]


def _menu_rescue(seed: int, home: pathlib.Path) -> list[str]:
  """Returns Mr. Rescue as it is, which begins with its menu."""
  return ["love", str(_unpack_rescue(home))]


SUPERTUX = Game(
  name="supertux",
  width=640,
  height=360,
  programs={"supertux2": "supertux", **_TOOLS},
  # Levels in which this player walks for minutes: in others he falls into a
  # hole that he cannot leave.
  levels=(
    "world1/welcome_antarctica",
    "world1/journey_begins",
    "world1/via_nostalgica",
    "world1/more_snowballs",
    "world1/frosted_fields",
    "bonus2/level2",
    "world1/fork_in_the_road",
    "bonus1/bonus-level2",
    "bonus3/snowy_hill",
    "world1/or_just_me",
    "bonus1/abednego-level1",
    "world1/frozen_bridge",
    "world1/icy_valley",
  ),
  keys=players.Keys(run="Control_L"),
  play=_play_tux,
  menu=lambda seed, home: _tux_command(home),
  intro=(3.0, "space", 1.5),
  menus=(
    (),
    ("Down", "Down", "Down", "Return"),
    ("Down", "Return"),
    ("Return",),
    ("Down", "Down", "Return"),
  ),
  pause="Escape",
)

MRRESCUE = Game(
  name="mrrescue",
  width=512,
  height=400,
  programs={"love": "mrrescue", "mrrescue": "mrrescue", **_TOOLS},
  levels=tuple(
    f"building{1 + number % 3}-{number:02d}" for number in range(24)
  ),
  keys=players.Keys(jump="s", up="Up", shoot="d"),
  play=_play_rescue,
  menu=_menu_rescue,
  intro=(6.0,),
  menus=(
    ("Down", "Return"),
    ("Down", "Down", "Down", "Return"),
    (),
    ("Down", "Down", "Return"),
    ("Down", "Down", "Down", "Down", "Return"),
  ),
  pause="Escape",
  # The view follows the hero through rooms on both sides; flames flicker in
  # much of the picture.
  style=players.Style(right=0.47, left=0.45, scrolls=0.3, climbs=0.5),
)

ALEX4 = Game(
  name="alex4",
  width=640,
  height=480,
  programs={"alex4": "alex4", **_TOOLS},
  # Every game begins in the same level, so all films have one place.
  levels=tuple(f"start-{number:02d}" for number in range(24)),
  keys=players.Keys(jump="Alt_L", shoot="Control_L"),
  play=lambda level, seed, home: ["alex4"],
  menu=lambda seed, home: ["alex4"],
  intro=(0.8, "Escape", 2.5, "Return", 4.0),
  menus=((), ("Down", "Return")),
  pause="Escape",
  style=players.Style(right=0.75, left=0.17, scrolls=0.05, jumps=0.8),
  place=lambda level: "start",
  longest=60.0,
)

GAMES = {game.name: game for game in (SUPERTUX, MRRESCUE, ALEX4)}


def check(game: Game) -> None:
  """Raises UserError if a program that the game needs is not installed."""
  screen.need(game.programs)
