"""Tests of the held-out loss by which runs are compared."""

import jax
import numpy as np
import pytest

from genie_jax.models import registry as models_registry
from genie_jax.sharding import hosts
from genie_jax.sharding import mesh as mesh_lib
from genie_jax.stages import masking, registry
from genie_jax.train import evaluation
from genie_jax.train import optimizer as optimizer_lib
from genie_jax.train import state as state_lib
from tests.fixtures import stage_training

NUM_CLIPS = 5


class Clips:
  """Batches of a numbered list of clips, as the loader gives them."""

  def __init__(self, arrays, size):
    self._arrays, self._size, self._next = arrays, size, 0

  def __next__(self):
    numbers = np.arange(self._next, self._next + self._size)
    self._next += self._size
    count = len(self._arrays["tokens"])
    return {name: x[numbers % count] for name, x in self._arrays.items()}

  def close(self):
    pass


class Lines:
  """Keeps what a writer would write."""

  def __init__(self):
    self.values = {}

  def scalars(self, step, values):
    self.values[step] = dict(values)


def config(width=32, batch_size=2, seed=0, layers=1):
  fields = stage_training.load("dynamics")
  fields.data.batch_size, fields.seed, fields.eval_batches = batch_size, seed, 0
  fields.model.transformer.width = width
  fields.model.transformer.num_layers = layers
  fields.mask.noise = 0.3  # The held-out clips are corrupted as in training.
  return fields


def clips(fields):
  """Returns 7 clips, of which the first NUM_CLIPS are in the held-out loss."""
  larger = fields.copy_and_resolve_references()
  larger.data.batch_size = 7
  stage = registry.make(larger)
  return stage_training.random_batch(stage, larger)


def evaluate(fields, tmp_path, edit=lambda params: params, devices=1):
  """Returns what is logged for a run's initial state."""
  stage = registry.make(fields)
  mesh = mesh_lib.make(fields.mesh, jax.devices()[:devices])
  optimizer = optimizer_lib.make(fields.optimizer, fields.steps, stage.no_decay)
  like = state_lib.abstract(stage, optimizer, mesh)
  state = state_lib.create(stage, optimizer, like, fields.seed)
  state = state.replace(params=edit(state.params))
  arrays, lines = clips(fields), Lines()
  held_out = evaluation.HeldOut(
    stage,
    fields,
    mesh,
    like,
    hosts.share(mesh),
    tmp_path,
    None,
    evaluation.FixedClips(
      lambda share: Clips(arrays, fields.data.batch_size), NUM_CLIPS
    ),
  )
  values = held_out.run(3, state, lines)
  assert lines.values == {3: values}
  return values, state.params


def masks(fields, shape):
  """Returns the inputs and judged tokens of the held-out loss, clip by clip."""
  for number in range(NUM_CLIPS):
    rng = jax.random.fold_in(jax.random.key(evaluation.SEED), number)
    hidden, judged = masking.draw(rng, (1, *shape), fields.mask)
    yield number, jax.random.fold_in(rng, 1), hidden, np.asarray(judged[0])


def test_the_value_is_the_mean_over_the_masked_tokens_of_the_first_clips(
  tmp_path,
):
  fields = config()
  values, params = evaluate(fields, tmp_path)
  arrays = clips(fields)
  model = models_registry.build("dynamics", fields, trusted=True)
  losses = []
  for number, noise, hidden, judged in masks(
    fields, arrays["tokens"].shape[1:]
  ):
    tokens = arrays["tokens"][number]
    logits = model.apply(
      {"params": params},
      masking.corrupt(noise, tokens[None], fields.mask.noise),
      arrays["latent_actions"][number][None],
      hidden,
    )
    logits = np.asarray(logits[0], np.float64)
    scores = np.log(np.exp(logits).sum(-1)) - np.take_along_axis(
      logits, tokens[..., None], -1
    ).squeeze(-1)
    losses += list(scores[judged])
  # float32 sums of a hundred terms against float64.
  assert values["eval/held_out_loss"] == pytest.approx(
    np.mean(losses), rel=1e-5
  )
  assert values["eval/held_out_loss_per_bit"] == pytest.approx(
    np.mean(losses) / np.log(fields.world.num_codes), rel=1e-5
  )
  assert values["eval/held_out_tokens"] == len(losses)


def test_runs_of_any_size_seed_batch_and_mesh_see_the_same_masks(tmp_path):
  # With a readout that ignores its input, the loss is the mean of a fixed
  # number per code over the masked tokens: it shows which ones were masked.
  bias = np.random.default_rng(0).normal(size=(64,)).astype(np.float32)

  def ignore_inputs(params):
    readout = params["to_logits"]
    kernel = jax.numpy.zeros_like(readout["kernel"])
    return {**params, "to_logits": {"kernel": kernel, "bias": bias}}

  fields = config()
  arrays = clips(fields)
  price = np.log(np.exp(bias.astype(np.float64)).sum()) - bias
  wanted = [
    price[arrays["tokens"][number]][judged]
    for number, _, _, judged in masks(fields, arrays["tokens"].shape[1:])
  ]
  wanted = np.concatenate(wanted)
  for other, devices in (
    (fields, 1),
    (config(width=16, batch_size=4, seed=7, layers=2), 4),
  ):
    values, _ = evaluate(other, tmp_path, ignore_inputs, devices)
    assert values["eval/held_out_tokens"] == len(wanted)
    # Another mask of as many tokens would differ by about 1 / sqrt(count), so
    # by several percent.
    assert values["eval/held_out_loss"] == pytest.approx(
      wanted.mean(), rel=1e-5
    )
