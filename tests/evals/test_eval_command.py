import argparse
import json
import os

import grey_game
import pytest

from genie_jax.cli import eval as eval_lib
from genie_jax.cli import main
from genie_jax.evals import i3d_weights, metric, run
from genie_jax.sampling import maskgit
from genie_jax.worlds import download, world_folder


class _World:
  """A stub of a loaded world; the grey game's world is evaluated instead."""

  parts, sampling, fingerprint, fps = {}, maskgit.MaskGIT(), "f" * 64, 10

  def __init__(self, actions):
    self.actions = actions


@pytest.fixture
def stub(monkeypatch):
  load = lambda folder: world_folder.Bundle(
    _World(os.path.basename(folder)), {"name": "grey"}, ()
  )
  monkeypatch.setattr(world_folder, "load", load)
  # The stubs have no folders.
  monkeypatch.setattr(download, "local", lambda name: name)
  monkeypatch.setattr(
    eval_lib,
    "_subject",
    lambda found: (
      grey_game.world(True)
      if found.world.actions == "latent"
      else grey_game.true_world()
    ),
  )


ARGUMENTS = [
  "--num-clips",
  "12",
  "--levels",
  "6",
  "--num-action-clips",
  "12",
  "--kmeans-patches",
  "200",
]


def test_the_command_writes_figures_report_and_animation(
  stub, clips, tmp_path, capsys
):
  code = main.main(
    [
      "eval",
      "--world",
      "latent",
      "--true-actions-world",
      "true",
      "--clips",
      str(clips),
      "--out",
      str(tmp_path / "out"),
      *ARGUMENTS,
    ]
  )
  assert code == 0
  found = json.loads((tmp_path / "out" / "metrics.json").read_text())
  assert found["command"].startswith("genie eval --world latent --clips")
  assert "--num-clips 12" in found["command"]
  assert "--idm-steps 1000" in found["command"]
  assert found["details"]["true_actions"]["delta_psnr"]
  # The clips have no counterfactuals: the report says how to collect them.
  assert found["details"]["counterfactuals"]["measured"] is False
  report = (tmp_path / "out" / "report.html").read_text()
  assert "not measured" in report and "--counterfactuals 4" in report
  assert (tmp_path / "out" / "report.html").is_file()
  assert (tmp_path / "out" / "rollout.gif").is_file()
  assert "delta PSNR" in capsys.readouterr().out


def test_videos_without_actions_are_evaluated_and_what_needs_keys_is_not(
  stub, tmp_path
):
  films = grey_game.write_clips(tmp_path / "films", codec="h264")
  out = tmp_path / "out"
  flags = ["--world", "latent", "--clips", str(films), "--out", str(out)]
  assert main.main(["eval", *flags, *ARGUMENTS]) == 0
  found = json.loads((out / "metrics.json").read_text())
  assert found["tokenizer_psnr"] > 30
  assert isinstance(found["delta_psnr"], float)
  assert found["action_nmi"] is None and found["min_action_share"] is None
  assert not {"actions", "control", "inverse_dynamics"} & set(found["details"])
  assert found["details"]["counterfactuals"]["measured"] is False
  report = (out / "report.html").read_text()
  assert "not measured" in report


def test_without_a_network_the_evaluation_continues_without_fvd(
  stub, clips, tmp_path, monkeypatch
):
  def load(path):
    raise i3d_weights.UnavailableError("no network")

  monkeypatch.setattr(i3d_weights, "load", load)
  code = main.main(
    [
      "eval",
      "--world",
      "latent",
      "--clips",
      str(clips),
      "--out",
      str(tmp_path),
      *ARGUMENTS,
      "--fvd",
    ]
  )
  assert code == 0
  found = json.loads((tmp_path / "metrics.json").read_text())
  assert found["details"]["fvd"] == {"not_measured": "no network"}
  assert found["command"].endswith("--fvd --fvd-clips 256")
  report = (tmp_path / "report.html").read_text()
  assert "not measured" in report and "no network" in report


@pytest.mark.parametrize(
  "arguments, message",
  [
    (["--num-clips", "0"], "--num-clips is 0"),
    (["--num-clips", "3"], "at least one clip per level"),
    (["--idm-steps", "-1"], "--idm-steps is -1"),
    (["--seed", "-1"], "--seed -1"),
    (["--drift-frames", "3"], "--drift-frames is 3"),
    (["--drift-frames", "64", "--drift-levels", "1"], "--drift-levels is 1"),
    (["--drift-frames", "64"], "has 0 levels with a clip"),
    (["--split", "tset"], "did you mean 'test'"),
    (
      ["--levels", "60", "--num-clips", "60", "--num-action-clips", "60"],
      "--levels 7",
    ),
    (["--true-actions-world", "latent"], "trained on latent actions"),
    (["--num-moments", "0"], "--num-moments is 0"),
    (["--counterfactuals", "nowhere"], "nowhere has no counterfactuals"),
    (["--workdir", "nowhere"], "genie train"),
    (["--fvd", "--fvd-clips", "1"], "--fvd-clips is 1"),
    (["--fvd", "--i3d", "setup.cfg"], "has sha256"),
    (["--i3d", "setup.cfg"], "add --fvd"),
    (["--timings", "nowhere.json"], "does not exist"),
  ],
)
def test_mistakes_end_in_one_line_and_code_2(
  stub, clips, tmp_path, capsys, arguments, message
):
  code = main.main(
    [
      "eval",
      "--world",
      "latent",
      "--clips",
      str(clips),
      "--out",
      str(tmp_path),
      *ARGUMENTS,
      *arguments,
    ]
  )
  said = capsys.readouterr().err.strip().splitlines()[-1]
  assert code == 2
  assert said.startswith("genie eval: ") and message in said
  assert not (tmp_path / "metrics.json").exists()


def test_a_missing_world_ends_in_code_2(clips, tmp_path):
  assert (
    main.main(
      [
        "eval",
        "--world",
        str(tmp_path / "none"),
        "--clips",
        str(clips),
        "--out",
        str(tmp_path),
      ]
    )
    == 2
  )


def test_options_default_to_the_protocol():
  options = metric.Options()
  parser = argparse.ArgumentParser()
  eval_lib.add_arguments(parser)
  given = parser.parse_args(["--world", "a", "--clips", "b", "--out", "c"])
  assert given.idm_steps == options.idm_steps
  assert options.num_clips == 256
  assert options.num_levels >= run.MIN_LEVELS
  assert options.train_patches >= run.MIN_PATCHES
