"""Tests of `genie scaling fit`: predictions, results, and refusals."""

import dataclasses
import datetime
import json

import pytest

from genie_jax.cli import scaling_fit
from genie_jax.scaling import results
from tests.cli.test_main import call, refused
from tests.fixtures import scaling_runs

FEW = ("--resamples", "8")


@pytest.fixture(scope="module")
def runs():
  return scaling_runs.ladder(0.002, scaling_runs.generator(1))


@pytest.fixture
def files(tmp_path, runs):
  """Writes the runs before and after the held-out one."""
  before = tmp_path / "before.json"
  scaling_runs.study([run for run in runs if not run.held_out]).write(before)
  after = tmp_path / "after.json"
  scaling_runs.study(runs).write(after)
  return before, after, tmp_path / "predictions.json"


def predict(capsys, before, predictions, *more):
  return call(
    capsys, "scaling", "fit", before, "--predict", "6.8M",
    "--flops", "1.7218e14", "--predictions", predictions, *FEW, *more,
  )  # fmt: skip


def test_a_prediction_is_written_first_and_judged_later(files, capsys):
  before, after, predictions = files
  assert predict(capsys, before, predictions) == (0, "")
  stored = json.loads(predictions.read_text())
  dates = [
    datetime.datetime.fromisoformat(date)
    for date in (stored["date"], stored["provenance"]["date"])
  ]
  assert abs(dates[0] - dates[1]) < datetime.timedelta(hours=1)
  assert len(stored["fitted_runs"]) == 13
  assert stored["losses"]["params"]["low"] < stored["losses"]["params"]["high"]
  out = predictions.with_name("results.json")
  code, _ = call(
    capsys, "scaling", "fit", after, "--predictions", predictions,
    "--out", out, *FEW,
  )  # fmt: skip
  assert code == 0
  found = results.read(out)
  assert found["predicted_largest"] == stored["losses"]["params"]["loss"]
  assert found["prediction"]["date"] == stored["date"]
  measured = [run["final_loss"] for run in found["rungs"] if run["held_out"]]
  assert found["measured_largest"] == pytest.approx(measured[0])
  assert found["last_rung_loss"] > found["measured_largest"]
  assert found["verdict"]["within_3_percent"]
  assert found["verdict"]["within_a_third_of_the_drop"]
  assert found["verdict"]["loss_falls_with_every_size"]
  assert set(found["verdict"]["relative_errors"]) == {
    "params", "flops", "pure_power", "last_rung",
  }  # fmt: skip
  assert len(found["rungs"]) == 14 and found["cells"] == []
  for name in ("params", "flops", "tokens", "final_loss", "seed"):
    assert all(name in run for run in found["rungs"])
  interval = found["laws"]["params"]["parameters"]["a"]
  assert interval["low"] < scaling_runs.EXPONENT < interval["high"]
  assert found["provenance"]["command"].startswith("genie scaling fit")
  assert found["provenance"]["seeds"] == [0, 1, 2]
  # No log can be read, so whether the run began later is not known.
  assert found["prediction"]["made_before_the_run"] is None


def test_a_prediction_is_never_replaced(files, capsys):
  before, _, predictions = files
  predictions.write_text("an earlier prediction")
  err = refused(
    capsys, "scaling", "fit", before, "--predict", "6.8M", "--predictions",
    predictions,
  )  # fmt: skip
  assert "never replaced" in err
  assert predictions.read_text() == "an earlier prediction"


def test_a_prediction_of_a_run_that_is_known_is_refused(files, capsys):
  _, after, predictions = files
  err = refused(
    capsys, "scaling", "fit", after, "--predict", "6.8M", "--predictions",
    predictions, *FEW,
  )  # fmt: skip
  assert "already has" in err and not predictions.exists()


def test_a_prediction_must_be_older_than_the_log(files, runs, capsys, tmp_path):
  before, after, predictions = files
  predict(capsys, before, predictions)
  for begin, code in ((1e9, 2), (4e9, 0)):
    workdir = tmp_path / f"{begin}"
    scaling_runs.write_log(workdir, begin=begin)
    scaling_runs.study(
      dataclasses.replace(run, workdir=str(workdir)) if run.held_out else run
      for run in runs
    ).write(after)
    out = tmp_path / "results.json"
    found, err = call(
      capsys, "scaling", "fit", after, "--predictions", predictions, "--out",
      out, *FEW,
    )  # fmt: skip
    assert found == code, err
    assert ("before the run starts" in err) == (code == 2)
  assert results.read(out)["prediction"]["made_before_the_run"] is True


def test_a_prediction_belongs_to_its_runs(files, runs, capsys):
  before, after, predictions = files
  predict(capsys, before, predictions)
  compare = ("scaling", "fit", after, "--predictions", predictions, *FEW)
  changed = [dataclasses.replace(runs[0], final_loss=3.0), *runs[1:]]
  scaling_runs.study(changed).write(after)
  assert "other figures now" in refused(capsys, *compare)
  scaling_runs.study(runs[1:]).write(after)
  assert f"the run {runs[0].name}, which" in refused(capsys, *compare)
  other = [
    dataclasses.replace(run, params=9_000_000) if run.held_out else run
    for run in runs
  ]
  scaling_runs.study(other).write(after)
  assert "predicts a run with params = 6.8e+06" in refused(capsys, *compare)


def broken(runs, index=0, **changes):
  return [
    dataclasses.replace(run, **changes) if place == index else run
    for place, run in enumerate(runs)
  ]


def test_bad_files_of_runs_are_one_line(files, runs, capsys):
  _, after, _ = files
  fit = ("scaling", "fit", after, *FEW)
  scaling_runs.study(broken(runs, tokenizer_fingerprint="9" * 64)).write(after)
  assert "different tokenizers" in refused(capsys, *fit)
  few = [run for run in runs if run.params < 1e5 or run.held_out]
  scaling_runs.study(few).write(after)
  assert "3 parameters, but the runs have only 2" in refused(capsys, *fit)
  content = scaling_runs.study(runs).to_dict()
  content["runs"][3]["final_loss"] = None
  after.write_text(json.dumps(content))
  assert "final_loss is None" in refused(capsys, *fit)
  content["runs"][3]["final_loss"] = float("nan")
  after.write_text(json.dumps(content))
  assert "NaN is not a finite number" in refused(capsys, *fit)
  del content["runs"][3]["final_loss"]
  after.write_text(json.dumps(content))
  assert "has no final_loss" in refused(capsys, *fit)


def test_bad_arguments_are_one_line(files, capsys):
  before, after, predictions = files
  fit = ("scaling", "fit", before)
  for words, message in (
    (("--predict", "6.8M"), "--predict needs --predictions"),
    (("--predict", "big", "--predictions", predictions), "write it like 6.8M"),
    (("--flops", "1e9"), "--flops describes a run"),
    (("--predictions", predictions), "does not exist"),
    (("--resamples", "0"), "--resamples=0"),
    (("--law", "params_and_tokens", *FEW), "is not identified"),
    (
      ("--predict", "7M", "--law", "flops", "--predictions", predictions, *FEW),
      "give them with --flops",
    ),
    (
      ("--predict", "7M", "--predictions", predictions, "--out", after),
      "takes no --out",
    ),
  ):
    assert message in refused(capsys, *fit, *words), words
  assert not predictions.exists()


def test_the_same_runs_give_the_same_result(files):
  study = scaling_runs.study(
    scaling_runs.ladder(0.01, scaling_runs.generator())
  )
  once, again = (
    results.assemble(study, "params", {}, resamples=5) for _ in range(2)
  )
  assert once == again
  # Predicted from the other rungs only, but not before the run.
  assert once["prediction"]["made_before_the_run"] is False


def test_flops_of_formula_and_compiler_are_printed_side_by_side(capsys):
  found = scaling_runs.ladder(0.0, scaling_runs.generator())
  counted = [
    dataclasses.replace(run, compiled_flops=1.25 * run.flops)
    if run.params == 480_000
    else run
    for run in found
  ]
  study = scaling_runs.study(counted)
  text = scaling_fit.render(results.assemble(study, "params", {}, resamples=2))
  lines = [line for line in text.splitlines() if line.startswith("FLOPs of")]
  assert len(lines) == 1
  assert "FLOPs of 480000: 1.313e+13 by formula, 1.641e+13 compiled" in lines[0]
  assert max(map(len, text.splitlines())) <= 80
