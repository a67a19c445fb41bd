"""`genie train`: trains one stage, and resumes automatically."""

import argparse
import signal
import sys
import time
import traceback
from typing import Any

from genie_jax.core import cache, errors

# Most imports are inside functions: JAX takes seconds to import, and --help
# must not wait for it.
# Exit codes of `errors.RunFailed`: other processes may not have failed.
_FAILED = (1, 3)

_EXAMPLE = """\
example:
  genie train --config experiments/coinrun/tokenizer.py:tiny \\
      --workdir runs/tokenizer --config.data.path=clips

Run the same command again to resume after a kill, a Ctrl-C or a full disk.
Any field of the config can be set with --config.group.field=value.

many hosts:
  Run the same command on each. On TPU pods (GKE, XPK, queued resources), and
  under Slurm's srun and Open MPI, the hosts are found automatically; elsewhere:
  genie train ... --coordinator 10.0.0.1:8476 --num-processes 2 --process-id 0

exit codes:
  0    trained to config.steps
  1    a failure, or another process of the run was lost
  2    an error in the input; also a host that is missing or differs
  3    a loss or a gradient is not finite; the same steps would give it again
  143  stopped by SIGTERM (a preemption) after saving
  130  stopped by Ctrl-C, on a single host after saving
  134  ended by JAX, because another process stopped responding
  139  a fault of a library or a chip's driver (SIGSEGV)
  142  ended by the watchdog, because a part of training hung
Run the same command again after every code except 0, 2 and 3.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the flags; `--config.*` overrides come as `args.overrides`."""
  parser.epilog = _EXAMPLE
  parser.formatter_class = argparse.RawDescriptionHelpFormatter
  add = parser.add_argument
  add(
    "--config",
    required=True,
    metavar="FILE.py[:MODE]",
    help="what to train, for example experiments/coinrun/lam.py:tiny",
  )
  add(
    "--workdir",
    required=True,
    metavar="DIR",
    help="folder, gs://... or s3://... for checkpoints, metrics and previews; "
    "a run that was started there resumes",
  )
  add(
    "--init-from",
    default="",
    metavar="DIR",
    help="workdir or saved model to take the initial weights from; the same "
    "as --config.init_from",
  )
  add(
    "--fork-from",
    default="",
    metavar="DIR",
    help="workdir of a run that is continued in the new --workdir, with its "
    "optimizer state, from --fork-step on; only the number of steps and the "
    "decay of the learning rate may differ",
  )
  add(
    "--fork-step",
    type=int,
    metavar="N",
    help="a saved step of --fork-from",
  )
  add(
    "--compilation-cache",
    default="",
    metavar="DIR",
    help="folder for compiled programs, which later starts reuse, or off "
    "(default: JAX_COMPILATION_CACHE_DIR, else genie_jax in "
    "XDG_CACHE_HOME or ~/.cache, but off for several processes on CPUs)",
  )
  add(
    "--profile-steps",
    default="",
    metavar="N-M",
    help="trace these steps on process 0 into WORKDIR/profile",
  )
  add(
    "--replay",
    type=int,
    metavar="N",
    help="repeat step N of the run in --workdir from the checkpoint before it, "
    "print which losses, parameters and gradients are not finite, write its "
    "batch to WORKDIR/replay/N, and change nothing else",
  )
  add(
    "--distributed",
    choices=("auto", "on", "off"),
    default="auto",
    nargs="?",
    const="on",
    help="auto: join other processes if a launcher names them; on: the same, "
    "but fail if none does; off: train on this host alone",
  )
  add("--coordinator", metavar="HOST:PORT", help="where process 0 listens")
  add(
    "--num-processes",
    type=int,
    metavar="N",
    help="number of processes of the run",
  )
  add("--process-id", type=int, metavar="I", help="number of this one, from 0")
  add(
    "--initialization-timeout",
    type=int,
    default=300,
    metavar="SECONDS",
    help="how long to wait for the other processes (default: 300)",
  )
  add(
    "--heartbeat-timeout",
    type=int,
    default=60,
    metavar="SECONDS",
    help="silence after which a process is assumed dead, which ends the run "
    "(default: 60)",
  )


def run(args: argparse.Namespace) -> int:
  """Trains; returns 0 at the end, 1 on a failure, 128 + signal if stopped."""
  began = time.time()
  from genie_jax.core import config as config_lib
  from genie_jax.sharding import cluster

  overrides = list(args.overrides)
  if args.init_from:
    overrides.append(f"--config.init_from={args.init_from}")
  config = config_lib.load(args.config, overrides)
  steps = _steps(args.profile_steps)
  fork = _fork(args.fork_from, args.fork_step)
  try:
    joined = _join(args, config)
  except cluster.CannotStart as error:
    _say(error)
    cluster.exit_now(1, error.process_id)
  if joined is None:
    _keep_compiled(args.compilation_cache)
    return _train(config, args.workdir, fork, steps, args.replay, began)
  # The only place that exits without unwinding: Python's normal exit would
  # wait for processes that wait for this one.
  leave = lambda code: cluster.exit_now(code, joined.process_id)
  try:
    _keep_compiled(args.compilation_cache, alone=False)
    code = _train(config, args.workdir, fork, steps, args.replay, began)
  except errors.UserError as error:
    _say(error)
    leave(2)
  except OSError as error:
    # A full disk or a lost file: a traceback would not help.
    _say(error)
    leave(1)
  except KeyboardInterrupt:
    _say("stopped by Ctrl-C, without saving")
    leave(130)
  except BaseException:
    traceback.print_exc()
    leave(1)
  if code in _FAILED:
    leave(code)
  cluster.shut_down()
  return code


def _steps(text: str) -> tuple[int, int] | None:
  """Returns the first and last step of "10-15" or "10"; None for "".

  Raises:
    UserError: The text is neither.
  """
  if not text:
    return None
  first, _, last = text.partition("-")
  last = last or first
  if not (first.isdecimal() and last.isdecimal()) or not (
    1 <= int(first) <= int(last)
  ):
    raise errors.UserError(
      f"--profile-steps={text} is not a range of steps; give for example 10-15."
    )
  return int(first), int(last)


def _fork(source: str, step: int | None):
  """Returns the `fork.Fork` of two flags; None if both are left out.

  Raises:
    UserError: Only one is given, or the step is not positive.
  """
  from genie_jax.train import fork

  if not source and step is None:
    return None
  if not source or step is None or step < 1:
    raise errors.UserError(
      f"--fork-from={source or 'nothing'} --fork-step="
      f"{'nothing' if step is None else step}: give both, the workdir of a run "
      "and one of its saved steps."
    )
  return fork.Fork(source, step)


def _join(args: argparse.Namespace, config):
  """Joins the other processes; all but process 0 log warnings only.

  Returns:
    The `cluster.Cluster` of this process; None if it is alone.
  """
  import jax
  from absl import logging

  import genie_jax
  from genie_jax.core import config as config_lib
  from genie_jax.sharding import cluster

  flags = (args.coordinator, args.num_processes, args.process_id)
  if args.distributed == "off":
    if any(flag is not None for flag in flags):
      raise errors.UserError(
        "--distributed off trains on this host alone, so leave out "
        "--coordinator, --num-processes and --process-id."
      )
    return None
  joined = cluster.join(
    *flags,
    {
      "the config's fingerprint": config_lib.fingerprint(config)[:12],
      "the version of genie_jax": genie_jax.__version__,
      "the version of jax": jax.__version__,
      "--workdir": args.workdir,
      "--fork-from and --fork-step": f"{args.fork_from}:{args.fork_step}",
    },
    initialization_timeout=args.initialization_timeout,
    heartbeat_timeout=args.heartbeat_timeout,
  )
  if joined is None and args.distributed == "on":
    raise errors.UserError(
      "--distributed on, but no launcher names other processes (TPU_*, "
      "SLURM_*, OMPI_* or JAX_* variables); give --coordinator, "
      "--num-processes and --process-id."
    )
  if joined is not None and joined.process_id:
    logging.set_verbosity(logging.WARNING)
  return joined


def _keep_compiled(folder: str, alone: bool = True) -> None:
  """Sets the folder in which JAX keeps compiled programs.

  Args:
    folder: The flag's value; "" for the default.
    alone: False if the run has other processes, which have been joined.
  """
  import jax

  if folder == "off":
    jax.config.update("jax_enable_compilation_cache", False)
    return
  cache.use_checksums()
  # Set by JAX_COMPILATION_CACHE_DIR or by the caller.
  settings: Any = jax.config  # Its flags are not in its type.
  if not folder and settings.jax_compilation_cache_dir:
    return
  # Only process 0 writes to the cache, and on CPUs each process has its own
  # keys. After a restart, process 0 would find its programs and wait in a
  # collective while the others compile; gloo gives up after 30 seconds.
  if not folder and not alone and jax.default_backend() == "cpu":
    return
  jax.config.update(
    "jax_compilation_cache_dir", folder or str(cache.default_folder())
  )


def _train(
  config,
  workdir: str,
  fork,
  profile_steps,
  replayed: int | None,
  began: float,
) -> int:
  """Builds the stage and its data from the config, and trains."""
  import jax

  from genie_jax.data import mixtures
  from genie_jax.sharding import hosts
  from genie_jax.train import loop, replay

  stage, make_batches, make_eval_batches, fixed, fingerprint = hosts.together(
    lambda: _build(config)
  )
  # The same path may hold different data on different hosts.
  folders = ", ".join(folder for folder, _ in mixtures.entries(config.data))
  hosts.check_same(
    int(fingerprint[:7], 16),  # As much as fits a 32-bit number.
    f"The fingerprint of the data in {folders}",
    "give every host the same data (on this host, it has the fingerprint "
    f"{fingerprint[:12]}).",
  )
  with config.unlocked():
    config.data.fingerprint = fingerprint  # See `train.workdir`.
  if replayed is not None:
    report = replay.replay(stage, config, workdir, make_batches, replayed)
    if jax.process_index() == 0:
      print("\n".join(report.lines()))
    return 0
  try:
    result = loop.train(
      stage,
      config,
      workdir,
      make_batches,
      make_eval_batches,
      fixed_clips=fixed,
      fork=fork,
      profile_steps=profile_steps,
      began=began,
    )
  except errors.RunFailed as error:
    _say(error)
    return error.code
  first = jax.process_index() == 0
  if result.stopped_by is not None:
    if first:
      name = signal.Signals(result.stopped_by).name
      _say(
        f"stopped by {name} at step {result.step} of {config.steps}, which "
        f"is saved in {workdir}; run the same command again to resume."
      )
    return 128 + result.stopped_by
  if first:
    print(f"{workdir}: trained to step {result.step}.")
  return 0


def _say(message: object) -> None:
  print(f"genie train: {' '.join(str(message).split())}", file=sys.stderr)


def _build(config):
  """Returns the stage, two functions that make iterators, fixed clips and data.

  The first function reads the training split, the second the evaluation split;
  the fixed clips (None for none) are of the evaluation split, and the last
  value is the fingerprint of the data.
  """
  from genie_jax.data import loader
  from genie_jax.stages import registry
  from genie_jax.train import evaluation

  data = config.data
  stage = registry.make(config)
  training, held_out = (
    stage.open_source(split) for split in (data.split, data.eval_split)
  )

  def batches_of(source, threads: int, workers: int, seed: int = config.seed):
    return lambda share: loader.make_iterator(
      source,
      data.batch_size,
      seed,
      parts=share.parts,
      num_parts=share.count,
      num_workers=workers,
      num_threads=threads,
    )

  # Their order depends on a constant and not on the run's seed. Configs of
  # before have no held_out_clips.
  count = min(config.get("held_out_clips", 0), len(held_out))
  fixed = evaluation.FixedClips(
    batches_of(held_out, data.num_threads, 0, evaluation.SEED), count
  )
  return (
    stage,
    batches_of(training, data.num_threads, data.num_workers),
    # Evaluations read a few batches each; starting workers would cost more.
    batches_of(held_out, data.num_threads, 0),
    fixed if count else None,
    training.fingerprint,
  )


def main() -> int:
  """Entry point of `python -m genie_jax.cli.train`."""
  from genie_jax.cli import main as main_lib

  return main_lib.main(["train", *sys.argv[1:]])


if __name__ == "__main__":
  sys.exit(main())
