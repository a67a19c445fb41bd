r"""Runs `tfds build` without TensorFlow.

Run:     python -m data_pipelines.tfds_build \
             data_pipelines/coinrun/tfds_builder.py --config tiny \
             --file_format array_record --data_dir DIR

The command `tfds` of TFDS 4.9.10 imports all its sub-commands, and one of
them, `convert_format`, fails to import without TensorFlow. This module runs
only the `build` sub-command, with the same arguments.
"""

from absl import app
from tensorflow_datasets.scripts.cli import build, cli_utils


def main() -> None:
  """Parses the arguments of `tfds build` and runs it."""
  parse = cli_utils.make_flags_parser(
    build.Args, description="Builds a data set without TensorFlow."
  )
  app.run(lambda args: args.execute(), flags_parser=parse)


if __name__ == "__main__":
  main()
