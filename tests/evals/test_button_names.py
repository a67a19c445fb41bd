"""Tests of the rule that names buttons."""

import numpy as np
import pytest

from genie_jax.evals import button_names


def part(value, chance, margin=0.1):
  return {
    "value": value,
    "low": value - margin,
    "high": value + margin,
    "chance": chance,
  }


@pytest.mark.parametrize(
  "found, name",
  [
    ({"left": part(0.9, 0.2)}, "left"),
    ({"left": part(0.5, 0.2)}, "unclear"),  # Not in most cases.
    ({"left": part(0.9, 0.85)}, "unclear"),  # Not surely above chance.
    # The larger share is not the one that exceeds chance most.
    ({"left": part(0.7, 0.2), "fall": part(0.9, 0.7)}, "left"),
    # Only effects that it surely has count.
    ({"left": part(0.45, 0.0), "fall": part(0.9, 0.7)}, "fall"),
    ({}, "unclear"),
  ],
)
def test_a_name_needs_a_majority_that_surely_exceeds_chance(found, name):
  row = button_names.named(found)
  assert row["name"] == name
  assert row["effects"] == found
  if name == "unclear":
    assert row["share"] is None and row["interval"] is None
  else:
    best = found[name]
    assert row["share"] == best["value"]
    assert row["interval"] == [best["low"], best["high"]]


def test_the_closest_effect_exceeds_chance_most():
  found = {"left": part(0.45, 0.0), "fall": part(0.9, 0.7)}
  assert button_names.closest(found) == "left"
  assert button_names.closest({}) is None


def test_a_motion_has_all_effects_that_fit_it():
  signs = np.array([[-1, 1], [1, 0], [0, -1], [0, 0]])
  found = button_names.effects(signs)
  assert set(found) == set(button_names.NAMES) - {"unclear"}
  names = [{name for name in found if found[name][i]} for i in range(4)]
  assert names == [
    {"left and jump", "left", "jump"},
    {"right"},
    {"fall"},
    {"nothing"},
  ]
