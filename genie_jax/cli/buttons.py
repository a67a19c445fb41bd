"""`genie buttons`: makes buttons of the codes of a latent action model."""

import argparse
import sys

_EXAMPLE = """\
example, for a game in which the player falls by himself:
  genie buttons --lam runs/lam --clips clips --gravity --out runs/lam_buttons
  genie tokenize --tokenizer runs/tokenizer --lam runs/lam_buttons \\
      --clips clips --out tokens

Names each code by how the picture moves under it, without keys or the state of
the game, and joins codes with the same name to one button. With --gravity,
falling is no button, and rising counts as pressed for its first frames only:
during the others, the button before counts as held. The dynamics model is then
trained with config.world.num_latent_actions=N, the number of buttons that this
command prints.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the flags."""
  parser.epilog = _EXAMPLE
  parser.formatter_class = argparse.RawDescriptionHelpFormatter
  add = parser.add_argument
  add(
    "--lam",
    required=True,
    metavar="DIR",
    help="workdir or saved model of a latent action model",
  )
  add(
    "--clips",
    required=True,
    metavar="DIR",
    help="clips like those that it was trained on; their actions are not read",
  )
  add(
    "--out",
    required=True,
    metavar="DIR",
    help="folder to write: the same model with buttons, for `genie tokenize`",
  )
  add(
    "--gravity",
    action="store_true",
    help="the player falls by himself, as in games seen from the side",
  )
  add(
    "--split",
    default="train",
    metavar="NAME",
    help="split of the clips (default: train)",
  )
  add(
    "--num-clips",
    type=int,
    default=512,
    metavar="N",
    help="number of clips to read (default: 512)",
  )


def run(args: argparse.Namespace) -> int:
  """Writes the model with buttons; returns 0."""
  from genie_jax.core import buckets, errors

  if args.num_clips < 1:
    raise errors.UserError(
      f"--num-clips is {args.num_clips}; give a number of at least 1."
    )
  out = buckets.disk(args.out, "--out")
  if out.exists() and not out.is_dir():
    raise errors.UserError(f"--out {out} is a file; give a folder.")
  # Imported here because importing JAX takes seconds, which errors in flags can
  # avoid.
  from absl import logging

  from genie_jax.evals import code_buttons
  from genie_jax.models import store
  from genie_jax.worlds import trained_models

  found = trained_models.read(args.lam)
  lam = found.part("lam")
  rows = code_buttons.measure(
    lam, args.clips, split=args.split, num_clips=args.num_clips
  )
  made = code_buttons.make(rows, gravity=args.gravity)
  for row, button in zip(rows, made.button_of, strict=True):
    share = "" if row["share"] is None else f", {100 * row['share']:.0f} %"
    print(
      f"code {row['button']}: {row['name']}{share} "
      f"({100 * row['usage']:.0f} % of transitions) -> "
      + ("held as before" if button < 0 else f"button {button}")
    )
  store.save(
    out,
    {"lam": code_buttons.with_buttons(lam, made)},
    extra={"made_by": record} if (record := found.record("lam")) else None,
  )
  for number, name in enumerate(made.names):
    if number not in made.button_of:
      logging.warning("No code presses button %d, %s.", number, name)
  names = ", ".join(f"{n} {name}" for n, name in enumerate(made.names))
  print(
    f"{out}: {len(made.names)} buttons: {names}. Train the dynamics model with "
    f"--config.world.num_latent_actions={len(made.names)}."
  )
  return 0


def main() -> int:
  """Entry point of `python -m genie_jax.cli.buttons`."""
  from genie_jax.cli import main as main_lib

  return main_lib.main(["buttons", *sys.argv[1:]])


if __name__ == "__main__":
  sys.exit(main())
