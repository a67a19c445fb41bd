"""Runs several `genie` commands in order, so that a stopped run can go on.

Each step is printed before it starts, so that a user can run it alone. A step
takes up what an earlier start of it left, because every `genie` command does.
"""

import dataclasses
import pathlib
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

from genie_jax.core import errors, files, schema

_GENIE = (sys.executable, "-m", "genie_jax")


class StepFailed(errors.RunFailed):
  """A step ended with an error; it has printed its own message.

  Attributes:
    code: Its exit code.
  """

  def __init__(self, name: str, code: int):
    super().__init__(
      f"Step {name!r} ended with code {code}; fix the cause and run the same "
      "command again, which resumes from here."
    )
    self.code = code


Arguments = Sequence[str] | Callable[[], Sequence[str]]


@dataclasses.dataclass(frozen=True)
class Step:
  """One `genie` command.

  Attributes:
    name: Short and unique.
    arguments: Of `genie`; a function is called when the step starts, for
      arguments that depend on what earlier steps wrote.
    seconds: How long it is expected to take; 0 if that is not known.
  """

  name: str
  arguments: Arguments
  seconds: float = 0.0

  def words(self) -> list[str]:
    """Returns the arguments."""
    found = self.arguments() if callable(self.arguments) else self.arguments
    return list(found)


def run(steps: Sequence[Step], clock: pathlib.Path) -> dict[str, float]:
  """Runs all steps.

  Args:
    steps: In order.
    clock: JSON file, step -> seconds. The seconds of interrupted runs are added
      up, so that they cover all work and not only the last start.

  Returns:
    The content of `clock`.

  Raises:
    StepFailed: A step failed.
    UserError: A step's arguments cannot be determined.
  """
  form = {...: schema.NOT_NEGATIVE}
  seconds = files.read_json(clock, form) if clock.exists() else {}
  spent = expected = 0.0
  for number, step in enumerate(steps):
    words = step.words()
    left = sum(later.seconds for later in steps[number:])
    print(f"\n{_heading(number, len(steps), step, left, spent, expected)}")
    print(f"$ genie {shlex.join(words)}", flush=True)
    begin = time.monotonic()
    try:
      code = _call(words)
    finally:
      took = time.monotonic() - begin
      seconds[step.name] = round(seconds.get(step.name, 0.0) + took, 1)
      files.write_json(clock, seconds)
    if code:
      raise StepFailed(step.name, code)
    spent, expected = spent + took, expected + step.seconds
  return seconds


def _call(words: Sequence[str]) -> int:
  """Runs a command and returns its exit code.

  A command that is stopped by Ctrl-C or SIGTERM may write a last checkpoint:
  it is waited for, and not killed as `subprocess.run` would do.
  """
  process = subprocess.Popen([*_GENIE, *words])
  pass_on = lambda number, frame: process.send_signal(number)
  before = signal.signal(signal.SIGTERM, pass_on)
  try:
    return process.wait()
  except KeyboardInterrupt:
    process.wait()  # A terminal sends Ctrl-C to both.
    raise
  finally:
    signal.signal(signal.SIGTERM, before)


def _heading(
  number: int,
  count: int,
  step: Step,
  left: float,
  spent: float,
  expected: float,
) -> str:
  """Returns the line above a command, with the time left if it is known.

  Args:
    number: Of the step, from 0.
    count: Number of steps.
    step: The step.
    left: Expected seconds of this step and those after it.
    spent: Seconds that the steps before took in this run.
    expected: What they were expected to take.
  """
  line = f"[{number + 1}/{count}] {step.name}"
  if not left:
    return line
  # A step that an earlier run had finished takes seconds: it says nothing
  # about the speed of this machine, so the estimate never falls below half.
  pace = max(0.5, spent / expected) if expected else 1.0
  return f"{line}, about {max(1, round(left * pace / 60))} minutes left"
