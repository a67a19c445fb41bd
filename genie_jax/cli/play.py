"""`genie play`: a local server and one page: a world under your fingers."""

import argparse
import contextlib
import sys
from collections.abc import Iterator
from typing import Any

_EXAMPLE = """\
example:
  genie play --world world

prints an address to open in a browser on this machine. It listens to nobody
else unless --host says so; see docs/play.md for playing over a network.
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
    required=True,
    metavar="DIR",
    help="name of a world that ships, for example coinrun; a folder that "
    "`genie export` wrote; or its address: https://..., gs://..., s3://... or "
    "hf://...",
  )
  add(
    "--host",
    default="127.0.0.1",
    metavar="NAME",
    help="where to listen; 0.0.0.0 for all networks (default: 127.0.0.1)",
  )
  add(
    "--port",
    type=int,
    default=8000,
    metavar="N",
    help="0 takes any that is free (default: 8000)",
  )
  add(
    "--allow-host",
    action="append",
    default=[],
    metavar="NAME",
    dest="names",
    help="a host name by which browsers reach the server "
    "besides localhost and IP addresses; may be given many times",
  )
  add(
    "--max-sessions",
    type=int,
    default=16,
    metavar="N",
    help="players at once (default: 16)",
  )
  add(
    "--session-minutes",
    type=float,
    default=30,
    metavar="X",
    help="who plays nothing for so long is sent away (default: 30)",
  )
  add(
    "--refinements",
    type=int,
    default=None,
    metavar="N",
    help="MaskGIT steps a frame; fewer are faster (default: the world's)",
  )
  add(
    "--slide",
    default=None,
    metavar="MODE",
    help=f"{', '.join(_SLIDES)}: what happens when the window is full "
    "(default: the world's)",
  )
  add_device_arguments(parser)
  add(
    "--open",
    action=argparse.BooleanOptionalAction,
    default=None,
    help="open the page in a browser (default: where there is a desktop)",
  )


def run(args: argparse.Namespace) -> int:
  """Serves until Ctrl-C; returns 0."""
  import os
  import time

  from genie_jax.core import errors

  if not 0 <= args.port < 1 << 16:
    raise errors.UserError(f"--port {args.port}: give 0 to 65535.")
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
  # Late imports: JAX takes seconds, which a slip need not wait for.
  from genie_jax.core import cache
  from genie_jax.serve import engine as engine_lib
  from genie_jax.serve import server
  from genie_jax.worlds import download, world_folder

  folder = download.local(args.world)
  world_folder.read_manifest(folder)
  with server.bind(args.host, args.port) as taken:
    began = time.monotonic()
    say(f"Loading {args.world}; the first start compiles it for this machine.")
    cache.enable()
    with device_options(args) as held:
      engine = engine_lib.open_world(
        args.world, refinements=args.refinements, slide=args.slide, **held
      )
    engine.warm_up()
    say(
      f"{engine.description.name} is ready after "
      f"{time.monotonic() - began:.1f} s."
    )
    desktop = sys.stdout.isatty() and bool(
      os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    )
    server.run(
      engine,
      taken,
      host=args.host,
      max_sessions=args.max_sessions,
      session_minutes=args.session_minutes,
      names=args.names,
      open_browser=desktop if args.open is None else args.open,
      say=say,
    )
  say("Stopped.")
  return 0


def add_device_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the flags that say how a world is held in memory."""
  parser.add_argument(
    "--dtype",
    default=None,
    metavar="NAME",
    help=f"{', '.join(_DTYPES)}: of the matrices and their products; int8 "
    "holds matrices as integers, a quarter of float32 (default: bfloat16 on "
    "accelerators, float32 on a CPU)",
  )
  parser.add_argument(
    "--tensor",
    type=int,
    default=None,
    metavar="N",
    help="splits a world that is too large for one device over N devices of "
    "this machine (default: one device, nothing split)",
  )


def check_device_flags(args: argparse.Namespace) -> None:
  """Checks what can be checked before a device is touched.

  Raises:
    UserError: The dtype is unknown or N is no number of devices.
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
  """Yields `dtype` and `mesh` for `genie_jax.load_world`, to be called inside.

  Raises:
    UserError: There are fewer devices, or a size of the world does not divide
      by N.
  """
  # Late imports: JAX takes seconds, which --help need not wait for.
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
    # The library speaks to those who train, who set a config's mesh.
    raise errors.UserError(
      str(error).replace(
        "change that size or config.mesh",
        f"give another --tensor than {args.tensor}",
      )
    ) from error


def say(line: str) -> None:
  """Prints a line at once, also into a pipe."""
  print(line, flush=True)


def main() -> int:
  """Entry point of `python -m genie_jax.cli.play`."""
  from genie_jax.cli import main as main_lib

  return main_lib.main(["play", *sys.argv[1:]])


if __name__ == "__main__":
  sys.exit(main())
