"""The latent action stage: actions from video alone (Genie, section 2.1)."""

from typing import Any

import jax
import jax.numpy as jnp
import ml_collections

from genie_jax.core import errors, images
from genie_jax.models import lam, registry
from genie_jax.nn import flops, patches
from genie_jax.stages import autoencoding, data, labels
from genie_jax.train import stage


def make(config: ml_collections.ConfigDict) -> stage.Stage:
  """Builds the stage that `experiments/*/lam.py` configures."""
  autoencoding.check(config)
  world, frames = config.world, config.data.num_frames
  model = registry.build("lam", config, trusted=True)
  codes = autoencoding.Codes(model.make_quantizer(), config)
  shape = (frames, world.height, world.width, world.channels)
  features = {
    "frames": stage.Feature(shape, jnp.uint8, ("act_time", None, None, None))
  }
  loss_scales = codes.loss_scales
  floor = _copy_floor(config)
  code_of_key = None
  if labels.used(config):
    code_of_key = labels.classes(
      data.clips_manifest(config), world.num_latent_actions
    )
    loss_scales = {**loss_scales, labels.LOSS: config.labels.weight}
    features |= {
      "actions": stage.Feature((frames - 1,), jnp.int32, (None,)),
      "source": stage.Feature((), jnp.int32, ()),
      "start": stage.Feature((), jnp.int32, ()),
    }

  def label_loss(params, batch, inputs):
    mask = labels.chosen(
      batch["source"], batch["start"], frames - 1, config.labels.share
    )
    vectors = model.apply({"params": params}, method="code_vectors")
    keys = jnp.asarray(code_of_key)[batch["actions"]]
    return {labels.LOSS: labels.loss(inputs, vectors, keys, mask)}

  def init(rng):
    clip = jnp.zeros((1, *shape), jnp.float32)
    return model.init(rng, clip)["params"], codes.fresh()

  def loss(params, extra, batch, rng, step):
    del step
    made = model.apply(
      {"params": params}, autoencoding.as_float(batch["frames"])
    )
    extra, aux = codes.update(extra, made.quantized, rng)
    losses = autoencoding.losses(
      made.frames, made.targets, codes.losses(made.quantized)
    )
    if floor:
      losses["squared_error"] = relative_error(
        made, autoencoding.as_float(batch["frames"]), model.shrink, floor
      )
    if code_of_key is not None:
      losses |= label_loss(params, batch, made.quantized.inputs)
    return stage.Outcome(
      losses=losses,
      metrics=codes.metrics(extra),
      extra=extra,
      aux=aux,
    )

  def evaluate(params, extra, batch, rng):
    del extra
    return action_terms(
      model, params, autoencoding.as_float(batch["frames"]), rng
    )

  def preview(params, extra, batch, rng):
    del extra
    return next_frames(
      model, params, autoencoding.as_float(batch["frames"]), rng
    )

  return stage.Stage(
    name="lam",
    features=features,
    loss_scales=loss_scales,
    init=init,
    mean_extra=True,
    loss=loss,
    evaluate=evaluate,
    preview=preview,
    show=show_next_frames,
    after_update=codes.after_update,
    warm=codes.warm,
    flops_per_clip=training_flops(config),
    open_source=data.clips(
      config, ("frames",) if code_of_key is None else ("frames", "actions")
    ),
  )


def _copy_floor(config: ml_collections.ConfigDict) -> float:
  """Returns `config.copy_floor`; 0 in configs without it.

  Raises:
    UserError: It is negative.
  """
  floor: float = config.copy_floor if "copy_floor" in config else 0.0
  if floor < 0:
    raise errors.UserError(
      f"config.copy_floor={floor} must not be negative; 0 turns it off."
    )
  return floor


def relative_error(
  made: lam.Prediction, frames: jax.Array, shrink: int, floor: float
) -> stage.Term:
  """Returns the squared error in units of the error of copying a frame.

  A fall changes far more pixels than a step, so the plain error spends most
  codes on vertical motion. Here all transitions that move count about the same.

  Args:
    made: The model's prediction.
    frames: float [B, T, H, W, C] in [0, 1].
    shrink: The model's factor of downsampling.
    floor: Added to the error of copying, so that frames in which nothing moves
      count less; a squared difference of pixels in [0, 1].
  """
  small = patches.shrink(frames, shrink)
  axes = (2, 3, 4)
  copy = jnp.square(small[:, 1:] - small[:, :-1]).mean(axes)
  error = jnp.square(made.frames - made.targets).mean(axes)
  return stage.Term.of(error / (copy + floor))


def action_terms(
  model: lam.Lam, params, frames: jax.Array, rng: jax.Array
) -> dict[str, stage.Term]:
  """Returns metrics of how much the actions matter on held-out clips.

  If the decoder ignores the actions, its error is the same with random
  actions; if the LAM has learnt nothing, its error equals that of copying the
  previous frame.

  Args:
    model: The LAM.
    params: Its parameters.
    frames: float [B, T, H, W, C].
    rng: Key of the random actions.

  Returns:
    Squared errors with inferred actions, with random actions and of copying.
  """
  made: Any = model.apply({"params": params}, frames)
  random = jax.random.randint(
    rng, made.latent_actions.shape, 0, model.num_latent_actions
  )
  other: Any = model.apply(
    {"params": params}, frames[:, :-1], random, method="decode"
  )
  copied = patches.shrink(frames, model.shrink)[:, :-1]
  error = lambda x: stage.Term.of(jnp.square(x - made.targets))
  return {
    "squared_error": error(made.frames),
    "random_action_squared_error": error(other),
    "copy_squared_error": error(copied),
  }


def next_frames(
  model: lam.Lam, params, frames: jax.Array, rng: jax.Array
) -> dict[str, jax.Array]:
  """Returns the frames for `show_next_frames`, each float [B, T-1, H, W, C].

  Args:
    model: The LAM.
    params: Its parameters.
    frames: float [B, T, H, W, C].
    rng: Key of the random actions.
  """
  made: Any = model.apply({"params": params}, frames)
  random = jax.random.randint(
    rng, made.latent_actions.shape, 0, model.num_latent_actions
  )
  other: Any = model.apply(
    {"params": params}, frames[:, :-1], random, method="decode"
  )
  return {
    "truth": made.targets,
    "prediction": made.frames,
    "random actions": other,
  }


def show_next_frames(drawn):
  """Returns rows of truth, prediction, random actions and error of a clip."""
  rows = {name: images.to_uint8(frames) for name, frames in drawn.items()}
  rows["error"] = autoencoding.error_frames(drawn["truth"], drawn["prediction"])
  return {"next_frames": rows}


def training_flops(config: ml_collections.ConfigDict) -> float:
  """Returns a clip's forward and backward FLOPs (three forward passes)."""
  world, frames, model = config.world, config.data.num_frames, config.model
  factor = model.get("shrink", 1)
  h, w = patches.grid(
    world.height // factor, world.width // factor, model.patch
  )
  values = patches.patch_dim(model.patch, world.channels)
  tokens = h * w
  return 3 * (
    flops.st_transformer(model.encoder, frames, tokens + 1)
    + flops.st_transformer(model.decoder, frames - 1, tokens)
    + flops.linear(values, model.encoder.width, frames * tokens)
    + flops.linear(values, 2 * model.decoder.width, (frames - 1) * tokens)
  )
