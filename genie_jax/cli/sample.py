"""`genie sample`: rolls out a world from a picture and a list of actions."""

import argparse
import sys
from collections.abc import Mapping, Sequence

from genie_jax.cli import play
from genie_jax.worlds import buttons as buttons_lib

_EXAMPLE = """\
example:
  genie sample --world world --prompt picture.png --actions 0x8,3x8 \\
      --out rollout.gif

Actions are numbers, separated by commas; 3x8 presses 3 eight times, and
random:32 presses 32 random ones. In worlds whose buttons have names, leftx8
presses the button "left". A picture of any size is cropped at the centre
to the world's aspect ratio, and resized.
"""
_MAX_FRAMES = 100_000  # A longer list is assumed to be a typing error.


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the flags."""
  parser.epilog = _EXAMPLE
  parser.formatter_class = argparse.RawDescriptionHelpFormatter
  add = parser.add_argument
  add(
    "--world",
    required=True,
    metavar="DIR",
    help="name of a shipped world, folder that `genie export` wrote, or "
    "address",
  )
  add(
    "--prompt",
    action="append",
    default=None,
    metavar="IMG",
    dest="prompts",
    help="picture to start from; repeat for several frames (default: "
    "the world's first prompt)",
  )
  add(
    "--actions",
    required=True,
    metavar="LIST",
    help="actions, for example 0,3,3,1 or 0x8,3x8 or random:32",
  )
  add(
    "--out",
    default="rollout.gif",
    metavar="FILE",
    help="video to write, .gif or .mp4 (default: rollout.gif)",
  )
  add(
    "--seed",
    type=int,
    default=0,
    metavar="N",
    help="seed of the noise (default: 0)",
  )
  add(
    "--temperature",
    type=float,
    default=None,
    metavar="X",
    help="sampling temperature; 0 takes the most likely token (default: the "
    "world's)",
  )
  add(
    "--refinements",
    type=int,
    default=None,
    metavar="N",
    help="MaskGIT steps per frame (default: the world's)",
  )
  add(
    "--order",
    default=None,
    metavar="ORDER",
    help="order in which MaskGIT reveals tokens: random or confidence "
    "(default: the world's)",
  )
  add(
    "--schedule",
    default=None,
    metavar="NAME",
    help="MaskGIT schedule: cosine, linear or square_root (default: the "
    "world's)",
  )
  add(
    "--top-k",
    type=int,
    default=None,
    metavar="N",
    help="sample from the N most likely tokens, 0 for all (default: the "
    "world's)",
  )
  add(
    "--top-p",
    type=float,
    default=None,
    metavar="X",
    help="sample from the most likely tokens whose probabilities add up to X, "
    "1 for all (default: the world's)",
  )
  add(
    "--slide",
    default=None,
    metavar="MODE",
    help="what happens when the window is full: exact, rolling or re-encode "
    "(default: the world's)",
  )
  add(
    "--drop",
    type=int,
    default=None,
    metavar="N",
    help="number of frames that a full window drops at a time, with exact and "
    "re-encode (default: the world's, or 1 with --slide)",
  )
  play.add_device_arguments(parser)
  add(
    "--fps",
    type=float,
    default=None,
    metavar="X",
    help="frames per second of the video (default: the world's)",
  )
  add(
    "--scale",
    type=int,
    default=4,
    metavar="N",
    help="factor by which the frames are enlarged (default: 4)",
  )
  add(
    "--show-buttons",
    action="store_true",
    help="draw the buttons below the frames and light the one that is pressed",
  )


def run(args: argparse.Namespace) -> int:
  """Writes the video; returns 0."""
  # Imported here because importing JAX takes seconds, which --help can avoid.
  import dataclasses
  import pathlib
  import time

  import numpy as np

  import genie_jax
  from genie_jax.core import errors, images
  from genie_jax.sampling import samplers
  from genie_jax.sampling import slide as slide_lib
  from genie_jax.worlds import program_cache

  if pathlib.Path(args.out).suffix not in (".gif", ".mp4"):
    raise errors.UserError(f"--out {args.out}: give a .gif or .mp4 file.")
  if not 1 <= args.scale <= 64 or (
    args.fps is not None and not 0 < args.fps <= 1000
  ):
    raise errors.UserError(
      f"--scale {args.scale} --fps {args.fps}: give a scale from 1 to 64, and "
      "fps above 0 and at most 1000."
    )
  if not 0 <= args.seed < 1 << 32:
    raise errors.UserError(
      f"--seed {args.seed}: give a number from 0 to {(1 << 32) - 1}."
    )
  play.check_device_flags(args)
  program_cache.enable()
  with play.device_options(args) as held:
    world = genie_jax.load_world(args.world, **held)
  actions = world.check_actions(
    parse_actions(args.actions, world.buttons, args.seed)
  )
  given = lambda *names: {
    name: getattr(args, name)
    for name in names
    if getattr(args, name) is not None
  }
  sampling = samplers.replace(
    world.sampling,
    given("temperature", "refinements", "order", "schedule", "top_k", "top_p"),
  )
  slide = world.slide
  if args.slide is not None:
    slide = slide_lib.Slide(args.slide)
  slide = dataclasses.replace(slide, **given("drop"))
  world = world.with_options(sampling=sampling, slide=slide)
  pictures = args.prompts or [str(path) for path in world.prompts[:1]]
  if not pictures:
    raise errors.UserError(
      f"{args.world} has no prompts; give a picture with --prompt."
    )
  prompt = np.stack(
    [images.load_prompt(path, *world.frame_shape[:2]) for path in pictures]
  )
  began = time.monotonic()
  frames = world.rollout(prompt, actions, seed=args.seed)
  seconds = time.monotonic() - began
  scale = args.scale
  if args.show_buttons:
    frames = images.with_keys(
      frames,
      [button.name or str(button.number) for button in world.buttons],
      [None] * (len(frames) - len(actions)) + actions.tolist(),
      scale,
    )
    scale = 1
  images.save_video(args.out, frames, args.fps or world.fps, scale)
  print(
    f"{args.out}: {len(frames)} frames, {len(actions)} of them generated in "
    f"{seconds:.1f} s, compilation included."
  )
  return 0


def parse_actions(
  text: str, buttons: Sequence[buttons_lib.Button], seed: int
) -> list[int]:
  """Parses a list of actions such as "0,3x4,leftx2,random:8".

  Args:
    text: The list.
    buttons: The world's; if several have a name, it means the one that does
      this most often.
    seed: Seed of the random actions.

  Raises:
    UserError: The list is malformed, empty or far too long.
  """
  import random

  from genie_jax.core import errors

  named = {
    button.name: button.number
    for button in sorted(buttons, key=lambda button: button.share or 0)
    if button.name
  }
  generator, actions = random.Random(seed), []
  for item in text.split(","):
    word, _, count = item.strip().partition("random:")
    try:
      if count and not word:
        actions += [
          generator.randrange(len(buttons)) for _ in range(_count(count))
        ]
      else:
        action, _, count = item.strip().partition("x")
        action = action.strip()
        number = named[action] if action in named else int(action)
        actions += [number] * (_count(count) if count else 1)
    except ValueError as error:
      raise errors.UserError(
        f"--actions {text[:40]!r}: {item.strip()[:20]!r} is neither a "
        f"number nor like 3x8 or random:32{_or_named(named)}."
      ) from error
  return actions


def _or_named(named: Mapping[str, int]) -> str:
  """Returns the names of buttons for a message, if there are any."""
  return f", nor a button ({', '.join(named)})" if named else ""


def _count(text: str) -> int:
  count = int(text)
  if not 1 <= count <= _MAX_FRAMES:
    raise ValueError(f"{count} frames")
  return count


def main() -> int:
  """Entry point of `python -m genie_jax.cli.sample`."""
  from genie_jax.cli import main as main_lib

  return main_lib.main(["sample", *sys.argv[1:]])


if __name__ == "__main__":
  sys.exit(main())
