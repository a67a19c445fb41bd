"""Tests of running a ladder: order, failures, resuming and results.

The training itself is replaced by a function that writes what `genie train`
would have left; tests/cli/test_scaling_ladder.py runs the real one.
"""

import json
import pathlib
import shlex
import signal

import pytest

from genie_jax.core import errors
from genie_jax.scaling import collect, cost, ladder, study

ROOT = pathlib.Path(__file__).parents[2]
CONFIG = str(ROOT / "experiments/scaling/miniature.py")
SWEEP = {
  "name": "sweep",
  "sizes": ["16x2"],
  "steps": [512],
  "peak_lrs": [1e-3, 2e-3, 4e-3],
}
RUNGS = {
  "name": "rungs",
  "role": "rung",
  "sizes": ["16x2"],
  "steps": [512],
  "peak_lrs": "law",
  "cool_downs": [256],
}
HELD_OUT = {
  "name": "held_out",
  "role": "rung",
  "held_out": True,
  "sizes": ["24x2"],
  "steps": [512],
  "peak_lrs": "law",
}


def make(tmp_path, *groups, prediction=None):
  fields = dict(
    config=CONFIG,
    groups=list(groups),
    decay_share=0.25,
    overrides={"data.path": "TOKENS"},
  )
  if SWEEP in groups:
    fields["learning_rates"] = {"sweep": "sweep", "law": "constant"}
  return study.Study(
    ladder.parse(fields, "ladder.py"), tmp_path, prediction=prediction
  )


class Training:
  """Stands in for the child process that trains a cell."""

  def __init__(self, monkeypatch, codes=None, loss=None):
    self.ran, self._codes, self._loss = [], codes or {}, loss or {}
    monkeypatch.setattr(
      study.Study, "_run_one", lambda made, cell: self._run(made, cell)
    )

  def _run(self, made, cell):
    self.ran.append((cell.name, made.command(cell)))
    log = made.workspace.log(cell)
    log.parent.mkdir(parents=True, exist_ok=True)
    code, message = self._codes.get(cell.name, (0, ""))
    with open(log, "a") as file:
      file.write(f"step 1\n{message}\n")
    if code:
      return code
    finish(made, cell, self._loss.get(cell.peak_lr, 3.0))
    return 0

  def names(self):
    return [name for name, _ in self.ran]


def finish(made, cell, loss=3.0, **line):
  """Writes what shows that a cell is done."""
  workdir = made.workspace.workdir(cell)
  steps = {cell.steps}
  if cell.checkpoint_every:
    steps |= set(range(0, cell.steps, cell.checkpoint_every)) - {0}
  for step in steps:
    (workdir / "checkpoints" / str(step) / "state").mkdir(parents=True)
    for folder in (".", "state"):
      path = workdir / "checkpoints" / str(step) / folder
      (path / "commit_success.txt").touch()
  config = made.load(cell, made.rate(cell)).copy_and_resolve_references()
  with config.unlocked():
    config.data.fingerprint = "2" * 64
  (workdir / "config.json").write_text(config.to_json())
  if cell.trunk:
    began = {"step": cell.fork_step, "source": cell.trunk}
    (workdir / "fork.json").write_text(json.dumps(began))
  every = config.log_every
  lines = [
    {"step": step, "loss_sum": every * (4 - step / 1000), "loss_count": every}
    for step in range(every, cell.steps + 1, every)
  ]
  lines.append(
    {
      "step": cell.steps,
      "eval/held_out_loss": loss,
      "eval/held_out_loss_per_bit": loss / 6.93,
      "eval/held_out_tokens": 1000.0,
      "eval/changed_token_accuracy": 0.5,
      **line,
    }
  )
  text = "".join(json.dumps(line) + "\n" for line in lines)
  (workdir / "metrics.jsonl").write_text(text)


@pytest.fixture(autouse=True)
def facts(monkeypatch):
  """Replaces what would be read from a real checkpoint and token folder."""

  def note(path):
    config = json.loads((path.parents[1] / "config.json").read_text())
    return {"clock": {"productive": 7.0}, "config": config}

  monkeypatch.setattr(collect.reader, "read_note", note)
  monkeypatch.setattr(collect, "_tokenizer", lambda config, name: "3" * 64)


def test_cells_run_in_order_and_never_twice(tmp_path, monkeypatch):
  training = Training(monkeypatch, loss={1e-3: 3.2, 2e-3: 3.0, 4e-3: 3.2})
  assert make(tmp_path, SWEEP, RUNGS).run([], print) == 0
  sweep = [f"16x2-b8-s512-lr{x}-seed0" for x in (0.001, 0.002, 0.004)]
  trunk, fork = "16x2-b8-s512-law-seed0", "16x2-b8-s256-law-seed0"
  assert training.names() == [*sweep, trunk, fork]
  # Losses that are symmetric about 2e-3 have their minimum there.
  stored = json.loads((tmp_path / "learning_rates.json").read_text())
  assert stored["coefficient"] == pytest.approx(2e-3, rel=1e-6)
  words = dict(training.ran)[fork]
  assert "--config.optimizer.peak_lr=0.002" in words
  assert "--config.data.path=TOKENS" in words
  at = words.index("--fork-from")
  assert words[at : at + 4] == [
    "--fork-from",
    str(tmp_path / "runs" / trunk),
    "--fork-step",
    "192",
  ]
  assert make(tmp_path, SWEEP, RUNGS).run([], print) == 0
  assert len(training.ran) == 5


def test_a_failed_cell_is_named_and_does_not_stop_the_others(
  tmp_path, monkeypatch
):
  bad = "16x2-b8-s512-lr0.001-seed0"
  training = Training(
    monkeypatch, codes={bad: (1, "genie train: The disk is full.")}
  )
  said = []
  group = {**SWEEP, "cool_downs": [256]}
  made = make(tmp_path, {**group, "name": "plain"})
  assert made.run([], said.append) == 1
  assert any(
    line == f"{bad} FAILED with exit code 1: genie train: The disk is full."
    for line in said
  )
  assert said[-1] == f"failed: {bad}; see {tmp_path}/logs"
  # Its fork has nothing to start from; the four others ran.
  assert len(training.ran) == 5
  assert "16x2-b8-s256-lr0.001-seed0" not in training.names()
  text = study.status(made)
  row = next(line for line in text.splitlines() if line.startswith(bad))
  assert "failed" in row and "The disk is full." in row
  # The next start tries it again, and only it and its fork.
  del training.ran[:]
  training._codes.clear()
  assert make(tmp_path, {**group, "name": "plain"}).run([], print) == 0
  assert training.names() == [bad, "16x2-b8-s256-lr0.001-seed0"]


def test_a_diverged_run_of_the_sweep_counts_and_does_not_run_again(
  tmp_path, monkeypatch
):
  high = "16x2-b8-s512-lr0.004-seed0"
  training = Training(
    monkeypatch,
    codes={high: (1, "genie train: loss is nan at step 9; no step ...")},
    loss={1e-3: 3.2, 2e-3: 3.0},
  )
  assert make(tmp_path, SWEEP, RUNGS).run([], print) == 0
  law = json.loads((tmp_path / "learning_rates.json").read_text())
  assert law["optima"]["16x2"]["losses"]["0.004"] is None
  assert law["coefficient"] == pytest.approx(2e-3)
  ran = len(training.ran)
  make(tmp_path, SWEEP, RUNGS).run([], print)
  assert len(training.ran) == ran


def test_a_sweep_without_an_optimum_holds_up_only_cells_of_the_law(
  tmp_path, monkeypatch
):
  training = Training(monkeypatch, loss={1e-3: 3.0, 2e-3: 3.1, 4e-3: 3.2})
  plain = {"name": "plain", "sizes": ["16x2"], "seeds": [5]}
  said = []
  made = make(tmp_path, SWEEP, RUNGS, plain)
  assert made.run([], said.append) == 1
  assert len(training.ran) == 4
  assert "0.001 is the lowest one; add lower peak_lrs" in said[-1]
  assert "a law of learning rates" in study.status(made)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_the_study_and_its_exit_code_says_so(
  number, tmp_path, monkeypatch
):
  first = "16x2-b8-s512-lr0.001-seed0"
  training = Training(monkeypatch, codes={first: (128 + number, "")})
  made = make(tmp_path, SWEEP)
  assert made.run([], print) == 128 + number
  assert training.names() == [first]
  assert made.states()[first].status == "ready"


def test_held_out_cells_wait_for_a_prediction(tmp_path, monkeypatch):
  training = Training(monkeypatch, loss={1e-3: 3.2, 2e-3: 3.0, 4e-3: 3.2})
  held_out = "24x2-b8-s512-law-seed0"
  made = make(tmp_path, SWEEP, HELD_OUT)
  assert made.run([], print) == 0
  assert held_out not in training.names()
  assert "a prediction of its loss" in made.states()[held_out].detail
  with pytest.raises(errors.UserError, match=r"none\.json does not exist"):
    make(tmp_path, SWEEP, HELD_OUT, prediction=str(tmp_path / "none.json"))
  path = tmp_path / "prediction.json"
  path.write_text("{}")
  made = make(tmp_path, SWEEP, HELD_OUT, prediction=str(path))
  assert made.run([], print) == 0
  assert training.names()[-1] == held_out
  found, _ = made.collect(["genie"], print)
  (run,) = [run for run in found.runs if run.name == held_out]
  assert run.held_out and run.role == "rung"
  assert len(found.provenance["prediction"]["sha256"]) == 64


def test_a_sweep_may_have_several_groups(tmp_path, monkeypatch):
  Training(monkeypatch, loss={1e-3: 3.2, 2e-3: 3.0, 4e-3: 2.9, 8e-3: 3.1})
  more = {**SWEEP, "name": "more", "peak_lrs": [8e-3]}
  fields = dict(
    config=CONFIG,
    groups=[SWEEP, more],
    overrides={"data.path": "TOKENS"},
    learning_rates={"sweep": ["sweep", "more"], "law": "constant"},
  )
  made = study.Study(ladder.parse(fields, "ladder.py"), tmp_path)
  assert made.run([], print) == 0
  assert 2e-3 < made.law.rate(1000, 8) < 8e-3
  # One group alone has its best rate at its end.
  fields["learning_rates"]["sweep"] = "sweep"
  alone = study.Study(ladder.parse(fields, "ladder.py"), tmp_path)
  assert "0.004 is the highest one" in alone.law_error


def test_a_cell_that_runs_elsewhere_is_left_alone(tmp_path, monkeypatch):
  training = Training(monkeypatch)
  made = make(tmp_path, SWEEP)
  with made.workspace.lock(made.cells[0]) as free:
    assert free
    assert made.states()[made.cells[0].name].status == "running"
    assert made.run([], print) == 0
  assert training.names() == [cell.name for cell in made.cells[1:]]


def test_one_cell_can_be_chosen_by_name(tmp_path, monkeypatch):
  training = Training(monkeypatch)
  made = make(tmp_path, SWEEP)
  name = made.cells[1].name
  assert made.run([name], print) == 0 and training.names() == [name]
  with pytest.raises(errors.UserError, match="no cell '16x2'; `--status`"):
    made.run(["16x2"], print)


def test_compiled_flops_are_beside_those_of_the_formula(tmp_path, monkeypatch):
  Training(monkeypatch, loss={1e-3: 3.2, 2e-3: 3.0, 4e-3: 3.2})
  made = make(tmp_path, SWEEP)
  made.run([], print)
  found, _ = made.collect(["genie"], print)
  assert {run.compiled_flops for run in found.runs} == {None}
  said = []
  for _ in range(2):  # The second call finds the file of the first.
    cost.count_flops(made.workspace, made.cells, made.configs, said.append)
  assert said == ["counting the FLOPs of 16x2-b8"]
  found, _ = made.collect(["genie"], print)
  for run in found.runs:
    # The program also computes the half of attention in time that is masked.
    assert run.flops < run.compiled_flops < 1.03 * run.flops


def test_the_runs_hold_what_the_logs_say(tmp_path, monkeypatch):
  Training(monkeypatch, loss={1e-3: 3.2, 2e-3: 3.0, 4e-3: 3.2})
  made = make(tmp_path, SWEEP, RUNGS)
  made.run([], print)
  found, invalid = made.collect(["genie", "scaling"], print)
  assert not invalid and len(found.runs) == 5
  by_name = {run.name: run for run in found.runs}
  fork = by_name["16x2-b8-s256-law-seed0"]
  assert (fork.forked_from, fork.forked_step) == ("16x2-b8-s512-law-seed0", 192)
  assert (fork.steps, fork.batch_tokens, fork.seconds) == (256, 8 * 16 * 64, 7)
  assert fork.tokens == 256 * 8 * 16 * 64
  # The whole run is shorter than 300 updates: the mean of 4 - step / 1000 over
  # the steps 4, 8, ... 256.
  assert fork.train_loss_updates == 256
  assert fork.train_loss_last == pytest.approx(4 - 0.130)
  trunk = by_name["16x2-b8-s512-law-seed0"]
  # Steps 216, 220, ... 512.
  assert trunk.train_loss_updates == 300
  assert trunk.train_loss_last == pytest.approx(4 - 0.364)
  # 2 layers: 2 attentions of 4 width^2 and 2 norms of 8, an MLP of 8 width^2,
  # 3 norms; tables of 1024 + 1 + 9 rows; 8 + 8 positions; a norm; a readout.
  layer = 2 * (4 * 16**2 + 2 * 8) + 8 * 16**2 + 3 * 16
  assert trunk.params == (
    2 * layer + (1024 + 1 + 9 + 16) * 16 + 16 + 1024 * 16 + 1024
  )
  # Matrix products of a token: projections, scores and values over 64 tokens
  # and 8.5 frames, MLP, readout; two FLOPs each, and three passes.
  token = 2 * (2 * 4 * 16**2 + 2 * (64 + 8.5) * 16 + 8 * 16**2) + 16 * 1024
  assert trunk.flops == pytest.approx(3 * 2 * token * trunk.tokens)
  assert trunk.extra == {"changed_token_accuracy": 0.5}
  assert found.provenance["missing"] == []
  found.write(tmp_path / "runs.json")


@pytest.mark.parametrize(
  "line, message",
  [
    ({"eval/held_out_loss": None}, "held-out loss that is not finite at step"),
    ({"step": 100}, "has no held-out loss at step 512"),
  ],
)
def test_a_missing_or_infinite_result_is_named_and_left_out(
  line, message, tmp_path
):
  made = make(tmp_path, {**SWEEP, "name": "plain"})
  finish(made, made.cells[0], **line)
  finish(made, made.cells[1])
  said = []
  found, invalid = made.collect(["genie"], said.append)
  assert invalid == [made.cells[0].name]
  assert [run.name for run in found.runs] == [made.cells[1].name]
  assert found.provenance["missing"] == [made.cells[2].name]
  assert len(said) == 1 and message in said[0] and invalid[0] in said[0]


def test_the_status_shows_progress_and_time_left(tmp_path, monkeypatch):
  made = make(tmp_path, {**SWEEP, "name": "plain"})
  finish(made, made.cells[0], 3.25)
  workdir = made.workspace.workdir(made.cells[1])
  workdir.mkdir(parents=True)
  line = {"step": 112, "steps_per_second": 4.0, "loss": 5.0}
  (workdir / "metrics.jsonl").write_text(json.dumps(line) + '\n{"st')
  (tmp_path / "cost.json").write_text(
    json.dumps({"step_seconds": {"16x2-b8": 0.5}})
  )
  rows = study.status(made).splitlines()
  assert rows[1].split()[1:] == ["done", "512/512", "3.2500", "0:00:00"]
  assert rows[2].split()[1:] == ["stopped", "112/512", "-", "0:01:40"]
  assert rows[3].split()[1:] == ["ready", "0/512", "-", "0:04:16"]
  assert rows[4] == "1 done, 1 stopped, 1 ready; 0:05:56 left"


def test_commands_are_whole_lines_of_a_shell(tmp_path):
  made = make(tmp_path / "a folder", {**SWEEP, "name": "plain"})
  cell = made.cells[0]
  words = shlex.split(shlex.join(made.command(cell)))
  assert words[:4] == ["genie", "train", "--config", f"{CONFIG}:16x2"]
  assert words[5] == str(tmp_path / "a folder" / "runs" / cell.name)


def test_without_rates_a_group_keeps_the_one_of_the_config(tmp_path):
  made = make(tmp_path, {"name": "plain", "sizes": ["16x2", "24x2"]})
  assert {made.rate(cell) for cell in made.cells} == {4e-3}
