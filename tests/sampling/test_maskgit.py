"""Tests of drawing one frame by refinement."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genie_jax.core import errors
from genie_jax.sampling import maskgit

GRID = (4, 4)
VOCAB = 11


def clip_keys(count, seed=0):
  return jax.vmap(jax.random.fold_in, (None, 0))(
    jax.random.key(seed), jnp.arange(count)
  )


def toy_logits(frame_tokens, hidden):
  """Returns logits that depend on every token drawn so far."""
  n = GRID[0] * GRID[1]
  seen = jnp.where(hidden, -1, frame_tokens).reshape(-1, 1, n)
  place = jnp.arange(n)[:, None]
  code = jnp.arange(VOCAB)
  mix = jnp.sin(1.0 + (seen * (jnp.arange(n) + 1)).sum(-1, keepdims=True))
  logits = 3 * jnp.sin(place * 1.3 + code * 2.1 + 5 * mix)
  return logits.reshape(-1, *GRID, VOCAB)


@pytest.mark.parametrize("order", maskgit.ORDERS)
@pytest.mark.parametrize("temperature", (0.0, 0.7, 2.0))
def test_one_step_equals_a_numpy_version(order, temperature):
  random = np.random.default_rng(0)
  logits = random.normal(size=(3, 16, VOCAB)).astype(np.float32) * 3
  tokens = random.integers(0, VOCAB, (3, 16)).astype(np.int32)
  hidden = np.zeros((3, 16), bool)
  for row in hidden:
    row[random.permutation(16)[:10]] = True
  token_noise = random.gumbel(size=logits.shape).astype(np.float32)
  order_noise = random.gumbel(size=tokens.shape).astype(np.float32)
  got, got_hidden = maskgit.refine(
    logits,
    tokens,
    hidden,
    6,
    token_noise,
    order_noise,
    maskgit.MaskGIT(order=order, temperature=temperature),
  )

  for b in range(3):
    drawn = (logits[b] + temperature * token_noise[b]).argmax(-1)
    score = order_noise[b].copy()
    if order == "confidence":
      shifted = logits[b] - logits[b].max(-1, keepdims=True)
      log_probs = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
      score += log_probs[np.arange(16), drawn]
    places = np.flatnonzero(hidden[b])
    revealed = places[np.argsort(score[places])[6:]]
    wanted, wanted_hidden = tokens[b].copy(), hidden[b].copy()
    wanted[revealed], wanted_hidden[revealed] = drawn[revealed], False
    np.testing.assert_array_equal(got[b], wanted)
    np.testing.assert_array_equal(got_hidden[b], wanted_hidden)


@pytest.mark.parametrize("order", maskgit.ORDERS)
def test_a_drawn_token_is_never_hidden_or_drawn_again(order):
  seen = []

  def logits_of(tokens, hidden):
    jax.debug.callback(
      lambda t, h: seen.append((np.array(t), np.array(h))),
      tokens,
      hidden,
      ordered=True,
    )
    return toy_logits(tokens, hidden)

  final = maskgit.MaskGIT(6, order=order).draw(logits_of, GRID, clip_keys(2))
  jax.effects_barrier()
  assert len(seen) == 6
  assert seen[0][1].all()
  seen.append((np.array(final), np.zeros((2, *GRID), bool)))
  for (before, hidden), (after, still) in itertools.pairwise(seen):
    assert not (still & ~hidden).any()
    assert (still.sum((1, 2)) < hidden.sum((1, 2))).all()
    np.testing.assert_array_equal(before[~hidden], after[~hidden])


def test_draws_follow_the_softmax_at_the_given_temperature():
  logits = jnp.array([0.0, 1.0, 2.5])
  sampling = maskgit.MaskGIT(3, temperature=2.0)
  frames = sampling.draw(
    lambda tokens, hidden: jnp.broadcast_to(logits, (*tokens.shape, 3)),
    (10, 10),
    clip_keys(200),
  )
  found = np.bincount(np.ravel(frames), minlength=3) / frames.size
  # Five standard errors of a share over 20,000 draws.
  np.testing.assert_allclose(found, jax.nn.softmax(logits / 2), atol=0.018)


def test_temperature_zero_draws_the_most_likely_token():
  keys = clip_keys(1, seed=1), clip_keys(1, seed=2)
  fixed = jax.random.normal(jax.random.key(0), (1, *GRID, VOCAB))
  frames = [
    maskgit.MaskGIT(5, temperature=0.0).draw(
      lambda tokens, hidden: fixed, GRID, key
    )
    for key in keys
  ]
  np.testing.assert_array_equal(frames[0], fixed.argmax(-1))
  np.testing.assert_array_equal(frames[1], fixed.argmax(-1))


@pytest.mark.parametrize("order", maskgit.ORDERS)
def test_a_clip_is_drawn_the_same_in_any_batch(order):
  sampling = maskgit.MaskGIT(5, order=order)
  keys = clip_keys(4)
  together = sampling.draw(toy_logits, GRID, keys)
  alone = sampling.draw(toy_logits, GRID, keys[2:3])
  np.testing.assert_array_equal(together[2:3], alone)
  assert not np.array_equal(together[0], together[1])


def test_confidence_without_noise_reveals_the_most_likely_first():
  # The model is most confident at the last position.
  sharpness = jnp.arange(16.0).reshape(GRID)
  first_shown = []

  def logits_of(tokens, hidden):
    jax.debug.callback(
      lambda h: first_shown.append(np.flatnonzero(~np.ravel(h))),
      hidden,
      ordered=True,
    )
    return sharpness[None, ..., None] * jnp.array([1.0, 0.0])

  sampling = maskgit.MaskGIT(
    4, "linear", "confidence", temperature=0.0, choice_temperature=0.0
  )
  sampling.draw(logits_of, GRID, clip_keys(1))
  jax.effects_barrier()
  np.testing.assert_array_equal(first_shown[1], [12, 13, 14, 15])


@pytest.mark.parametrize(
  "fields",
  (
    dict(top_k=3),
    dict(top_p=0.6),
    dict(top_k=4, top_p=0.8),
    dict(top_k=VOCAB + 5),
  ),
)
@pytest.mark.parametrize("temperature", (0.0, 0.5, 2.0))
def test_only_the_most_likely_are_drawn_and_with_the_same_noise(
  fields, temperature
):
  random = np.random.default_rng(0)
  logits = random.normal(size=(2, 16, VOCAB)).astype(np.float32) * 2
  noise = random.gumbel(size=logits.shape).astype(np.float32)
  hidden = np.ones((2, 16), bool)
  got, _ = maskgit.refine(
    logits,
    np.zeros((2, 16), np.int32),
    hidden,
    0,
    noise,
    noise[..., 0],
    maskgit.MaskGIT.from_config(dict(fields, temperature=temperature)),
  )

  k, p = fields.get("top_k", VOCAB), fields.get("top_p", 1.0)
  for b, n in np.ndindex(2, 16):
    order = np.argsort(-logits[b, n])[:k]
    scaled = logits[b, n, order].astype(np.float64) / max(temperature, 1e-6)
    shares = np.exp(scaled - scaled.max())
    shares /= shares.sum()
    # A token is kept if the sum over more likely tokens is less than p.
    order = order[np.cumsum(shares) - shares < p]
    noisy = logits[b, n, order] + temperature * noise[b, n, order]
    assert got[b, n] == order[noisy.argmax()]


def test_a_new_temperature_does_not_recompile():
  traces = []

  @jax.jit
  def draw(keys, sampling):
    traces.append(1)
    return sampling.draw(toy_logits, GRID, keys)

  for temperature in (0.0, 0.5, 2.0):
    draw(clip_keys(2), maskgit.MaskGIT(3, temperature=temperature))
  assert len(traces) == 1


@pytest.mark.parametrize(
  "fields, message",
  (
    ({"temprature": 1.0}, "did you mean 'temperature'"),
    ({"temperature": -1.0}, "number from 0 to 1e6"),
    ({"temperature": "warm"}, "'warm'; it must be a number"),
    ({"top_p": "most"}, "'most'; it must be a number"),
    ({"order": 3}, "use one of random"),
    ({"order": "sorted"}, "use one of random, confidence"),
    ({"refinements": 0}, "at least 1"),
    ({"refinements": 8.0}, "give a whole number"),
    ({"refinements": True}, "give a whole number"),
    ({"top_k": -1}, "give a whole number"),
    ({"top_k": 2.5}, "give a whole number"),
    ({"top_k": True}, "give a whole number"),
    ({"top_p": 0.0}, "above 0 and at most 1"),
    ({"top_p": 1.5}, "above 0 and at most 1"),
    ({"schedule": "cosin"}, "use one of cosine"),
  ),
)
def test_an_invalid_sampling_config_is_refused(fields, message):
  with pytest.raises(errors.UserError, match=message):
    maskgit.MaskGIT.from_config(fields)
