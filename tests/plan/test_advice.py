"""Tests of what is tried when a run does not fit; nothing is compiled."""

import pytest

from genie_jax.core import config as config_lib
from genie_jax.core import errors
from genie_jax.plan import topology, training
from genie_jax.plan.search import advice
from tests.cli.test_main import CONFIGS

PLACE = topology.parse("v5e:2x2")


def config(**changes):
  found = config_lib.load(f"{CONFIGS / 'dynamics.py'}:smoke").unlock()
  found.data.batch_size = changes.pop("batch_size", 16)
  found.model.transformer.remat = changes.pop("remat", "none")
  return found


def maker(sizes, refuse=()):
  """Returns a planner that says the next size each time, and its log."""
  log = []

  def make(changed, place):
    log.append((changed, place))
    if len(log) in refuse:
      raise errors.UserError("does not split")
    used = sizes[len(log) - 1]
    return {
      "fits": used < 10,
      "hbm_gib_per_chip": used,
      "step_seconds": 1.0,
    }, ""

  return make, log


def test_the_cheapest_changes_come_first():
  flags = [x.flags for x in advice.changes(config(), PLACE)]
  full = "--config.model.transformer.remat=full"
  assert flags == [
    full,
    f"{full} --config.optimizer.accumulate=2",
    f"{full} --config.optimizer.accumulate=4",
    f"{full} --topology v5e:2x4",
  ]


def test_a_policy_that_is_full_is_not_advised_again():
  found = list(advice.changes(config(remat="full", batch_size=8), PLACE))
  assert [x.flags for x in found] == [
    "--config.optimizer.accumulate=2",
    "--topology v5e:2x4",
  ]
  assert found[0].config.optimizer.accumulate == 2
  assert found[1].topology.num_chips == 8


def test_what_does_not_split_is_never_advised():
  # Eight clips over eight chips leave none for a second microbatch; 16 chips
  # outnumber the clips.
  place = topology.parse("v5e:2x4")
  found = advice.changes(config(batch_size=8), place)
  assert [x.flags for x in found] == ["--config.model.transformer.remat=full"]
  split = config(batch_size=64)
  split.mesh.update(data=-1, fsdp=1, tensor=2, frame=1)
  assert list(advice.changes(split, place))
  split.mesh.tensor = 4  # The model has two heads.
  assert not list(advice.changes(split, place))


def test_trying_stops_at_the_first_that_fits():
  make, log = maker([30.0, 8.0, 4.0])
  tried = advice.try_changes(config(), PLACE, limit=5, make=make)
  assert [row["fits"] for row in tried] == [False, True]
  assert len(log) == 2
  assert training.remat_of(log[0][0]) == "full"
  assert log[1][0].optimizer.accumulate == 2


def test_trying_stops_at_the_limit_and_passes_by_what_does_not_split():
  make, log = maker([30.0, 30.0, 30.0], refuse=(1,))
  said = []
  tried = advice.try_changes(
    config(), PLACE, limit=1, make=make, say=said.append
  )
  assert len(tried) == 1 and len(log) == 2
  assert said and "accumulate=2" in said[1]
  assert advice.try_changes(config(), PLACE, limit=0, make=make) == []


@pytest.mark.parametrize(
  "tried, words",
  [
    ([], ["try --config.optimizer.accumulate"]),
    ([{"change": "--a", "fits": False}], ["none", "--a"]),
    (
      [
        {"change": "--a", "fits": False},
        {"change": "--b", "fits": True, "hbm_gib_per_chip": 9.5},
      ],
      ["--b would fit (9.50 GiB"],
    ),
  ],
)
def test_the_verdict_says_by_how_much_and_what_would_fit(tried, words):
  text = advice.verdict(
    {
      "hbm_gib_per_chip": 23.3,
      "hbm_limit_gib": 15.75,
      "topology": "v5e:2x2",
      "changes_tried": tried,
    }
  )
  for word in ["23.30 GiB", "7.55 GiB more", *words]:
    assert word in text
  assert "\n" not in text
