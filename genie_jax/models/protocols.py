"""What sampling needs of the models of a world, whoever wrote them.

The player, rollouts, evaluation and plans call models by the methods below and
by nothing else, so a world may be made of models that share no code with those
of this package. Every model is a `flax.linen.Module`: its parameters come from
`init`, boxed with the names of their logical axes
(`flax.linen.with_logical_partitioning`, see `sharding.rules`), its methods are
called by `apply`, and its fields have a hash once dicts and lists among them
are frozen (see `sampling.prepare.hashable`).

Shapes:
  B  clips in the batch         h, w  token grid
  T  frames                     V     codes
"""

from typing import Any, Protocol

import jax

from genie_jax.core import errors, registry


class Cache(Protocol):
  """What a model keeps of the frames before the one that it is given.

  A pytree of arrays (for example a `flax.struct.dataclass`) whose shapes and
  dtypes no method changes, so that it can be carried through `jax.lax.scan`
  and `jax.lax.cond`. It has room for a fixed number of frames, its slots.
  Frames are numbered from 0, the first of the window; frame t overwrites
  frame t - slots.

  `nn.st_transformer.Cache` is the one of the models of this package.
  """

  def write(self, own: Any, position: jax.Array | int) -> "Cache":
    """Returns a cache that also holds these frames.

    Args:
      own: What a model's step returned for T frames, T at least 1 and perhaps
        more than there are slots; then the last ones are kept.
      position: int32 scalar, the number of the first of them.
    """
    ...

  def before(self, position: jax.Array) -> "Cache":
    """Returns a cache in which only frames with smaller numbers count.

    Args:
      position: int32 scalar.
    """
    ...

  def renumbered(self, shift: int) -> "Cache":
    """Returns a cache of the same frames with other numbers.

    Args:
      shift: Subtracted from every number; a multiple of the slots. A later
        step at `position - shift` must give what one at `position` would have
        given with this cache.
    """
    ...


class DynamicsModel(Protocol):
  """A model that scores the tokens of frames, given the frames before.

  Frame t's own tokens, known or hidden, are an input at position t and are
  scored in place, together with the action that leads to frame t. The scores
  of frame t depend on frames 0 to t and on the actions that lead to them, and
  on nothing later (causality): what was kept of a finished frame stays right
  when more frames follow.

  `models.dynamics.Dynamics` is the one of this package.

  Attributes:
    grid: (h, w).
    no_action: The number that stands for "no action leads to this frame",
      which is so for the first frame of a window.
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
    """Scores every code at every place; what the stages train.

    Args:
      tokens: int32 [B, T, h, w]; values at hidden places are ignored.
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
    """Scores frames that follow those in a cache; what sampling calls.

    Gives the logits that `__call__` gives for the same frames when all those
    before are in the cache.

    Args:
      tokens: int32 [B, T, h, w], usually T = 1.
      incoming: int32 [B, T], the action that leads to each frame, or
        `no_action`.
      hidden: bool [B, T, h, w].
      cache: Of the frames before, as `empty_cache` and `Cache.write` made it;
        None when the first of these frames is the first of its window.
      position: int32 scalar, the number of the first of these frames.
      last: int32 [B, h, w], the tokens of the frame before them; None when
        there is none.

    Returns:
      Logits [B, T, h, w, V], and what is to be kept of these frames, a pytree
      for `Cache.write`. Only what frames without hidden tokens leave is ever
      written.
    """
    ...

  def empty_cache(self, num_clips: int, slots: int) -> Cache:
    """Returns a cache without frames; `flax.linen.nowrap`, needs no params.

    Args:
      num_clips: B.
      slots: Frames that it has room for.
    """
    ...


class TokenizerModel(Protocol):
  """A model that turns frames into tokens and back, causal in time.

  `models.tokenizer.Tokenizer` is the one of this package.
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
      cache: Of the frames before; None for the first of a window, and always
        for a tokenizer that was trained on single frames.
      position: int32 scalar, the number of the first of these frames.

    Returns:
      Frames float32 [B, T, H, W, C], and what is to be kept of them.
    """
    ...

  def empty_cache(self, num_clips: int, slots: int) -> Cache:
    """As `DynamicsModel.empty_cache`, for `decode_step`."""
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
  """Raises UserError unless a model has what its role in a world needs.

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
