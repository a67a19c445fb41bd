"""Frame samplers, which draw the tokens of a frame from a model's logits.

The optional field `name` of the group `sampling`, in a config or in a world's
config.json, names the sampler ("maskgit" by default); the other fields are
those of the sampler. docs/sampling.md shows how to add one.

Shapes:
  B  clips in the batch      h, w  token grid      V  codes
"""

from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeVar

import jax
import numpy as np

from genie_jax.core import errors, registry
from genie_jax.sampling import maskgit

DEFAULT = "maskgit"
_KIND = "frame sampler"

# `score(tokens int32 [B, h, w], hidden bool [B, h, w])` -> float32 logits
# [B, h, w, V] of a frame of which only the tokens that are not hidden are
# known. Each call is a pass of the model over one frame.
Score = Callable[[jax.Array, jax.Array], jax.Array]


class FrameSampler(Protocol):
  """Draws frames; an immutable pytree, usually a `flax.struct.dataclass`.

  A sampler is an argument of compiled functions. Fields that change the
  program are static (`flax.struct.field(pytree_node=False)`); numbers that do
  not are leaves, so that changing them does not recompile.
  """

  @classmethod
  def from_config(cls, fields: Mapping[str, Any]) -> "FrameSampler":
    """Returns the sampler that a config describes.

    Args:
      fields: A config's group `sampling` without `name`. All fields are
        optional: `from_config({})` returns the default sampler.

    Raises:
      UserError: A field is unknown or out of range (`errors.check_fields`
        finds the unknown ones).
    """
    ...

  def to_config(self) -> dict[str, Any]:
    """Returns all fields, from which `from_config` makes an equal sampler.

    They are JSON values, and are written to reports. A flag such as
    --temperature applies only to samplers with this field.
    """
    ...

  def num_passes(self, num_tokens: int) -> int:
    """Returns how many times `draw` calls `score`.

    Args:
      num_tokens: Tokens in one frame, h * w.
    """
    ...

  def draw(
    self, score: Score, grid: tuple[int, int], keys: jax.Array
  ) -> jax.Array:
    """Draws one frame of each clip.

    It is called inside compiled functions, also under `jax.vmap` and
    `jax.lax.scan`. Call `score`, which is a whole model, in a `jax.lax.scan`
    or `jax.lax.fori_loop`. A clip's frame must depend only on its own key and
    logits, so that equal seeds give equal frames in any batch.

    Args:
      score: See `Score`.
      grid: (h, w).
      keys: One random key for each clip, [B].

    Returns:
      int32 [B, h, w].
    """
    ...


Sampler = TypeVar("Sampler", bound=FrameSampler)

# Method -> signature, for messages.
_METHODS = {
  "from_config": "(fields), a classmethod",
  "to_config": "()",
  "num_passes": "(num_tokens)",
  "draw": "(score, grid, keys)",
}

REGISTRY: registry.Registry[type[FrameSampler]] = registry.Registry(
  _KIND,
  "genie_jax.sampling.samplers.register(name, class)",
  lambda name, value: registry.check_methods(_KIND, name, value, _METHODS),
)


def register(name: str, sampler: type[FrameSampler]) -> type[FrameSampler]:
  """Adds a class of samplers under the name that configs use; returns it.

  Raises:
    UserError: The name is taken, or the class lacks a method of
      `FrameSampler`.
  """
  return REGISTRY.register(name, sampler)


register(DEFAULT, maskgit.MaskGIT)


def default() -> FrameSampler:
  """Returns the sampler of an empty config: that of the paper."""
  return make({})


def make(fields: Mapping[str, Any], *, trusted: bool = False) -> FrameSampler:
  """Checks a config's `sampling` group and returns its sampler.

  Args:
    fields: The optional `name`, and the sampler's fields.
    trusted: Whether `name` may be "module:attribute" and be imported: True
      only for configs that the user wrote, never for a file that comes with
      weights.

  Raises:
    UserError: A name or field is unknown, a value is out of range, or the
      sampler does not implement the protocol.
  """
  fields = dict(fields)
  name = fields.pop("name", DEFAULT)
  found = REGISTRY.get(name, where="sampling.name", trusted=trusted)
  return check(found.from_config(fields), name)


def to_config(sampler: FrameSampler) -> dict[str, Any]:
  """Returns the `sampling` group from which `make` makes this sampler.

  It has no `name` for the default sampler, as in all configs and worlds that
  were written before there were other samplers.
  """
  name, fields = name_of(sampler), sampler.to_config()
  return fields if name == DEFAULT else {"name": name, **fields}


def name_of(sampler: FrameSampler) -> str:
  """Returns the name of a sampler's class in configs."""
  kind = type(sampler)
  for name in REGISTRY:
    if REGISTRY.get(name, where="name") is kind:
      return name
  return f"{kind.__module__}:{kind.__qualname__}"


def replace(sampler: Sampler, changes: Mapping[str, Any]) -> Sampler:
  """Returns a sampler of the same class with other values of some fields.

  Args:
    sampler: The sampler.
    changes: Field -> value.

  Raises:
    UserError: The sampler has no such field, or a value is out of range.
  """
  fields = sampler.to_config()
  for name in changes:
    if name not in fields:
      raise errors.UserError(
        f"{name}={changes[name]!r} does not apply: these frames are drawn by "
        f"{name_of(sampler)!r}, whose fields are "
        f"{', '.join(fields) or 'none'}; leave it out."
      )
  return check(type(sampler).from_config({**fields, **changes}))


def check(sampler: Any, name: str | None = None) -> Any:
  """Checks that a sampler implements the protocol, and returns it.

  Args:
    sampler: A sampler, made by its class's `from_config` or by the user.
    name: Its name in the config, for the message.

  Raises:
    UserError: It does not; the message names the method and the expected
      result.
  """
  name = name or name_of(sampler)
  registry.check_methods(_KIND, name, sampler, _METHODS)
  _check_pytree(name, sampler)
  fields = sampler.to_config()
  if not isinstance(fields, dict) or not _same(
    sampler, type(sampler).from_config(dict(fields))
  ):
    raise _broken(
      name,
      f"to_config() returns {fields!r:.80}, from which from_config does not "
      "make an equal sampler; return a dict of all fields",
    )
  passes = sampler.num_passes(16)
  if type(passes) is not int or passes < 1:
    raise _broken(
      name,
      f"num_passes(16) returns {passes!r:.40}; return how many times draw "
      "calls score for a frame of 16 tokens, a whole number above 0",
    )
  return sampler


def _check_pytree(name: str, sampler: Any) -> None:
  leaves = jax.tree.leaves(sampler)
  if any(leaf is sampler for leaf in leaves):
    raise _broken(
      name, "it is not a pytree; make its class a flax.struct.dataclass"
    )
  for leaf in leaves:
    if not isinstance(leaf, jax.Array) and (
      np.asarray(leaf).dtype.kind not in "biuf"
    ):
      raise _broken(
        name,
        f"its leaf {leaf!r:.40} is not a number; declare that field with "
        "flax.struct.field(pytree_node=False)",
      )


def _same(one: Any, other: Any) -> bool:
  """Returns whether two samplers are equal, static fields and leaves."""
  ours, theirs = jax.tree.flatten(one), jax.tree.flatten(other)
  return ours[1] == theirs[1] and all(
    np.array_equal(a, b) for a, b in zip(ours[0], theirs[0], strict=True)
  )


def _broken(name: str, what: str) -> errors.UserError:
  return errors.UserError(f"The {_KIND} {name!r}: {what}.")
