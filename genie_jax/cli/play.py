"""`genie play`: a local server and one page: a world under your fingers."""

import argparse
import sys

from genie_jax.serve import loading

_EXAMPLE = """\
example:
  genie play --world world

prints an address to open in a browser on this machine. It listens to nobody
else unless --host says so; see docs/play.md for playing over a network.
"""
_SLIDES = ("exact", "rolling", "re-encode")


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the flags."""
  parser.epilog = _EXAMPLE
  parser.formatter_class = argparse.RawDescriptionHelpFormatter
  add = parser.add_argument
  add("--world", required=True, metavar="DIR",
      help="world folder that `genie export` wrote, or its address: "
      "https://..., gs://... or s3://...")
  add("--host", default="127.0.0.1", metavar="NAME",
      help="where to listen; 0.0.0.0 for all networks (default: 127.0.0.1)")
  add("--port", type=int, default=8000, metavar="N",
      help="0 takes any that is free (default: 8000)")
  add("--allow-host", action="append", default=[], metavar="NAME",
      dest="names", help="a host name by which browsers reach the server "
      "besides localhost and IP addresses; may be given many times")
  add("--max-sessions", type=int, default=16, metavar="N",
      help="players at once (default: 16)")
  add("--session-minutes", type=float, default=30, metavar="X",
      help="who plays nothing for so long is sent away (default: 30)")
  add("--refinements", type=int, default=None, metavar="N",
      help="MaskGIT steps a frame; fewer are faster (default: the world's)")
  add("--slide", default=None, metavar="MODE",
      help=f"{', '.join(_SLIDES)}: what happens when the window is full "
      "(default: the world's)")
  loading.add_arguments(parser)
  add("--open", action=argparse.BooleanOptionalAction, default=None,
      help="open the page in a browser (default: where there is a desktop)")


def run(args: argparse.Namespace) -> int:
  """Serves until Ctrl-C; returns 0."""
  import os
  import time

  from genie_jax.core import errors

  if not 0 <= args.port < 1 << 16:
    raise errors.UserError(f"--port {args.port}: give 0 to 65535.")
  if not 1 <= args.max_sessions <= 1024:
    raise errors.UserError(
        f"--max-sessions {args.max_sessions}: give 1 to 1024.")
  if not 0 < args.session_minutes <= 1e6:
    raise errors.UserError(
        f"--session-minutes {args.session_minutes}: give more than 0.")
  if args.slide is not None and args.slide not in _SLIDES:
    raise errors.UserError(
        f"--slide {args.slide}{errors.closest(args.slide, _SLIDES)}: give one "
        f"of {', '.join(_SLIDES)}.")
  loading.check(args)
  # Late imports: JAX takes seconds, which a slip need not wait for.
  from genie_jax.infer import bundle, fetch, steps
  from genie_jax.serve import engine as engines
  from genie_jax.serve import local

  folder = fetch.local(args.world)
  bundle.read_manifest(folder)
  with local.bind(args.host, args.port) as taken:
    began = time.monotonic()
    say(f"Loading {args.world}; the first start compiles it for this machine.")
    steps.keep_programs()
    with loading.options(args) as held:
      engine = engines.open_world(
          args.world, refinements=args.refinements, slide=args.slide, **held)
    engine.warm_up()
    say(f"{engine.description.name} is ready after "
        f"{time.monotonic() - began:.1f} s.")
    desktop = sys.stdout.isatty() and bool(
        os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
    local.run(
        engine, taken, host=args.host, max_sessions=args.max_sessions,
        session_minutes=args.session_minutes, names=args.names,
        open_browser=desktop if args.open is None else args.open, say=say)
  say("Stopped.")
  return 0


def say(line: str) -> None:
  """Prints a line at once, also into a pipe."""
  print(line, flush=True)


def main() -> int:
  """Entry point of `python -m genie_jax.cli.play`."""
  from genie_jax.cli import main as cli

  return cli.main(["play", *sys.argv[1:]])


if __name__ == "__main__":
  sys.exit(main())
