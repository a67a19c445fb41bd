"""A two-layer network as a stage, and batches whose state is one number."""

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from genie_jax.sharding import mesh as mesh_lib
from genie_jax.sharding import rules
from genie_jax.train import optimizer as optimizer_lib
from genie_jax.train import stage as stage_lib
from genie_jax.train import state as state_lib
from genie_jax.train import step as step_lib

FRAMES, WIDTH, HIDDEN = 4, 8, 16


@flax.struct.dataclass
class Codes:
  """Statistics in a class, as the stages of genie_jax keep them."""
  mean: jax.Array


def config(**changes) -> ml_collections.ConfigDict:
  """Returns a config of four steps; `changes` use "__" for a dot."""
  fields = ml_collections.ConfigDict(dict(
      stage="toy", seed=0, init_from="", steps=4, log_every=1, eval_every=2,
      eval_batches=2, checkpoint_every=2, keep_checkpoints=3, keep_every=0,
      mesh=dict(data=1, fsdp=-1, tensor=1, frame=1),
      data=dict(path="", batch_size=16, num_threads=0),
      model=dict(hidden=HIDDEN),
      optimizer=dict(
          name="adamw", peak_lr=1e-2, schedule="constant", weight_decay=0.1,
          clip_norm=1.0, accumulate=1)))
  fields.update_from_flattened_dict(
      {name.replace("__", "."): value for name, value in changes.items()})
  return fields


def make_stage(
    scales=None, name="toy", hidden=HIDDEN, explode_at=None
) -> stage_lib.Stage:
  """Returns the stage; its loss is NaN at step `explode_at` (from 1)."""

  def init(rng):
    first, second = jax.random.split(rng)
    box = lambda value, *names: nn.LogicallyPartitioned(value, names)
    return {
        "up": {
            "kernel": box(
                jax.random.normal(first, (WIDTH, hidden)) / 3, "embed", "mlp"),
            "bias": box(jnp.zeros((hidden,)), "mlp")},
        "down": {"kernel": box(
            jax.random.normal(second, (hidden, WIDTH)) / 4, "mlp", "embed")},
    }, {"seen": jnp.zeros((), jnp.int32), "codes": Codes(jnp.zeros((WIDTH,)))}

  def forward(params, x):
    x = rules.constrain(x, ("act_batch", "act_time", "act_embed"))
    h = jax.nn.tanh(x @ params["up"]["kernel"] + params["up"]["bias"])
    h = rules.constrain(h, ("act_batch", "act_time", "act_mlp"))
    return h, h @ params["down"]["kernel"]

  def terms(params, batch):
    x = batch["inputs"]
    h, y = forward(params, x)
    wanted = jnp.roll(x, 1, axis=-1)
    return {
        "fit": stage_lib.Term.of(
            ((y - wanted) ** 2).mean(-1), batch["hidden"]),
        "size": stage_lib.Term.of(h**2)}, y

  def loss(params, extra, batch, rng, step):
    losses, y = terms(params, batch)
    if explode_at is not None:
      bad = jnp.where(step + 1 == explode_at, jnp.nan, 1.0)
      losses["fit"] = losses["fit"].replace(total=losses["fit"].total * bad)
    extra = {"seen": extra["seen"] + batch["hidden"].sum(dtype=jnp.int32),
             "codes": extra["codes"]}
    noise = jax.random.uniform(rng)
    return stage_lib.Outcome(
        losses, {"noise": stage_lib.Term.of(noise),
                 "shown": stage_lib.Term.of(~batch["hidden"])},
        extra, {"y": y})

  def after_update(params, extra, aux, rng):
    del rng
    return params, {**extra, "codes": Codes(aux["y"].mean((0, 1)))}

  def preview(params, extra, batch, rng):
    del extra, rng
    return forward(params, batch["inputs"])[1]

  def show(y):
    frames = np.zeros((FRAMES, 4, 8, 3), np.uint8)
    frames[..., 0] = (np.abs(y)[:, None] * 99).clip(0, 255)
    return {"toy": {"truth": frames, "prediction": frames}}

  return stage_lib.Stage(
      name=name,
      features={
          "inputs": stage_lib.Feature(
              (FRAMES, WIDTH), np.float32, ("act_time", None)),
          "hidden": stage_lib.Feature((FRAMES,), np.bool_, ("act_time",))},
      loss_scales={"fit": 1.0, "size": 0.01} if scales is None else scales,
      init=init, loss=loss, after_update=after_update,
      evaluate=lambda params, extra, batch, rng: terms(params, batch)[0],
      preview=preview, show=show,
      flops_per_clip=6.0 * FRAMES * WIDTH * hidden * 2)


def batch(number: int, size: int, seed: int = 0) -> dict[str, np.ndarray]:
  """Returns batch `number`; how much of a clip is hidden varies widely."""
  random = np.random.default_rng([seed, number])
  share = random.uniform(0.05, 0.95, (size, 1))
  return {
      "inputs": random.normal(size=(size, FRAMES, WIDTH)).astype(np.float32),
      "hidden": random.uniform(size=(size, FRAMES)) < share,
      "source": np.zeros((size,), np.int32)}


class Batches:
  """Endless batches of one process's share."""

  def __init__(self, size: int, share, seed: int = 0):
    self._size, self._share, self._seed = size, share, seed
    self._next = 0

  def __iter__(self):
    return self

  def __next__(self):
    whole = batch(self._next, self._size, self._seed)
    self._next += 1
    parts = {name: np.split(x, self._share.count) for name, x in whole.items()}
    return {name: np.concatenate([cut[part] for part in self._share.parts])
            for name, cut in parts.items()}

  def get_state(self):
    return {"next": self._next}

  def set_state(self, state):
    self._next = state["next"]

  def close(self):
    pass


def makers(fields):
  """Returns the training and held-out iterator functions of a config."""
  size = fields.data.batch_size
  return (lambda share: Batches(size, share),
          lambda share: Batches(size, share, seed=1))


def built(fields, stage=None, devices=None):
  """Returns (mesh, optimizer, abstract state, state, step)."""
  stage = stage or make_stage()
  mesh = mesh_lib.make(fields.mesh, devices)
  optimizer = optimizer_lib.make(
      fields.optimizer, fields.steps, stage.no_decay)
  like = state_lib.abstract(stage, optimizer, mesh)
  state = state_lib.create(stage, optimizer, like, fields.seed)
  step = step_lib.make_train_step(
      stage, optimizer, mesh, like, fields.data.batch_size)
  return mesh, optimizer, like, state, step
