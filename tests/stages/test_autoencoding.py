"""Tests of what the two VQ-VAE stages share."""

import types

import jax
import ml_collections
import numpy as np
import pytest

from genie_jax.core import errors
from genie_jax.nn import vq
from genie_jax.stages import autoencoding

CODEBOOK = dict(
  learn_by="average", share_decay=0.9, centre_decay=0.9, dead_below=0.1
)


def state(share):
  """Returns a codebook of four codes whose inputs lie three further on."""
  table = np.arange(8, dtype=np.float32).reshape(4, 2)
  statistics = vq.CodeStatistics(
    share=np.array(share, np.float32),
    mass=np.full(4, 2.0, np.float32),
    total=2 * (table + 3),
    age=np.float32(50),
  )
  return {"codes": {"codebook": table}, "other": 1}, {"codes": statistics}


@pytest.mark.parametrize("learn_by", ["average", "gradient"])
def test_codes_learn_as_the_config_says_and_dead_ones_are_moved(learn_by):
  update = autoencoding.codebook_update(
    types.SimpleNamespace(**{**CODEBOOK, "learn_by": learn_by})
  )
  params, extra = state([0.5, 0.0, 0.25, 0.25])
  fresh = np.full((4, 2), -1, np.float32)
  found, extra = jax.jit(update)(params, extra, fresh, jax.random.key(0))
  table = params["codes"]["codebook"]
  wanted = table + 3 if learn_by == "average" else table.copy()
  wanted[1] = -1
  np.testing.assert_allclose(found["codes"]["codebook"], wanted)
  assert found["other"] == 1
  assert float(extra["codes"].share[1]) == 0.25


def test_use_counts_codes_above_a_tenth_of_an_even_share():
  _, extra = state([0.9, 0.026, 0.024, 0.05])
  metrics = autoencoding.code_metrics(extra["codes"])
  assert float(metrics["code_usage"].mean()) == 0.75


@pytest.mark.parametrize(
  "changes, message",
  [
    (dict(learn_by="averages"), "did you mean 'average'"),
    (dict(share_decay=1.0), "share_decay=1.0 must be at least 0 and less"),
    (dict(centre_decay=-0.1), "centre_decay=-0.1"),
  ],
)
def test_a_codebook_that_cannot_learn_is_one_line(changes, message):
  with pytest.raises(errors.UserError, match=message):
    autoencoding.check(ml_collections.ConfigDict({**CODEBOOK, **changes}))


def test_bytes_become_floats_and_errors_are_grey_where_there_is_none():
  frames = np.array([[0, 255]], np.uint8)
  assert np.asarray(autoencoding.as_float(frames)).tolist() == [[0.0, 1.0]]
  truth, predicted = np.array([0.5, 0.5, 0.2]), np.array([0.5, 0.7, 0.0])
  found = autoencoding.error_frames(truth, predicted)
  assert found[0] == 128 and found[1] > 200 and found[2] < 60
