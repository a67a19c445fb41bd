"""Tests of the changes that are tried if a run does not fit.

Nothing is compiled.
"""

import pytest

from genie_jax.core import config as config_lib
from genie_jax.core import errors
from genie_jax.plan import topology, training
from genie_jax.plan.search import advice
from tests.cli.test_main import CONFIGS

TOPOLOGY = topology.parse("v5e:2x2")


def config(**changes):
  found = config_lib.load(f"{CONFIGS / 'dynamics.py'}:smoke").unlock()
  found.data.batch_size = changes.pop("batch_size", 16)
  found.model.transformer.remat = changes.pop("remat", "none")
  return found


def fake_planner(sizes, rejected=()):
  """Returns a planner, and the list of its calls.

  Args:
    sizes: GiB that the plan of each call needs.
    rejected: Numbers of the calls, from 1, that raise a UserError.
  """
  calls = []

  def planner(config, topology):
    calls.append((config, topology))
    if len(calls) in rejected:
      raise errors.UserError("does not split")
    used = sizes[len(calls) - 1]
    return {
      "fits": used < 10,
      "hbm_gib_per_chip": used,
      "step_seconds": 1.0,
    }, ""

  return planner, calls


def test_changes_are_ordered_by_cost():
  flags = [x.flags for x in advice.changes(config(), TOPOLOGY)]
  full = "--config.model.transformer.remat=full"
  assert flags == [
    full,
    f"{full} --config.optimizer.accumulate=2",
    f"{full} --config.optimizer.accumulate=4",
    f"{full} --topology v5e:2x4",
  ]


def test_full_remat_is_not_advised_if_it_is_set():
  found = list(advice.changes(config(remat="full", batch_size=8), TOPOLOGY))
  assert [x.flags for x in found] == [
    "--config.optimizer.accumulate=2",
    "--topology v5e:2x4",
  ]
  assert found[0].config.optimizer.accumulate == 2
  assert found[1].topology.num_chips == 8


def test_changes_that_do_not_split_evenly_are_not_advised():
  # Eight clips on eight chips cannot be split into two microbatches, and 16
  # chips are more than there are clips.
  slice_ = topology.parse("v5e:2x4")
  found = advice.changes(config(batch_size=8), slice_)
  assert [x.flags for x in found] == ["--config.model.transformer.remat=full"]
  split = config(batch_size=64)
  split.mesh.update(data=-1, fsdp=1, tensor=2, frame=1)
  assert list(advice.changes(split, slice_))
  split.mesh.tensor = 4  # The model has two heads.
  assert not list(advice.changes(split, slice_))


def test_trying_stops_at_the_first_change_that_fits():
  planner, calls = fake_planner([30.0, 8.0, 4.0])
  tried = advice.try_changes(config(), TOPOLOGY, limit=5, planner=planner)
  assert [row["fits"] for row in tried] == [False, True]
  assert len(calls) == 2
  assert training.remat_of(calls[0][0]) == "full"
  assert calls[1][0].optimizer.accumulate == 2


def test_trying_stops_at_the_limit_and_skips_changes_that_do_not_split():
  planner, calls = fake_planner([30.0, 30.0, 30.0], rejected=(1,))
  lines = []
  tried = advice.try_changes(
    config(), TOPOLOGY, limit=1, planner=planner, log=lines.append
  )
  assert len(tried) == 1 and len(calls) == 2
  assert lines and "accumulate=2" in lines[1]
  assert advice.try_changes(config(), TOPOLOGY, limit=0, planner=planner) == []


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
def test_the_verdict_gives_the_excess_and_the_change_that_fits(tried, words):
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
