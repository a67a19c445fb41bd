r"""Runs all commands of the README in order, from no data to a CoinRun world.

Run:     python -m experiments.coinrun.pipeline --mode tiny --out runs/demo
         python -m experiments.coinrun.pipeline --mode small --out DIR
         python -m experiments.coinrun.pipeline --mode large --out DIR
         (hours on one or two CPU cores, docs/worlds.md)
         python -m experiments.coinrun.pipeline --mode gpu --out DIR
         (one GPU; planned and not measured, see docs/gpu.md)
         add `--game NAME` for another game of procgen (docs/games.md)

Each step is a `genie` command, which is printed before it runs, resumes an
interrupted run, and writes a folder:

  OUT/clips             frames of the game, played by a walker, with separate
                        levels for validation and test; true keys and states
                        are kept for the evaluation only
  OUT/tokenizer_images  frames <-> tokens, trained on single frames
  OUT/tokenizer         the same tokenizer, then trained on clips
  OUT/lam               latent actions
  OUT/lam_buttons       the same with its codes joined to the buttons left,
                        right, nothing and jump; not in the mode smoke
  OUT/tokens            clips as tokens and buttons
  OUT/dynamics          next frame from tokens and buttons
  OUT/dynamics_true     the same model on true actions, for comparison; not in
                        the modes tiny and gpu, to save time
  OUT/world             the world to play; OUT/world_true has true actions
  OUT/metrics.json, OUT/report.html, OUT/rollout.gif, OUT/buttons.gif
"""

import argparse
import dataclasses
import pathlib
import sys

from genie_jax.core import files, steps

_HERE = pathlib.Path(__file__).parent


@dataclasses.dataclass(frozen=True)
class Size:
  """How much data a mode collects and measures.

  Attributes:
    levels: Levels for training.
    validation: Levels for evaluation during training.
    test: Levels for the final evaluation; the protocol needs at least 50.
    frames: Frames per level.
    clips: Held-out clips for delta PSNR.
    action_clips: Held-out clips for statistics of latent actions.
    moments: Moments of a held-out level in which every key is tried.
    true_actions: Whether to train a dynamics model on true actions as well.
    idm_steps: Training steps of the model that reads keys from frames.
    buttons: Whether codes are joined to buttons (`genie buttons`).
    standing: Standing starts of a held-out level, for the judge of walking.
  """

  levels: int
  validation: int
  test: int
  frames: int
  clips: int
  action_clips: int = 1024
  moments: int = 1
  true_actions: bool = True
  idm_steps: int = 1000
  buttons: bool = True
  standing: int = 2


SIZES = {
  "smoke": Size(
    levels=4,
    validation=2,
    test=4,
    frames=40,
    clips=8,
    action_clips=32,
    idm_steps=20,
    # A model of four training steps has no codes of motion.
    buttons=False,
    standing=0,
  ),
  "tiny": Size(
    levels=100,
    validation=20,
    test=60,
    frames=400,
    clips=64,
    true_actions=False,
    idm_steps=500,
  ),
  "small": Size(levels=250, validation=20, test=60, frames=500, clips=256),
  "large": Size(
    levels=500, validation=100, test=100, frames=500, clips=256, moments=2
  ),
  "gpu": Size(
    levels=2000,
    validation=20,
    test=60,
    frames=500,
    clips=256,
    true_actions=False,
  ),
}


# The buttons of `genie buttons --gravity`: left, right, nothing and jump.
_BUTTONS = 4
# Keys of procgen, for a dynamics model on true actions.
_KEYS = 15
# Codes of a latent action model; the short modes of `common.base`.
_CODES = 8
# Games that are seen from the side, in which the player falls by himself.
_WITH_GRAVITY = ("climber", "coinrun", "jumper", "ninja")
# Games whose state says whether the player stands.
_WITH_STARTS = ("coinrun",)


def commands(
  mode: str, out: pathlib.Path, game: str = "coinrun"
) -> dict[str, list[str]]:
  """Returns the steps in order, name -> arguments of `genie`."""
  size = SIZES[mode]
  buttons = size.buttons and game in _WITH_GRAVITY
  config = lambda name: ["--config", f"{_HERE / name}.py:{mode}"]
  clips, tokens = str(out / "clips"), str(out / "tokens")
  workdir = lambda name: str(out / name)
  export = lambda world, *stages: [
    "export",
    *(arg for stage in stages for arg in ("--workdir", workdir(stage))),
    "--prompts",
    clips,
    "--out",
    workdir(world),
    "--name",
    f"{game}-{mode}",
  ]
  found = {
    "data": [
      "data",
      "procgen",
      "--game",
      game,
      "--policy",
      "walker",
      "--states",
      "--counterfactuals",
      str(size.moments),
      *(
        ["--standing", str(size.standing)]
        if size.standing and game in _WITH_STARTS
        else []
      ),
      "--out",
      clips,
      "--levels",
      str(size.levels),
      "--validation-levels",
      str(size.validation),
      "--test-levels",
      str(size.test),
      "--frames-per-level",
      str(size.frames),
      "--levels-per-shard",
      "20",
    ],
    "tokenizer_images": [
      "train",
      *config("tokenizer_images"),
      "--workdir",
      workdir("tokenizer_images"),
      f"--config.data.path={clips}",
    ],
    "tokenizer": [
      "train",
      *config("tokenizer"),
      "--workdir",
      workdir("tokenizer"),
      "--init-from",
      workdir("tokenizer_images"),
      f"--config.data.path={clips}",
    ],
    "lam": [
      "train",
      *config("lam"),
      "--workdir",
      workdir("lam"),
      f"--config.data.path={clips}",
    ],
    **(
      {
        "buttons": [
          "buttons",
          "--lam",
          workdir("lam"),
          "--clips",
          clips,
          "--gravity",
          "--out",
          workdir("lam_buttons"),
        ]
      }
      if buttons
      else {}
    ),
    "tokenize": [
      "tokenize",
      "--tokenizer",
      workdir("tokenizer"),
      "--lam",
      workdir("lam_buttons" if buttons else "lam"),
      "--clips",
      clips,
      "--out",
      tokens,
      "--splits",
      "train,validation",
    ],
    "dynamics": [
      "train",
      *config("dynamics"),
      "--workdir",
      workdir("dynamics"),
      f"--config.data.path={tokens}",
      *([f"--config.world.num_latent_actions={_BUTTONS}"] if buttons else []),
    ],
    # With buttons, the LAM is the copy in the folder of tokens.
    "export": export(
      "world", "tokenizer", *([] if buttons else ["lam"]), "dynamics"
    ),
    "rollout": [
      "sample",
      "--world",
      workdir("world"),
      "--actions",
      ",".join(
        f"{button}x8" for button in range(_BUTTONS if buttons else _CODES)
      ),
      "--out",
      str(out / "buttons.gif"),
    ],
  }
  evaluation = [
    "eval",
    "--world",
    workdir("world"),
    "--clips",
    clips,
    "--out",
    str(out),
    "--levels",
    str(size.test),
    "--num-clips",
    str(size.clips),
    "--num-action-clips",
    str(size.action_clips),
    "--num-moments",
    str(size.test * size.moments),
    "--idm-steps",
    str(size.idm_steps),
    "--timings",
    str(out / "seconds.json"),
    *(
      arg
      for name in ("tokenizer", "lam", "dynamics")
      for arg in ("--workdir", workdir(name))
    ),
  ]
  if size.true_actions:
    found["dynamics_true"] = [
      "train",
      *config("dynamics"),
      "--workdir",
      workdir("dynamics_true"),
      f"--config.data.path={tokens}",
      "--config.actions=true",
      f"--config.world.num_latent_actions={_KEYS}",
    ]
    found["export_true"] = export("world_true", "tokenizer", "dynamics_true")
    evaluation += ["--true-actions-world", workdir("world_true")]
  return {**found, "eval": evaluation}


def run(mode: str, out: pathlib.Path, game: str = "coinrun") -> None:
  """Runs all steps and writes their seconds to metrics.json.

  The seconds of interrupted runs are added up, so that they cover all work and
  not only the last start.

  Raises:
    SystemExit: A step failed; it has printed its own message.
  """
  out.mkdir(parents=True, exist_ok=True)
  planned = [
    steps.Step(name, words) for name, words in commands(mode, out, game).items()
  ]
  seconds = _run(planned, out)
  metrics = files.read_json(out / "metrics.json")
  metrics["seconds_by_stage"] = seconds
  metrics["seconds_total"] = round(sum(seconds.values()), 1)
  files.write_json(out / "metrics.json", metrics)
  # Exported again, with the figures in the world's manifest.
  words = commands(mode, out, game)["export"]
  again = [*words, "--metrics", str(out / "metrics.json")]
  _run([steps.Step("export", again)], out)
  _summary(out, metrics)


def _run(planned: list[steps.Step], out: pathlib.Path) -> dict[str, float]:
  """Runs steps; ends the program with one line if one fails."""
  try:
    return steps.run(planned, out / "seconds.json")
  except steps.StepFailed as error:
    print(error, file=sys.stderr)
    sys.exit(error.code)


def _summary(out: pathlib.Path, metrics: dict) -> None:
  """Prints the headline figures and the paths of the results."""
  print(f"\n{'figure':44}value")
  for name, value in metrics.items():
    if isinstance(value, int | float) and not isinstance(value, bool):
      print(f"{name:44}{value:.4g}")
  print(f"\nLook at {out / 'report.html'} and {out / 'rollout.gif'}.")


def main() -> None:
  """Entry point of `python -m experiments.coinrun.pipeline`."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--mode", choices=list(SIZES), default="tiny")
  parser.add_argument(
    "--out", type=pathlib.Path, default=pathlib.Path("runs/demo")
  )
  parser.add_argument("--game", default="coinrun", metavar="NAME")
  args = parser.parse_args()
  run(args.mode, args.out, args.game)


if __name__ == "__main__":
  main()
