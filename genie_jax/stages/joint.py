"""LAM and dynamics in one step, the paper's schedule (Genie, section 2.1).

The LAM is trained with its own VQ-VAE loss. The dynamics model gets the LAM's
actions as indices, so no gradient flows from it to the LAM.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections

from genie_jax.core import errors
from genie_jax.models import build, registry
from genie_jax.stages import autoencoding, data, masking, rollouts
from genie_jax.stages import dynamics as dynamics_lib
from genie_jax.stages import lam as lam_lib
from genie_jax.train import stage

ROLES = ("lam", "dynamics")
_LAM = "lam_"


def part_config(
  config: ml_collections.ConfigDict, part: str
) -> ml_collections.ConfigDict:
  """Returns `config` with the `model` of one part: "lam" or "dynamics"."""
  config = ml_collections.ConfigDict(config.to_dict())
  config.model = config.model[part]
  return config


def make(config: ml_collections.ConfigDict) -> stage.Stage:
  """Builds the stage that `experiments/*/joint.py` configures."""
  if config.actions != "latent":
    raise errors.UserError(
      f"config.actions={config.actions!r}: the joint stage learns its "
      "actions; use the dynamics stage to train on true actions."
    )
  masking.check(config.mask)
  autoencoding.check(config)
  world, frames = config.world, config.data.num_frames
  grid = build.token_grid(world)
  lam, dynamics = (
    registry.build(role, part_config(config, role), trusted=True)
    for role in ROLES
  )
  codes = autoencoding.Codes(lam.make_quantizer(), config)
  scales = dynamics_lib.loss_scales(config)
  shape = (frames, world.height, world.width, world.channels)

  def init(rng):
    lam_rng, dynamics_rng = jax.random.split(rng)
    tokens = jnp.zeros((1, frames, *grid), jnp.int32)
    actions = jnp.zeros((1, frames - 1), jnp.int32)
    params = {
      "lam": lam.init(lam_rng, jnp.zeros((1, *shape), jnp.float32))["params"],
      "dynamics": dynamics_lib.start(
        config,
        dynamics.init(dynamics_rng, tokens, actions, tokens > 0)["params"],
      ),
    }
    return params, codes.fresh()

  def loss(params, extra, batch, rng, step):
    del step
    mask_rng, code_rng = jax.random.split(rng)
    made = lam.apply(
      {"params": params["lam"]}, autoencoding.as_float(batch["frames"])
    )
    extra, aux = codes.update(extra, made.quantized, code_rng)
    losses, metrics = dynamics_lib.token_terms(
      dynamics,
      params["dynamics"],
      batch["tokens"],
      made.latent_actions,
      mask_rng,
      config.mask,
      z_loss="z" in scales,
    )
    for name, term in autoencoding.losses(
      made.frames, made.targets, codes.losses(made.quantized)
    ).items():
      losses[_LAM + name] = term
    for name, term in codes.metrics(extra).items():
      metrics[_LAM + name] = term
    return stage.Outcome(losses=losses, metrics=metrics, extra=extra, aux=aux)

  def after_update(params, extra, aux, rng):
    updated, extra = codes.after_update(params["lam"], extra, aux, rng)
    return {**params, "lam": updated}, extra

  def infer(params, batch):
    return lam.apply(
      {"params": params["lam"]},
      autoencoding.as_float(batch["frames"]),
      method="encode",
    )

  def evaluate(params, extra, batch, rng):
    del extra
    frame_rng, action_rng = jax.random.split(rng)
    terms = dynamics_lib.next_frame_terms(
      dynamics,
      params["dynamics"],
      batch["tokens"],
      infer(params, batch),
      frame_rng,
    )
    for name, term in lam_lib.action_terms(
      lam, params["lam"], autoencoding.as_float(batch["frames"]), action_rng
    ).items():
      terms[_LAM + name] = term
    return terms

  rollout = rollouts.Preview(config, dynamics)

  def preview(params, extra, batch, rng):
    del extra
    return (
      rollout.draw(
        params["dynamics"], batch["tokens"], infer(params, batch), rng
      ),
      lam_lib.next_frames(
        lam, params["lam"], autoencoding.as_float(batch["frames"]), rng
      ),
    )

  def show(drawn):
    return rollout.show(drawn[0]) | lam_lib.show_next_frames(drawn[1])

  return stage.Stage(
    name="joint",
    features={
      "frames": stage.Feature(shape, jnp.uint8, ("act_time", None, None, None)),
      "tokens": stage.Feature(
        (frames, *grid), jnp.int32, ("act_time", None, None)
      ),
    },
    loss_scales={
      **scales,
      **{_LAM + name: scale for name, scale in codes.loss_scales.items()},
    },
    init=init,
    mean_extra=True,
    loss=loss,
    after_update=after_update,
    warm=lambda params, extra: codes.warm(params["lam"], extra),
    evaluate=evaluate,
    preview=preview,
    show=show,
    flops_per_clip=(
      lam_lib.training_flops(part_config(config, "lam"))
      + dynamics_lib.flops_per_clip(part_config(config, "dynamics"), dynamics)
    ),
    open_source=data.tokens(config, ("tokens", "frames")),
  )


def parts(config: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
  """Returns role -> {"world", "model"} of the two models."""
  return {
    role: build.part_fields({**config, "model": config["model"][role]})
    for role in ROLES
  }


def made_by(config: Mapping[str, Any]) -> tuple[str, ...]:
  """Returns the role of the model that made the tokens."""
  del config  # The stage trains its own LAM.
  return ("tokenizer",)
