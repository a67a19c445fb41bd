"""Tests of the file of runs that fits read."""

import dataclasses
import json
import math

import pytest

from genie_jax.core import errors
from genie_jax.scaling import runs

ORIGIN = {
  "command": "genie scaling ladder ladder.py --out runs",
  "date": "2026-01-02T03:04:05+00:00",
  "commit": "0" * 40,
  "clean": True,
  "config_hash": "1" * 64,
  "data_fingerprint": "2" * 64,
  "tokenizer_fingerprint": "3" * 64,
  "seeds": [0],
  "hardware": "a CPU, 2 cores",
  "seconds": 12.5,
}


def run(**changes):
  fields = dict(
    name="16x2-seed0",
    role="rung",
    held_out=False,
    seed=0,
    size="16x2",
    params=41_000,
    flops=1e12,
    compiled_flops=None,
    tokens=512 * 8192,
    steps=512,
    batch_size=8,
    batch_tokens=8192,
    peak_lr=1e-3,
    final_loss=5.5,
    final_loss_per_bit=5.5 / math.log(1024),
    held_out_tokens=40_000,
    train_loss_last=5.6,
    train_loss_updates=300,
    seconds=60.0,
    workdir="runs/16x2-seed0",
    forked_from="",
    forked_step=0,
    config_hash="1" * 64,
    data_fingerprint="2" * 64,
    tokenizer_fingerprint="3" * 64,
    extra={"changed_token_accuracy": 0.25},
  )
  return runs.Run(**{**fields, **changes})


def test_a_file_gives_back_the_runs_that_were_written(tmp_path):
  study = runs.Study(
    ORIGIN, (run(), run(name="other", role="cell", compiled_flops=2e12))
  )
  study.write(tmp_path / "runs.json")
  assert json.loads((tmp_path / "runs.json").read_text())["version"] == 1
  assert runs.Study.read(tmp_path / "runs.json") == study


@pytest.mark.parametrize(
  "changes, message",
  [
    ({"final_loss": math.nan}, "final_loss is nan; it must be a finite"),
    ({"final_loss": None}, "final_loss is None; it must be a finite"),
    ({"flops": math.inf}, "flops is inf"),
    ({"params": 0}, "params is 0; it must be a positive whole number"),
    ({"seed": True}, "seed is True"),
    ({"role": "step"}, "role is 'step'; it must be one of rung, cell"),
    ({"held_out": 1}, "held_out is 1; it must be true or false"),
    ({"tokens": 5}, r"tokens is 5; it must be steps x batch_tokens \(512 x"),
    ({"extra": {"x": math.inf}}, "extra is .* an object of finite numbers"),
    ({"seconds": -1.0}, "seconds is -1.0"),
  ],
)
def test_a_run_with_an_impossible_value_is_refused(changes, message, tmp_path):
  with pytest.raises(errors.UserError, match=message) as raised:
    runs.Study(ORIGIN, (run(**changes),)).write(tmp_path / "runs.json")
  assert "\n" not in str(raised.value)
  assert not (tmp_path / "runs.json").exists()


def edited(tmp_path, edit):
  path = tmp_path / "runs.json"
  runs.Study(ORIGIN, (run(),)).write(path)
  content = json.loads(path.read_text())
  edit(content)
  path.write_text(json.dumps(content))
  return path


@pytest.mark.parametrize(
  "edit, message",
  [
    (lambda c: c.update(version=2), "has version 2, but this program reads"),
    (lambda c: c.pop("version"), "is not a file of runs"),
    (lambda c: c["provenance"].pop("commit"), "provenance has no commit"),
    (lambda c: c.update(runs={}), "has no list of runs"),
    (lambda c: c["runs"].append(c["runs"][0]), "2 runs named 16x2-seed0"),
    (
      lambda c: c["runs"][0].pop("seed"),
      r"runs\[0\] \(16x2-seed0\) has no seed",
    ),
    (
      lambda c: c["runs"][0].update(sedes=1),
      r"Unknown field .*\.sedes \(did you mean 'seed'\?\)",
    ),
    (lambda c: c["runs"].append(3), r"runs\[1\] is 3, not an object"),
  ],
)
def test_a_broken_file_is_refused_in_one_line(edit, message, tmp_path):
  with pytest.raises(errors.UserError, match=message) as raised:
    runs.Study.read(edited(tmp_path, edit))
  assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
  "name, value, message",
  [
    ("tokenizer_fingerprint", "4" * 64, "tokens of different tokenizers"),
    ("data_fingerprint", "4" * 64, "different data"),
    ("held_out_tokens", 7, "different held-out clips or masks"),
  ],
)
def test_losses_of_different_measurements_are_not_compared(
  name, value, message
):
  runs.check_comparable([run(), run(name="b")])
  other = dataclasses.replace(run(name="b"), **{name: value})
  with pytest.raises(errors.UserError, match=f"{message}.*fit them separately"):
    runs.check_comparable([run(), other])
