"""A scaling study in progress: which cells can run, and what they gave."""

import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence

import ml_collections

from genie_jax.core import config as config_lib
from genie_jax.core import errors, files, provenance
from genie_jax.scaling import collect, cost, learning_rates, runs, table
from genie_jax.scaling import ladder as ladder_lib
from genie_jax.scaling import workspace as workspace_lib

Log = Callable[[str], None]
# Exit codes of `genie train` after a signal to it; the study stops as well.
_STOPPED = (128 + signal.SIGINT, 128 + signal.SIGTERM)


class Study:
  """The cells of a ladder in a folder.

  Attributes:
    ladder: The ladder.
    workspace: The folder.
    cells: All cells, trunks before their forks.
    law: The law of learning rates; None before the sweep is complete.
    law_error: Why a complete sweep gives no law; "" if it does.
    prediction: The file with the prediction of the held-out runs; None if
      they must not start.
  """

  def __init__(
    self,
    ladder: ladder_lib.Ladder,
    out: files.PathLike,
    prediction: str | None = None,
  ):
    """Expands the ladder and loads all configs, so that faults are found first.

    Raises:
      UserError: The ladder or one of its configs is invalid, or the prediction
        is missing.
    """
    self.ladder = ladder
    self.workspace = workspace_lib.Workspace(out)
    self.prediction = prediction
    if prediction is not None:
      files.read_json(prediction)
    common = [ladder_lib.flag(*item) for item in ladder.overrides.items()]
    defaults, self._params = {}, {}
    for size in ladder_lib.sizes(ladder):
      config = config_lib.load(f"{ladder.config}:{size}", common)
      if config.stage != "dynamics":
        raise errors.UserError(
          f"{ladder.path}: {ladder.config} trains the stage {config.stage!r}; "
          "a ladder is of dynamics models."
        )
      defaults[size] = {
        "steps": config.steps,
        "batch_size": config.data.batch_size,
        "peak_lr": config.optimizer.peak_lr,
      }
      self._params[size] = table.count("dynamics", config.to_dict())
    self.cells = ladder_lib.expand(ladder, defaults)
    self.law: learning_rates.Law | None = None
    self.law_error = ""
    self._update_law()
    self.configs: Mapping[str, ml_collections.ConfigDict] = {
      # A rate of 0 stands for one that is not known yet.
      cell.name: self.load(cell, self.rate(cell) or 0.0)
      for cell in self.cells
    }

  def load(
    self, cell: ladder_lib.Cell, peak_lr: float
  ) -> ml_collections.ConfigDict:
    """Returns the config of a cell."""
    return config_lib.load(
      f"{self.ladder.config}:{cell.size}", cell.flags(peak_lr)
    )

  def rate(self, cell: ladder_lib.Cell) -> float | None:
    """Returns a cell's learning rate; None before the law is known."""
    if cell.peak_lr is not None:
      return cell.peak_lr
    if self.law is None:
      return None
    return self.law.rate(self._params[cell.size], cell.batch_size)

  def _update_law(self) -> None:
    """Fits the law once the sweep is complete.

    Cells that need no law must not be held up by a sweep that gives none.
    """
    if self.law is None:
      try:
        self.law, self.law_error = self._fit_law(), ""
      except errors.UserError as error:
        self.law_error = str(error)

  def _fit_law(self) -> learning_rates.Law | None:
    """Returns the law, and writes it; None while the sweep is incomplete.

    Raises:
      UserError: The sweep gives no law, or another one than the study's runs
        have used.
    """
    sweep = ladder_lib.sweep_cells(self.ladder, self.cells)
    rates = self.ladder.learning_rates
    if rates is None or not all(self._has_result(cell) for cell in sweep):
      return None
    shapes = {(cell.batch_size, cell.steps) for cell in sweep}
    if len(shapes) > 1:
      raise errors.UserError(
        f"{self.ladder.path}: the sweep {rates.sweep!r} has cells of different "
        f"batch_sizes or steps ({sorted(shapes)}); sweep with one of each."
      )
    losses: dict[str, dict[float, list[float]]] = {}
    for cell in sweep:
      loss = math.inf
      if not self.workspace.diverged(cell):
        loss = collect.collect(self.workspace, cell).final_loss
      assert cell.peak_lr is not None  # Checked by `ladder.parse`.
      losses.setdefault(cell.size, {}).setdefault(cell.peak_lr, []).append(loss)
    law = learning_rates.fit(
      [
        learning_rates.Sweep(
          size,
          self._params[size],
          {rate: sum(values) / len(values) for rate, values in found.items()},
        )
        for size, found in losses.items()
      ],
      rates.law,
      sweep[0].batch_size,
      rates.batch_exponent,
    )
    path = self.workspace.out / "learning_rates.json"
    if path.exists() and files.read_json(path) != law.to_dict():
      raise errors.UserError(
        f"{path} has another law than the sweep gives now; delete it and the "
        "runs that used it, or use a new --out."
      )
    files.write_json(path, law.to_dict())
    return law

  def _has_result(self, cell: ladder_lib.Cell) -> bool:
    return self.workspace.is_done(cell) or self.workspace.diverged(cell)

  def waits_for(self, cell: ladder_lib.Cell) -> str:
    """Returns what must happen before a cell can start; "" if it can."""
    if cell.held_out and self.prediction is None:
      return "a prediction of its loss (--held-out FILE)"
    if self.rate(cell) is None:
      if self.law_error:
        return f"a law of learning rates: {self.law_error}"
      sweep = ladder_lib.sweep_cells(self.ladder, self.cells)
      left = sum(not self._has_result(other) for other in sweep)
      return f"{left} cells of the sweep"
    if cell.trunk:
      trunk = workspace_lib.find(self.cells, cell.trunk)
      if cell.fork_step not in self.workspace.saved_steps(trunk):
        return f"step {cell.fork_step} of {cell.trunk}"
    return ""

  def states(self) -> dict[str, workspace_lib.State]:
    """Returns name of a cell -> how far it is."""
    return {
      cell.name: self.workspace.state(cell, self.waits_for(cell))
      for cell in self.cells
    }

  def command(self, cell: ladder_lib.Cell) -> list[str]:
    """Returns the command of a cell that can start, as words."""
    rate = self.rate(cell)
    if rate is None:
      raise errors.UserError(
        f"{cell.name} waits for {self.waits_for(cell)}; run those first."
      )
    return workspace_lib.command(
      self.ladder, cell, rate, self.workspace, self.cells
    )

  def run(self, only: Sequence[str], log: Log) -> int:
    """Runs the cells that can run, one after the other.

    A cell that fails is named, and the others continue. Cells that a failed
    one holds up stay behind.

    Args:
      only: Names of the cells to run; empty for all.
      log: Is told what happens.

    Returns:
      0; 1 if a cell failed; 130 or 143 if a signal stopped one.
    """
    wanted = [workspace_lib.find(self.cells, name) for name in only]
    wanted, tried, failed = wanted or self.cells, set(), []
    while cell := self._next(wanted, tried):
      tried.add(cell.name)
      with self.workspace.lock(cell) as free:
        if not free:
          log(f"{cell.name} is running elsewhere")
          continue
        began = len(tried)
        log(f"{cell.name} starts ({began} of {len(wanted)})")
        code = self._run_one(cell)
        if code in _STOPPED:
          log(f"{cell.name} was stopped; the same command resumes it")
          return code
        message = self.workspace.record_end(cell, code)
        log(
          f"{cell.name} FAILED with exit code {code}: {message}"
          if code
          else f"{cell.name} is done"
        )
        if code and not self.workspace.diverged(cell):
          failed.append(cell.name)
      self._update_law()
    if failed:
      log(f"failed: {', '.join(failed)}; see {self.workspace.out}/logs")
    if self.law_error:
      log(self.law_error)
    return 1 if failed or self.law_error else 0

  def _next(
    self, wanted: Sequence[ladder_lib.Cell], tried: set[str]
  ) -> ladder_lib.Cell | None:
    for cell in wanted:
      if (
        cell.name not in tried
        and not self._has_result(cell)
        and not self.waits_for(cell)
      ):
        return cell
    return None

  def _run_one(self, cell: ladder_lib.Cell) -> int:
    """Runs a cell as a child process; returns its exit code."""
    words = [sys.executable, "-m", "genie_jax", *self.command(cell)[1:]]
    path = self.workspace.log(cell)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a", encoding="utf-8") as output:
      child = subprocess.Popen(words, stdout=output, stderr=subprocess.STDOUT)
      pass_on = lambda number, frame: child.send_signal(number)
      # Ctrl-C reaches the child too, but a signal to this process alone does
      # not. Either way the child saves, and its exit code says that it stopped.
      earlier = {
        number: signal.signal(number, pass_on)
        for number in (signal.SIGINT, signal.SIGTERM)
      }
      try:
        return child.wait()
      finally:
        for number, handler in earlier.items():
          signal.signal(number, handler)

  def collect(
    self, argv: Sequence[str], log: Log
  ) -> tuple[runs.Study | None, list[str]]:
    """Returns the runs of all finished cells, and the names of invalid ones.

    Args:
      argv: The command, for the provenance.
      log: Is told of each cell whose result is missing or not finite.

    Returns:
      The study, None if there is no finished run; and the cells that are done
      but have no valid result.
    """
    found, invalid = [], []
    for cell in self.cells:
      if not self.workspace.is_done(cell):
        continue
      try:
        found.append(collect.collect(self.workspace, cell))
      except errors.UserError as error:
        invalid.append(cell.name)
        log(str(error))
    if not found:
      return None, invalid
    first = found[0]
    origin = {
      **provenance.collect(argv),
      "config_hash": config_lib.fingerprint(
        {run.name: run.config_hash for run in found}
      ),
      "data_fingerprint": first.data_fingerprint,
      "tokenizer_fingerprint": first.tokenizer_fingerprint,
      "seeds": sorted({run.seed for run in found}),
      "seconds": round(sum(run.seconds for run in found), 3),
      "ladder": os.fspath(self.ladder.path),
      "missing": [
        cell.name for cell in self.cells if not self.workspace.is_done(cell)
      ],
      "learning_rates": None if self.law is None else self.law.to_dict(),
      "prediction": None
      if self.prediction is None
      else {"file": self.prediction, "sha256": files.sha256(self.prediction)},
    }
    runs.check_comparable(found)
    return runs.Study(origin, tuple(found)), invalid


def status(study: Study) -> str:
  """Formats the state of each cell, and the time left, as a table."""
  seconds = cost.known(study.workspace).get("step_seconds", {})
  states = study.states()
  width = max(len(cell.name) for cell in study.cells)
  lines = [
    f"{'cell':{width}}  {'state':8}{'step':>13}{'loss':>9}{'time left':>11}"
  ]
  total, unknown = 0.0, 0
  for cell in study.cells:
    state = states[cell.name]
    left: float | None = 0.0
    if state.status != "done":
      begun = max(state.step, cell.fork_step)
      each = seconds.get(cost.key(cell))
      if state.steps_per_second:
        each = 1 / state.steps_per_second
      left = None if each is None else (cell.steps - begun) * each
    total += left or 0.0
    unknown += left is None
    lines.append(
      f"{cell.name:{width}}  {state.status:8}"
      f"{f'{state.step}/{cell.steps}':>13}"
      f"{'-' if state.loss is None else f'{state.loss:.4f}':>9}"
      f"{'-' if left is None else cost.duration(left):>11}"
      + (f"  {state.detail}" if state.detail else "")
    )
  counts = {
    name: sum(state.status == name for state in states.values())
    for name in workspace_lib.STATUSES
  }
  lines.append(
    ", ".join(f"{count} {name}" for name, count in counts.items() if count)
    + f"; {cost.duration(total)} left"
    + (f", {unknown} cells not measured (--dry-run)" if unknown else "")
  )
  return "\n".join(lines)
