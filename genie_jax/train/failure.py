"""Failures of a run that are not the user's mistake: exit code 1."""


class RunFailed(RuntimeError):
  """A run cannot go on; the message is one line with what to do next."""
