"""Tests of the latent action model: causality, shapes and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genie_jax.nn import patches
from tests.fixtures import tiny_models

KINDS = {
  "add": dict(actions_enter="add"),
  "prepend": dict(actions_enter="prepend"),
  "laptop": dict(
    actions_enter="add",
    predict="change",
    shrink=2,
    patch=2,
    decoder={**tiny_models.STACK, "window": 1},
  ),
  "motion": dict(
    actions_enter="add",
    predict="shift",
    reach=(1, 2),
    match=True,
    shrink=2,
    patch=2,
    decoder={**tiny_models.STACK, "window": 1},
  ),
}


@pytest.fixture(scope="module", params=list(KINDS))
def model(request):
  return tiny_models.part("lam", **KINDS[request.param])


@pytest.fixture(scope="module")
def whole(model):
  return tiny_models.compiled(model)


@pytest.fixture(scope="module")
def decode(model):
  return tiny_models.compiled(model, "decode")


def test_each_transition_gets_one_action_and_one_prediction(model, whole):
  made = whole(tiny_models.clip())
  rows, columns = 6 // model.module.shrink, 8 // model.module.shrink
  assert made.latent_actions.shape == (2, 3)
  assert made.latent_actions.dtype == np.int32
  assert made.frames.shape == made.targets.shape == (2, 3, rows, columns, 3)
  assert made.frames.min() >= 0 and made.frames.max() <= 1
  if model.module.shrink == 1:
    np.testing.assert_array_equal(made.targets, tiny_models.clip()[:, 1:])


@pytest.mark.parametrize("changed", [0, 2, 3])
def test_an_action_sees_frames_up_to_the_next_one_only(whole, changed):
  before, frames = whole(tiny_models.clip()), tiny_models.clip()
  frames[:, changed] = 1 - frames[:, changed]
  after = whole(frames)
  # Action t leads to frame t + 1, so frame `changed` is first seen by the
  # action before it.
  first = max(changed - 1, 0)
  seen = tiny_models.moved(before.quantized.inputs, after.quantized.inputs)
  assert (seen[:first] == 0).all() and (seen[first:] > 1e-4).all()
  np.testing.assert_array_equal(
    before.latent_actions[:, :first], after.latent_actions[:, :first]
  )


def test_the_decoder_never_sees_a_later_frame(decode, model):
  frames, actions = tiny_models.clip(), tiny_models.actions(tiny_models.FRAMES)
  before = decode(frames, actions)
  frames[:, 1] = 1 - frames[:, 1]
  seen = tiny_models.moved(before, decode(frames, actions))
  assert seen[0] == 0 and seen[1] > 1e-4
  if model.module.decoder.get("window") == 1:
    assert (seen[2:] == 0).all()  # With a window of 1, only the last frame.
  else:
    assert (seen[2:] > 1e-5).all()


def test_the_decoder_sees_actions_up_to_its_own_only(decode):
  actions = tiny_models.actions(tiny_models.FRAMES)
  before = decode(tiny_models.clip(), actions)
  actions[:, 2] = (actions[:, 2] + 1) % 5
  seen = tiny_models.moved(before, decode(tiny_models.clip(), actions))
  assert (seen[:2] == 0).all() and seen[2] > 1e-4


def test_prediction_is_decoding_the_inferred_actions(model, whole, decode):
  made = whole(tiny_models.clip())
  np.testing.assert_array_equal(
    tiny_models.compiled(model, "encode")(tiny_models.clip()),
    made.latent_actions,
  )
  np.testing.assert_allclose(
    decode(tiny_models.clip()[:, :-1], made.latent_actions),
    made.frames,
    atol=1e-4,
  )


@pytest.mark.parametrize("model", ["add"], indirect=True)
def test_the_prediction_error_trains_the_encoder_through_the_code(model):
  clip = tiny_models.clip()

  def error(params):
    made = model.module.apply({"params": params}, clip)
    return jnp.square(made.frames - made.targets).mean()

  gradient = jax.jit(jax.grad(error))(model.params)
  size = {
    name: max(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(part))
    for name, part in gradient.items()
  }
  assert size.pop("codes") == 0
  assert all(value > 0 for value in size.values()), size


@pytest.mark.parametrize("model", ["motion"], indirect=True)
def test_predicting_shifts_moves_the_frame_before(model, whole):
  shifts = model.module.reach[0] * 2 + 1, model.module.reach[1] * 2 + 1
  bias = np.full(shifts, -50, np.float32)
  bias[0, 1] = 50  # From one pixel above and one to the left.
  only = {
    **model.params,
    "to_pixels": jax.tree.map(np.zeros_like, model.params["to_pixels"]),
    "to_shifts": {
      "kernel": np.zeros_like(model.params["to_shifts"]["kernel"]),
      "bias": bias.ravel(),
    },
  }
  made = whole(tiny_models.clip(), params=only)
  coarse = np.asarray(patches.shrink(tiny_models.clip(), 2))[:, :-1]
  padded = np.pad(coarse, ((0, 0), (0, 0), (1, 1), (1, 1), (0, 0)), "edge")
  wanted = padded[:, :, :-2, :-2]
  np.testing.assert_allclose(made.frames, wanted, atol=0.0201)


@pytest.mark.parametrize("model", ["laptop"], indirect=True)
def test_predicting_the_change_starts_from_a_copy(model, whole):
  silent = {
    **model.params,
    "to_pixels": jax.tree.map(np.zeros_like, model.params["to_pixels"]),
  }
  made = whole(tiny_models.clip(), params=silent)
  coarse = np.asarray(patches.shrink(tiny_models.clip(), 2))
  # Pixels closer to black or white than 0.02 are clipped.
  np.testing.assert_allclose(made.frames, coarse[:, :-1], atol=0.0201)


def change_by_a_cut(window):
  """Returns how much the vectors of transitions change by a cut, [T - 1].

  The same transitions are encoded in clips of 12 frames and in the last 6 of
  these frames. The vectors are those that the quantizer gets.
  """
  made = tiny_models.part(
    "lam", encoder={**tiny_models.STACK, "window": window}
  )
  encode = tiny_models.compiled(made)
  clip = tiny_models.clip(12)
  whole = encode(clip).quantized.inputs[:, 6:]
  cut = encode(clip[:, 6:]).quantized.inputs
  assert np.abs(whole).max() > 0.1
  return np.abs(whole - cut).max((0, 2))


def test_with_a_window_codes_do_not_depend_on_where_the_clip_was_cut():
  # Two layers with a window of two frames see three frames, so that only the
  # first transition after the cut lacks one.
  change = change_by_a_cut(2)
  assert change[0] > 1e-2 and change[1:].max() < 1e-5
  assert change_by_a_cut(0).min() > 1e-2


def test_a_lam_states_how_many_frames_a_code_depends_on():
  for window, frames in ((0, 0), (1, 1), (2, 3), (3, 5)):
    made = tiny_models.part(
      "lam", encoder={**tiny_models.STACK, "window": window}
    )
    assert made.module.context == frames
  made = tiny_models.part(
    "lam",
    encoder={**tiny_models.STACK, "window": 2},
    reach=(1, 1),
    match=True,
  )
  assert made.module.context == 4
