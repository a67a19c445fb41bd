"""The tokenizer stage: frames -> tokens -> frames (Genie, section 2.1)."""

import jax.numpy as jnp
import ml_collections

from genie_jax.core import images
from genie_jax.models import build, registry
from genie_jax.nn import flops, patches, quantizers
from genie_jax.stages import autoencoding, data
from genie_jax.train import stage


def make(config: ml_collections.ConfigDict) -> stage.Stage:
  """Builds the stage that `experiments/*/tokenizer.py` configures."""
  autoencoding.check(config)
  world, frames = config.world, config.data.num_frames
  model = registry.build("tokenizer", config, trusted=True)
  codes = autoencoding.Codes(model.make_quantizer(), config)
  shape = (frames, world.height, world.width, world.channels)
  weights = autoencoding.pixel_weights(config)

  def init(rng):
    clip = jnp.zeros((1, *shape), jnp.float32)
    return model.init(rng, clip)["params"], codes.fresh()

  def loss(params, extra, batch, rng, step):
    del step
    truth = autoencoding.as_float(batch["frames"])
    made = model.apply({"params": params}, truth)
    extra, aux = codes.update(extra, made.quantized, rng)
    return stage.Outcome(
      losses=autoencoding.losses(
        made.frames, truth, codes.losses(made.quantized), weights=weights
      ),
      metrics=codes.metrics(extra),
      extra=extra,
      aux=aux,
    )

  def evaluate(params, extra, batch, rng):
    del extra, rng
    truth = autoencoding.as_float(batch["frames"])
    made = model.apply({"params": params}, truth)
    return {
      "squared_error": stage.Term.of(jnp.square(made.frames.clip(0, 1) - truth))
    }

  def preview(params, extra, batch, rng):
    del extra, rng
    truth = autoencoding.as_float(batch["frames"])
    return truth, model.apply({"params": params}, truth).frames

  def show(drawn):
    truth, made = drawn
    return {
      "reconstruction": {
        "truth": images.to_uint8(truth),
        "reconstruction": images.to_uint8(made),
        "error": autoencoding.error_frames(truth, made),
      }
    }

  return stage.Stage(
    name="tokenizer",
    features={
      "frames": stage.Feature(shape, jnp.uint8, ("act_time", None, None, None))
    },
    loss_scales=codes.loss_scales,
    init=init,
    mean_extra=True,
    loss=loss,
    evaluate=evaluate,
    preview=preview,
    show=show,
    after_update=codes.after_update,
    warm=codes.warm,
    flops_per_clip=_flops(config, codes.quantizer),
    open_source=data.clips(config),
  )


def _flops(
  config: ml_collections.ConfigDict, quantizer: quantizers.Quantizer
) -> float:
  """Returns a clip's forward and backward FLOPs (three forward passes)."""
  world, frames, model = config.world, config.data.num_frames, config.model
  h, w = build.token_grid(world)
  tokens = frames * h * w
  values = patches.patch_dim(world.token_patch, world.channels)
  return 3 * (
    flops.st_transformer(model.encoder, frames, h * w)
    + flops.st_transformer(model.decoder, frames, h * w)
    + flops.linear(values, model.encoder.width + model.decoder.width, tokens)
    + flops.linear(
      quantizer.code_dim, model.encoder.width + model.decoder.width, tokens
    )
    + quantizer.flops(tokens) / 3
  )
