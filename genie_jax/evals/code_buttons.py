"""Makes buttons of a LAM's codes, by how the picture moves under each code.

Neither keys nor the game's state are used: codes are named by the shift of the
picture between the two frames of a transition (`scroll`), by the same rule as
the buttons of a world (`button_names`). Codes with the same name become one
button. In a game with gravity, codes of falling become none, and rising counts
as pressed for a few frames only (`models.button_map`).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from genie_jax.core import errors, files
from genie_jax.data import manifest as manifest_lib
from genie_jax.evals import (
  button_names,
  clips,
  control,
  evaluated_world,
  scroll,
)
from genie_jax.models import button_map, store

NUM_CLIPS = 512
# Rising goes on after the key is released. In CoinRun, 3 frames agree best with
# the true keys (docs/lam.md).
RISE_FRAMES = 3
_NOTHING = "nothing"
_HELD = ("left", "right", _NOTHING)
_RISE = "jump"
_MOST_LEVELS = 100
_BATCH = 32


def measure(
  lam: store.Part,
  folder: files.PathLike,
  *,
  split: str = "train",
  num_clips: int = NUM_CLIPS,
  seed: int = 0,
) -> list[dict[str, Any]]:
  """Names the codes of a LAM by how the picture moves.

  Args:
    lam: A model without `config.model.buttons`.
    folder: A clips folder; its actions and states are not read.
    split: Split to read.
    num_clips: Number of clips, evenly from all levels.
    seed: Of the choice of clips and of the bootstrap.

  Returns:
    For each code {"button", "transitions", "usage", "name", "share",
    "interval", "effects"}, see `control.name_codes`.

  Raises:
    UserError: The clips do not fit the model, or are too few.
  """
  if lam.config["model"].get("buttons") is not None:
    raise errors.UserError(
      "The latent action model already has buttons; give the workdir that "
      "trained it."
    )
  world = lam.config["world"]
  manifest = manifest_lib.Manifest.read(folder)
  manifest.check(
    {
      "kind": "clips",
      "frame_shape": tuple(
        world[name] for name in ("height", "width", "channels")
      ),
    }
  )
  if split not in manifest.splits:
    raise errors.UserError(
      f"{folder} has no split {split!r}; it has "
      f"{', '.join(sorted(manifest.splits))}."
    )
  found = clips.pick(
    folder,
    split,
    num_frames=lam.trained_frames or world["num_frames"],
    num_clips=num_clips,
    num_levels=min(len(manifest.sources(split)), _MOST_LEVELS),
    with_actions=False,
    seed=seed,
  )
  codes = _codes(lam, found.frames)
  flat = lambda x: x.reshape(-1, *x.shape[2:])
  moved = scroll.pair_shifts(
    flat(found.frames[:, :-1]), flat(found.frames[:, 1:])
  ).reshape(*codes.shape, 2)
  signs = np.sign(moved)
  return control.name_codes(
    control.Transitions(
      codes=codes,
      keys=np.zeros_like(codes),
      motion=3 * (signs[..., 0] + 1) + signs[..., 1] + 1,
      ground=None,
      levels=found.levels,
    ),
    world["num_latent_actions"],
    seed=seed,
  )


def make(
  rows: Sequence[Mapping[str, Any]], *, gravity: bool
) -> button_map.ButtonMap:
  """Joins named codes to buttons.

  With gravity there are always four buttons, left, right, nothing and jump,
  also if no code presses one of them. Otherwise each name is a button.

  Args:
    rows: From `measure`.
    gravity: Whether a fall is not pressed, and rising only for `RISE_FRAMES`.

  Raises:
    UserError: No code moves the picture to a side.
  """
  names = [
    _NOTHING if row["name"] == button_names.UNCLEAR else row["name"]
    for row in rows
  ]
  if not {"left", "right"} & set(names):
    raise errors.UserError(
      "No code of the latent action model moves the picture to the left or to "
      "the right, so its codes are no buttons; train it on clips with more "
      "motion (genie data procgen --policy walker) or for more steps."
    )
  if gravity:
    buttons = [*_HELD, _RISE]
    # Who rises to a side goes on to this side, which is then held as before.
    names = [_RISE if name.endswith(f"and {_RISE}") else name for name in names]
  else:
    buttons = [
      name for name in (*_HELD, *button_names.EFFECTS) if name in names
    ]
    buttons = list(dict.fromkeys([*buttons, _NOTHING]))
  return button_map.ButtonMap(
    names=tuple(buttons),
    button_of=tuple(
      buttons.index(name) if name in buttons else button_map.NOT_PRESSED
      for name in names
    ),
    longest=tuple(
      RISE_FRAMES if gravity and name == _RISE else 0 for name in buttons
    ),
    first=buttons.index(_NOTHING),
  )


def _codes(lam: store.Part, frames: np.ndarray) -> np.ndarray:
  """Returns the codes int [n, T-1] of frames uint8 [n, T, H, W, C]."""
  encode = jax.jit(
    lambda params, rows: lam.module.apply(
      {"params": params}, rows.astype(jnp.float32) / 255, method="encode"
    )
  )
  params = jax.device_put(lam.params)
  return evaluated_world.in_batches(
    lambda rows: encode(params, rows), _BATCH, frames
  )


def with_buttons(lam: store.Part, buttons: button_map.ButtonMap) -> store.Part:
  """Returns a LAM whose `encode` returns buttons.

  Args:
    lam: The model.
    buttons: Of its codes.
  """
  config = {
    **lam.config,
    "model": {**lam.config["model"], "buttons": buttons.to_config()},
  }
  return store.part(
    "lam", config, lam.params, trained_frames=lam.trained_frames
  )
