"""The classifier stage: good clips against bad ones (Genie, appendix B.1).

    ratings 5 -> good, 1 -> bad, 2 to 4 left out

The loss is the cross-entropy of the label. The paper states neither the
optimizer nor any augmentation. Ours is changes of a clip that do not change
whether it is good: mirroring it, exchanging and scaling its colour channels,
and a gamma curve, so that colours that stand for one place say less.

Shapes:
  B  clips     T  frames, as runs of adjacent ones
  H W C  rows, columns, channels of a frame
"""

import jax
import jax.numpy as jnp
import ml_collections
import optax

from genie_jax.core import errors, images
from genie_jax.data import rated_clips, sources
from genie_jax.models import registry
from genie_jax.nn import flops
from genie_jax.stages import autoencoding
from genie_jax.train import stage


def make(config: ml_collections.ConfigDict) -> stage.Stage:
  """Builds the stage that `experiments/platformers/classifier.py` configures.

  Raises:
    UserError: A field of the config is missing or out of range.
  """
  world, frames = config.world, config.data.num_frames
  model = registry.build("classifier", config, trusted=True)
  if frames < model.run or frames % model.run:
    raise errors.UserError(
      f"config.data.num_frames={frames} must be a positive multiple of "
      f"{model.run}: the classifier reads runs of adjacent frames "
      "(config.model.run)."
    )
  if not 0 <= config.augment.colour < 1:
    raise errors.UserError(
      f"config.augment.colour={config.augment.colour} must be at least 0 and "
      "less than 1."
    )
  if not 0 <= config.augment.gamma <= 1:
    raise errors.UserError(
      f"config.augment.gamma={config.augment.gamma} must be from 0 to 1."
    )
  shape = (frames, world.height, world.width, world.channels)

  def init(rng):
    clip = jnp.zeros((1, *shape), jnp.float32)
    return model.init(rng, clip)["params"], {}

  def logits_of(params, frames):
    return model.apply({"params": params}, frames)

  def loss(params, extra, batch, rng, step):
    del step
    clips = augmented(
      autoencoding.as_float(batch["frames"]),
      rng,
      **config.augment,
    )
    logits = logits_of(params, clips)
    return stage.Outcome(
      losses={"cross_entropy": stage.Term.of(_cost(logits, batch["labels"]))},
      metrics=_rates(logits, batch["labels"]),
      extra=extra,
      aux=(),
    )

  def evaluate(params, extra, batch, rng):
    del extra, rng
    labels = batch["labels"]
    logits = logits_of(params, autoencoding.as_float(batch["frames"]))
    return {
      "cross_entropy": stage.Term.of(_cost(logits, labels)),
      **_rates(logits, labels),
    }

  def score(params, extra, batch, rngs):
    del extra, rngs
    logits = logits_of(params, autoencoding.as_float(batch["frames"]))
    cost = _cost(logits, batch["labels"])
    return {"held_out_loss": stage.Term(cost, jnp.ones_like(cost))}

  def preview(params, extra, batch, rng):
    del extra, rng
    clips = autoencoding.as_float(batch["frames"])
    return clips, jax.nn.sigmoid(logits_of(params, clips)), batch["labels"]

  def show(drawn):
    clips, probability, label = drawn
    first, second = clips[:: model.run], clips[1 :: model.run]
    name = "good" if label else "bad"
    return {
      "clip": {
        f"{name}, {100 * float(probability):.0f} % good": (
          images.to_uint8(first)
        ),
        "next frame": images.to_uint8(second),
        "change": autoencoding.error_frames(first, second),
      }
    }

  return stage.Stage(
    name="classifier",
    features={
      # Runs are folded into the batch, so frames are never split.
      "frames": stage.Feature(shape, jnp.uint8, (None,) * 4),
      "labels": stage.Feature((), jnp.int32, ()),
    },
    loss_scales={"cross_entropy": 1.0},
    init=init,
    loss=loss,
    evaluate=evaluate,
    score=score,
    preview=preview,
    show=show,
    flops_per_clip=_flops(model, shape),
    open_source=lambda split: open_source(config, split),
  )


def open_source(
  config: ml_collections.ConfigDict, split: str
) -> sources.Source:
  """Opens the rated clips of a split.

  Raises:
    UserError: `config.data` names no folder, a mixture, or no table of ratings,
      or they do not fit the config.
  """
  data, world = config.data, config.world
  if data.get("mixture", ()):
    raise errors.UserError(
      "config.data.mixture is set, but the classifier stage reads one folder; "
      "give it with --config.data.path=DIR and leave the mixture empty."
    )
  for name, what in (
    ("path", "folder of clips"),
    ("labels", "table of labels"),
  ):
    if not data[name]:
      raise errors.UserError(
        f"config.data.{name} is empty; give the {what} with "
        f"--config.data.{name}=PATH."
      )
  training = split == data.split
  opened = rated_clips.RatedClips(
    data.path,
    data.labels,
    split,
    data.num_frames,
    clip_frames=data.clip_frames,
    run=config.model.get("run", 2),
    shifts=data.shifts if training else 1,
    balance=training and data.balance,
  )
  opened.manifest.check(
    {"frame_shape": [world.height, world.width, world.channels]}
  )
  return opened


def augmented(
  frames: jax.Array,
  rng: jax.Array,
  *,
  mirror: bool = False,
  exchange: bool = False,
  colour: float = 0.0,
  gamma: float = 0.0,
) -> jax.Array:
  """Mirrors half of the clips, and changes the colours of each.

  Args:
    frames: float32 [B, T, H, W, C] in [0, 1].
    rng: A key.
    mirror: Whether half of the clips are mirrored from left to right.
    exchange: Whether the channels of a clip are put in another order.
    colour: Each channel of a clip is multiplied by 1 - colour to 1 + colour.
    gamma: The values of a clip are raised to a power, of which the logarithm is
      from -gamma to gamma.

  Returns:
    Frames of the same shape, in [0, 1].
  """
  to_mirror, to_scale, to_exchange, to_bend = jax.random.split(rng, 4)
  each = (len(frames), 1, 1, 1, 1)
  if mirror:
    chosen = jax.random.bernoulli(to_mirror, shape=each)
    frames = jnp.where(chosen, frames[:, :, :, ::-1], frames)
  if exchange:
    order = jax.vmap(lambda key: jax.random.permutation(key, frames.shape[-1]))(
      jax.random.split(to_exchange, len(frames))
    )
    frames = jnp.take_along_axis(frames, order[:, None, None, None, :], axis=-1)
  if gamma:
    power = jax.random.uniform(to_bend, each, minval=-gamma, maxval=gamma)
    frames = frames ** jnp.exp(power)
  if colour:
    factors = jax.random.uniform(
      to_scale,
      (*each[:4], frames.shape[-1]),
      minval=1 - colour,
      maxval=1 + colour,
    )
    frames = (frames * factors).clip(0, 1)
  return frames


def _cost(logits: jax.Array, labels: jax.Array) -> jax.Array:
  return optax.sigmoid_binary_cross_entropy(logits, labels.astype(jnp.float32))


def _rates(logits: jax.Array, labels: jax.Array) -> dict[str, stage.Term]:
  """Returns accuracy, and precision and recall of good clips."""
  said, good = logits > 0, labels == 1
  right = (said & good).astype(jnp.float32)
  return {
    "accuracy": stage.Term.of(said == good),
    "precision": stage.Term.of(right, said),
    "recall": stage.Term.of(right, good),
  }


def _flops(model, shape: tuple[int, ...]) -> float:
  """Returns a clip's forward and backward FLOPs (three forward passes)."""
  clip = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
  params = jax.eval_shape(model.init, jax.random.key(0), clip)
  return 3 * flops.traced(model.apply, params, clip)
