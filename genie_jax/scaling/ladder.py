"""The plan of a scaling study: groups of cells in a declarative file.

A ladder file is Python with a function `get_ladder()` that returns plain data,
for example `experiments/scaling/miniature.py`:

  dict(
    config="experiments/scaling/miniature.py",   # the mode is the size
    decay_share=0.25,
    learning_rates=dict(sweep="sweep"),
    groups=[
      dict(name="sweep", sizes=["16x2", "32x3"], peak_lrs=[1e-3, 2e-3, 4e-3]),
      dict(name="rungs", role="rung", sizes=["16x2", "32x3", "64x4"],
           peak_lrs="law", cool_downs=[128, 256]),
    ])

Each group is a product: one cell for each size, seed, batch size, number of
steps and learning rate. A cell is one training run in a folder of its own.
"""

import dataclasses
import itertools
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from genie_jax.core import config as config_lib
from genie_jax.core import errors
from genie_jax.scaling import runs

LAW = "law"
# Fields of a config that the fields of a group set.
_OWN = (
  "seed",
  "steps",
  "data.batch_size",
  "optimizer.peak_lr",
  "optimizer.decay_steps",
  "checkpoint_every",
  "keep_every",
)


@dataclasses.dataclass(frozen=True)
class Group:
  """Cells with one purpose.

  Attributes:
    name: Name of the group.
    sizes: Modes of the ladder's config file.
    role: A name in `runs.ROLES`.
    held_out: Whether these runs are to be predicted; they start only when a
      prediction is given.
    seeds: Seeds.
    steps: Numbers of optimizer steps; empty for that of the config.
    batch_sizes: Clips per step; empty for that of the config.
    peak_lrs: Learning rates; empty for that of the config; "law" for the law
      that is fitted to the sweep.
    cool_downs: Smaller numbers of steps. For each, a run forks from each cell
      at the step where its decay begins. All are cells, whatever the role of
      the group.
    overrides: Other fields of the config, with dots, and their values.
  """

  name: str
  sizes: tuple[str, ...]
  role: str = "cell"
  held_out: bool = False
  seeds: tuple[int, ...] = (0,)
  steps: tuple[int, ...] = ()
  batch_sizes: tuple[int, ...] = ()
  peak_lrs: tuple[float, ...] | str = ()
  cool_downs: tuple[int, ...] = ()
  overrides: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class LearningRates:
  """How learning rates follow from a sweep.

  Attributes:
    sweep: Name of the group that sweeps them, or a list of several: the best
      rates of small and large sizes are far apart.
    law: "power", a power of the number of parameters; or "constant", one rate
      for all sizes, as with a parametrization that transfers them.
    batch_exponent: The rate is multiplied by (batch / batch of the sweep) to
      this power. 0.5 is the square root rule of Adam (arXiv:2205.10287).
  """

  sweep: str | Sequence[str]
  law: str = "power"
  batch_exponent: float = 0.0

  @property
  def sweeps(self) -> tuple[str, ...]:
    """Names of the groups that sweep."""
    return (self.sweep,) if isinstance(self.sweep, str) else tuple(self.sweep)


@dataclasses.dataclass(frozen=True)
class Ladder:
  """A whole study.

  Attributes:
    path: The ladder file.
    config: The config file.
    groups: The groups.
    overrides: Fields of the config, with dots, for all cells.
    decay_share: Share of a run's steps in which the learning rate decays
      (schedule "wsd"); None keeps the decay of the config.
    learning_rates: None if no group uses a law.
  """

  path: str
  config: str
  groups: tuple[Group, ...]
  overrides: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  decay_share: float | None = None
  learning_rates: LearningRates | None = None


@dataclasses.dataclass(frozen=True)
class Cell:
  """One training run.

  Attributes:
    name: Name of its folder.
    groups: Names of its groups.
    role: A name in `runs.ROLES`.
    held_out: See `Group`.
    size: Mode of the config file.
    seed: Seed.
    steps: Optimizer steps.
    batch_size: Clips per step.
    peak_lr: Learning rate; None for the law's.
    decay_steps: Steps of the decay; None for that of the config.
    checkpoint_every: Steps between checkpoints, all of which are kept; None
      for the fields of the config. Set for cells that others fork from.
    trunk: Name of the cell that it forks from; "" for none.
    fork_step: The step at which it forks; 0 for none.
    overrides: Other fields of the config, as flags `--config.name=value`.
  """

  name: str
  groups: tuple[str, ...]
  role: str
  held_out: bool
  size: str
  seed: int
  steps: int
  batch_size: int
  peak_lr: float | None
  decay_steps: int | None
  checkpoint_every: int | None
  trunk: str
  fork_step: int
  overrides: tuple[str, ...]

  def flags(self, peak_lr: float) -> list[str]:
    """Returns the overrides of the config for this cell.

    Args:
      peak_lr: The cell's learning rate, or that of the law.
    """
    values = {
      "seed": self.seed,
      "steps": self.steps,
      "data.batch_size": self.batch_size,
      "optimizer.peak_lr": float(f"{peak_lr:.6g}"),
    }
    if self.decay_steps is not None:
      values["optimizer.schedule"] = "wsd"
      values["optimizer.decay_steps"] = self.decay_steps
    if self.checkpoint_every is not None:
      values["checkpoint_every"] = self.checkpoint_every
      values["keep_every"] = self.checkpoint_every
    return [*(flag(*item) for item in values.items()), *self.overrides]


def load(path: str) -> Ladder:
  """Reads and checks a ladder file.

  Raises:
    UserError: The file is missing or invalid, or a field in it is unknown or
      has an impossible value.
  """
  file = pathlib.Path(path)
  if not file.is_file():
    raise errors.UserError(
      f"{path} is not a file; give a ladder file, for example "
      "experiments/scaling/miniature.py."
    )
  module = config_lib.import_file(file)
  if not hasattr(module, "get_ladder"):
    raise errors.UserError(
      f"{path} has no function get_ladder(); see "
      "experiments/scaling/miniature.py for an example."
    )
  return parse(module.get_ladder(), path)


def parse(fields: Mapping[str, Any], path: str) -> Ladder:
  """Returns the ladder of plain data; `path` is for messages.

  Raises:
    UserError: A field is unknown, missing, or has an impossible value.
  """
  fields = _fields(Ladder, fields, path, without=("path",))
  rates = fields.get("learning_rates")
  if rates is not None:
    rates = LearningRates(
      **_fields(LearningRates, rates, f"{path}: learning_rates")
    )
  groups = []
  for number, group in enumerate(_list(fields["groups"], f"{path}: groups")):
    where = f"{path}: groups[{number}]"
    found = _fields(Group, group, where)
    for name in ("sizes", "seeds", "steps", "batch_sizes", "cool_downs"):
      if name in found:
        found[name] = _list(found[name], f"{where}.{name}")
    if "peak_lrs" in found and not isinstance(found["peak_lrs"], str):
      found["peak_lrs"] = _list(found["peak_lrs"], f"{where}.peak_lrs")
    groups.append(Group(**found))
  ladder = Ladder(
    **{
      **fields,
      "path": path,
      "groups": tuple(groups),
      "learning_rates": rates,
    }
  )
  check(ladder)
  return ladder


def _fields(kind: Any, fields: Any, where: str, without=()) -> dict[str, Any]:
  """Returns `fields` after checking that they are those of a dataclass."""
  if not isinstance(fields, Mapping):
    raise errors.UserError(f"{where} is {fields!r}; it must be a dict.")
  known = [
    field for field in dataclasses.fields(kind) if field.name not in without
  ]
  errors.check_fields(where, fields, [field.name for field in known])
  for field in known:
    needed = (
      field.default is dataclasses.MISSING
      and field.default_factory is dataclasses.MISSING
    )
    if needed and field.name not in fields:
      raise errors.UserError(f"{where} has no field {field.name!r}; add it.")
  return dict(fields)


def _list(value: Any, where: str) -> tuple[Any, ...]:
  if not isinstance(value, (list, tuple)):
    raise errors.UserError(f"{where} is {value!r}; it must be a list.")
  return tuple(value)


def check(ladder: Ladder) -> None:
  """Raises UserError for the first impossible value of a ladder."""

  def need(ok: bool, where: str, value: Any, wanted: str) -> None:
    if not ok:
      raise errors.UserError(
        f"{ladder.path}: {where} is {value!r}; it must be {wanted}."
      )

  names = [group.name for group in ladder.groups]
  need(bool(names), "groups", names, "a list of at least one group")
  need(len(set(names)) == len(names), "groups", names, "of different names")
  share = ladder.decay_share
  need(
    share is None or 0 < share <= 1, "decay_share", share, "above 0, at most 1"
  )
  rates = ladder.learning_rates
  if rates:
    need(
      isinstance(rates.sweep, (str, list, tuple))
      and bool(rates.sweeps)
      and all(name in names for name in rates.sweeps),
      "learning_rates.sweep",
      rates.sweep,
      f"one or several of the groups {', '.join(names)}",
    )
    need(
      rates.law in ("power", "constant"),
      "learning_rates.law",
      rates.law,
      "power or constant",
    )
    need(
      _is_number(rates.batch_exponent),
      "learning_rates.batch_exponent",
      rates.batch_exponent,
      "a finite number",
    )
  whole = lambda least: (
    lambda x: isinstance(x, int) and not isinstance(x, bool) and x >= least
  )
  for group in ladder.groups:
    at = f"group {group.name!r}: "
    need(bool(group.sizes), at + "sizes", group.sizes, "a list of modes")
    need(bool(group.seeds), at + "seeds", group.seeds, "a list of numbers")
    need(
      group.role in runs.ROLES,
      at + "role",
      group.role,
      f"one of {', '.join(runs.ROLES)}",
    )
    for name, least in (
      ("seeds", 0),
      ("steps", 1),
      ("batch_sizes", 1),
      ("cool_downs", 1),
    ):
      values = getattr(group, name)
      need(
        all(map(whole(least), values)),
        at + name,
        values,
        f"whole numbers from {least}",
      )
    if isinstance(group.peak_lrs, str):
      need(
        group.peak_lrs == LAW and rates is not None,
        at + "peak_lrs",
        group.peak_lrs,
        'a list of numbers, or "law" if the ladder has learning_rates',
      )
      need(
        rates is None or group.name not in rates.sweeps,
        at + "peak_lrs",
        group.peak_lrs,
        "a list of numbers, because the law is fitted to this group",
      )
    else:
      need(
        all(_is_number(x) and x > 0 for x in group.peak_lrs),
        at + "peak_lrs",
        group.peak_lrs,
        "finite positive numbers",
      )
    need(
      not group.cool_downs or share is not None,
      at + "cool_downs",
      group.cool_downs,
      "empty, because the ladder has no decay_share",
    )
    for name in (*ladder.overrides, *group.overrides):
      need(
        name not in _OWN,
        at + "overrides",
        name,
        "set by the group's own fields (seeds, steps, batch_sizes, peak_lrs) "
        "or by decay_share",
      )


def _is_number(value: Any) -> bool:
  return (
    isinstance(value, (int, float))
    and not isinstance(value, bool)
    and math.isfinite(value)
  )


def expand(
  ladder: Ladder, defaults: Mapping[str, Mapping[str, Any]]
) -> list[Cell]:
  """Returns the cells of all groups, each once, trunks before their forks.

  A cell that is in several groups is one run; it is a rung if it is one in any
  of them.

  Args:
    ladder: The ladder.
    defaults: Size -> "steps", "batch_size" and "peak_lr" of its config.

  Raises:
    UserError: Two different cells have the same folder, or a cool-down has no
      place in its trunk.
  """
  cells: dict[str, Cell] = {}
  for group in ladder.groups:
    for size in group.sizes:
      own = defaults[size]
      rates: tuple[float | None, ...] = (None,)  # The law's.
      if not isinstance(group.peak_lrs, str):
        rates = group.peak_lrs or (own["peak_lr"],)
      product = itertools.product(
        group.steps or (own["steps"],),
        group.batch_sizes or (own["batch_size"],),
        rates,
        group.seeds,
      )
      for steps, batch_size, peak_lr, seed in product:
        for cell in _trunk_and_forks(
          ladder, group, size, steps, batch_size, peak_lr, seed
        ):
          cells[cell.name] = _merged(ladder, cells.get(cell.name), cell)
  return list(cells.values())


def _trunk_and_forks(
  ladder: Ladder,
  group: Group,
  size: str,
  steps: int,
  batch_size: int,
  peak_lr: float | None,
  seed: int,
) -> list[Cell]:
  overrides = {**ladder.overrides, **group.overrides}
  rate = LAW if peak_lr is None else f"lr{peak_lr:.3g}"
  # A group's own overrides make its runs different from those of others.
  suffix = f"-{group.name}" if group.overrides else ""
  decay = lambda total: (
    None
    if ladder.decay_share is None
    else max(1, round(ladder.decay_share * total))
  )

  def cell(total: int, trunk: str = "", fork_step: int = 0) -> Cell:
    return Cell(
      name=f"{size}-b{batch_size}-s{total}-{rate}-seed{seed}{suffix}",
      groups=(group.name,),
      role="cell" if trunk else group.role,
      held_out=group.held_out,
      size=size,
      seed=seed,
      steps=total,
      batch_size=batch_size,
      peak_lr=peak_lr,
      decay_steps=decay(total),
      checkpoint_every=None,
      trunk=trunk,
      fork_step=fork_step,
      overrides=tuple(flag(*item) for item in overrides.items()),
    )

  trunk = cell(steps)
  forks = []
  for total in group.cool_downs:
    at = total - (decay(total) or 0)
    last = steps - (decay(steps) or 0)
    if not 0 < at <= last:
      raise errors.UserError(
        f"{ladder.path}: group {group.name!r}: the cool-down to {total} steps "
        f"begins at step {at}, outside the constant part of {steps} steps (1 "
        f"to {last}); use other cool_downs or another decay_share."
      )
    forks.append(cell(total, trunk.name, at))
  if forks:
    every = math.gcd(*(fork.fork_step for fork in forks))
    trunk = dataclasses.replace(trunk, checkpoint_every=every)
  return [trunk, *forks]


def _merged(ladder: Ladder, old: Cell | None, new: Cell) -> Cell:
  """Returns one cell for two of the same name, which must be the same run."""
  if old is None:
    return new
  what = lambda cell: dataclasses.replace(
    cell, groups=(), role="", checkpoint_every=None
  )
  if what(old) != what(new) or (
    old.checkpoint_every
    and new.checkpoint_every
    and old.checkpoint_every != new.checkpoint_every
  ):
    fields = [
      field.name
      for field in dataclasses.fields(Cell)
      if field.name not in ("groups", "role")
      and getattr(old, field.name) != getattr(new, field.name)
    ]
    raise errors.UserError(
      f"{ladder.path}: groups {old.groups[0]!r} and {new.groups[0]!r} both "
      f"have a cell "
      f"{new.name} but with different {', '.join(fields)}, so they would share "
      "one folder; make them equal, or give one of the groups overrides."
    )
  return dataclasses.replace(
    old,
    groups=tuple(dict.fromkeys((*old.groups, *new.groups))),
    role="rung" if "rung" in (old.role, new.role) else old.role,
    checkpoint_every=old.checkpoint_every or new.checkpoint_every,
  )


def flag(name: str, value: Any) -> str:
  """Returns the flag of `genie train` that sets a field of the config."""
  return f"--config.{name}={value}"


def sizes(ladder: Ladder) -> list[str]:
  """Returns the sizes of all groups, each once, in order."""
  return list(
    dict.fromkeys(size for group in ladder.groups for size in group.sizes)
  )


def sweep_cells(ladder: Ladder, cells: Sequence[Cell]) -> list[Cell]:
  """Returns the cells to which the law of learning rates is fitted."""
  rates = ladder.learning_rates
  names = set(rates.sweeps) if rates else set()
  return [cell for cell in cells if names & set(cell.groups)]
