"""Tests of the loop: resuming, evaluation and stopping."""

import gc
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from genie_jax.checkpoints import fingerprint
from genie_jax.checkpoints import reader as stored
from genie_jax.core import errors
from genie_jax.train import loop, metrics, replay, watchdog
from genie_jax.train import workdir as workdir_lib
from tests.fixtures import toy_stage
from tests.train import worker

ROOT = pathlib.Path(__file__).parents[2]
TIMES = {
  "time",
  "steps_per_second",
  "clips_per_second",
  "data_wait",
  "model_flops_per_second",
  "goodput",
}


def train(workdir, stage=None, **changes):
  fields = toy_stage.config(**changes)
  return loop.train(
    stage or toy_stage.make_stage(), fields, workdir, *toy_stage.makers(fields)
  )


def begin(workdir, devices=8, **options):
  """Starts the worker as a process."""
  text = json.dumps(dict({"workdir": str(workdir), "changes": {}}, **options))
  env = {
    name: value
    for name, value in os.environ.items()
    if not name.lower().endswith("_proxy")
  }
  env |= {
    "PYTHONPATH": str(ROOT),
    "JAX_PLATFORMS": "cpu",
    "JAX_NUM_CPU_DEVICES": str(devices),
  }
  return subprocess.Popen(
    [sys.executable, worker.__file__, text],
    env=env,
    cwd=ROOT,
    text=True,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
  )


def finish(process):
  """Waits for a worker; returns its exit code, output and errors."""
  try:
    out, err = process.communicate(timeout=120)
  finally:
    process.kill()
  return process.returncode, out, err


def lines(workdir):
  """Returns the metric lines without values that depend on the clock."""
  return [
    {
      name: x
      for name, x in json.loads(line).items()
      if name not in TIMES and not name.startswith("lost_seconds/")
    }
    for line in (workdir / "metrics.jsonl").read_text().splitlines()
  ]


def fingerprints(workdir, step):
  """Returns a checkpoint's fingerprints of arrays, and its data position."""
  note = stored.read_note(workdir / "checkpoints" / str(step))
  return note["fingerprints"], note["iterator"]


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("straight")
  return workdir, train(workdir)


def test_loss_falls_and_everything_is_written(straight):
  workdir, result = straight
  assert result.step == 4 and result.stopped_by is None
  training = [line for line in lines(workdir) if "loss" in line]
  assert [line["step"] for line in training] == [1, 2, 3, 4]
  assert training[-1]["loss"] < training[0]["loss"]
  assert {"grad_norm", "learning_rate", "losses/fit", "mfu", "shown"} <= set(
    training[0]
  )
  held_out = [line for line in lines(workdir) if "eval/fit" in line]
  assert [line["step"] for line in held_out] == [2, 4]
  assert result.metrics["eval/fit"] == held_out[-1]["eval/fit"]
  assert sorted(p.name for p in (workdir / "previews").iterdir()) == [
    "toy_00000002.png",
    "toy_00000004.png",
  ]
  assert json.loads((workdir / "config.json").read_text())["stage"] == "toy"
  assert stored.valid_steps(workdir) == [2, 4]


def test_resume_after_sigkill_in_a_save_is_bit_exact(straight, tmp_path):
  workdir, _ = straight
  code, _, err = finish(begin(tmp_path, kill_after=4, changes={"steps": 6}))
  assert code == -signal.SIGKILL, err[-2000:]
  assert stored.valid_steps(tmp_path)[:1] == [2]
  train(tmp_path)
  assert fingerprints(tmp_path, 4) == fingerprints(workdir, 4)
  assert lines(tmp_path) == lines(workdir)


def test_resuming_on_another_mesh_gives_the_same_numbers(straight, tmp_path):
  train(tmp_path, steps=2)
  train(tmp_path, mesh__fsdp=2, mesh__tensor=2, mesh__frame=2)
  mine, _, _ = stored.load_params(tmp_path)
  other, _, _ = stored.load_params(straight[0])
  for name in ("up", "down"):
    np.testing.assert_allclose(
      mine[name]["kernel"], other[name]["kernel"], rtol=1e-3, atol=1e-5
    )


def test_after_sigterm_a_run_saves_stops_and_can_be_resumed(straight, tmp_path):
  code, out, err = finish(begin(tmp_path, term_after=3))
  assert code == 0, err[-2000:]
  assert json.loads(out.split("RESULT ")[1]) == [3, signal.SIGTERM]
  assert stored.valid_steps(tmp_path) == [2, 3]
  train(tmp_path)
  assert fingerprints(tmp_path, 4) == fingerprints(straight[0], 4)


def test_every_line_has_goodput_and_lost_time_over_all_starts(tmp_path):
  begin = time.time()
  for steps in (2, 4):
    train(tmp_path, steps=steps, checkpoint_every=1, eval_every=1)
    time.sleep(0.5)
  wall = time.time() - begin
  found = [
    json.loads(line)
    for line in (tmp_path / "metrics.jsonl").read_text().splitlines()
  ]
  found = [line for line in found if "loss" in line]
  assert len(found) == 4
  for line in found:
    lost = [x for name, x in line.items() if name.startswith("lost_seconds/")]
    assert len(lost) == 6 and min(lost) >= 0
    assert 0 <= line["goodput"] < 1 and sum(lost) <= wall
  first, last = found[0], found[-1]
  for kind in ("start", "compile"):
    # Each of the two starts builds and compiles.
    name = f"lost_seconds/{kind}"
    assert 0 < first[name] < last[name]
  assert last["lost_seconds/evaluation"] > 0
  assert found[1]["lost_seconds/checkpoint"] > 0
  # Between the two starts nothing ran.
  assert last["lost_seconds/down"] >= 0.5 > first["lost_seconds/down"]


def test_the_first_start_counts_even_without_a_checkpoint(tmp_path):
  workdir_lib.first_start(tmp_path)
  (tmp_path / "started.json").write_text(
    json.dumps({"started": time.time() - 1000})
  )
  train(tmp_path, steps=1)
  line = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[0])
  assert line["lost_seconds/down"] >= 900 and line["goodput"] < 0.1


@pytest.mark.slow  # Compiles for a long time.
def test_the_requested_steps_are_traced(tmp_path):
  fields = toy_stage.config()
  loop.train(
    toy_stage.make_stage(),
    fields,
    tmp_path,
    *toy_stage.makers(fields),
    profile_steps=(2, 3),
  )
  (trace,) = (tmp_path / "profile").rglob("*.xplane.pb")
  data = jax.profiler.ProfileData.from_file(str(trace))
  steps = {
    dict(event.stats)["step_num"]
    for plane in data.planes
    for line in plane.lines
    for event in line.events
    if event.name == "train"
  }
  assert steps == {2, 3}


def test_a_finished_run_started_again_does_nothing(straight):
  before = lines(straight[0])
  assert train(straight[0]).step == 4
  assert lines(straight[0]) == before


def test_a_save_is_awaited_even_if_a_metrics_file_cannot_be_closed(
  tmp_path, monkeypatch
):
  class Broken(metrics.JsonLines):
    def close(self):
      raise OSError("No space left on device")

  closed = []
  kind = loop.manager.Checkpoints
  close = kind.close
  monkeypatch.setattr(loop.metrics_lib, "open_writers", Broken)
  monkeypatch.setattr(
    kind, "close", lambda self: closed.append(self.steps()) or close(self)
  )
  with pytest.raises(OSError, match="No space left"):
    train(tmp_path / "run", steps=4, checkpoint_every=4)
  assert closed == [[4]]


@pytest.mark.filterwarnings(
  "ignore::pytest.PytestUnraisableExceptionWarning",
  "ignore:coroutine:RuntimeWarning",
)  # Orbax's, after a load that fails
def test_a_damaged_newest_checkpoint_loses_only_its_steps(straight, tmp_path):
  train(tmp_path)
  for path in (tmp_path / "checkpoints" / "4").glob("state/**/d/*"):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(bytes(content))
  train(tmp_path)
  gc.collect()
  assert fingerprints(tmp_path, 4) == fingerprints(straight[0], 4)
  assert lines(tmp_path) == lines(straight[0])


@pytest.mark.parametrize("log_every", [1, 4])
def test_a_loss_that_is_not_finite_stops_and_names_its_step(
  tmp_path, log_every
):
  stage = toy_stage.make_stage(explode_at=3)
  with pytest.raises(loop.NotFinite, match="loss is nan at step 3") as error:
    train(tmp_path, stage, log_every=log_every, checkpoint_every=2)
  assert "\n" not in str(error.value)
  assert stored.valid_steps(tmp_path) == [2]  # no broken state is saved


def test_updates_that_are_not_finite_are_skipped_and_counted(tmp_path):
  stage = toy_stage.make_stage(explode_at=3)
  changes = dict(optimizer__max_skipped=1, checkpoint_every=1)
  assert train(tmp_path, stage, **changes).step == 4
  (second, _), (third, _) = (fingerprints(tmp_path, n) for n in (2, 3))
  assert {n for n in second if second[n] != third[n]} == {"step"}
  assert (
    fingerprints(tmp_path, 4)[0]["params/up/bias"] != third["params/up/bias"]
  )
  training = [line for line in lines(tmp_path) if "loss_sum" in line]
  assert [line.get("skipped_steps", 0) for line in training] == [0, 0, 1, 0]
  assert [line["loss_count"] for line in training] == [1, 1, 0, 1]
  assert training[2]["loss"] is None and training[2]["loss_sum"] == 0


def test_too_many_skipped_updates_in_a_row_end_the_run_at_every_start(tmp_path):
  stage = toy_stage.make_stage(explode_at=(3, 9))
  changes = dict(optimizer__max_skipped=2, checkpoint_every=1, steps=8)
  for _ in range(2):  # The number in a row is part of the checkpoint.
    with pytest.raises(loop.NotFinite, match="step 5, after 2 skipped"):
      train(tmp_path, stage, **changes)
    assert stored.valid_steps(tmp_path)[-1] == 4


def test_a_run_goes_past_a_step_that_is_not_finite(tmp_path):
  stage = toy_stage.make_stage(explode_at=3)
  with pytest.raises(loop.NotFinite, match=r"optimizer\.max_skipped=10"):
    train(tmp_path, stage)
  assert train(tmp_path, stage, optimizer__max_skipped=10).step == 4


def test_a_step_that_is_not_finite_can_be_repeated(tmp_path):
  stage, fields = toy_stage.make_stage(explode_at=4), toy_stage.config()
  with pytest.raises(loop.NotFinite, match="--replay=4"):
    train(tmp_path, stage)
  before = lines(tmp_path), stored.valid_steps(tmp_path)
  make_batches, _ = toy_stage.makers(fields)
  for step, finite in ((4, False), (3, True)):
    found = replay.replay(stage, fields, tmp_path, make_batches, step)
    assert found.started_from == 2
    assert np.isfinite(found.metrics["loss"]) == finite
    assert np.isfinite(found.gradient_norms["up/kernel"]) == finite
    assert np.isfinite(list(found.parameter_norms.values())).all()
    text = "\n".join(found.lines())
    assert ("gradients not finite: 3 of 3" in text) != finite
    with np.load(tmp_path / f"replay/{step}/batch_0.npz") as batch:
      expected = toy_stage.batch(step - 1, 16)
      np.testing.assert_array_equal(batch["inputs"], expected["inputs"])
  assert (lines(tmp_path), stored.valid_steps(tmp_path)) == before
  report = json.loads((tmp_path / "replay/4/report.json").read_text())
  assert report["gradient_norms"]["up/kernel"] == "nan"
  third = next(line for line in before[0] if line["step"] == 3)
  np.testing.assert_allclose(found.metrics["loss"], third["loss"], rtol=1e-6)
  with pytest.raises(errors.UserError, match="--replay=9 is no step"):
    replay.replay(stage, fields, tmp_path, make_batches, 9)
  with pytest.raises(errors.UserError, match="has no run"):
    replay.replay(stage, fields, tmp_path / "other", make_batches, 1)


def test_an_evaluation_that_fails_loses_no_step_and_is_made_up_for(
  straight, tmp_path, monkeypatch
):
  with monkeypatch.context() as patch:
    patch.setattr(loop.evaluation.HeldOut, "run", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
      train(tmp_path)
  assert stored.valid_steps(tmp_path) == [2]
  train(tmp_path)
  assert lines(tmp_path) == lines(straight[0])


def test_an_evaluation_that_cannot_work_is_refused_before_the_first_step(
  tmp_path,
):
  class Empty(toy_stage.Batches):
    def __next__(self):
      raise StopIteration

  fields = toy_stage.config()
  make_batches, _ = toy_stage.makers(fields)
  with pytest.raises(errors.UserError, match="less than one batch"):
    loop.train(
      toy_stage.make_stage(),
      fields,
      tmp_path,
      make_batches,
      lambda share: Empty(16, share, seed=1),
    )
  assert not (tmp_path / "config.json").exists()


def test_a_run_also_saves_by_time(tmp_path):
  changes = dict(checkpoint_every=100, eval_every=100, steps=3)
  train(tmp_path / "steps", **changes)
  assert stored.valid_steps(tmp_path / "steps") == [3]
  train(tmp_path / "time", checkpoint_minutes=1e-9, **changes)
  assert stored.valid_steps(tmp_path / "time") == [1, 2, 3]


def test_a_run_that_hangs_ends_shows_where_and_can_be_resumed(
  straight, tmp_path
):
  changes = {"watchdog_seconds": 10.0}
  code, _, err = finish(begin(tmp_path, hang_after=3, changes=changes))
  assert code == watchdog.CODE, err[-2000:]
  assert "a step has lasted" in err and "in hang" in err
  assert stored.valid_steps(tmp_path) == [2]
  train(tmp_path)
  assert fingerprints(tmp_path, 4) == fingerprints(straight[0], 4)
  assert lines(tmp_path) == lines(straight[0])


def test_a_changed_model_field_is_refused_by_name(straight):
  with pytest.raises(
    errors.UserError, match=r"config.optimizer.peak_lr=0.01, but now.*0.5"
  ):
    train(straight[0], optimizer__peak_lr=0.5)
  stored = json.loads((straight[0] / "config.json").read_text())
  assert stored["optimizer"]["peak_lr"] == 0.01


def test_lines_have_the_losses_of_all_steps_since_the_last_line(
  straight, tmp_path
):
  losses = [line["loss"] for line in lines(straight[0]) if "loss" in line]
  changes = dict(log_every=3, checkpoint_every=4)
  code, _, err = finish(begin(tmp_path, term_after=2, changes=changes))
  assert code == 0, err[-2000:]
  # Resumed in the middle of an interval.
  assert stored.valid_steps(tmp_path) == [2]
  train(tmp_path, **changes)
  found = [line for line in lines(tmp_path) if "loss" in line]
  assert [line["step"] for line in found] == [3, 4]
  assert [line["loss_count"] for line in found] == [3, 1]
  assert [line["loss_sum"] for line in found] == [
    losses[0] + losses[1] + losses[2],
    losses[3],
  ]


def test_a_run_resumes_with_more_steps_and_other_logging_intervals(tmp_path):
  train(tmp_path, steps=2)
  result = train(
    tmp_path,
    steps=3,
    log_every=2,
    eval_every=3,
    checkpoint_every=1,
    keep_checkpoints=1,
  )
  assert result.step == 3
  assert stored.valid_steps(tmp_path) == [3]


def test_checkpoint_of_another_model_is_refused_before_anything_changes(
  tmp_path,
):
  train(tmp_path, steps=2)
  with pytest.raises(errors.UserError, match=r"another model.*params/down"):
    train(tmp_path, toy_stage.make_stage(hidden=32), steps=2)


def test_init_from_starts_at_step_0_with_the_weights_of_the_source(
  straight, tmp_path
):
  result = train(tmp_path, init_from=str(straight[0]), steps=1)
  assert not result.warm_start.missing
  first = next(line for line in lines(tmp_path) if "loss" in line)
  cold = next(line for line in lines(straight[0]) if "loss" in line)
  assert first["step"] == 1 and first["loss"] < cold["loss"]


def test_the_step_is_compiled_once(tmp_path, caplog):
  with jax.log_compiles(), caplog.at_level("WARNING"):
    train(tmp_path, steps=6)
  compiled = [
    record.getMessage()
    for record in caplog.records
    if record.getMessage().startswith("Compiling jit(step)")
  ]
  assert len(compiled) == 2  # the train step and the eval step


def test_a_wrong_batch_raises_a_clear_error(tmp_path):
  fields = toy_stage.config()
  make, _ = toy_stage.makers(fields)

  class Short(toy_stage.Batches):
    def __next__(self):
      return {
        n: x[:, :2] if n == "inputs" else x
        for n, x in super().__next__().items()
      }

  with pytest.raises(errors.UserError, match=r"'inputs' as float32\[16, 2, 8"):
    loop.train(
      toy_stage.make_stage(),
      fields,
      tmp_path,
      lambda share: Short(16, share),
      make,
    )


def test_two_runs_are_bitwise_equal(straight, tmp_path):
  train(tmp_path)
  assert fingerprints(tmp_path, 4) == fingerprints(straight[0], 4)
  found = fingerprint.arrays(stored.load_params(tmp_path)[0])
  assert (
    found.items()
    <= {
      name.removeprefix("params/"): value
      for name, value in fingerprints(tmp_path, 4)[0].items()
    }.items()
  )


@pytest.mark.slow
@pytest.mark.parametrize(
  "mesh",
  [{"mesh__fsdp": 8}, {"mesh__data": 2, "mesh__tensor": 2, "mesh__frame": 2}],
)
def test_two_processes_train_and_resume_as_one(straight, tmp_path, mesh):
  for steps in (2, 4):
    with socket.socket() as free:
      free.bind(("127.0.0.1", 0))
      port = free.getsockname()[1]
    both = [
      begin(
        tmp_path,
        devices=4,
        processes=2,
        index=index,
        port=port,
        changes={**mesh, "steps": steps},
      )
      for index in (0, 1)
    ]
    for code, _, err in [finish(process) for process in both]:
      assert code == 0, err[-3000:]
  mine, other = lines(tmp_path), lines(straight[0])
  assert [line["step"] for line in mine] == [line["step"] for line in other]
  for a, b in zip(mine, other, strict=True):
    for name in ("loss", "grad_norm", "eval/fit"):
      if name in b:
        # Several processes reduce in a different order than one.
        np.testing.assert_allclose(a[name], b[name], rtol=2e-5)
  previews = lambda folder: sorted(
    path.name for path in (folder / "previews").iterdir()
  )
  assert previews(tmp_path) == previews(straight[0])
  train(tmp_path)  # One process can read what two wrote.
