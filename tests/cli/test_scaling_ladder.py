"""A ladder of real runs, of a few steps each, through the command line."""

import json
import pathlib
import shlex

import pytest

from genie_jax.cli import main
from genie_jax.data import manifest
from genie_jax.scaling import runs
from tests.fixtures import stage_data

ROOT = pathlib.Path(__file__).parents[2]
LADDER = """\
def get_ladder():
  return dict(
    config={config!r},
    decay_share=0.5,
    overrides={{"log_every": 1, "eval_every": 100, "eval_batches": 0,
               "optimizer.warmup_steps": 1, "held_out_clips": 3}},
    groups=[
      dict(name="rungs", role="rung", sizes=["16x2"], steps=[4],
           batch_sizes=[2], cool_downs=[2]),
    ])
"""


@pytest.fixture
def folder(tmp_path):
  """Returns a folder with token records and a ladder file."""
  stage_data.write_tokens(
    tmp_path / "tokens",
    (64, 64, 3),
    grid=(8, 8),
    num_codes=1024,
    num_frames=16,
  )
  config = str(ROOT / "experiments/scaling/miniature.py")
  (tmp_path / "ladder.py").write_text(LADDER.format(config=config))
  return tmp_path


def ladder(folder, *flags):
  return main.main(
    [
      "scaling",
      "ladder",
      str(folder / "ladder.py"),
      "--out",
      str(folder / "out"),
      f"--config.data.path={folder / 'tokens'}",
      *flags,
    ]
  )


@pytest.mark.slow
def test_a_ladder_trains_a_trunk_and_its_cool_down_and_collects_both(
  folder, capsys
):
  assert ladder(folder, "--print-commands") == 0
  (line,) = (folder / "out" / "commands.txt").read_text().splitlines()
  assert shlex.split(line)[:2] == ["genie", "train"]
  assert "1 cells wait for others" in capsys.readouterr().err

  assert ladder(folder) == 0
  found = runs.Study.read(folder / "out" / "runs.json")
  by_steps = {run.steps: run for run in found.runs}
  assert sorted(by_steps) == [2, 4]
  fork = by_steps[2]
  assert (fork.role, fork.forked_step) == ("cell", 1)
  assert fork.forked_from == by_steps[4].name and by_steps[4].role == "rung"
  assert by_steps[4].final_loss != fork.final_loss
  data = manifest.Manifest.read(folder / "tokens")
  for run in found.runs:
    assert run.data_fingerprint == data.fingerprint
    assert run.tokenizer_fingerprint == data.tokenizer_fingerprint
    assert run.train_loss_updates == run.steps
    assert run.tokens == run.steps * 2 * 16 * 64
  runs.check_comparable(found.runs)
  assert found.provenance["missing"] == []

  # Nothing runs again.
  logs = sorted((folder / "out" / "logs").iterdir())
  said = [path.read_text() for path in logs]
  capsys.readouterr()
  assert ladder(folder, "--status") == 0
  assert capsys.readouterr().out.splitlines()[-1].startswith("2 done; 0:00:00")
  assert ladder(folder) == 0
  assert len(logs) == 2 and [path.read_text() for path in logs] == said


def test_the_cost_comes_from_a_measured_step(folder, capsys):
  path = folder / "ladder.py"
  # This process has eight devices, over which the batch is split.
  path.write_text(path.read_text().replace("[2],", "[8],", 1))
  assert ladder(folder, "--dry-run") == 0
  out = capsys.readouterr().out
  stored = json.loads((folder / "out" / "cost.json").read_text())
  assert list(stored["step_seconds"]) == ["16x2-b8"]
  assert stored["step_seconds"]["16x2-b8"] > 0
  row = next(line for line in out.splitlines() if line.startswith("16x2-b8"))
  # Two cells: 4 steps of the trunk, and 1 that its fork does not share.
  assert row.split()[1:3] == ["2", "5"]
  assert "2 cells" in out


@pytest.mark.parametrize(
  "flags, message",
  [
    (["--topology", "v5p:2x2x1"], "--topology and --price need --dry-run"),
    (["--config.seed=3"], "overrides is 'seed'; it must be set by the group"),
    (["--config.mask.lo=0.5"], "has no field config.mask.lo"),
    (["--cell", "none"], "The ladder has no cell 'none'"),
  ],
)
def test_an_invalid_command_is_one_line(flags, message, folder, capsys):
  assert ladder(folder, *flags) == 2
  error = capsys.readouterr().err.strip()
  assert message in error and "\n" not in error
