"""Tests of runs that begin at a saved step of another run."""

import json

import pytest

from genie_jax.checkpoints import reader as stored
from genie_jax.core import errors
from genie_jax.train import fork, loop
from tests.fixtures import toy_stage

DECAY = dict(optimizer__schedule="wsd", optimizer__decay_steps=2)


def config(**changes):
  # A trunk whose own decay begins at step 6; its saved steps are all kept.
  fields = dict(steps=8, keep_every=2, log_every=3, eval_every=100) | DECAY
  changed = toy_stage.config()
  changed.optimizer.update(end_lr=0.0, decay_steps=0, warmup_steps=2)
  changed.update_from_flattened_dict(
    {n.replace("__", "."): x for n, x in {**fields, **changes}.items()}
  )
  return changed


def train(workdir, source=None, step=4, **changes):
  fields = config(**changes)
  make_batches, _ = toy_stage.makers(fields)
  return loop.train(
    toy_stage.make_stage(),
    fields,
    workdir,
    make_batches,
    fork=fork.Fork(str(source), step) if source else None,
  )


def note(workdir, step):
  return stored.read_note(workdir / "checkpoints" / str(step))


def losses(workdir):
  """Returns (step, loss, sum, count) of each line of the log."""
  lines = (workdir / "metrics.jsonl").read_text().splitlines()
  names = ("step", "loss", "learning_rate", "loss_sum", "loss_count")
  return [tuple(json.loads(line)[name] for name in names) for line in lines]


@pytest.fixture(scope="module")
def trunk(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("trunk")
  train(workdir)
  return workdir


@pytest.mark.parametrize("step", [2, 4])
def test_a_fork_ends_where_a_run_of_its_config_would_end_bit_for_bit(
  step, trunk, tmp_path
):
  train(tmp_path / "fork", trunk, step, steps=6)
  train(tmp_path / "scratch", steps=6)
  mine, other = note(tmp_path / "fork", 6), note(tmp_path / "scratch", 6)
  assert mine["fingerprints"] == other["fingerprints"]
  assert mine["iterator"] == other["iterator"]
  # Not the trunk's state: its learning rate did not decay before step 6.
  assert mine["fingerprints"] != note(trunk, 6)["fingerprints"]
  # The log is whole as well, the sums over lines that cross the fork included.
  assert losses(tmp_path / "fork") == losses(tmp_path / "scratch")
  began = json.loads((tmp_path / "fork" / "fork.json").read_text())
  assert (began["source"], began["step"]) == (str(trunk), step)


class Stopping(toy_stage.Batches):
  """Batches that fail when number 6 is read."""

  def __next__(self):
    if self.get_state()["next"] == 6:
      raise RuntimeError("stopped")
    return super().__next__()


def test_a_fork_resumes_from_its_own_checkpoints(trunk, tmp_path):
  train(tmp_path / "whole", trunk, steps=8, optimizer__decay_steps=3)
  fields = config(optimizer__decay_steps=3)
  with pytest.raises(RuntimeError, match="stopped"):
    loop.train(
      toy_stage.make_stage(),
      fields,
      tmp_path / "parts",
      lambda share: Stopping(fields.data.batch_size, share),
      fork=fork.Fork(str(trunk), 4),
    )
  assert stored.valid_steps(tmp_path / "parts") == [6]
  train(tmp_path / "parts", trunk, steps=8, optimizer__decay_steps=3)
  assert (
    note(tmp_path / "parts", 8)["fingerprints"]
    == (note(tmp_path / "whole", 8)["fingerprints"])
  )
  assert losses(tmp_path / "parts") == losses(tmp_path / "whole")


@pytest.mark.parametrize(
  "changes, step, message",
  [
    ({}, 5, "has no checkpoint of this step.*config.keep_every"),
    ({"steps": 4}, 4, "leaves no step after --fork-step=4"),
    ({"seed": 1}, 4, "config.seed=0, but now it is 1; set it back, because a"),
    ({"optimizer__b2": 0.5}, 4, "config.optimizer.b2"),
    # This decay would have begun at step 3.
    (
      {"steps": 5, "optimizer__decay_steps": 3},
      4,
      "from step 3 on .* had another learning rate",
    ),
    ({"optimizer__warmup_steps": 4}, 4, "config.optimizer.warmup_steps=2"),
    (
      {"optimizer__schedule": "cosine"},
      4,
      "from step 3 on .* fork before the first of the two decays",
    ),
  ],
)
def test_a_fork_that_differs_before_its_step_is_refused(
  changes, step, message, trunk, tmp_path
):
  with pytest.raises(errors.UserError, match=message) as raised:
    train(tmp_path, trunk, step, **changes)
  assert "\n" not in str(raised.value)
  assert not (tmp_path / "checkpoints").exists()


def test_a_run_that_began_elsewhere_does_not_resume_as_a_fork(trunk, tmp_path):
  with pytest.raises(errors.UserError, match="began anew, not at step 4 of"):
    train(trunk, tmp_path, 4)
  train(tmp_path, trunk, 4, steps=6)
  with pytest.raises(errors.UserError, match="began at step 4 of"):
    train(tmp_path, trunk, 2, steps=6)
