"""The folder of a scaling study, and how far each of its cells is.

OUT/runs/NAME/        workdir of a cell, as `genie train` writes it
OUT/logs/NAME.log     output of the cells that ran here
OUT/failed/NAME.json  exit code and message of a cell whose last start failed
OUT/locks/NAME        locked while a process here runs the cell
OUT/cost.json         measured seconds per step, by size and batch
OUT/learning_rates.json, OUT/commands.txt, OUT/runs.json
"""

import contextlib
import dataclasses
import fcntl
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from etils import epath

from genie_jax.checkpoints import reader
from genie_jax.core import buckets, errors, files, schema
from genie_jax.scaling import ladder as ladder_lib
from genie_jax.train import metrics as metrics_lib

STATUSES = ("done", "running", "stopped", "failed", "ready", "waits")
_DIVERGED = re.compile(r"\b(loss|grad_norm) is -?(nan|inf) at step")


@dataclasses.dataclass(frozen=True)
class State:
  """How far a cell is.

  Attributes:
    status: A name in STATUSES. "stopped" has steps and can be resumed, and
      "waits" cannot start yet.
    step: The last step in its log; 0 if it has not started.
    steps_per_second: Its last measured speed; None if there is none.
    loss: The last held-out loss in its log; None if there is none.
    detail: Why it failed, or what it waits for.
  """

  status: str
  step: int
  steps_per_second: float | None
  loss: float | None
  detail: str = ""


class Workspace:
  """Reads and writes the folder of a study."""

  def __init__(self, out: files.PathLike):
    """Uses a folder on a disk; it is created when something is written."""
    self.out = buckets.disk(out, "--out")

  def workdir(self, cell: ladder_lib.Cell) -> pathlib.Path:
    """Returns the workdir of a cell."""
    return self.out / "runs" / cell.name

  def log(self, cell: ladder_lib.Cell) -> pathlib.Path:
    """Returns the file for the output of a cell."""
    return self.out / "logs" / f"{cell.name}.log"

  @contextlib.contextmanager
  def lock(self, cell: ladder_lib.Cell) -> Iterator[bool]:
    """Locks a cell for this process; False if another process has it.

    The lock ends with the process, so a kill leaves none.
    """
    path = self.out / "locks" / cell.name
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w") as file:
      try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
      except BlockingIOError:
        yield False
        return
      yield True

  def lines(self, cell: ladder_lib.Cell) -> list[dict[str, Any]]:
    """Returns the lines of a cell's log; a line that was cut is left out."""
    path = self.workdir(cell) / metrics_lib.FILE
    if not path.exists():
      return []
    return files.read_json_lines(path, schema.METRICS, torn=True)

  def is_done(self, cell: ladder_lib.Cell) -> bool:
    """Returns whether a cell has the checkpoint of its last step."""
    return cell.steps in self.saved_steps(cell)

  def saved_steps(self, cell: ladder_lib.Cell) -> list[int]:
    """Returns the steps of a cell's finished checkpoints."""
    return reader.valid_steps(epath.Path(self.workdir(cell)))

  def state(self, cell: ladder_lib.Cell, waits_for: str = "") -> State:
    """Returns how far a cell is.

    Args:
      cell: The cell.
      waits_for: What must happen before it can start; "" if it can.
    """
    step, speed, loss = 0, None, None
    for line in self.lines(cell):
      step = max(step, line["step"])
      speed = line.get("steps_per_second") or speed
      loss = line.get("eval/held_out_loss", loss)
    failed = self._failure(cell)
    if self.is_done(cell):
      return State("done", cell.steps, speed, loss)
    if self._is_locked(cell):
      return State("running", step, speed, loss)
    if failed:
      return State("failed", step, speed, loss, failed["message"])
    if step > cell.fork_step:
      return State("stopped", step, speed, loss)
    if waits_for:
      return State("waits", step, speed, loss, waits_for)
    return State("ready", step, speed, loss)

  def diverged(self, cell: ladder_lib.Cell) -> bool:
    """Returns whether a cell failed because a loss became infinite or NaN."""
    failed = self._failure(cell)
    return bool(failed and _DIVERGED.search(failed["message"]))

  def _failure(self, cell: ladder_lib.Cell) -> Mapping[str, Any] | None:
    path = self.out / "failed" / f"{cell.name}.json"
    form = {"message": schema.TEXT}
    return files.read_json(path, form) if path.exists() else None

  def record_end(self, cell: ladder_lib.Cell, code: int) -> str:
    """Notes how a cell's process ended; returns the message of a failure."""
    path = self.out / "failed" / f"{cell.name}.json"
    if code == 0:
      path.unlink(missing_ok=True)
      return ""
    lines = self.log(cell).read_text(errors="replace").splitlines()
    lines = [line.strip() for line in lines if line.strip()]
    said = [line for line in lines if line.startswith("genie train:")]
    message = (said or lines or ["no output"])[-1]
    files.write_json(path, {"code": code, "message": message})
    return message

  def _is_locked(self, cell: ladder_lib.Cell) -> bool:
    if not (self.out / "locks" / cell.name).exists():
      return False
    with self.lock(cell) as free:
      return not free


def command(
  ladder: ladder_lib.Ladder,
  cell: ladder_lib.Cell,
  peak_lr: float,
  workspace: Workspace,
  cells: Sequence[ladder_lib.Cell],
) -> list[str]:
  """Returns the `genie train` command of a cell, as words.

  Args:
    ladder: The ladder.
    cell: The cell.
    peak_lr: Its learning rate.
    workspace: The folder of the study.
    cells: All cells; its trunk is among them.
  """
  words = [
    "genie",
    "train",
    "--config",
    f"{ladder.config}:{cell.size}",
    "--workdir",
    str(workspace.workdir(cell)),
  ]
  if cell.trunk:
    words += [
      "--fork-from",
      str(workspace.workdir(find(cells, cell.trunk))),
      "--fork-step",
      str(cell.fork_step),
    ]
  return words + cell.flags(peak_lr)


def find(cells: Sequence[ladder_lib.Cell], name: str) -> ladder_lib.Cell:
  """Returns the cell with a name.

  Raises:
    UserError: There is none.
  """
  for cell in cells:
    if cell.name == name:
      return cell
  names = [cell.name for cell in cells]
  raise errors.UserError(
    f"The ladder has no cell {name!r}{errors.closest(name, names)}; "
    "`--status` lists the cells."
  )
