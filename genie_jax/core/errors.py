"""Errors that the command line reports in one line."""

import contextlib
import difflib
import errno
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import TypeVar

_Value = TypeVar("_Value")

# Of a message to the user; what is cut out is in the middle, as the last words
# say how to fix it.
_MOST, _LAST = 2000, 500

# Of a path that the same command will find wrong again.
_PATH_ERRORS = (
  errno.EACCES,
  errno.EEXIST,
  errno.EISDIR,
  errno.ELOOP,
  errno.ENAMETOOLONG,
  errno.ENOTDIR,
  errno.EPERM,
  errno.EROFS,
)


class UserError(ValueError):
  """Invalid input from the user: a flag, a config, a file or a picture.

  The message is one line that says what is wrong, where, and how to fix it. The
  command line prints it without a traceback and exits with code 2. It may quote
  names of unknown origin, see `printable`, of any length: the middle of a
  message of more than 2,000 characters is left out.
  """

  def __init__(self, message: str = ""):
    message = printable(message)
    if len(message) > _MOST:
      message = f"{message[: _MOST - _LAST]}...{message[-_LAST:]}"
    super().__init__(message)


class RunFailed(RuntimeError):
  """A run cannot continue, for another reason than invalid input.

  The message is one line that says what to do next.

  Attributes:
    code: Exit code: 1, or another one for what a restart would repeat.
  """

  code = 1


class Exit:
  """The exit code of a program.

  Attributes:
    code: 0 for success.
  """

  code: int = 0


@contextlib.contextmanager
def reported(name: str) -> Iterator[Exit]:
  """Reports errors of a program on stderr in one line each.

  The program is the body of the `with` statement. It stores its exit code; an
  error stores 2 for invalid input, such as a path that cannot be used, 1 where
  the disk is full or a file was lost, which is not a bug and needs no
  traceback, and 130 for Ctrl-C.

  Args:
    name: The program's name, which begins the line.

  Yields:
    Where the exit code is stored.
  """
  done = Exit()
  try:
    yield done
    return
  except UserError as error:
    message, done.code = str(error), 2
  except OSError as error:
    message, done.code = str(error), 1
    if error.errno in _PATH_ERRORS and error.filename is not None:
      where = repr(error.filename)
      where = where if len(where) <= 200 else f"{where[:200]}..."
      message = f"{where}: {error.strerror}; give another path."
      done.code = 2
  except KeyboardInterrupt:
    message, done.code = "stopped by Ctrl-C", 130
  line = printable(" ".join(message.split()))
  print(f"{name}: {line}", file=sys.stderr)


def printable(text: str) -> str:
  """Returns text that cannot control a terminal, for text from strangers.

  Args:
    text: Any text, for example with a name from a file or a server's answer.

  Returns:
    The text; characters that are not printable are escaped ("\\x1b"), except
    new lines and tabs.
  """

  def shown(one: str) -> str:
    if one.isprintable() or one in "\n\t":
      return one
    # A byte of a file name that is not UTF-8.
    byte = ord(one) - 0xDC00
    return f"\\x{byte:02x}" if 0x80 <= byte <= 0xFF else ascii(one)[1:-1]

  return "".join(map(shown, text))


def closest(name: str, known: Iterable[str]) -> str:
  """Returns a hint at the known name closest to `name`, or an empty string.

  Args:
    name: The name that the user wrote.
    known: The names that are valid.

  Returns:
    For example " (did you mean 'steps'?)", to be appended to a message.
  """
  found = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
  return f" (did you mean {found[0]!r}?)" if found else ""


def check_fields(
  group: str, fields: Iterable[str], known: Iterable[str]
) -> None:
  """Raises UserError for the first unknown field of a group.

  Args:
    group: Name of the group, for example "sampling".
    fields: Names that were given.
    known: Names that are valid.
  """
  known = list(known)
  for name in fields:
    if name not in known:
      raise UserError(
        f"Unknown field {group}.{name}{closest(name, known)}; the fields "
        f"are {', '.join(known)}."
      )


def select(
  flag: str, names: str, known: Mapping[str, _Value], what: str
) -> list[_Value]:
  """Returns the values that a flag names.

  Args:
    flag: The flag, for the message.
    names: "all", or names separated by commas.
    known: Name -> value.
    what: What the names are, with an article.

  Raises:
    UserError: A name is unknown.
  """
  if names == "all":
    return list(known.values())
  for name in names.split(","):
    if name not in known:
      raise UserError(
        f"{flag}={names}: {name!r} is not {what}{closest(name, known)}; use "
        f"all, or some of {', '.join(known)}."
      )
  return [known[name] for name in names.split(",")]
