"""Plans in a process of their own.

The TPU compiler ends its process where one of its own checks fails; a search
must go on, and a user must get one line.
"""

import concurrent.futures
import multiprocessing
import os
import tempfile
from collections.abc import Mapping
from concurrent.futures import process
from typing import Any

import ml_collections

from genie_jax.core import errors
from genie_jax.plan import aot_compile, training
from genie_jax.plan import play as play_lib
from genie_jax.plan import topology as topology_lib
from genie_jax.plan.hlo import resharding_log


def make(
  config: ml_collections.ConfigDict,
  topology: topology_lib.Topology,
  price: float | None = None,
  options: Mapping[str, str] | None = None,
) -> tuple[dict[str, Any], str]:
  """Does what `stage_training.make` does; see there.

  Raises:
    UserError: As there, or the compiler crashed.
  """
  return _apart(_make, config.to_dict(), topology, price, options)


def play(
  config: ml_collections.ConfigDict,
  tokenizer: ml_collections.ConfigDict,
  topology: topology_lib.Topology,
  players: int,
  slide: str,
  options: Mapping[str, str] | None = None,
) -> tuple[dict[str, Any], str]:
  """Does what `play.make` does; see there.

  Raises:
    UserError: As there, or the compiler crashed.
  """
  return _apart(
    _play,
    config.to_dict(),
    tokenizer.to_dict(),
    topology,
    players,
    slide,
    options,
  )


def _apart(function, *args):
  # Spawned and not forked: JAX's threads would not live on in a fork.
  pool = concurrent.futures.ProcessPoolExecutor(
    1, mp_context=multiprocessing.get_context("spawn")
  )
  with tempfile.TemporaryDirectory() as folder, pool:
    try:
      report, text = pool.submit(_logged, folder, function, *args).result()
    except process.BrokenProcessPool as error:
      raise errors.UserError(
        "The TPU compiler crashed (its own words stand above); a dimension "
        "that splits into odd pieces was seen to cause it, so try another "
        "config.mesh."
      ) from error
    report["copied_whole"] = resharding_log.copied_whole(folder)
  return report, text


def _logged(folder, function, *args):
  os.environ[resharding_log.LOG_FOLDER] = folder
  return function(*args)


def _make(config, topology, price, options):
  aot_compile.prepare()
  return training.make(
    ml_collections.ConfigDict(config), topology, price, options
  )


def _play(config, tokenizer, *rest):
  aot_compile.prepare()
  return play_lib.make(
    ml_collections.ConfigDict(config),
    ml_collections.ConfigDict(tokenizer),
    *rest,
  )
