"""Turns the folders of finished cells into the runs of a scaling study."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections

from genie_jax.checkpoints import reader
from genie_jax.core import buckets, errors
from genie_jax.core import config as config_lib
from genie_jax.data import manifest, mixtures
from genie_jax.models import build
from genie_jax.scaling import cost, runs, table
from genie_jax.scaling import ladder as ladder_lib
from genie_jax.scaling import workspace as workspace_lib
from genie_jax.stages import dynamics
from genie_jax.train import fork
from genie_jax.train import workdir as workdir_lib

# The paper's final losses are means over the last 300 updates (Genie, 3.1).
LAST_UPDATES = 300
_LOSS = "eval/held_out_loss"


def collect(
  workspace: workspace_lib.Workspace, cell: ladder_lib.Cell
) -> runs.Run:
  """Returns the run of a finished cell.

  Raises:
    UserError: Its folder has no finite final loss, or its data are gone.
  """
  workdir = workspace.workdir(cell)
  config = workdir_lib.read(buckets.run_folder(workdir))
  if config is None:
    raise errors.UserError(
      f"{cell.name}: {workdir} has no config; train it again."
    )
  final = _final(workspace.lines(cell), cell, workdir)
  fields = ml_collections.ConfigDict(config)
  h, w = build.token_grid(fields.world)
  batch_tokens = cell.batch_size * fields.data.num_frames * h * w
  mean, updates = train_loss(workspace.lines(cell), workdir)
  saved = buckets.run_folder(workdir) / reader.FOLDER / str(cell.steps)
  note = reader.read_note(saved)
  began = fork.read(workdir)
  counted = cost.known_flops(workspace).get(cost.flops_key(cell))
  found = runs.Run(
    name=cell.name,
    role=cell.role,
    held_out=cell.held_out,
    seed=cell.seed,
    size=cell.size,
    params=table.count("dynamics", config),
    flops=dynamics.training_flops(fields) * cell.batch_size * cell.steps,
    compiled_flops=None if counted is None else counted * cell.steps,
    tokens=cell.steps * batch_tokens,
    steps=cell.steps,
    batch_size=cell.batch_size,
    batch_tokens=batch_tokens,
    peak_lr=config["optimizer"]["peak_lr"],
    final_loss=final[_LOSS],
    final_loss_per_bit=final[f"{_LOSS}_per_bit"],
    held_out_tokens=int(final["eval/held_out_tokens"]),
    train_loss_last=mean,
    train_loss_updates=updates,
    seconds=round(note["clock"]["productive"], 3),
    workdir=str(workdir),
    forked_from=cell.trunk if began else "",
    forked_step=began["step"] if began else 0,
    config_hash=config_lib.fingerprint(config),
    data_fingerprint=config["data"]["fingerprint"],
    tokenizer_fingerprint=_tokenizer(config, cell.name),
    extra={
      name.removeprefix("eval/"): value
      for name, value in final.items()
      if name.startswith("eval/")
      and not name.startswith("eval/held_out_")
      and value is not None
    },
  )
  found.check(cell.name)
  return found


def _final(
  lines: Sequence[Mapping[str, Any]], cell: ladder_lib.Cell, workdir: Any
) -> Mapping[str, Any]:
  """Returns the line of the last evaluation, which must be finite."""
  for line in reversed(lines):
    if line["step"] == cell.steps and _LOSS in line:
      value = line[_LOSS]
      if value is None or not math.isfinite(value):
        raise errors.UserError(
          f"{cell.name}: {workdir}/metrics.jsonl has a held-out loss that is "
          f"not finite at step {cell.steps}; train it again with a lower "
          "learning rate."
        )
      return line
  raise errors.UserError(
    f"{cell.name}: {workdir}/metrics.jsonl has no held-out loss at step "
    f"{cell.steps}; set config.held_out_clips above 0 and train it again."
  )


def train_loss(
  lines: Sequence[Mapping[str, Any]], where: Any, updates: int = LAST_UPDATES
) -> tuple[float, int]:
  """Returns the mean training loss of the last updates, and their number.

  Whole intervals of the log are used, so the number is exactly `updates` if
  `log_every` divides it, and otherwise the next larger one that the log allows.

  Args:
    lines: The lines of metrics.jsonl, see BUILD.md.
    where: Name of the log, for messages.
    updates: Least number of updates; fewer if the run is shorter.

  Raises:
    UserError: The log has no sums of losses.
  """
  total, count = 0.0, 0
  for line in reversed(lines):
    if line.get("loss_count") and line.get("loss_sum") is not None:
      total += line["loss_sum"]
      count += line["loss_count"]
    if count >= updates:
      break
  if not count:
    raise errors.UserError(
      f"{where}: metrics.jsonl has no loss_sum and loss_count; train it again "
      "with this version."
    )
  return total / count, count


def _tokenizer(config: Mapping[str, Any], name: str) -> str:
  """Returns the fingerprint of the tokenizer that made a run's tokens."""
  path = mixtures.main_folder(config["data"])
  stated, now = (
    config["data"]["fingerprint"],
    mixtures.fingerprint(config["data"]),
  )
  if now != stated:
    raise errors.UserError(
      f"{name} was trained on data of fingerprint {stated[:12]}, but {path} "
      f"has {now[:12]} now; put the data back."
    )
  found = manifest.Manifest.read(path)
  if not found.tokenizer_fingerprint:
    raise errors.UserError(f"{path} names no tokenizer; use a token folder.")
  return found.tokenizer_fingerprint
