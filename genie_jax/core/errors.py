"""Errors that the command line prints as one line."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
  """A mistake in what the user gave: a flag, a config, a file, a picture.

  Its message is one line that says what is wrong, where, and how to mend it.
  The command line prints it without a traceback and exits with code 2.
  """


class RunFailed(RuntimeError):
  """A run cannot continue, and not by the user's mistake: exit code 1.

  Its message is one line that says what to do next.
  """


def closest(name: str, known: Iterable[str]) -> str:
  """Returns a hint at the known name most like `name`, or an empty string.

  Args:
    name: What the user wrote.
    known: The names that would have been accepted.

  Returns:
    For example " (did you mean 'steps'?)", ready to follow a message.
  """
  found = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
  return f" (did you mean {found[0]!r}?)" if found else ""


def check_fields(
  group: str, fields: Iterable[str], known: Iterable[str]
) -> None:
  """Raises UserError for the first field that a group does not have.

  Args:
    group: Name of the group, for example "sampling".
    fields: Names that were given.
    known: Names that there are.
  """
  known = list(known)
  for name in fields:
    if name not in known:
      raise UserError(
        f"Unknown field {group}.{name}{closest(name, known)}; the fields "
        f"are {', '.join(known)}."
      )
