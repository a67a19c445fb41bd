"""Tests of the schedule of hidden tokens."""

import math

import numpy as np
import pytest

from genie_jax.core import errors
from genie_jax.sampling import schedule


@pytest.mark.parametrize("name", schedule.SCHEDULES)
@pytest.mark.parametrize("refinements", (1, 2, 25, 64, 100))
@pytest.mark.parametrize("num_tokens", (1, 7, 64, 920))
def test_every_step_reveals_something_and_the_last_reveals_all(
  name, refinements, num_tokens
):
  counts = schedule.hidden_counts(num_tokens, refinements, name)
  assert len(counts) == min(refinements, num_tokens)
  assert counts[-1] == 0
  assert (np.diff([num_tokens, *counts]) <= -1).all()


def test_cosine_equals_the_formula_of_maskgit():
  counts = schedule.hidden_counts(920, 25)
  wanted = [
    math.floor(math.cos(math.pi / 2 * k / 25) * 920) for k in range(1, 26)
  ]
  np.testing.assert_array_equal(counts, wanted)


def test_linear_reveals_the_same_number_in_each_step():
  np.testing.assert_array_equal(
    schedule.hidden_counts(8, 4, "linear"), [6, 4, 2, 0]
  )


def test_square_root_reveals_most_in_its_first_step():
  revealed = -np.diff([100, *schedule.hidden_counts(100, 4, "square_root")])
  assert revealed[0] == revealed.max()


def test_an_unknown_schedule_is_refused_with_the_nearest_name():
  with pytest.raises(errors.UserError, match="did you mean 'cosine'"):
    schedule.hidden_counts(8, 4, "cosin")


def test_no_refinements_are_refused():
  with pytest.raises(errors.UserError, match="refinements is 0"):
    schedule.hidden_counts(8, 0)
