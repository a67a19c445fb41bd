"""`genie train`: trains one stage, resumes by itself."""

import argparse
import signal
import sys

_EXAMPLE = """\
example:
  genie train --config experiments/coinrun/tokenizer.py:tiny \\
      --workdir runs/tokenizer --config.data.path=clips

Run the same line again to go on after a kill, a Ctrl-C or a full disk.
Any field of the config is set as --config.group.field=value.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the flags; `--config.*` overrides come as `args.overrides`."""
  parser.epilog = _EXAMPLE
  parser.formatter_class = argparse.RawDescriptionHelpFormatter
  add = parser.add_argument
  add("--config", required=True, metavar="FILE.py[:MODE]",
      help="what to train, for example experiments/coinrun/lam.py:tiny")
  add("--workdir", required=True, metavar="DIR",
      help="checkpoints, metrics and previews go here; a run that is there "
      "goes on")
  add("--init-from", default="", metavar="DIR",
      help="workdir or saved model whose weights to start from; the same as "
      "--config.init_from")
  add("--compilation-cache", default="", metavar="DIR",
      help="folder that keeps compiled steps for the next start")
  add("--distributed", action="store_true",
      help="one process of many: find the others through the cluster's "
      "environment (TPU pods, Slurm) or JAX_COORDINATOR_ADDRESS")


def run(args: argparse.Namespace) -> int:
  """Trains; returns 0 at the end, 1 on a failure, 128 + signal if stopped."""
  # Late imports: JAX and Orbax take seconds, which --help need not wait for.
  import jax

  from genie_jax.core import config as config_lib
  from genie_jax.train import failure, loop

  overrides = list(args.overrides)
  if args.init_from:
    overrides.append(f"--config.init_from={args.init_from}")
  config = config_lib.load(args.config, overrides)
  if args.distributed:
    jax.distributed.initialize()
  if args.compilation_cache:
    jax.config.update("jax_compilation_cache_dir", args.compilation_cache)
  stage, make_batches, make_eval_batches = _build(config)
  try:
    result = loop.train(
        stage, config, args.workdir, make_batches, make_eval_batches)
  except failure.RunFailed as error:
    print(f"genie train: {error}", file=sys.stderr)
    return 1
  if result.stopped_by is not None:
    name = signal.Signals(result.stopped_by).name
    print(
        f"Stopped by {name} at step {result.step} of {config.steps}, which is "
        f"saved in {args.workdir}; run the same line again to go on.",
        file=sys.stderr)
    return 128 + result.stopped_by
  print(f"{args.workdir}: trained to step {result.step}.")
  return 0


def _build(config):
  """Returns the stage and the two functions that make iterators."""
  from genie_jax.data import loader
  from genie_jax.stages import registry

  data = config.data

  def batches_of(split: str, threads: int, workers: int):
    source = registry.source(config, split)
    return lambda share: loader.make_iterator(
        source, data.batch_size, config.seed, process_index=share.index,
        process_count=share.count, num_workers=workers, num_threads=threads)

  return (
      registry.make(config),
      batches_of(data.split, data.num_threads, data.num_workers),
      # Read for a few batches at a time: workers would cost more to start.
      batches_of(data.eval_split, data.num_threads, 0))


def main() -> int:
  """Entry point of `python -m genie_jax.cli.train`."""
  from genie_jax.cli import main as cli

  return cli.main(["train", *sys.argv[1:]])


if __name__ == "__main__":
  sys.exit(main())
