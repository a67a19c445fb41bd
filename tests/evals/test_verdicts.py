import dataclasses
import math

import pytest

from genie_jax.evals import verdicts

BASE = verdicts.Evidence("x", value=0.0, low=0.0, trivial=10.0, ceiling=20.0)


def judge(value, low=None, **fields):
  low = value if low is None else low
  return verdicts.verdict(
    dataclasses.replace(BASE, value=value, low=low, **fields)
  )


@pytest.mark.parametrize(
  "value, expected",
  [
    (9.0, "no"),
    (10.0, "no"),
    (10.1, "barely"),
    (11.9, "barely"),
    (12.0, "partly"),
    (15.9, "partly"),
    (16.0, "yes"),
    (25.0, "yes"),
  ],
)
def test_the_share_of_the_way_to_the_ceiling_decides(value, expected):
  assert judge(value) == expected


def test_an_interval_that_reaches_the_trivial_figure_is_no_evidence():
  assert judge(19.0, low=10.0) == "no"
  assert judge(19.0, low=10.01) == "yes"


def test_nothing_between_trivial_figure_and_ceiling():
  assert judge(11.0, ceiling=10.0) == "yes"
  assert judge(11.0, ceiling=9.0) == "yes"
  assert judge(10.0, ceiling=9.0) == "no"


@pytest.mark.parametrize("unknown", ["value", "low", "trivial"])
def test_a_figure_that_is_not_a_number_is_never_a_yes(unknown):
  found = dataclasses.replace(BASE, value=19.0, low=19.0)
  found = dataclasses.replace(found, **{unknown: math.nan})
  if unknown == "value":
    found = dataclasses.replace(found, low=math.nan)
  assert verdicts.verdict(found) == "no"


def test_a_question_gets_the_lowest_of_its_answers():
  good = dataclasses.replace(BASE, name="good", value=19.0, low=18.0)
  poor = dataclasses.replace(BASE, name="poor", value=11.0, low=10.5)
  none = dataclasses.replace(BASE, name="none", value=19.0, low=9.0)
  assert verdicts.weakest([good, poor]) == ("barely", poor)
  assert verdicts.weakest([poor, good, none]) == ("no", none)
  assert verdicts.weakest([]) == ("not measured", None)


def test_the_stated_rule_has_the_thresholds_of_the_code():
  assert "below 20 %" in verdicts.RULE and "below 60 %" in verdicts.RULE
  for answer in ("no", "barely", "partly", "yes"):
    assert f"“{answer}”" in verdicts.RULE
