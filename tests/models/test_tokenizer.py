"""Tests of the tokenizer: shapes, causality and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.fixtures import tiny_models


@pytest.fixture(scope="module")
def model():
  return tiny_models.part("tokenizer")


@pytest.fixture(scope="module")
def whole(model):
  return tiny_models.compiled(model)


def test_decoded_frames_keep_shape_and_range_and_tokens_are_a_grid(whole):
  made = whole(tiny_models.clip())
  assert made.frames.shape == tiny_models.clip().shape
  assert made.frames.dtype == np.float32
  assert made.frames.min() >= 0 and made.frames.max() <= 1
  assert made.tokens.shape == (
    tiny_models.CLIPS,
    tiny_models.FRAMES,
    *tiny_models.GRID,
  )
  assert made.tokens.dtype == np.int32
  assert made.tokens.min() >= 0 and made.tokens.max() < 11


@pytest.fixture(scope="module")
def encode(model):
  return tiny_models.compiled(model, "encode")


@pytest.fixture(scope="module")
def decode(model):
  return tiny_models.compiled(model, "decode")


@pytest.mark.parametrize("changed", [1, 3])
def test_a_token_never_sees_a_later_frame(whole, changed):
  before, frames = whole(tiny_models.clip()), tiny_models.clip()
  frames[:, changed] = 1 - frames[:, changed]
  after = whole(frames)
  np.testing.assert_array_equal(
    before.tokens[:, :changed], after.tokens[:, :changed]
  )
  np.testing.assert_array_equal(
    before.frames[:, :changed], after.frames[:, :changed]
  )
  seen = tiny_models.moved(before.quantized.inputs, after.quantized.inputs)
  assert (seen[:changed] == 0).all() and (seen[changed:] > 1e-3).all()


def test_a_decoded_frame_never_sees_later_tokens(decode):
  before, tokens = decode(tiny_models.tokens()), tiny_models.tokens()
  tokens[:, 2] = (tokens[:, 2] + 1) % 11
  seen = tiny_models.moved(before, decode(tokens))
  assert (seen[:2] == 0).all() and (seen[2:] > 1e-3).all()


def test_encoding_then_decoding_equals_the_forward_pass(whole, encode, decode):
  made = whole(tiny_models.clip())
  tokens = encode(tiny_models.clip())
  np.testing.assert_array_equal(tokens, made.tokens)
  # The straight-through estimator adds and subtracts the input, which rounds.
  np.testing.assert_allclose(decode(tokens), made.frames, atol=1e-4)


def test_a_prompt_of_one_frame_has_the_tokens_of_a_longer_clip(encode):
  np.testing.assert_array_equal(
    encode(tiny_models.clip()[:, :1]), encode(tiny_models.clip())[:, :1]
  )


def test_the_pixel_error_trains_encoder_and_decoder_but_not_the_codebook(model):
  clip = tiny_models.clip()

  def error(params):
    made = model.module.apply({"params": params}, clip)
    return jnp.square(made.frames - clip).mean()

  gradient = jax.jit(jax.grad(error))(model.params)
  size = {
    name: max(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(part))
    for name, part in gradient.items()
  }
  assert size.pop("codes") == 0
  assert all(value > 0 for value in size.values()), size


def test_with_a_cosine_start_the_untrained_model_is_a_transform_codec():
  plain = {
    **tiny_models.STACK,
    "num_layers": 1,
    "final_norm": False,
    "residual_scale": 0.0,
  }
  made = tiny_models.part(
    "tokenizer",
    start="cosine",
    output="linear",
    code_dim=16,
    unit_norm=False,
    encoder=plain,
    decoder=plain,
  )
  row, column = np.mgrid[0:6, 0:8] / 8
  smooth = np.stack([0.3 + 0.3 * row + 0.2 * column] * 3, -1)
  clip = np.broadcast_to(smooth, (1, 2, 6, 8, 3)).astype(np.float32)

  def unquantised(rng, frames):
    params = made.module.init(rng, frames)
    return made.module.apply(
      params, frames, method=lambda m, x: m._decode(m._encode(x))[0]
    )

  found = np.asarray(jax.jit(unquantised)(jax.random.key(0), clip))
  # 16 of 48 coefficients encode a smooth grey image almost exactly.
  assert np.square(found - clip).mean() < 1e-4 < clip.var()
