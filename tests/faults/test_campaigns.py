"""Tests of the campaigns of faults, by a sample of each kind.

`make test-faults` runs them whole.
"""

import json

import pytest

from genie_jax.core import errors
from tests.faults import disks, flips, inputs, jobs, kills, trials
from tests.fixtures import tiny_world


@pytest.fixture(autouse=True)
def closed_doors():
  """Puts back what doors replace, which later tests of this process need."""
  yield
  inputs.close()


def test_a_campaign_goes_on_where_it_was_interrupted(tmp_path):
  ran = []

  def trial(number):
    ran.append(number)
    failures = ("bad",) if number == 1 else ()
    return trials.Outcome(10, failures, {"lost": number})

  campaign = trials.Campaign("a fault", "a promise", 30, trial)
  path, said = tmp_path / "a.jsonl", []
  trials.run(campaign, path, 20, said.append)
  with path.open("a") as file:
    file.write('{"trial": 2, "inj')  # Killed while it wrote.
  rows = trials.run(campaign, path, 30, said.append)
  assert ran == [0, 1, 2] and said == ["a trial 1: bad"]
  assert [row["trial"] for row in rows] == [0, 1, 2]
  lines = list(trials.table({"a": campaign, "b": campaign}, tmp_path))
  assert "| `a` | a fault | a promise | 30 | 29 | lost at most 2 |" in lines[2]
  assert "| `b` | a fault | a promise | 0 | not run |" in lines[3]


@pytest.mark.parametrize(
  "name", ["pictures", "messages", "configs", "manifests", "command-lines"]
)
def test_five_hundred_changed_inputs_are_answered(tmp_path, name):
  outcome = inputs.campaigns(tmp_path, tmp_path)[f"inputs-{name}"].trial(0)
  assert outcome.injected == 500 and outcome.failures == ()


def test_an_input_that_ends_in_another_error_is_a_failure(
  tmp_path, monkeypatch
):
  def door(rng):
    if rng.random() < 0.5:
      raise errors.UserError("one line")
    raise KeyError("x")

  monkeypatch.setitem(inputs._DOORS, "bad", (lambda _: iter([door]), 1, 1))
  outcome = inputs._trial("bad", tmp_path, 0)
  assert 100 < len(outcome.failures) < 400
  assert "KeyError" in outcome.failures[0]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
  folder = tmp_path_factory.mktemp("base")
  tiny_world.write_clips(folder / "clips", {"train": [0, 1]})
  tiny_world.write_world(folder / "world")
  return folder


@pytest.mark.parametrize("kind", ["clips", "manifests", "worlds"])
def test_flipped_bits_are_detected_or_without_effect(base, tmp_path, kind):
  campaign = flips.campaigns(base, tmp_path)[f"flips-{kind}"]
  assert campaign.trial(0) == trials.Outcome(50)


def test_a_flip_that_is_read_unnoticed_is_a_failure(tmp_path):
  (tmp_path / "a").write_bytes(b"12345678")
  read = lambda folder: (folder / "a").read_bytes().hex()
  outcome = flips._trial(
    "flips-a", tmp_path, read, "a", 10, tmp_path / "copies", 0
  )
  assert len(outcome.failures) == 10
  assert (tmp_path / "copies" / "flips-a" / "a").read_bytes() == b"12345678"


def test_the_metrics_that_are_compared_have_no_times(tmp_path):
  (tmp_path / "metrics.jsonl").write_text(
    json.dumps({"step": 1, "loss": 2.0, "time": 3.0, "lost_seconds/x": 1})
  )
  kept = [
    name
    for name in json.loads((tmp_path / "metrics.jsonl").read_text())
    if not jobs._TIMES.match(name)
  ]
  assert kept == ["step", "loss"]


@pytest.mark.slow
def test_a_writer_survives_kills(tmp_path):
  outcome = kills.trial("data", tmp_path, tmp_path / "scratch", 0)
  assert outcome.injected >= 1 and outcome.failures == ()


@pytest.mark.slow
def test_a_writer_survives_a_full_disk(tmp_path):
  if not disks.available():
    pytest.skip("this machine has no namespaces for users")
  outcome = disks.trial("data", tmp_path, tmp_path / "scratch", 15)
  assert outcome.failures == ()
