"""Plays procgen's games through their C library, without the Python package.

The wheel `procgen-mirror` needs a numpy below 2 and exists for only two Python
versions. Its shared library depends on neither: it has the plain C interface of
gym3's `libenv.h`, which this module calls with ctypes. Frames and episode flags
are bit-identical to those from gym3 (a test compares their checksums).

The wheel is downloaded once, checked by its SHA-256 and unpacked to the user's
cache folder. On machines without a network, set `GENIE_PROCGEN=/folder` to a
folder with the unpacked wheel. The library itself needs libGL and glib.
"""

import ctypes
import functools
import os
import pathlib
import platform
import shutil
import sys
import tempfile
import types
import uuid
import zipfile
from typing import Self

import numpy as np

from genie_jax.core import cache, errors, files, packages

WHEEL = "procgen-mirror==0.10.7"
WHEEL_SHA256 = (
  "992aff14a0bc39c5fd594b68c3243c06e01b1a94f47ff261e60cc316c01660a7"
)
NUM_ACTIONS = 15
FRAME_SHAPE = (64, 64, 3)
FPS = 15  # procgen's own "video.frames_per_second"
MODES = {"easy": 0, "hard": 1}  # DistributionMode in procgen's game.h
GAMES = (
  "bigfish",
  "bossfight",
  "caveflyer",
  "chaser",
  "climber",
  "coinrun",
  "dodgeball",
  "fruitbot",
  "heist",
  "jumper",
  "leaper",
  "maze",
  "miner",
  "ninja",
  "plunder",
  "starpilot",
)

_LIBRARY = pathlib.Path("procgen/data/prebuilt/libenv.so")
_ASSETS = pathlib.Path("procgen/data/assets")
_UNPACKED = ("procgen/data/", "procgen_mirror.libs/", "procgen_mirror-")
_APT = "apt-get install -y libgl1 libglib2.0-0"

# Constants and structures of libenv.h, version 1.
_LIBENV_VERSION = 1
_UINT8, _INT32 = 1, 2
_OBSERVATION, _ACTION, _INFO = 1, 2, 3
_MAX_NAME, _MAX_RANK = 128, 16
_MAX_STATE = 1 << 20  # Bytes; the largest state of a game has about 40,000.


class _TensorType(ctypes.Structure):
  _fields_ = [
    ("name", ctypes.c_char * _MAX_NAME),
    ("scalar_type", ctypes.c_int),
    ("dtype", ctypes.c_int),
    ("shape", ctypes.c_int * _MAX_RANK),
    ("rank", ctypes.c_int),
    ("low", ctypes.c_uint32),
    ("high", ctypes.c_uint32),
  ]


class _Option(ctypes.Structure):
  _fields_ = [
    ("name", ctypes.c_char * _MAX_NAME),
    ("dtype", ctypes.c_int),
    ("count", ctypes.c_int),
    ("data", ctypes.c_void_p),
  ]


class _Options(ctypes.Structure):
  _fields_ = [("items", ctypes.POINTER(_Option)), ("count", ctypes.c_int)]


class _Buffers(ctypes.Structure):
  _fields_ = [
    ("observation", ctypes.POINTER(ctypes.c_void_p)),
    ("reward", ctypes.c_void_p),
    ("first", ctypes.c_void_p),
    ("info", ctypes.POINTER(ctypes.c_void_p)),
    ("action", ctypes.POINTER(ctypes.c_void_p)),
  ]


def _download(folder: pathlib.Path) -> pathlib.Path:
  """Downloads the wheel to `folder`, checks it, and returns its path."""
  try:
    wheel = packages.download(
      WHEEL,
      folder,
      "--only-binary=:all:",
      "--python-version=3.11",
      "--platform=manylinux2014_x86_64",
    )
  except packages.DownloadError as error:
    raise errors.UserError(
      f"The wheel {WHEEL} cannot be downloaded ({error}); check the network, "
      "or unpack it by hand and set GENIE_PROCGEN to its folder."
    ) from error
  found = files.sha256(wheel)
  if found != WHEEL_SHA256:
    raise errors.UserError(
      f"The downloaded wheel {WHEEL} has sha256 {found}, but "
      f"{WHEEL_SHA256} is needed; check the package index, or set "
      "GENIE_PROCGEN to an unpacked wheel that you trust."
    )
  return wheel


def folder() -> pathlib.Path:
  """Returns the folder of the unpacked wheel, downloading it if needed.

  Raises:
    UserError: This is not x86-64 Linux, the wheel cannot be downloaded, or
      GENIE_PROCGEN names a folder without it.
  """
  if sys.platform != "linux" or platform.machine() != "x86_64":
    raise errors.UserError(
      "procgen's library is built for x86-64 Linux only, and this is "
      f"{sys.platform} on {platform.machine()}; collect the clips on an "
      "x86-64 Linux machine (or in such a container) and copy the folder."
    )
  chosen = os.environ.get("GENIE_PROCGEN")
  if chosen:
    if not (pathlib.Path(chosen) / _LIBRARY).is_file():
      raise errors.UserError(
        f"GENIE_PROCGEN={chosen} has no {_LIBRARY}; set it to the folder "
        f"where the wheel {WHEEL} was unpacked, or unset it."
      )
    return pathlib.Path(chosen)
  target = cache.user_folder() / WHEEL.replace("==", "-")
  if target.is_dir():
    return target
  target.parent.mkdir(parents=True, exist_ok=True)
  fresh = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.tmp")
  try:
    with (
      tempfile.TemporaryDirectory(dir=target.parent) as downloads,
      zipfile.ZipFile(_download(pathlib.Path(downloads))) as wheel,
    ):
      wheel.extractall(
        fresh, [name for name in wheel.namelist() if name.startswith(_UNPACKED)]
      )
    try:
      os.rename(fresh, target)
    except OSError:
      # If it exists, another process was faster; its copy is used.
      if not target.is_dir():
        raise
  finally:
    shutil.rmtree(fresh, ignore_errors=True)
  return target


@functools.cache
def load() -> ctypes.CDLL:
  """Returns the C library, downloading it if needed.

  Raises:
    UserError: It cannot be downloaded, or libGL or glib is missing.
  """
  path = folder() / _LIBRARY
  # DEEPBIND as in gym3, so that the library uses its own Qt even if another
  # one is loaded.
  mode = os.RTLD_NOW | os.RTLD_LOCAL | os.RTLD_DEEPBIND
  try:
    library = ctypes.CDLL(str(path), mode=mode)
  except OSError as error:
    raise errors.UserError(
      f"procgen's library does not load ({error}); it needs libGL and "
      f"glib, run as root: {_APT}"
    ) from error
  library.libenv_make.restype = ctypes.c_void_p
  library.libenv_make.argtypes = [ctypes.c_int, _Options]
  library.libenv_get_tensortypes.argtypes = [
    ctypes.c_void_p,
    ctypes.c_int,
    ctypes.POINTER(_TensorType),
  ]
  library.libenv_set_buffers.argtypes = [
    ctypes.c_void_p,
    ctypes.POINTER(_Buffers),
  ]
  for name in ("libenv_observe", "libenv_act", "libenv_close"):
    function = library[name]
    function.argtypes, function.restype = [ctypes.c_void_p], None
    setattr(library, name, function)
  state = [ctypes.c_void_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_int]
  library.get_state.argtypes = library.set_state.argtypes = state
  library.get_state.restype = ctypes.c_int
  library.set_state.restype = None
  version = library.libenv_version()
  assert version == _LIBENV_VERSION, version
  return library


def _options(values: dict[str, bool | int | str]) -> tuple[_Options, list]:
  """Returns procgen's options and the memory that must outlive them."""
  items = (_Option * len(values))()
  kept: list = [items]
  for item, (name, value) in zip(items, values.items(), strict=True):
    if isinstance(value, bool):
      data, dtype, count = ctypes.c_uint8(value), _UINT8, 1
    elif isinstance(value, int):
      data, dtype, count = ctypes.c_int32(value), _INT32, 1
    else:
      data = ctypes.create_string_buffer(value.encode())
      dtype, count = _UINT8, len(value.encode())
    kept.append(data)
    item.name, item.dtype, item.count = name.encode(), dtype, count
    item.data = ctypes.addressof(data)
  return _Options(items, len(values)), kept


class Env:
  """One level of a game, played step by step; used as a context manager.

  When an episode ends (goal, death, or the game's limit of steps), the same
  level restarts immediately: `first` is then True and `frame` is already the
  first frame of the new episode; the last frame of the old one is never drawn.

  Args:
    game: A name in `GAMES`.
    level: The level's seed.
    mode: "hard" or "easy".

  Attributes:
    frame: [64, 64, 3] uint8, RGB; overwritten by the next step.
  """

  def __init__(self, game: str, level: int, mode: str = "hard"):
    self._library = load()
    # The defaults of procgen's own environment, except for one level, no
    # threads, and a fixed seed of everything that the level does not determine.
    options, self._kept = _options(
      {
        "center_agent": True,
        "use_generated_assets": False,
        "use_monochrome_assets": False,
        "restrict_themes": False,
        "use_backgrounds": True,
        "paint_vel_info": False,
        "distribution_mode": MODES[mode],
        "env_name": game,
        "num_levels": 1,
        "start_level": int(level),
        "num_actions": NUM_ACTIONS,
        "use_sequential_levels": False,
        "debug_mode": 0,
        "rand_seed": 0,
        "num_threads": 0,
        "render_human": False,
        "resource_root": f"{folder() / _ASSETS}/",
      }
    )
    self._handle = self._library.libenv_make(1, options)
    spaces = {
      space: self._allocate(space) for space in (_OBSERVATION, _INFO, _ACTION)
    }
    self.frame = spaces[_OBSERVATION]["rgb"]
    self._action = spaces[_ACTION]["action"]
    self._saved = ctypes.create_string_buffer(_MAX_STATE)
    self._reward = np.zeros(1, np.float32)
    self._first = np.zeros(1, np.uint8)
    assert self.frame.shape == FRAME_SHAPE, self.frame.shape

    def pointers(arrays: dict[str, np.ndarray]) -> ctypes.Array:
      table = (ctypes.c_void_p * len(arrays))(
        *(array.ctypes.data for array in arrays.values())
      )
      self._kept += [arrays, table]
      return table

    buffers = _Buffers(
      pointers(spaces[_OBSERVATION]),
      self._reward.ctypes.data,
      self._first.ctypes.data,
      pointers(spaces[_INFO]),
      pointers(spaces[_ACTION]),
    )
    self._kept.append(buffers)
    self._library.libenv_set_buffers(self._handle, ctypes.byref(buffers))

  def _allocate(self, space: int) -> dict[str, np.ndarray]:
    ask = self._library.libenv_get_tensortypes
    found = (_TensorType * ask(self._handle, space, None))()
    ask(self._handle, space, found)
    dtypes = {_UINT8: np.uint8, _INT32: np.int32}
    return {
      item.name.decode(): np.zeros(
        tuple(item.shape[: item.rank]), dtypes[item.dtype]
      )
      for item in found
    }

  def observe(self) -> tuple[float, bool]:
    """Draws `frame`; returns the reward and `first` of the step to it."""
    self._library.libenv_observe(self._handle)
    return float(self._reward[0]), bool(self._first[0])

  def act(self, action: int) -> None:
    """Takes one of the 15 actions."""
    assert 0 <= action < NUM_ACTIONS, action
    self._action[...] = action
    self._library.libenv_act(self._handle)

  def get_state(self) -> bytes:
    """Returns the complete state of the game, random generators included."""
    size = self._library.get_state(self._handle, 0, self._saved, _MAX_STATE)
    return ctypes.string_at(self._saved, size)

  def set_state(self, state: bytes) -> None:
    """Restores a state that `get_state` returned for this game.

    The steps after it equal, bit for bit, those after the state was saved.
    `frame` is redrawn by the next `observe`.
    """
    self._library.set_state(self._handle, 0, state, len(state))

  def close(self) -> None:
    """Frees the level; the object cannot be used again."""
    if self._handle is not None:
      self._library.libenv_close(self._handle)
      self._handle = None

  def __enter__(self) -> Self:
    return self

  def __exit__(
    self,
    kind: type[BaseException] | None,
    error: BaseException | None,
    trace: types.TracebackType | None,
  ) -> None:
    self.close()
