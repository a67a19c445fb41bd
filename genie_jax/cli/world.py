"""`genie world`: from a folder of films to a world that can be played."""

import argparse
import os
import pathlib
import shlex
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
  from genie_jax.core import steps as steps_lib

_EXAMPLE = """\
example, about half an hour on two CPU cores:
  genie world --videos films --out runs/mine --preset laptop
  genie play --world runs/mine/world

Runs all stages, prints each command before it starts, and goes on where it was
stopped when it is run again:

  OUT/clips             clips cut from the films, with summary.html
  OUT/tokenizer_images  frames <-> tokens, trained on single frames
  OUT/tokenizer         the same tokenizer, then trained on clips
  OUT/lam               latent actions: buttons that nobody labelled
  OUT/tokens            clips as tokens and latent actions
  OUT/dynamics          the next frame from tokens and latent actions
  OUT/world             the world to play
  OUT/report.html, OUT/metrics.json, OUT/rollout.gif, OUT/buttons.gif

Needs a checkout of the project, because the sizes are configs in
experiments/videos.
"""

PRESETS = ("laptop", "gpu", "smoke")
_SIZE = {"laptop": "80x48", "gpu": "96x56", "smoke": "80x48"}
# CPU-seconds of each step of `laptop` on one core, for the time left: those of
# a run with --effort 0.5 and 32 minutes of film, with the training doubled
# (experiments/videos/results). The other presets were not measured.
_SECONDS = {
  "laptop": {
    "clips": 60.0,
    "tokenizer_images": 248.0,
    "tokenizer": 68.0,
    "lam": 220.0,
    "buttons": 30.0,
    "tokenize": 38.0,
    "dynamics": 400.0,
    "export": 5.0,
    "rollout": 12.0,
    "eval": 120.0,
    "figures": 5.0,
  },
}
_TRAINED = ("tokenizer_images", "tokenizer", "lam", "dynamics")
_CODES = 8  # Latent actions of the configs.
_MOVES = 4  # Buttons of `genie buttons --gravity`.
_OPTIONS = "world_options.json"
# Clips of the test split for the figures of the report.
_CLIPS = {"laptop": 64, "gpu": 256, "smoke": 8}
_ACTION_CLIPS = {"laptop": 256, "gpu": 1024, "smoke": 16}
_IDM_STEPS = {"laptop": 300, "gpu": 1000, "smoke": 4}
_MOST_LEVELS = 60
_LONGEST_SIDE = 1024


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the flags."""
  parser.epilog = _EXAMPLE
  parser.formatter_class = argparse.RawDescriptionHelpFormatter
  add = parser.add_argument
  add(
    "--videos",
    required=True,
    metavar="FILMS",
    help="a folder, a pattern in quotes, or a table with a column `path`",
  )
  add("--out", required=True, metavar="DIR", help="folder of the whole run")
  add(
    "--preset",
    default="laptop",
    metavar="NAME",
    help="laptop (two CPU cores), gpu (one GPU; planned and not measured) or "
    "smoke (a few steps, to check that everything runs; default: laptop)",
  )
  add(
    "--size",
    default=None,
    metavar="WxH",
    help="pixels of a frame, multiples of the preset's patches (default: that "
    "of the preset)",
  )
  add(
    "--fps",
    type=int,
    default=10,
    metavar="N",
    help="frames per second of the clips and of the world (default: 10)",
  )
  add(
    "--effort",
    type=float,
    default=1.0,
    metavar="F",
    help="training steps of all stages, as a multiple of the preset's: 0.5 for "
    "a quick look, 3 for a better world (default: 1)",
  )
  add(
    "--side-view",
    action="store_true",
    help="the view follows a player who runs and jumps, as in platformers: "
    "codes are joined to the buttons left, right, nothing and jump by how the "
    "picture moves (`genie buttons --gravity`)",
  )
  add(
    "--name",
    default="",
    metavar="NAME",
    help="name of the world (default: name of the folder)",
  )
  add(
    "--dry-run",
    action="store_true",
    help="print the commands and run nothing",
  )


def run(args: argparse.Namespace) -> int:
  """Runs all stages; returns the exit code."""
  from genie_jax.core import buckets, errors, files, steps

  out = buckets.disk(args.out, "--out")
  planned = plan(args, out)
  if args.dry_run:
    for step in planned:
      print(f"genie {shlex.join(step.words())}")
    return 0
  _check_same_run(args, out)
  try:
    seconds = steps.run(planned, out / "seconds.json")
  except steps.StepFailed as error:
    if error.code != 2:  # Otherwise the step has said all.
      print(f"genie world: {error}", file=sys.stderr)
    return error.code if error.code > 0 else 1
  except errors.RunFailed as error:
    print(f"genie world: {error}", file=sys.stderr)
    return 1
  metrics = files.read_json(out / "metrics.json")
  metrics["seconds_by_stage"] = seconds
  metrics["seconds_total"] = round(sum(seconds.values()), 1)
  files.write_json(out / "metrics.json", metrics)
  print(
    f"\n{out / 'world'}: done after {sum(seconds.values()) / 60:.0f} minutes "
    f"in total. Look at {out / 'report.html'} and {out / 'buttons.gif'}, then "
    f"play: genie play --world {shlex.quote(str(out / 'world'))}"
  )
  return 0


def plan(args: argparse.Namespace, out: pathlib.Path) -> list["steps_lib.Step"]:
  """Returns the steps.

  Args:
    args: The command's arguments.
    out: The folder of the run.

  Raises:
    UserError: An argument is invalid, or the configs are missing.
  """
  from genie_jax.core import config as config_lib
  from genie_jax.core import errors, steps

  if args.preset not in PRESETS:
    raise errors.UserError(
      f"--preset {args.preset!r} is not one of {', '.join(PRESETS)}"
      f"{errors.closest(args.preset, PRESETS)}."
    )
  if not 1 <= args.fps <= 240:
    raise errors.UserError(f"--fps {args.fps} must be from 1 to 240.")
  if not 0.01 <= args.effort <= 100:
    raise errors.UserError(
      f"--effort {args.effort:g} must be from 0.01 to 100."
    )
  configs = _configs()
  load = lambda stage: config_lib.load(f"{configs / stage}.py:{args.preset}")
  width, height = _size(args, load("lam"))
  folder = lambda name: str(out / name)
  shape = [
    f"--config.world.width={width}",
    f"--config.world.height={height}",
    f"--config.world.fps={args.fps}",
  ]

  def train(stage: str, data: str, *more: str) -> list[str]:
    return [
      "train",
      "--config",
      f"{configs / stage}.py:{args.preset}",
      "--workdir",
      folder(stage),
      f"--config.data.path={folder(data)}",
      *shape,
      *(
        []
        if args.effort == 1
        else [
          f"--config.steps={max(1, round(load(stage).steps * args.effort))}"
        ]
      ),
      *more,
    ]

  lam = "lam_buttons" if args.side_view else "lam"
  count = _MOVES if args.side_view else _CODES
  stages = ("tokenizer", "lam", "dynamics")
  export = [
    "export",
    "--workdir",
    folder("tokenizer"),
    *([] if args.side_view else ["--workdir", folder("lam")]),
    "--workdir",
    folder("dynamics"),
    "--prompts",
    folder("clips"),
    "--out",
    folder("world"),
    "--name",
    args.name or out.name,
  ]
  made = {
    "clips": [
      "data",
      "videos",
      "--videos",
      args.videos,
      "--out",
      folder("clips"),
      "--size",
      f"{width}x{height}",
      "--fps",
      f"{args.fps}",
    ],
    "tokenizer_images": train("tokenizer_images", "clips"),
    "tokenizer": train(
      "tokenizer", "clips", "--init-from", folder("tokenizer_images")
    ),
    "lam": train("lam", "clips"),
    "buttons": [
      "buttons",
      "--lam",
      folder("lam"),
      "--clips",
      folder("clips"),
      "--gravity",
      "--out",
      folder("lam_buttons"),
    ],
    "tokenize": [
      "tokenize",
      "--tokenizer",
      folder("tokenizer"),
      "--lam",
      folder(lam),
      "--clips",
      folder("clips"),
      "--out",
      folder("tokens"),
      "--splits",
      "train,validation",
    ],
    "dynamics": train(
      "dynamics", "tokens", f"--config.world.num_latent_actions={count}"
    ),
    "export": export,
    "rollout": [
      "sample",
      "--world",
      folder("world"),
      "--actions",
      ",".join(f"{button}x8" for button in range(count)),
      "--show-buttons",
      "--out",
      folder("buttons.gif"),
    ],
    "eval": lambda: _evaluation(args.preset, out, stages),
    # Exported again, with the figures in the world's manifest.
    "figures": [*export, "--metrics", folder("metrics.json")],
  }
  if not args.side_view:
    del made["buttons"]
  expected = _SECONDS.get(args.preset, {})
  return [
    steps.Step(
      name,
      words,
      expected.get(name, 0.0) * (args.effort if name in _TRAINED else 1.0),
    )
    for name, words in made.items()
  ]


def _configs() -> pathlib.Path:
  """Returns the folder of configs, which is not part of the package."""
  import genie_jax
  from genie_jax.core import errors

  folder = (
    pathlib.Path(genie_jax.__file__).parent.parent / "experiments" / "videos"
  )
  if not (folder / "dynamics.py").is_file():
    raise errors.UserError(
      f"`genie world` needs the configs in {folder}, which an installed "
      "package does not have; run it from a checkout of the project."
    )
  return folder


def _size(args: argparse.Namespace, lam: Any) -> tuple[int, int]:
  """Returns width and height of a frame.

  Args:
    args: The command's arguments.
    lam: Config of the latent action model, whose patches may be the largest.

  Raises:
    UserError: They are not two numbers, or not multiples of the patches.
  """
  from genie_jax.core import errors

  text = args.size or _SIZE[args.preset]
  sides = text.lower().split("x")
  if len(sides) != 2 or not all(side.isdecimal() for side in sides):
    raise errors.UserError(
      f"--size {args.size!r} must be width x height in pixels, for example "
      f"{_SIZE[args.preset]}."
    )
  width, height = int(sides[0]), int(sides[1])
  step = max(lam.world.token_patch, lam.model.patch)
  if (
    width % step
    or height % step
    or not 0 < max(width, height) <= (_LONGEST_SIDE)
  ):
    near = "x".join(
      str(max(step, round(s / step) * step)) for s in (width, height)
    )
    raise errors.UserError(
      f"--size {text} does not fit the preset {args.preset!r}: both sides must "
      f"be multiples of {step}, at most {_LONGEST_SIDE}; try {near}."
    )
  return width, height


def _check_same_run(args: argparse.Namespace, out: pathlib.Path) -> None:
  """Writes the options of a new run, or checks that an old one had these.

  Raises:
    UserError: The folder belongs to a run with other options.
  """
  from genie_jax.core import errors, files
  from genie_jax.data import manifest

  options = {
    "videos": os.path.abspath(args.videos),
    "preset": args.preset,
    "size": args.size or _SIZE[args.preset],
    "fps": args.fps,
    "effort": args.effort,
    "side_view": args.side_view,
  }
  path = out / _OPTIONS
  files.check_writable(out, "--out")
  # Until there are clips, another try may correct the options.
  if path.exists() and manifest.exists(out / "clips"):
    found = files.read_json(path)
    if not isinstance(found, dict):
      raise errors.UserError(
        f"{path} does not have the options of a run; give another --out, or "
        "delete the folder."
      )
    for name, value in options.items():
      if found.get(name) != value:
        raise errors.UserError(
          f"{out} was begun with --{name.replace('_', '-')} "
          f"{found.get(name)}, not {value}; give another --out, or delete the "
          "folder."
        )
    return
  if out.exists() and any(out.iterdir()) and not path.exists():
    raise errors.UserError(
      f"--out {out} contains something else; give a new folder."
    )
  files.write_json(path, options)


def _evaluation(
  preset: str, out: pathlib.Path, stages: tuple[str, ...]
) -> list[str]:
  """Returns the arguments of `genie eval`.

  The clips decide how many sources there are to evaluate on; before they are
  cut, as in a dry run, the most are stated.
  """
  from genie_jax.core import errors
  from genie_jax.data import manifest

  levels = _MOST_LEVELS
  if manifest.exists(out / "clips"):
    found = manifest.Manifest.read(out / "clips")
    if "test" not in found.splits:
      raise errors.UserError(
        f"{out / 'clips'} has no split `test` to evaluate on; give more films, "
        "or state splits in the table of films."
      )
    levels = min(_MOST_LEVELS, len(set(found.sources("test"))))
  return [
    "eval",
    "--world",
    str(out / "world"),
    "--clips",
    str(out / "clips"),
    "--out",
    str(out),
    "--levels",
    str(levels),
    "--num-clips",
    str(max(levels, _CLIPS[preset])),
    "--num-action-clips",
    str(max(levels, _ACTION_CLIPS[preset])),
    "--idm-steps",
    str(_IDM_STEPS[preset]),
    "--timings",
    str(out / "seconds.json"),
    *(arg for stage in stages for arg in ("--workdir", str(out / stage))),
  ]


def main() -> int:
  """Entry point of `python -m genie_jax.cli.world`."""
  from genie_jax.cli import main as main_lib

  return main_lib.main(["world", *sys.argv[1:]])


if __name__ == "__main__":
  sys.exit(main())
