"""Tests of the dynamics model: causality, masking and cached steps."""

import flax.linen as nn
import jax
import numpy as np
import pytest

from tests.fixtures import tiny_models

SHOWN = np.zeros(
  (tiny_models.CLIPS, tiny_models.FRAMES, *tiny_models.GRID), bool
)
# For layers whose float32 sums are added in a different order.
TOLERANCE = dict(rtol=1e-4, atol=1e-4)


@pytest.fixture(scope="module", params=["add", "prepend"])
def model(request):
  return tiny_models.part("dynamics", actions_enter=request.param)


@pytest.fixture(scope="module")
def run(model):
  return tiny_models.compiled(model)


def some_hidden():
  hidden = np.random.default_rng(5).random(SHOWN.shape) < 0.5
  hidden[:, 0] = False
  return hidden


def test_every_position_has_a_logit_for_every_code(run):
  logits = run(tiny_models.tokens(), tiny_models.actions(3), some_hidden())
  assert logits.shape == (*SHOWN.shape, 11) and logits.dtype == np.float32


@pytest.mark.parametrize("changed", [0, 1, 2])
@pytest.mark.parametrize("hidden", [SHOWN, some_hidden()])
def test_an_action_influences_frames_after_it_and_never_earlier_ones(
  run, changed, hidden
):
  actions = tiny_models.actions(3)
  before = run(tiny_models.tokens(), actions, hidden)
  actions[:, changed] = (actions[:, changed] + 1) % 5
  seen = tiny_models.moved(before, run(tiny_models.tokens(), actions, hidden))
  assert (seen[: changed + 1] == 0).all()
  assert (seen[changed + 1 :] > 1e-4).all()


@pytest.mark.parametrize("changed", [0, 1, 3])
def test_a_shown_token_influences_its_frame_and_later_ones_only(run, changed):
  tokens = tiny_models.tokens()
  before = run(tokens, tiny_models.actions(3), SHOWN)
  tokens[:, changed, 0, 1] = (tokens[:, changed, 0, 1] + 1) % 11
  seen = tiny_models.moved(before, run(tokens, tiny_models.actions(3), SHOWN))
  assert (seen[:changed] == 0).all() and (seen[changed:] > 1e-4).all()


def test_the_values_of_hidden_tokens_have_no_effect(run):
  tokens, hidden = tiny_models.tokens(), some_hidden()
  assert hidden.any() and not hidden[:, 1:].all()
  before = run(tokens, tiny_models.actions(3), hidden)
  tokens[hidden] = (tokens[hidden] + 3) % 11
  np.testing.assert_array_equal(
    before, run(tokens, tiny_models.actions(3), hidden)
  )


def test_hiding_a_frame_does_not_change_earlier_frames(run):
  hidden = SHOWN.copy()
  before = run(tiny_models.tokens(), tiny_models.actions(3), hidden)
  hidden[:, 2] = True
  seen = tiny_models.moved(
    before, run(tiny_models.tokens(), tiny_models.actions(3), hidden)
  )
  assert (seen[:2] == 0).all() and (seen[2:] > 1e-4).all()


def test_the_first_frame_uses_the_embedding_for_no_action(model, run):
  table = model.params["action_embedding"]
  assert model.module.no_action == 5 and table.shape[0] == 6

  def changed(row):
    other = table.copy()
    other[row] += 1
    given = (tiny_models.tokens(), tiny_models.actions(3), SHOWN)
    return tiny_models.moved(
      run(*given),
      run(*given, params={**model.params, "action_embedding": other}),
    )

  assert changed(model.module.no_action)[0] > 1e-4
  assert changed(slice(0, 5))[0] == 0


@pytest.fixture(scope="module")
def step(model):
  return tiny_models.compiled(model, "step")


def test_frame_by_frame_with_a_cache_equals_the_full_pass(model, run, step):
  tokens, actions, hidden = (
    tiny_models.tokens(),
    tiny_models.actions(3),
    some_hidden(),
  )
  whole = run(tokens, actions, hidden)
  incoming = np.pad(
    actions, ((0, 0), (1, 0)), constant_values=model.module.no_action
  )
  cache = model.module.empty_cache(tiny_models.CLIPS, slots=tiny_models.FRAMES)
  for t in range(tiny_models.FRAMES):
    frame = slice(t, t + 1)
    logits, own = step(
      tokens[:, frame], incoming[:, frame], hidden[:, frame], cache, np.int32(t)
    )
    np.testing.assert_allclose(logits[:, 0], whole[:, t], **TOLERANCE)
    cache = cache.write(own, t)


def test_several_frames_at_once_after_a_cache_equal_the_full_pass(
  model, run, step
):
  tokens, actions, hidden = (
    tiny_models.tokens(),
    tiny_models.actions(3),
    some_hidden(),
  )
  whole = run(tokens, actions, hidden)
  incoming = np.pad(
    actions, ((0, 0), (1, 0)), constant_values=model.module.no_action
  )
  cache = model.module.empty_cache(tiny_models.CLIPS, slots=tiny_models.FRAMES)
  _, own = step(
    tokens[:, :1], incoming[:, :1], hidden[:, :1], cache, np.int32(0)
  )
  cache = cache.write(own, 0)
  logits, _ = step(
    tokens[:, 1:], incoming[:, 1:], hidden[:, 1:], cache, np.int32(1)
  )
  np.testing.assert_allclose(logits, whole[:, 1:], **TOLERANCE)


def test_actions_of_the_wrong_length_are_refused(model):
  with pytest.raises(AssertionError, match="shape"):
    jax.eval_shape(
      lambda: model.module.apply(
        {"params": model.params},
        tiny_models.tokens(),
        tiny_models.actions(4),
        SHOWN,
      )
    )


def test_a_new_model_with_a_reach_starts_as_one_without():
  inputs = tiny_models.tokens(), tiny_models.actions(3), some_hidden()
  with_reach = tiny_models.part(
    "dynamics", last_frame=True, last_frame_reach=1
  ).module
  params = nn.unbox(with_reach.init(jax.random.key(0), *inputs)["params"])
  found = with_reach.apply({"params": params}, *inputs)
  del params["last_frame_around"]
  without = with_reach.clone(last_frame_reach=0)
  np.testing.assert_array_equal(
    found, without.apply({"params": params}, *inputs)
  )
