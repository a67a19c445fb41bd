"""The `genie` command: runs a sub-command, and reports errors in one line.

Exit codes: 0 for success; 1 for a failure of the program or the machine; 2 for
invalid input, with one line that says what is wrong, where, and how to fix it.
"""

import argparse
import functools
import importlib
import logging as std_logging
import sys
import traceback
import types
from collections.abc import Callable, Sequence
from typing import Any

from absl import logging as absl_logging

from genie_jax.core import errors, registry, schema

# Name -> description in `genie --help`. Each is a module of this package, so
# that a sub-command does not import what only the others need.
COMMANDS = {
  "world": "from a folder of films to a world, all stages",
  "data": "collect clips, or check a folder of clips",
  "train": "train one stage; resumes if it was interrupted",
  "buttons": "make buttons of the codes of a latent action model",
  "tokenize": "turn clips into token records",
  "export": "turn checkpoints into a world folder",
  "sample": "roll out a world from a picture and a list of actions",
  "play": "play a world in the browser",
  "eval": "evaluate a world: metrics.json and report.html",
  "plan": "estimate memory, time and cost of a run before renting chips",
  "scaling": "the scaling study: sizes, runs, fits and figures",
}

_NUMBER = schema.Number(-(2**63), 2**63)

_EPILOG = """\
first steps:
  genie data coinrun --out DATA --levels 100
  genie train --config experiments/coinrun/tokenizer.py:tiny --workdir TOK \\
      --config.data.path=DATA
  genie help COMMAND shows an example of each command.
"""


def main(argv: Sequence[str] | None = None) -> int:
  """Runs `genie` with these arguments and returns its exit code."""
  argv = list(sys.argv[1:] if argv is None else argv)
  if argv[:1] == ["help"]:
    argv = [*argv[1:], "--help"]
  _show_own_log()
  command = " ".join(["genie", *[a for a in argv[:1] if a in COMMANDS]])
  with errors.reported(command) as done:
    done.code = _run(argv)
  return done.code


class _Parser(argparse.ArgumentParser):
  """A parser that reports errors as UserError, without printing the usage.

  It refuses numbers that are not finite, or have more than 64 bits, and empty
  paths, which would mean the working folder.
  """

  def add_argument(self, *names: Any, **options: Any) -> argparse.Action:
    """Adds a flag; one with the metavar DIR or FILE takes a path."""
    if options.get("action", "store") in ("store", "append"):
      path = str(options.get("metavar")).startswith(("DIR", "FILE"))
      options["type"] = _checked(
        options.get("type", str), path and options.get("default") != ""
      )
    return super().add_argument(*names, **options)

  def error(self, message: str):
    message = message if len(message) <= 400 else f"{message[:400]}..."
    raise errors.UserError(
      f"{message[:1].upper()}{message[1:]}; see `{self.prog} --help`."
    )


def _checked(kind: Callable[[str], Any], path: bool) -> Callable[[str], Any]:
  """Returns a flag's type with the checks of `_Parser`."""

  @functools.wraps(kind)  # Its name is in messages.
  def convert(text: str) -> Any:
    value = kind(text)
    if path and not text.strip():
      raise argparse.ArgumentTypeError("the path is empty")
    if isinstance(value, int | float) and not _NUMBER.accepts(value):
      raise argparse.ArgumentTypeError(
        f"{text[:40]} must be a finite number of at most 64 bits"
      )
    return value

  return convert


def _check_texts(argv: Sequence[str]) -> None:
  """Raises UserError for an argument that no file name or number may be."""
  for word in argv:
    if not schema.is_plain(word):
      raise errors.UserError(
        f"The argument {schema.shown(word)} has control characters or is not "
        "UTF-8; leave them out, or rename the file."
      )


def _run(argv: list[str]) -> int:
  _check_texts(argv)
  parser = _Parser(
    prog="genie",
    description="Train, measure and play Genie-style world models.",
    epilog=_EPILOG,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument("--version", action="version", version=_version())
  commands = parser.add_subparsers(
    dest="command", metavar="COMMAND", required=True
  )
  asked = argv[0] if argv and argv[0] in COMMANDS else None
  for name, help_ in COMMANDS.items():
    module = _module(name) if name == asked else None
    sub = commands.add_parser(
      name,
      help=help_,
      description=(module.__doc__ if module else help_),
      formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    if module:
      module.add_arguments(sub)
  args, rest = parser.parse_known_args(argv)
  overrides = _overrides(rest)
  if overrides and not hasattr(args, "config"):
    raise errors.UserError(
      f"genie {args.command} takes no config; remove {overrides[0]}."
    )
  args.overrides = overrides
  registry.load_plugins()
  return _module(args.command).run(args)


def _show_own_log() -> None:
  """Shows the log of this package, and only warnings of libraries.

  Messages may quote a world or a server, so they cannot control the terminal.
  Orbax logs each error of a save several times with its traceback, and raises
  it: it is shown once, as the error that ends the command.
  """

  def show(record: std_logging.LogRecord) -> bool:
    if record.exc_info and _passes_orbax(record.exc_info[2]):
      return False
    # Each emergency checkpoint warns that its size is not logged.
    if "logging disabled for `primary_host" in record.getMessage():
      return False
    record.msg, record.args = errors.printable(record.getMessage()), None
    return (
      record.levelno >= std_logging.WARNING or "genie_jax" in record.pathname
    )

  absl_logging.set_verbosity(absl_logging.INFO)
  absl_logging.use_absl_handler()
  absl_logging.get_absl_handler().addFilter(show)


def _passes_orbax(trace: types.TracebackType | None) -> bool:
  """Returns whether Orbax is among the callers of what has failed."""
  return any(
    "orbax" in frame.f_code.co_filename for frame, _ in traceback.walk_tb(trace)
  )


def _module(name: str):
  return importlib.import_module(f"genie_jax.cli.{name}")


def _overrides(rest: list[str]) -> list[str]:
  """Returns the `--config.a.b=c` flags; `--config.a.b c` is accepted too."""
  overrides, words = [], iter(rest)
  for word in words:
    if not word.startswith("--config."):
      known = (f"--{name}" for name in ("config", "workdir", "out"))
      raise errors.UserError(
        f"Unknown argument {word!r}{errors.closest(word, known)}; "
        "`--help` lists the arguments of this command."
      )
    if "=" not in word:
      value = next(words, None)
      if value is None:
        raise errors.UserError(f"{word} has no value; write {word}=VALUE.")
      word = f"{word}={value}"
    overrides.append(word)
  return overrides


def _version() -> str:
  import genie_jax  # Imported only for --version.

  return f"genie_jax {genie_jax.__version__}"


if __name__ == "__main__":
  sys.exit(main())
