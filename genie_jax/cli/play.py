"""`genie play`: runs a local server, to play a world in a browser."""

import argparse
import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any

from genie_jax.worlds import shipped

_EXAMPLE = """\
examples:
  genie play
  genie play --world runs/demo/world
  genie play --world runs/demo/world --world coinrun

The command prints an address to open in a browser on this machine. Other
machines can connect only with --host; see docs/play.md for playing over a
network.
"""
_DTYPES = ("float32", "bfloat16", "int8")
_SLIDES = ("exact", "rolling", "re-encode")


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the flags."""
  parser.epilog = _EXAMPLE
  parser.formatter_class = argparse.RawDescriptionHelpFormatter
  add = parser.add_argument
  add(
    "--world",
    action="append",
    default=None,
    metavar="DIR",
    help="a folder that `genie export` wrote; the name of a shipped world; or "
    "an address: https://..., gs://..., s3://... or hf://...; may be repeated, "
    f"and the page then offers a choice (default: {shipped.DEFAULT}, the world "
    "that ships with this package)",
  )
  add_server_arguments(parser)
  add(
    "--max-sessions",
    type=int,
    default=16,
    metavar="N",
    help="maximum number of players of each world (default: 16)",
  )
  add(
    "--session-minutes",
    type=float,
    default=30,
    metavar="X",
    help="disconnect players who are idle for X minutes (default: 30)",
  )
  add(
    "--refinements",
    type=int,
    default=None,
    metavar="N",
    help="MaskGIT steps per frame; fewer are faster (default: the world's)",
  )
  add(
    "--slide",
    default=None,
    metavar="MODE",
    help=f"what happens when the window is full: {', '.join(_SLIDES)} "
    "(default: the world's)",
  )
  add_device_arguments(parser)


def run(args: argparse.Namespace) -> int:
  """Serves until Ctrl-C; returns 0."""
  import time

  from genie_jax.core import errors

  check_server_flags(args)
  if not 1 <= args.max_sessions <= 1024:
    raise errors.UserError(
      f"--max-sessions {args.max_sessions}: give 1 to 1024."
    )
  if not 0 < args.session_minutes <= 1e6:
    raise errors.UserError(
      f"--session-minutes {args.session_minutes}: give more than 0."
    )
  if args.slide is not None and args.slide not in _SLIDES:
    raise errors.UserError(
      f"--slide {args.slide}{errors.closest(args.slide, _SLIDES)}: give one "
      f"of {', '.join(_SLIDES)}."
    )
  check_device_flags(args)
  # Imported here because importing JAX takes seconds, which errors in flags can
  # avoid.
  from genie_jax.serve import engine as engine_lib
  from genie_jax.serve import server
  from genie_jax.worlds import download, program_cache, world_folder

  given = args.world or [shipped.DEFAULT]
  if twice := sorted({name for name in given if given.count(name) > 1}):
    raise errors.UserError(f"--world {twice[0]} is given twice; give it once.")
  worlds = [shipped.default()] if args.world is None else given
  for world in worlds:
    world_folder.read_manifest(download.local(world))
  engines = []
  with server.bind(args.host, args.port) as taken:
    program_cache.enable()
    for name, world in zip(given, worlds, strict=True):
      began = time.monotonic()
      say(f"Loading {name}; the first start compiles it for this machine.")
      with device_options(args) as held:
        engine = engine_lib.open_world(
          world, refinements=args.refinements, slide=args.slide, **held
        )
      engine.warm_up()
      say(
        f"{engine.description.name} is ready after "
        f"{time.monotonic() - began:.1f} s."
      )
      engines.append(engine)
    server.run(
      engines,
      taken,
      host=args.host,
      max_sessions=args.max_sessions,
      session_minutes=args.session_minutes,
      names=args.names,
      open_browser=opens_browser(args),
      say=say,
    )
  say("Stopped.")
  return 0


def add_server_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the flags of a command that serves a page."""
  add = parser.add_argument
  add(
    "--host",
    default="127.0.0.1",
    metavar="NAME",
    help="address to listen on; 0.0.0.0 for all networks (default: 127.0.0.1)",
  )
  add(
    "--port",
    type=int,
    default=8000,
    metavar="N",
    help="port to listen on; 0 chooses a free one (default: 8000)",
  )
  add(
    "--allow-host",
    action="append",
    default=[],
    metavar="NAME",
    dest="names",
    help="host name by which browsers may reach the server, in addition to "
    "localhost and IP addresses; may be repeated",
  )
  add(
    "--open",
    action=argparse.BooleanOptionalAction,
    default=None,
    help="open the page in a browser (default: if there is a desktop)",
  )


def check_server_flags(args: argparse.Namespace) -> None:
  """Raises UserError if `--port` is out of range."""
  from genie_jax.core import errors

  if not 0 <= args.port < 1 << 16:
    raise errors.UserError(f"--port {args.port}: give 0 to 65535.")


def opens_browser(args: argparse.Namespace) -> bool:
  """Returns `--open`; if it is not given, whether there is a desktop."""
  if args.open is not None:
    return args.open
  desktop = os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
  return bool(desktop) and sys.stdout.isatty()


def add_device_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the flags for the precision and the placement of a world."""
  parser.add_argument(
    "--dtype",
    default=None,
    metavar="NAME",
    help=f"precision of the matrices and their products: {', '.join(_DTYPES)}; "
    "int8 stores matrices as integers, which need a quarter of the memory of "
    "float32 (default: bfloat16 on accelerators, float32 on a CPU)",
  )
  parser.add_argument(
    "--tensor",
    type=int,
    default=None,
    metavar="N",
    help="split a world that is too large for one device over N devices of "
    "this machine (default: not split, on one device)",
  )


def check_device_flags(args: argparse.Namespace) -> None:
  """Checks `--dtype` and `--tensor` as far as no device is needed.

  Raises:
    UserError: The dtype is unknown, or N is less than 1.
  """
  from genie_jax.core import errors

  if args.dtype is not None and args.dtype not in _DTYPES:
    raise errors.UserError(
      f"--dtype {args.dtype}{errors.closest(args.dtype, _DTYPES)}: give one "
      f"of {', '.join(_DTYPES)}."
    )
  if args.tensor is not None and args.tensor < 1:
    raise errors.UserError(
      f"--tensor {args.tensor}: give a number of devices, 1 or more."
    )


@contextlib.contextmanager
def device_options(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
  """Yields `dtype` and `mesh` for a call of `genie_jax.load_world`.

  An error of that call then names the flag and not the config.

  Raises:
    UserError: There are less than N devices, or a size of the world is not
      divisible by N.
  """
  # Imported here because importing JAX takes seconds, which --help can avoid.
  import jax

  from genie_jax.core import errors
  from genie_jax.sharding import mesh as mesh_lib

  if args.tensor is None:
    yield {"dtype": args.dtype, "mesh": None}
    return
  devices = jax.local_devices()
  if args.tensor > len(devices):
    kind = devices[0].platform
    raise errors.UserError(
      f"--tensor {args.tensor}: this machine has {len(devices)} {kind} "
      f"device{'s' * (len(devices) > 1)}; give at most {len(devices)}."
    )
  mesh = mesh_lib.make(
    dict(data=1, fsdp=1, tensor=args.tensor, frame=1), devices[: args.tensor]
  )
  try:
    yield {"dtype": args.dtype, "mesh": mesh}
  except errors.UserError as error:
    # The library's message is for training, where the config has the mesh.
    raise errors.UserError(
      str(error).replace(
        "change that size or config.mesh",
        f"give another --tensor than {args.tensor}",
      )
    ) from error


def say(line: str) -> None:
  """Prints a line without buffering, also to a pipe."""
  print(line, flush=True)


def main() -> int:
  """Entry point of `python -m genie_jax.cli.play`."""
  from genie_jax.cli import main as main_lib

  return main_lib.main(["play", *sys.argv[1:]])


if __name__ == "__main__":
  sys.exit(main())
