"""The interfaces of tokenizer and dynamics models that sampling relies on.

The player, rollouts, evaluation and plans call models only through the methods
below, so the models of a world need not share any code with those of this
package. Every model is a `flax.linen.Module`: its parameters are created by
`init`, boxed with the names of their logical axes
(`flax.linen.with_logical_partitioning`, see `sharding.rules`), its methods are
called with `apply`, and its fields are hashable once dicts and lists among
them are frozen (see `sampling.prepare.hashable`).

Shapes:
  B  clips in the batch         h, w  token grid
  T  frames                     V     codes
"""

from typing import Any, Protocol

import jax

from genie_jax.core import errors, registry


class Cache(Protocol):
  """A model's state about earlier frames, for example their keys and values.

  A pytree of arrays (for example a `flax.struct.dataclass`). Its methods keep
  shapes and dtypes, so that it can be carried through `jax.lax.scan` and
  `jax.lax.cond`. It has a fixed number of slots, one for each frame. Frames
  are numbered from 0, the first of the window; frame t overwrites frame
  t - slots.

  The models of this package use `nn.st_transformer.Cache`.
  """

  def write(self, own: Any, position: jax.Array | int) -> "Cache":
    """Returns a cache with T more frames.

    Args:
      own: The second result of a model's step for T >= 1 frames. If T is
        larger than the number of slots, the last frames are kept.
      position: int32 scalar, the frame number of the first of the T frames.
    """
    ...

  def before(self, position: jax.Array) -> "Cache":
    """Returns a cache in which frames from `position` on are marked empty.

    Args:
      position: int32 scalar, a frame number.
    """
    ...

  def renumbered(self, shift: int) -> "Cache":
    """Returns a cache of the same frames, renumbered.

    Args:
      shift: Subtracted from every frame number; a multiple of the number of
        slots. A step at `position - shift` with the new cache must return the
        same as a step at `position` with this cache.
    """
    ...


class DynamicsModel(Protocol):
  """A model that scores the tokens of frames, given the frames before.

  The inputs at position t are the tokens of frame t, known or hidden, and the
  action that leads to frame t; the outputs at position t are the scores of
  these tokens. The scores of frame t depend only on frames 0 to t and the
  actions that lead to them (causality), so the cache entry of a finished
  frame stays valid when more frames follow.

  The model of this package is `models.dynamics.Dynamics`.

  Attributes:
    grid: (h, w).
    no_action: The number that means "no action leads to this frame", used for
      the first frame of a window.
    kernels_in_dtype: Optional, see `sampling.prepare.for_play`.
  """

  grid: tuple[int, int]

  @property
  def no_action(self) -> int:
    """See the attributes."""
    ...

  def __call__(
    self, tokens: jax.Array, latent_actions: jax.Array, hidden: jax.Array
  ) -> jax.Array:
    """Returns logits for every code at every position; used in training.

    Args:
      tokens: int32 [B, T, h, w]; ignored where hidden.
      latent_actions: int32 [B, T-1]; action t leads from frame t to t + 1.
      hidden: bool [B, T, h, w], True where the model must predict.

    Returns:
      Logits, float32 [B, T, h, w, V].
    """
    ...

  def step(
    self,
    tokens: jax.Array,
    incoming: jax.Array,
    hidden: jax.Array,
    cache: Any,
    position: jax.Array | int,
    last: jax.Array | None = None,
  ) -> tuple[jax.Array, Any]:
    """Returns logits for frames that follow those in a cache; for sampling.

    The logits equal those of `__call__` for the same frames if all previous
    frames are in the cache.

    Args:
      tokens: int32 [B, T, h, w], usually T = 1.
      incoming: int32 [B, T], the action that leads to each frame, or
        `no_action`.
      hidden: bool [B, T, h, w].
      cache: Cache of the previous frames, made by `empty_cache` and
        `Cache.write`; None if tokens[:, 0] is the first frame of its window.
      position: int32 scalar, the frame number of tokens[:, 0].
      last: int32 [B, h, w], the tokens of the frame before tokens[:, 0]; None
        if there is no such frame.

    Returns:
      Logits [B, T, h, w, V], and a pytree for `Cache.write` with the state to
      keep for these frames. It is written only for frames without hidden
      tokens.
    """
    ...

  def empty_cache(self, num_clips: int, slots: int) -> Cache:
    """Returns a cache without frames; `flax.linen.nowrap`, needs no params.

    Args:
      num_clips: B.
      slots: The number of frames that the cache can hold.
    """
    ...


class TokenizerModel(Protocol):
  """A model that turns frames into tokens and back, causal in time.

  The model of this package is `models.tokenizer.Tokenizer`.
  """

  def encode(self, frames: jax.Array) -> jax.Array:
    """Returns tokens, int32 [B, T, h, w], of float32 frames in [0, 1].

    Args:
      frames: [B, T, H, W, C].
    """
    ...

  def decode(self, tokens: jax.Array) -> jax.Array:
    """Returns frames, float32 [B, T, H, W, C], of tokens [B, T, h, w]."""
    ...

  def decode_step(
    self, tokens: jax.Array, cache: Any, position: jax.Array | int
  ) -> tuple[jax.Array, Any]:
    """Decodes frames that follow those in a cache.

    Args:
      tokens: int32 [B, T, h, w], usually T = 1.
      cache: Cache of the previous frames; None for the first frame of a
        window, and always None for a tokenizer trained on single frames.
      position: int32 scalar, the frame number of tokens[:, 0].

    Returns:
      Frames float32 [B, T, H, W, C], and a pytree for `Cache.write`.
    """
    ...

  def empty_cache(self, num_clips: int, slots: int) -> Cache:
    """Like `DynamicsModel.empty_cache`, for `decode_step`."""
    ...


# Role -> method -> signature, for messages.
METHODS = {
  "dynamics": {
    "step": "(tokens, incoming, hidden, cache, position, last)",
    "empty_cache": "(num_clips, slots)",
  },
  "tokenizer": {
    "encode": "(frames)",
    "decode": "(tokens)",
    "decode_step": "(tokens, cache, position)",
    "empty_cache": "(num_clips, slots)",
  },
}
_ATTRIBUTES = {
  "dynamics": {"grid": "(h, w)", "no_action": "a number"},
  "tokenizer": {},
}


def check(role: str, model: Any) -> None:
  """Raises UserError if a model lacks a method or attribute of its role.

  Args:
    role: "tokenizer" or "dynamics".
    model: The module.
  """
  name = type(model).__name__
  registry.check_methods(f"{role} model", name, model, METHODS[role])
  for attribute, wanted in _ATTRIBUTES[role].items():
    if not hasattr(model, attribute):
      raise errors.UserError(
        f"The {role} model {name!r} has no attribute {attribute}; it needs "
        f"{attribute}, {wanted}."
      )
