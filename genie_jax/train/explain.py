"""Turns what a storage library raises into one error of ours."""


class Explain:
  """Context that passes errors of files to a function and raises its result.

  Truncated arrays raise a bare Exception, damaged indices ValueError, a full
  disk one of several: only what tells of the program can be told apart.
  """
  _PASS = (
      AssertionError, AttributeError, MemoryError, PermissionError,
      RuntimeError, TypeError)

  def __init__(self, explain, *details):
    """Prepares to raise `explain(error, *details)`."""
    self._explain, self._details = explain, details

  def __enter__(self):
    pass

  def __exit__(self, kind, error, traceback):
    del kind, traceback
    if isinstance(error, Exception) and not isinstance(error, self._PASS):
      raise self._explain(error, *self._details) from error


def one_line(error: Exception) -> str:
  """Returns an error's kind and the start of its message."""
  return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
