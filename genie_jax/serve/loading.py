"""Flags of how a world is held in memory, of `genie play` and `sample`."""

import argparse
import contextlib
from collections.abc import Iterator
from typing import Any

_DTYPES = ("float32", "bfloat16", "int8")


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the flags."""
  parser.add_argument(
      "--dtype", default=None, metavar="NAME",
      help=f"{', '.join(_DTYPES)}: of the matrices and their products; int8 "
      "holds matrices as integers, a quarter of float32 (default: bfloat16 on "
      "accelerators, float32 on a CPU)")
  parser.add_argument(
      "--tensor", type=int, default=None, metavar="N",
      help="splits a world that is too large for one device over N devices of "
      "this machine (default: one device, nothing split)")


def check(args: argparse.Namespace) -> None:
  """Checks what can be checked before a device is touched.

  Raises:
    UserError: The dtype is unknown or N is no number of devices.
  """
  from genie_jax.core import errors

  if args.dtype is not None and args.dtype not in _DTYPES:
    raise errors.UserError(
        f"--dtype {args.dtype}{errors.closest(args.dtype, _DTYPES)}: give one "
        f"of {', '.join(_DTYPES)}.")
  if args.tensor is not None and args.tensor < 1:
    raise errors.UserError(
        f"--tensor {args.tensor}: give a number of devices, 1 or more.")


@contextlib.contextmanager
def options(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
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
        f"device{'s' * (len(devices) > 1)}; give at most {len(devices)}.")
  mesh = mesh_lib.make(
      dict(data=1, fsdp=1, tensor=args.tensor, frame=1),
      devices[:args.tensor])
  try:
    yield {"dtype": args.dtype, "mesh": mesh}
  except errors.UserError as error:
    # The library speaks to those who train, who set a config's mesh.
    raise errors.UserError(str(error).replace(
        "change that size or config.mesh",
        f"give another --tensor than {args.tensor}")) from error
