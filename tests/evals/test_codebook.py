import numpy as np
import pytest

from genie_jax.evals import codebook


def test_perplexity_of_codes_in_equal_use_is_their_number():
  codes = np.tile(np.arange(5), 20).reshape(10, 2, 5)
  found = codebook.summary(codebook.counts(codes, 8))
  assert found["usage"] == pytest.approx(5 / 8)
  assert found["perplexity"] == pytest.approx(5.0)
  assert found["min_share"] == 0.0
  assert found["num_seen"] == 100


def test_the_rarest_code_has_the_smallest_share():
  found = codebook.summary(codebook.counts(np.array([0, 0, 0, 1]), 2))
  assert found["min_share"] == pytest.approx(0.25)
