"""Tests of the masks of hidden tokens in training."""

import functools
import types

import jax
import ml_collections
import numpy as np
import pytest

from genie_jax.core import errors
from genie_jax.stages import masking

SHAPE = (256, 5, 8, 8)
PAPER = dict(
  per="clip", rate="uniform", low=0.5, high=1.0, clean_frame=0.0, clean_past=0.0
)


@functools.partial(jax.jit, static_argnames=("per", "rate"))
def _draw(rng, per, rate, **numbers):
  return masking.draw(
    rng, SHAPE, types.SimpleNamespace(per=per, rate=rate, **numbers)
  )


def draw(**changes):
  """Draws with the paper's fields, some of them changed."""
  made = _draw(jax.random.key(0), **{**PAPER, **changes})
  return jax.tree.map(np.asarray, made)


def rates(hidden):
  """Returns the share of hidden tokens by clip and frame, [B, T]."""
  return hidden.mean((2, 3))


@pytest.mark.parametrize(
  "changes",
  [
    {},
    dict(per="frame", rate="cosine", low=0.0, clean_frame=0.5),
    dict(clean_past=0.5),
  ],
)
def test_the_first_frame_is_never_hidden_and_only_hidden_tokens_are_judged(
  changes,
):
  hidden, judged = draw(**changes)
  assert hidden.shape == judged.shape == SHAPE
  assert not hidden[:, 0].any()
  assert not (judged & ~hidden).any() and judged.any()


def test_the_papers_rates_are_uniform_from_a_half_to_one_for_each_clip():
  hidden, judged = draw()
  np.testing.assert_array_equal(hidden, judged)
  found = hidden[:, 1:].mean((1, 2, 3))  # 256 draws for each clip
  assert 0.4 < found.min() < 0.6 and found.max() > 0.95
  assert abs(found.mean() - 0.75) < 0.03  # 0.144 / sqrt(256) is 0.009
  # One rate per clip: its frames differ only by the draw of 64 tokens.
  assert rates(hidden)[:, 1:].std(1).mean() < 0.08


def test_a_rate_for_each_frame_varies_inside_a_clip():
  hidden, _ = draw(per="frame", low=0.0)
  found = rates(hidden)[:, 1:]
  assert found.std(1).mean() > 0.2
  assert abs(found.mean() - 0.5) < 0.03


def test_cosine_rates_are_those_of_uniformly_drawn_refinements():
  hidden, _ = draw(per="frame", rate="cosine", low=0.0)
  found = rates(hidden)[:, 1:]
  assert abs(found.mean() - 2 / np.pi) < 0.03  # The mean of cos(pi u / 2).
  assert found.min() < 0.1 and found.max() > 0.95


def test_clean_frames_are_shown_whole_with_their_probability():
  hidden, _ = draw(per="frame", clean_frame=0.5)
  clean = rates(hidden)[:, 1:] == 0
  assert abs(clean.mean() - 0.5) < 0.06
  assert (rates(hidden)[:, 1:][~clean] > 0.2).all()


def test_a_clean_past_shows_all_before_one_judged_frame():
  hidden, judged = draw(clean_past=1.0)
  judged_frames = judged.any((2, 3))
  for clip in range(SHAPE[0]):
    frames = np.flatnonzero(judged_frames[clip])
    if not len(frames):
      continue  # At its cosine rate no token was hidden.
    (target,) = frames
    assert not hidden[clip, :target].any()
    np.testing.assert_array_equal(hidden[clip, target], judged[clip, target])
    assert hidden[clip, target + 1 :].all()
  assert set(np.flatnonzero(judged_frames.any(0))) == {1, 2, 3, 4}
  assert judged_frames.any(1).mean() > 0.95


def test_a_clean_past_is_drawn_with_its_probability():
  hidden, judged = draw(clean_past=0.25)
  alone = (hidden & ~judged).any((1, 2, 3)) | (rates(hidden)[:, 1] == 0)
  assert abs(alone.mean() - 0.25) < 0.1


def test_next_frame_hides_all_from_the_target_on_and_judges_only_the_target():
  hidden, judged = jax.tree.map(
    np.asarray,
    jax.jit(masking.next_frame, static_argnums=1)(jax.random.key(0), SHAPE),
  )
  targets = judged.all((2, 3)).argmax(1)
  assert set(targets) == {1, 2, 3, 4}
  for clip, target in enumerate(targets):
    assert judged[clip].sum() == 64 and judged[clip, target].all()
    assert not hidden[clip, :target].any() and hidden[clip, target:].all()


@pytest.mark.parametrize(
  "changes, message",
  [
    (dict(per="pixel"), "mask.per='pixel' is unknown"),
    (dict(rate="cosin"), "did you mean 'cosine'"),
    (dict(low=1.0), "low=1.0 and high=1.0"),
    (dict(high=1.5), "0 <= low < high <= 1"),
    (dict(clean_past=2), "clean_past=2 is a probability"),
    (dict(clean_frame=-0.1), "clean_frame=-0.1 is a probability"),
  ],
)
def test_an_invalid_mask_config_raises_an_error(changes, message):
  with pytest.raises(errors.UserError, match=message):
    masking.check(ml_collections.ConfigDict({**PAPER, **changes}))


def test_noise_replaces_tokens_by_others_of_the_same_clip():
  clips = np.arange(SHAPE[0])[:, None, None, None]
  tokens = 1000 * clips + np.arange(np.prod(SHAPE[1:])).reshape(SHAPE[1:])
  found = np.asarray(masking.corrupt(jax.random.key(0), tokens, 0.2))
  assert found.shape == SHAPE
  assert (found // 1000 == np.broadcast_to(clips, SHAPE)).all()
  replaced = (found != tokens).mean((1, 2, 3))
  # A share from 0 to 0.2 for each clip.
  assert replaced.max() <= 0.27 and replaced.min() < 0.02
  assert abs(replaced.mean() - 0.1) < 0.02
  # Any place of the clip is a source.
  assert len(np.unique(found % 1000)) == np.prod(SHAPE[1:])


def test_no_noise_changes_nothing():
  tokens = np.arange(np.prod(SHAPE)).reshape(SHAPE)
  found = masking.corrupt(jax.random.key(0), tokens, 0.0)
  np.testing.assert_array_equal(found, tokens)


def test_a_share_of_noise_above_one_is_one_line():
  config = ml_collections.ConfigDict({**PAPER, "noise": 1.5})
  with pytest.raises(errors.UserError, match=r"config\.mask\.noise=1\.5"):
    masking.check(config)
