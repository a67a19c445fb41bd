"""Makes plans in a child process.

The TPU compiler aborts its process when one of its internal checks fails. In a
child process, this neither ends a search nor hides the error from the user.
"""

import concurrent.futures
import multiprocessing
import os
import tempfile
from collections.abc import Callable, Mapping
from concurrent.futures import process
from typing import Any

import ml_collections

from genie_jax.core import errors
from genie_jax.plan import aot_compile, training
from genie_jax.plan import play as play_lib
from genie_jax.plan import topology as topology_lib
from genie_jax.plan.calibration import calibrate, published
from genie_jax.plan.hlo import resharding_log

Plan = tuple[dict[str, Any], str]


def plan_training(
  config: ml_collections.ConfigDict,
  topology: topology_lib.Topology,
  price: float | None = None,
  options: Mapping[str, str] | None = None,
  whole: bool = False,
) -> Plan:
  """Calls `training.plan` in a child process, with the same arguments.

  With `whole` it also plans what a run does besides its steps.

  The plan also has "copied_whole": tensors that the compiler replicates fully.

  Raises:
    UserError: As `training.plan`, or the compiler crashed.
  """
  return _in_child_process(
    _plan_training, config.to_dict(), topology, price, options, whole
  )


def plan_play(
  config: ml_collections.ConfigDict,
  tokenizer: ml_collections.ConfigDict,
  topology: topology_lib.Topology,
  players: int,
  slide: str,
  options: Mapping[str, str] | None = None,
) -> Plan:
  """Calls `play.plan` in a child process, with the same arguments.

  The plan also has "copied_whole": tensors that the compiler replicates fully.

  Raises:
    UserError: As `play.plan`, or the compiler crashed.
  """
  return _in_child_process(
    _plan_play,
    config.to_dict(),
    tokenizer.to_dict(),
    topology,
    players,
    slide,
    options,
  )


def plan_published(run: published.Run) -> Plan:
  """Calls `calibrate.plan` in a child process.

  Raises:
    UserError: As `calibrate.plan`, or the compiler crashed.
  """
  return _in_child_process(_plan_published, run)


def _in_child_process(function: Callable[..., Plan], *args: Any) -> Plan:
  """Calls a function in a new process and reads the compiler's log after it."""
  # The process is spawned because JAX's threads do not survive a fork.
  pool = concurrent.futures.ProcessPoolExecutor(
    1, mp_context=multiprocessing.get_context("spawn")
  )
  with tempfile.TemporaryDirectory() as folder, pool:
    try:
      report, text = pool.submit(_with_log, folder, function, *args).result()
    except process.BrokenProcessPool as error:
      raise errors.UserError(
        "The TPU compiler crashed (its message is printed above); shards of "
        "odd sizes are a known cause, so try another config.mesh."
      ) from error
    report["copied_whole"] = resharding_log.copied_whole(folder)
  return report, text


def _with_log(folder: str, function: Callable[..., Plan], *args: Any) -> Plan:
  """Calls a function with the compiler's log in a folder."""
  os.environ[resharding_log.LOG_FOLDER_VARIABLE] = folder
  return function(*args)


def _plan_training(config: dict[str, Any], *args: Any) -> Plan:
  aot_compile.set_up_compiler()
  return training.plan(ml_collections.ConfigDict(config), *args)


def _plan_published(run: published.Run) -> Plan:
  aot_compile.set_up_compiler()
  return calibrate.plan(run)


def _plan_play(
  config: dict[str, Any], tokenizer: dict[str, Any], *args: Any
) -> Plan:
  aot_compile.set_up_compiler()
  return play_lib.plan(
    ml_collections.ConfigDict(config),
    ml_collections.ConfigDict(tokenizer),
    *args,
  )
