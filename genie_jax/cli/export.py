"""`genie export`: turns checkpoints into a world folder."""

import argparse
import os
import pathlib
import sys
from typing import Any

from genie_jax.core import schema

# What is read of metrics.json; a number of a metric may be missing.
_SHARE = schema.Maybe(schema.SHARE, null=True)
_BUTTONS = [{"button": schema.NATURAL, "name": schema.TEXT, "share": _SHARE}]
_METRICS = {
  "details": schema.Maybe(
    {
      metric: schema.Maybe({"buttons": schema.Maybe(_BUTTONS)})
      for metric in ("counterfactuals", "held", "control")
    }
  )
}

_EXAMPLE = """\
example:
  genie export --workdir runs/tokenizer --workdir runs/joint \\
      --prompts clips --out world

The tokenizer and the LAM may be omitted: the token folder on which the dynamics
model was trained contains copies of them.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the flags."""
  parser.epilog = _EXAMPLE
  parser.formatter_class = argparse.RawDescriptionHelpFormatter
  add = parser.add_argument
  add(
    "--workdir",
    action="append",
    required=True,
    metavar="DIR",
    dest="workdirs",
    help="workdir of `genie train`, or a saved model; give one for each stage",
  )
  add(
    "--out",
    required=True,
    metavar="DIR",
    help="world folder to write; an existing world is replaced",
  )
  add(
    "--prompts",
    default=None,
    metavar="DIR",
    help="clips, or a folder of pictures, to take prompts from (default: "
    "the clips that a given workdir was trained on)",
  )
  add(
    "--num-prompts",
    type=int,
    default=8,
    metavar="N",
    help="maximum number of prompts (default: 8)",
  )
  add(
    "--dtype",
    default="bfloat16",
    choices=("bfloat16", "float32", "int8"),
    help="precision of the weights; with int8, the matrices of layers are int8 "
    "and the rest is bfloat16 (default: bfloat16)",
  )
  add(
    "--name",
    default="",
    metavar="NAME",
    help="name of the world (default: name of the folder)",
  )
  add(
    "--metrics",
    default=None,
    metavar="FILE",
    help="metrics.json of `genie eval`; its figures (without details) and "
    "what it says the buttons do are stored in the world",
  )
  add(
    "--shard-bytes",
    type=int,
    default=5_000_000_000,
    metavar="N",
    help="maximum number of bytes of weights per file (default: 5 GB)",
  )
  add(
    "--sampling",
    default=None,
    metavar="LIST",
    help="settings of the frame sampler in place of those of the training "
    "config, for example temperature=0.7,top_p=0.9",
  )
  add(
    "--slide",
    default=None,
    metavar="LIST",
    help="what happens when the window is full, for example drop=4 to "
    "recompute it after every fourth frame only (default: "
    "mode=exact,drop=1)",
  )
  add(
    "--stablehlo",
    action="store_true",
    help="also write encode, reset, step and decode as StableHLO programs "
    "for CPU, CUDA and TPU, which need JAX but not this package's models",
  )


def run(args: argparse.Namespace) -> int:
  """Writes the world; returns 0."""
  # Imported here because importing JAX takes seconds, which --help can avoid.
  from genie_jax.core import errors, files
  from genie_jax.ports.stablehlo import exporter
  from genie_jax.worlds import buttons, export

  if args.num_prompts < 0:
    raise errors.UserError(
      f"--num-prompts is {args.num_prompts}; give a number of at least 0."
    )
  if args.shard_bytes < 1:
    raise errors.UserError(
      f"--shard-bytes is {args.shard_bytes}; give a number of at least 1."
    )
  metrics = files.read_json(args.metrics, _METRICS) if args.metrics else {}
  named = buttons.from_metrics(metrics)
  metrics.pop("details", None)
  if isinstance(metrics.get("command"), str):
    metrics["command"] = _without_folders(metrics["command"])
  manifest = export.export(
    args.workdirs,
    args.out,
    prompts=args.prompts,
    num_prompts=args.num_prompts,
    dtype=args.dtype,
    name=args.name,
    metrics=metrics,
    buttons=named,
    sampling=settings("--sampling", args.sampling),
    slide=settings("--slide", args.slide),
    shard_bytes=args.shard_bytes,
    write_programs=exporter.write if args.stablehlo else None,
  )
  size = sum(entry["bytes"] for entry in manifest["files"].values())
  prompts = sum(name.startswith("prompts/") for name in manifest["files"])
  print(
    f"{args.out}: a world of {size / 1e6:.1f} MB with {prompts} prompts, "
    f"fingerprint {manifest['fingerprint'][:12]}."
  )
  return 0


def settings(flag: str, text: str | None) -> dict[str, Any]:
  """Returns the settings that a flag lists; {} if it was not given.

  Raises:
    UserError: A setting is not of the form NAME=VALUE.
  """
  from genie_jax.core import errors, files

  found: dict[str, Any] = {}
  if text is None:
    return found
  example = "drop=4" if flag == "--slide" else "temperature=0.7"
  for item in text.split(","):
    name, equals, value = item.strip().partition("=")
    if not (name and equals and value):
      raise errors.UserError(
        f"{flag} {text[:40]!r}: {item.strip()[:20]!r} is not a setting such as "
        f"{example}."
      )
    try:
      found[name] = files.parse_json(value.encode(), flag, object)
    except errors.UserError:
      found[name] = value  # A word, such as "confidence".
  return found


def _without_folders(command: str) -> str:
  """Returns a command line with only the last name of each absolute path.

  A world is passed on, and folders of the machine that made it tell names.
  """
  words = [
    pathlib.PurePath(word).name if word.startswith(os.sep) else word
    for word in command.split()
  ]
  return " ".join(words)


def main() -> int:
  """Entry point of `python -m genie_jax.cli.export`."""
  from genie_jax.cli import main as main_lib

  return main_lib.main(["export", *sys.argv[1:]])


if __name__ == "__main__":
  sys.exit(main())
