"""The dynamics stage: MaskGIT on token records (Genie, section 2.1)."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax

from genie_jax.core import errors
from genie_jax.data import mixtures
from genie_jax.models import build, dynamics, registry
from genie_jax.nn import flops
from genie_jax.stages import data, masking, rollouts
from genie_jax.train import stage, transfer

ACTIONS = {"latent": "latent_actions", "true": "actions"}
# The manifest's field with the number of actions.
_NUM_ACTIONS = {"latent": "num_latent_actions", "true": "num_actions"}
STARTS = ("random", "codebook")
# `token_terms` uses the keys 0 and 1 of the step's.
_PRESS_KEY = 2


def make(config: ml_collections.ConfigDict) -> stage.Stage:
  """Builds the stage that `experiments/*/dynamics.py` configures."""
  if config.actions not in ACTIONS:
    raise errors.UserError(
      f"config.actions={config.actions!r} is unknown; use one of "
      f"{', '.join(ACTIONS)}."
    )
  masking.check(config.mask)
  if config.start not in STARTS:
    raise errors.UserError(
      f"config.start={config.start!r} is unknown; use one of "
      f"{', '.join(STARTS)}."
    )
  frames, grid = config.data.num_frames, build.token_grid(config.world)
  model = registry.build("dynamics", config, trusted=True)
  which = ACTIONS[config.actions]
  vary = presses(config)
  scales = loss_scales(config)

  def init(rng):
    tokens = jnp.zeros((1, frames, *grid), jnp.int32)
    actions = jnp.zeros((1, frames - 1), jnp.int32)
    params = model.init(rng, tokens, actions, tokens > 0)["params"]
    return scale_init(config, start(config, params)), {}

  def loss(params, extra, batch, rng, step):
    del step
    losses, metrics = token_terms(
      model,
      params,
      batch["tokens"],
      vary(batch[which], jax.random.fold_in(rng, _PRESS_KEY)),
      rng,
      config.mask,
      z_loss="z" in scales,
    )
    return stage.Outcome(losses=losses, metrics=metrics, extra=extra, aux=())

  def evaluate(params, extra, batch, rng):
    del extra
    return next_frame_terms(model, params, batch["tokens"], batch[which], rng)

  def score(params, extra, batch, rngs):
    del extra
    return score_terms(
      model,
      params,
      batch["tokens"],
      batch[which],
      rngs,
      config.mask,
      config.world.num_codes,
    )

  preview = rollouts.Preview(config, model)

  return stage.Stage(
    name="dynamics",
    features={
      "tokens": stage.Feature(
        (frames, *grid), jnp.int32, ("act_time", None, None)
      ),
      # T - 1 is odd, so the frame axis never splits actions.
      which: stage.Feature((frames - 1,), jnp.int32, (None,)),
    },
    loss_scales=scales,
    init=init,
    loss=loss,
    evaluate=evaluate,
    score=score,
    preview=lambda params, extra, batch, rng: preview.draw(
      params, batch["tokens"], batch[which], rng
    ),
    show=preview.show,
    flops_per_clip=flops_per_clip(config, model),
    open_source=data.tokens(
      config,
      ("tokens", which),
      merge_aliases=config.actions == "true",
      **{_NUM_ACTIONS[config.actions]: config.world.num_latent_actions},
    ),
  )


def made_by(config: Mapping[str, Any]) -> tuple[str, ...]:
  """Returns the roles of the models that made the tokens."""
  return (
    ("tokenizer", "lam") if config["actions"] == "latent" else ("tokenizer",)
  )


def start(config: ml_collections.ConfigDict, params: Any) -> Any:
  """Initialises embeddings and logits from the codebook, if configured.

  With `config.start="codebook"` the embedding of a token is a random linear
  projection of its code's vector, and logits are dot products with these
  embeddings. Tokens that look alike then have similar embeddings from the
  first step; with a random table the model has to learn each of the V tokens
  separately. Differs from the paper, which does not describe its
  initialisation. Only the initial values differ; all parameters are trained.

  Args:
    config: A dynamics or joint config.
    params: Boxed initial parameters of the dynamics model.
  """
  if config.start == "random":
    return params
  tokenizer = rollouts.tokenizer_of(mixtures.main_folder(config.data))
  with jax.ensure_compile_time_eval():  # The weights are known while tracing.
    vectors = tokenizer.module.apply(
      {"params": tokenizer.params}, method="code_vectors"
    )
  codes = np.asarray(vectors, np.float32)
  codes = (codes - codes.mean(0)) / codes.std()  # [V, E]
  table = params["token_embedding"]
  kernel = params["to_logits"]["kernel"]
  width = nn.unbox(table).shape[1]
  projection = np.random.default_rng(config.seed).standard_normal(
    (codes.shape[1], width)
  ) / np.sqrt(codes.shape[1])
  # [V, D], with variance 1.
  embedding = jnp.asarray(codes @ projection, jnp.float32)
  refill = lambda box, value: box.replace_boxed(value)
  return {
    **params,
    "token_embedding": refill(table, embedding),
    "to_logits": {
      **params["to_logits"],
      "kernel": refill(kernel, embedding.T * width**-0.5),
    },
  }


def presses(
  config: ml_collections.ConfigDict,
) -> Callable[[jax.Array, jax.Array], jax.Array]:
  """Returns a function that varies how long buttons are pressed in training.

  `genie buttons` ends a press of "jump" after a few transitions, so all records
  have presses of one length. With `config.press_frames=(1, 8)`, each lasts 1 to
  8 transitions, drawn anew in every step (`button_map.ButtonMap.vary`).
  Validation uses the records as they are. The buttons are those of the LAM in
  the token folder; one without buttons, and true actions, are not changed.

  Args:
    config: A dynamics config; configs without the field vary nothing.

  Returns:
    (actions int32 [B, T-1], key) -> int32 [B, T-1].

  Raises:
    UserError: The field is neither empty nor two numbers in order.
  """
  lengths: Any = tuple(config.get("press_frames", ()))
  unchanged = lambda actions, rng: actions
  if not lengths:
    return unchanged
  if len(lengths) != 2 or not 1 <= lengths[0] <= lengths[1]:
    raise errors.UserError(
      f"config.press_frames={lengths} must be the fewest and the most "
      "transitions of a press, for example (1, 8); or () to use the records' "
      "own."
    )
  if config.actions != "latent":
    return unchanged
  buttons = rollouts.buttons_of(mixtures.main_folder(config.data))
  if buttons is None:
    return unchanged
  return lambda actions, rng: buttons.vary(actions, rng, *lengths)


def loss_scales(config: ml_collections.ConfigDict) -> dict[str, float]:
  """Returns the scale of each loss of `token_terms`.

  With `config.z_loss`, for example 1e-4, the squared logarithm of the softmax's
  normaliser is a loss, so that logits do not drift to values that bfloat16
  rounds coarsely (PaLM, arXiv:2204.02311, section 5; arXiv:2309.14322). Configs
  without this field have none, as the paper.

  Args:
    config: A dynamics or joint config.

  Raises:
    UserError: The scale is negative.
  """
  scale: Any = config.get("z_loss", 0.0)
  if scale < 0:
    raise errors.UserError(
      f"config.z_loss is {scale}; it must be 0 (off) or positive."
    )
  return {"cross_entropy": 1.0, **({"z": scale} if scale else {})}


def scale_init(config: ml_collections.ConfigDict, params: Any) -> Any:
  """Scales boxed initial parameters as `config.optimizer.transfer` needs.

  Only the dynamics stage does so; other stages refuse a transfer, because their
  parameters have no factors.
  """
  fields: Any = config.get("optimizer", {})
  return transfer.scale_init(
    params,
    fields.get("transfer", "none"),
    fields.get("base_width", 0),
    fields.get("base_layers", 0),
  )


def token_terms(
  model: Any,
  params: Any,
  tokens: jax.Array,
  actions: jax.Array,
  rng: jax.Array,
  mask: Any,
  z_loss: bool = False,
) -> tuple[dict[str, stage.Term], dict[str, stage.Term]]:
  """Returns the training losses and metrics of a batch.

  All of it is float32, from the logits on.

  Args:
    model: The dynamics model.
    params: Its parameters.
    tokens: int32 [B, T, h, w].
    actions: int32 [B, T-1].
    rng: Key of the mask.
    mask: `config.mask`.
    z_loss: Whether to add the loss "z", see `loss_scales`.
  """
  hidden, judged = masking.draw(rng, tokens.shape, mask)
  seen = tokens
  if noise := mask.get("noise", 0.0):
    seen = masking.corrupt(jax.random.fold_in(rng, 1), tokens, noise)
  logits = model.apply({"params": params}, seen, actions, hidden)
  entropy = optax.softmax_cross_entropy_with_integer_labels(logits, tokens)
  losses = {"cross_entropy": stage.Term.of(entropy, judged)}
  if z_loss:
    partition = jax.nn.logsumexp(logits, axis=-1)
    losses["z"] = stage.Term.of(jnp.square(partition), judged)
  return (
    losses,
    {
      "accuracy": stage.Term.of(logits.argmax(-1) == tokens, judged),
      "hidden_share": stage.Term.of(hidden[:, 1:]),
    },
  )


def score_terms(
  model: Any,
  params: Any,
  tokens: jax.Array,
  actions: jax.Array,
  rngs: jax.Array,
  mask: Any,
  num_codes: int,
) -> dict[str, stage.Term]:
  """Returns the training loss on masks that depend only on each clip's key.

  `held_out_loss` is in nats per masked token. `held_out_loss_per_bit` is the
  same divided by ln(V): bits of loss per bit of a token, 1 for a uniform guess
  and 0 for a perfect prediction. It puts vocabularies on one scale, but does
  not make tokenizers comparable: one that uses its codes less evenly has a
  lower loss for the same knowledge.

  Args:
    model: The dynamics model.
    params: Its parameters.
    tokens: int32 [B, T, h, w].
    actions: int32 [B, T-1].
    rngs: Keys [B].
    mask: `config.mask`, so the masks are distributed as in training.
    num_codes: V.

  Returns:
    Terms whose totals and counts are float32 [B].
  """
  one = (1, *tokens.shape[1:])
  hidden, judged = jax.vmap(lambda rng: masking.draw(rng, one, mask))(rngs)
  seen = tokens
  if noise := mask.get("noise", 0.0):
    seen = jax.vmap(
      lambda rng, clip: masking.corrupt(
        jax.random.fold_in(rng, 1), clip[None], noise
      )
    )(rngs, tokens)[:, 0]
  logits = model.apply({"params": params}, seen, actions, hidden[:, 0])
  entropy = optax.softmax_cross_entropy_with_integer_labels(logits, tokens)
  judged = judged[:, 0].astype(jnp.float32)
  total = (entropy * judged).sum((1, 2, 3))
  count = judged.sum((1, 2, 3))
  return {
    "held_out_loss": stage.Term(total, count),
    "held_out_loss_per_bit": stage.Term(total / math.log(num_codes), count),
  }


def next_frame_terms(
  model: Any,
  params: Any,
  tokens: jax.Array,
  actions: jax.Array,
  rng: jax.Array,
) -> dict[str, stage.Term]:
  """Returns metrics of predicting a hidden frame in one pass.

  All tokens of earlier frames are shown. The accuracy of the model's argmax
  is computed over all tokens and over those that changed; `copy_accuracy` is
  the baseline of copying the previous frame.
  """
  hidden, judged = masking.next_frame(rng, tokens.shape)
  logits = model.apply({"params": params}, tokens, actions, hidden)
  entropy = optax.softmax_cross_entropy_with_integer_labels(logits, tokens)
  last = jnp.roll(tokens, 1, axis=1)
  changed = judged & (last != tokens)
  right = logits.argmax(-1) == tokens
  return {
    "cross_entropy": stage.Term.of(entropy, judged),
    "accuracy": stage.Term.of(right, judged),
    "copy_accuracy": stage.Term.of(last == tokens, judged),
    "changed_token_accuracy": stage.Term.of(right, changed),
  }


def flops_per_clip(config: ml_collections.ConfigDict, model: Any) -> float:
  """Returns a clip's forward and backward FLOPs, for any dynamics model.

  Args:
    config: The training config.
    model: The model built from it.
  """
  if isinstance(model, dynamics.Dynamics):
    return training_flops(config)
  frames = config.data.num_frames
  shape = (1, frames, *build.token_grid(config.world))
  inputs = (
    jax.ShapeDtypeStruct(shape, jnp.int32),
    jax.ShapeDtypeStruct((1, frames - 1), jnp.int32),
    jax.ShapeDtypeStruct(shape, jnp.bool_),
  )
  params = jax.eval_shape(model.init, jax.random.key(0), *inputs)
  return 3 * flops.traced(model.apply, nn.unbox(params), *inputs)


def training_flops(config: ml_collections.ConfigDict) -> float:
  """Returns a clip's forward and backward FLOPs (three forward passes).

  Args:
    config: The config of a stage that trains a `models.dynamics.Dynamics`.
  """
  h, w = build.token_grid(config.world)
  fields, frames = config.model.transformer, config.data.num_frames
  reach = config.model.get("last_frame_reach", 0)
  around = (2 * reach + 1) ** 2 * fields.width if reach else 0
  return 3 * (
    flops.st_transformer(fields, frames, h * w)
    + flops.linear(fields.width, config.world.num_codes, frames * h * w)
    + flops.linear(around, fields.width, frames * h * w)
  )
