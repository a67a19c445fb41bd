"""MaskGIT: samples a frame's tokens in a few parallel refinement steps.

Chang et al. 2022, section 3.2; Genie, section 2 and appendix F. This module
does not depend on a model, only on a function from a partly drawn frame to
logits.

Shapes:
  N  tokens in one frame (h * w)    R  refinement steps
"""

from collections.abc import Callable, Mapping
from typing import Any

import chex
import flax.struct
import jax
import jax.numpy as jnp

from genie_jax.core import errors
from genie_jax.sampling import schedule as schedule_lib

ORDERS = ("random", "confidence")


@flax.struct.dataclass
class MaskGIT:
  """The frame sampler of the paper; see `samplers.FrameSampler`.

  The two temperatures are array leaves, so changing them does not recompile.

  Attributes:
    refinements: MaskGIT steps per frame.
    schedule: One of `schedule.SCHEDULES`.
    order: "random" reveals positions in random order; "confidence" first
      reveals those whose drawn token has the highest probability.
    temperature: Divides the logits before a token is drawn; 0 draws the most
      likely token.
    choice_temperature: Scale of the Gumbel noise added to the confidences,
      decreasing linearly to 0 at the last step; only with order "confidence".
    top_k: Sample only from the k most likely tokens; 0 for all.
    top_p: Sample only from the smallest set of most likely tokens whose total
      probability, at the temperature, is at least p; 1 for all.
  """

  refinements: int = flax.struct.field(pytree_node=False, default=25)
  schedule: str = flax.struct.field(pytree_node=False, default="cosine")
  order: str = flax.struct.field(pytree_node=False, default="random")
  temperature: float = 1.0
  choice_temperature: float = 4.5
  top_k: int = flax.struct.field(pytree_node=False, default=0)
  top_p: float = flax.struct.field(pytree_node=False, default=1.0)

  @classmethod
  def from_config(cls, fields: Mapping[str, Any]) -> "MaskGIT":
    """Checks a config's `sampling` group and returns its sampler.

    Args:
      fields: Any of the attributes.

    Raises:
      UserError: A field is unknown, or a value is out of range.
    """
    errors.check_fields("sampling", fields, cls.__dataclass_fields__)
    made = cls(**dict(fields))
    if type(made.refinements) is not int:
      raise errors.UserError(
        f"sampling.refinements is {made.refinements!r}; give a whole "
        "number, at least 1 (the paper uses 25)."
      )
    schedule_lib.hidden_counts(1, made.refinements, made.schedule)
    if made.order not in ORDERS:
      raise errors.UserError(
        f"sampling.order is {made.order!r}"
        f"{errors.closest(str(made.order), ORDERS)}; use one of "
        f"{', '.join(ORDERS)}."
      )
    for name in ("temperature", "choice_temperature"):
      value = fields.get(name, 1.0)
      if not isinstance(value, int | float) or not 0 <= value <= 1e6:
        raise errors.UserError(
          f"sampling.{name} is {value!r}; it must be a number from 0 to 1e6."
        )
    if type(made.top_k) is not int or made.top_k < 0:
      raise errors.UserError(
        f"sampling.top_k is {made.top_k}; give a whole number of tokens, "
        "or 0 for all."
      )
    if not isinstance(made.top_p, int | float) or not 0 < made.top_p <= 1:
      raise errors.UserError(
        f"sampling.top_p is {made.top_p!r}; it must be a number above 0 and at "
        "most 1."
      )
    return made

  def to_config(self) -> dict[str, Any]:
    """Returns the attributes as JSON values."""
    plain = lambda value: (
      value if isinstance(value, str | int) else float(value)
    )
    return {name: plain(value) for name, value in vars(self).items()}

  def num_passes(self, num_tokens: int) -> int:
    """Returns the number of refinements of a frame with `num_tokens` tokens."""
    return min(self.refinements, num_tokens)

  def draw(
    self,
    score: Callable[[jax.Array, jax.Array], jax.Array],
    grid: tuple[int, int],
    keys: jax.Array,
  ) -> jax.Array:
    """Draws one frame of each clip, starting with all tokens hidden.

    Each clip's noise depends only on its own key, so a draw does not depend
    on other clips in the batch, and two draws with the same key differ only
    if their logits differ.

    Args:
      score: Called in each refinement step with int32 tokens and bool hidden,
        both [B, h, w]; returns logits [B, h, w, V].
      grid: (h, w).
      keys: One random key for each clip, [B].

    Returns:
      int32 [B, h, w].
    """
    batch, num_tokens = keys.shape[0], grid[0] * grid[1]
    counts = schedule_lib.hidden_counts(
      num_tokens, self.refinements, self.schedule
    )
    blank = jnp.zeros((batch, num_tokens), jnp.int32)
    all_hidden = jnp.ones((batch, num_tokens), bool)

    def logits_at(tokens, hidden):
      logits = score(tokens.reshape(batch, *grid), hidden.reshape(batch, *grid))
      return logits.reshape(batch, num_tokens, -1).astype(jnp.float32)

    vocab = jax.eval_shape(logits_at, blank, all_hidden).shape[-1]
    order_keys = _fold(keys, 0)
    if self.order == "random":
      # A position's draw is used only in the step that reveals it, and which
      # step that is does not depend on the draw. So the same noise can be used
      # in all steps. With order "confidence", a rejected draw must be followed
      # by an independent one.
      frame_noise = _gumbel(_fold(keys, 1), (num_tokens, vocab))
      frame_order = jax.vmap(
        lambda key: jax.random.uniform(key, (num_tokens,))
      )(order_keys)

    def step(carry, inputs):
      number, num_hidden = inputs
      if self.order == "random":
        token_noise, order_noise = frame_noise, frame_order
      else:
        token_noise = _gumbel(_fold(keys, number), (num_tokens, vocab))
        falling = 1.0 - number / len(counts)
        order_noise = (
          self.choice_temperature
          * falling
          * _gumbel(_fold(order_keys, number), (num_tokens,))
        )
      tokens, hidden = carry
      return refine(
        logits_at(tokens, hidden),
        tokens,
        hidden,
        num_hidden,
        token_noise,
        order_noise,
        self,
      ), None

    steps = jnp.arange(1, len(counts) + 1)
    (tokens, _), _ = jax.lax.scan(
      step, (blank, all_hidden), (steps, jnp.asarray(counts))
    )
    return tokens.reshape(batch, *grid)


def refine(
  logits: jax.Array,
  tokens: jax.Array,
  hidden: jax.Array,
  num_hidden: jax.Array | int,
  token_noise: jax.Array,
  order_noise: jax.Array,
  sampling: MaskGIT,
) -> tuple[jax.Array, jax.Array]:
  """Runs one refinement step on one frame of each clip, with the given noise.

  A token is drawn for every hidden position. Those with the highest scores are
  revealed for good; the others are hidden again.

  Args:
    logits: float32 [B, N, V] given the frame so far.
    tokens: int32 [B, N]; values at hidden positions are ignored.
    hidden: bool [B, N].
    num_hidden: int32 scalar, number of positions that stay hidden; less than
      the current number.
    token_noise: float32 [B, N, V], Gumbel noise.
    order_noise: float32 [B, N], the score with order "random"; added to the
      log probability of the drawn token with order "confidence".
    sampling: Order and temperature.

  Returns:
    tokens int32 [B, N] and hidden bool [B, N] after the step.
  """
  chex.assert_rank(
    [logits, tokens, hidden, token_noise, order_noise], [3, 2, 2, 3, 2]
  )
  # argmax(logits + t * Gumbel) draws from softmax(logits / t), also at t = 0.
  drawn = jnp.argmax(
    _likely(logits, sampling) + sampling.temperature * token_noise, -1
  )
  score = order_noise
  if sampling.order == "confidence":
    log_probs = jax.nn.log_softmax(logits, -1)
    score += jnp.take_along_axis(log_probs, drawn[..., None], -1)[..., 0]
  score = jnp.where(hidden, score, jnp.inf)
  # Ranks from two stable sorts: ties do not change how many are revealed.
  rank = jnp.argsort(jnp.argsort(score, axis=-1), axis=-1)
  still_hidden = rank < num_hidden
  tokens = jnp.where(hidden & ~still_hidden, drawn.astype(tokens.dtype), tokens)
  return tokens, still_hidden


def _likely(logits: jax.Array, sampling: MaskGIT) -> jax.Array:
  """Returns logits [..., V], -inf for tokens that top-k or top-p exclude."""
  if 0 < sampling.top_k < logits.shape[-1]:
    logits = _highest(logits, jnp.ones_like(logits), sampling.top_k)
  if sampling.top_p < 1:
    # At temperature 0 only the most likely token is left, as it should be.
    shares = jax.nn.softmax(
      logits / jnp.maximum(sampling.temperature, 1e-6), axis=-1
    )
    logits = _highest(logits, shares, sampling.top_p)
  return logits


def _highest(logits: jax.Array, weights: jax.Array, amount: float) -> jax.Array:
  """Keeps the highest logits whose weights sum to `amount`; others get -inf.

  The smallest kept logit is found by bisection with 32 sums over V; sorting V
  values takes forty times as long on a CPU. Equal logits are all kept or all
  excluded.

  Args:
    logits: float32 [..., V].
    weights: float32 [..., V], not negative.
    amount: If the sum of all weights is less (by rounding), all are kept.
  """
  # The bits of positive floats, read as integers, have the same order as the
  # floats; those of negative floats have the reverse order.
  bits = jax.lax.bitcast_convert_type(logits, jnp.int32)
  order = jnp.where(bits < 0, bits ^ 0x7FFFFFFF, bits)

  def halve(_, bounds):
    low, high = bounds
    middle = (low >> 1) + (high >> 1) + ((low | high) & 1)  # Rounded up.
    heavy = (
      jnp.sum(jnp.where(order >= middle, weights, 0), -1, keepdims=True)
      >= amount
    )
    return jnp.where(heavy, middle, low), jnp.where(heavy, high, middle - 1)

  bounds = order.min(-1, keepdims=True), order.max(-1, keepdims=True)
  least, _ = jax.lax.fori_loop(0, 32, halve, bounds)
  return jnp.where(order < least, -jnp.inf, logits)


def _fold(keys: jax.Array, number: jax.Array | int) -> jax.Array:
  """Returns keys [B] with a number mixed into each."""
  return jax.vmap(jax.random.fold_in, (0, None))(keys, number)


def _gumbel(keys: jax.Array, shape: tuple[int, ...]) -> jax.Array:
  """Returns Gumbel noise [B, *shape], each clip's from its own key."""
  return jax.vmap(lambda key: jax.random.gumbel(key, shape))(keys)
