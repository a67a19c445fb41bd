"""From the codes of a latent action model to buttons that a player holds.

A code says how the picture moves (docs/lam.md). Some motions are pressed, and
some just happen: nobody presses a fall, and a hero goes on rising after "jump"
is released. If each code is a button, as in the paper, then gravity is a button
as well: without it, the hero hangs in the air. A map joins codes with the same
effect to one button, and replaces the codes of what just happens by the button
that was held before. What happens then is left to the dynamics model, which
sees it in the frames.

Differs from the paper (Genie, section 2.1), in which codes are the buttons.

Shapes:
  A  buttons     K  codes     T  transitions of a clip
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from genie_jax.core import errors

NOT_PRESSED = -1


@dataclasses.dataclass(frozen=True)
class ButtonMap:
  """Which button is held in each transition, given its code.

  Attributes:
    names: A short names, for example ("left", "right", "jump", "nothing").
    button_of: For each of the K codes its button, or `NOT_PRESSED`.
    longest: For each button the most transitions in a row that count as
      pressed, 0 for any number. What goes on longer is not pressed.
    first: The button that counts as held before the first transition.
  """

  names: tuple[str, ...]
  button_of: tuple[int, ...]
  longest: tuple[int, ...]
  first: int

  def to_config(self) -> dict[str, Any]:
    """Returns the attributes as JSON values."""
    return {
      name: list(value) if isinstance(value, tuple) else value
      for name, value in dataclasses.asdict(self).items()
    }

  def press(self, codes: jax.Array) -> jax.Array:
    """Returns the button of each transition.

    Args:
      codes: int32 [..., T], in order of time.

    Returns:
      int32, the same shape; values in [0, A).
    """
    button_of = jnp.asarray(self.button_of, jnp.int32)
    longest = jnp.asarray(self.longest, jnp.int32)

    def step(carry, code):
      held, last, run = carry
      button = button_of[code]
      run = jnp.where(button == last, run + 1, 1)
      limit = jnp.where(button == NOT_PRESSED, 0, longest[button])
      over = (button == NOT_PRESSED) | ((limit > 0) & (run > limit))
      pressed = jnp.where(over, held, button)
      # Only a button that can be held for any time is held on.
      held = jnp.where(over | (limit > 0), held, button)
      return (held, button, run), pressed

    in_time = jnp.moveaxis(codes, -1, 0)
    full = lambda value: jnp.full(in_time.shape[1:], value, jnp.int32)
    start = full(self.first), full(NOT_PRESSED), full(0)
    _, pressed = jax.lax.scan(step, start, in_time)
    return jnp.moveaxis(pressed, 0, -1)

  def vary(
    self, pressed: jax.Array, rng: jax.Array, shortest: int, longest: int
  ) -> jax.Array:
    """Draws how long each press of a limited button lasts.

    `press` ends each of them at its limit, so a model trained on its result
    knows no longer press, and hardly a shorter one, although players hold
    buttons for any time. Here a press ends after a drawn number of transitions.
    One that `press` ended goes on until then.

    Args:
      pressed: int32 [..., T], from `press`.
      rng: Key.
      shortest: Fewest transitions of a press, at least 1.
      longest: Most transitions.

    Returns:
      int32, the same shape.
    """
    limits = jnp.asarray(self.longest, jnp.int32)
    lengths = jax.random.randint(rng, pressed.shape, shortest, longest + 1)

    def step(carry, inputs):
      held, before, press, recorded, run, length = carry
      button, drawn = inputs
      limited = limits[button] > 0
      begins = limited & (button != before)
      press = jnp.where(begins, button, press)
      length = jnp.where(begins, drawn, length)
      run = jnp.where(begins, 1, run + 1)
      recorded = jnp.where(begins, 1, recorded + limited)
      inside = run <= length
      reached = (limits[press] > 0) & (recorded >= limits[press])
      found = jnp.where(
        limited,
        jnp.where(inside, button, held),
        jnp.where(inside & reached, press, button),
      )
      held = jnp.where(limited, held, button)
      return (held, button, press, recorded, run, length), found

    in_time = lambda x: jnp.moveaxis(x, -1, 0)
    full = lambda value: jnp.full(pressed.shape[:-1], value, jnp.int32)
    first, none = full(self.first), full(0)
    start = first, first, first, none, none, none
    _, found = jax.lax.scan(step, start, (in_time(pressed), in_time(lengths)))
    return jnp.moveaxis(found, 0, -1)


def from_config(fields: Mapping[str, Any], num_codes: int) -> ButtonMap:
  """Checks a config's `model.buttons` and returns its map.

  Args:
    fields: The attributes of a `ButtonMap`.
    num_codes: K.

  Raises:
    UserError: A field is missing, unknown or out of range.
  """
  needed = [field.name for field in dataclasses.fields(ButtonMap)]
  errors.check_fields("model.buttons", fields, needed)

  def wrong(what: str) -> errors.UserError:
    return errors.UserError(
      f"config.model.buttons {what}; write the map again with `genie buttons`."
    )

  if missing := sorted(set(needed) - set(fields)):
    raise wrong(f"has no {missing[0]}")
  names, button_of, longest = (
    list(fields[name]) for name in ("names", "button_of", "longest")
  )
  whole = lambda value, low, high: type(value) is int and low <= value < high
  if not names or not all(isinstance(name, str) and name for name in names):
    raise wrong(f"has names={names!r:.60}")
  if len(set(names)) != len(names):
    raise wrong(f"has the same name twice in names={names!r:.60}")
  if len(button_of) != num_codes or not all(
    whole(button, NOT_PRESSED, len(names)) for button in button_of
  ):
    raise wrong(
      f"has button_of={button_of!r:.60}, but each of the {num_codes} codes "
      f"needs a number from {NOT_PRESSED} to {len(names) - 1}"
    )
  if len(longest) != len(names) or not all(
    whole(frames, 0, 1 << 20) for frames in longest
  ):
    raise wrong(f"has longest={longest!r:.60} for {len(names)} buttons")
  if not whole(fields["first"], 0, len(names)) or longest[fields["first"]]:
    raise wrong(
      f"has first={fields['first']!r}, which needs to be a button that can be "
      "held for any time"
    )
  return ButtonMap(
    tuple(names), tuple(button_of), tuple(longest), fields["first"]
  )


def num_buttons(config: Mapping[str, Any]) -> int:
  """Returns A of a latent action model: its buttons, or its codes.

  Args:
    config: Its config, with the groups `world` and `model`.
  """
  fields = config["model"].get("buttons")
  if fields is None:
    return config["world"]["num_latent_actions"]
  return len(fields["names"])
