"""Warm start from the weights of another model: `config.init_from`."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
from absl import logging

from genie_jax.checkpoints import reader
from genie_jax.core import buckets, errors
from genie_jax.train import optimizer as optimizer_lib
from genie_jax.train import state as state_lib
from genie_jax.weights import param_tree

_WEIGHTS = "model.safetensors"


@dataclasses.dataclass(frozen=True)
class Report:
  """The result of a warm start; names are "params/<path>" or "extra/<path>".

  Attributes:
    loaded: Arrays that were loaded from the source.
    missing: Arrays of the new model that keep their initial values, each with
      the reason.
    unused: Arrays of the source that the new model does not have.
  """

  loaded: tuple[str, ...]
  missing: dict[str, str]
  unused: tuple[str, ...]


def apply(
  state: state_lib.TrainState,
  source: str,
  stage_name: str,
  optimizer: optimizer_lib.Optimizer,
  like: state_lib.TrainState,
  warm: Callable[[Any, Any], Any] = lambda params, extra: extra,
) -> tuple[state_lib.TrainState, Report]:
  """Loads every array of `source` that has the same name and shape.

  A state with several parts (joint) can be loaded from a part that was trained
  separately, and a single part from a source with several parts.

  Args:
    state: A newly created state.
    source: A workdir of `genie train`, or the folder of a saved model.
    stage_name: Name of the stage of `state`.
    optimizer: The optimizer. Its state is reset, because the moments of other
      weights would mislead it.
    like: The abstract state.
    warm: `Stage.warm`.

  Returns:
    The state at step 0, and a report of the arrays that were loaded.

  Raises:
    UserError: `source` has no model, or none of its arrays fits.
  """
  table, names = _read(source)
  new, loaded, missing, used = [], [], {}, set()
  paths, structure = jax.tree_util.tree_flatten_with_path(
    {"params": state.params, "extra": state.extra}
  )
  for tree_path, fresh in paths:
    new.append(fresh)
    name = param_tree.path_name(tree_path)
    group, path = name.split("/", 1)
    keys = [
      key for key in (name, f"{group}/{stage_name}/{path}") if key in table
    ]
    if not keys:
      missing[name] = "not in the source"
      continue
    # A part of a joint model takes precedence over an array at the root that
    # has the same name by chance.
    value, origin = table[keys[-1]]
    if value.shape != fresh.shape:
      missing[name] = (
        f"the source has shape {list(value.shape)}, this model "
        f"{list(fresh.shape)}"
      )
      continue
    # Weights saved in lower precision are cast to the dtype of this state.
    new[-1] = jax.device_put(value.astype(fresh.dtype), fresh.sharding)
    loaded.append(name)
    used.add(origin)
  report = Report(tuple(loaded), missing, tuple(sorted(names - used)))
  if not any(name.startswith("params/") for name in loaded):
    raise errors.UserError(
      f"config.init_from={source}: none of its {len(names)} arrays fits a "
      f"parameter of the {stage_name} stage; use a model of the same kind."
    )
  logging.info(
    "Warm start from %s: %d arrays loaded, %d not loaded, %d of the source "
    "unused; the optimizer state is reset.",
    source,
    len(report.loaded),
    len(report.missing),
    len(report.unused),
  )
  _warn(report)
  tree = jax.tree.unflatten(structure, new)
  if not any(name.startswith("extra/") for name in loaded) and not any(
    name.startswith("params/") for name in missing
  ):
    tree["extra"] = jax.tree.map(
      lambda value, fresh: jax.device_put(value, fresh.sharding),
      warm(tree["params"], tree["extra"]),
      state.extra,
    )
  state = dataclasses.replace(state, **tree)
  return state_lib.reset_optimizer(state, optimizer, like), report


def _read(source: str) -> tuple[dict[str, tuple[Any, str]], set[str]]:
  """Returns name or alias -> (array, name), and the names without aliases."""
  folder = buckets.run_folder(source)
  if (folder / _WEIGHTS).is_file():
    tree, _ = param_tree.load(folder / _WEIGHTS)
    flat = {f"params/{n}": x for n, x in param_tree.flatten(tree).items()}
    return {name: (x, name) for name, x in flat.items()}, set(flat)
  if not reader.valid_steps(folder):
    raise errors.UserError(
      f"config.init_from={source} is neither a workdir with a finished "
      f"checkpoint nor a folder with {_WEIGHTS}."
    )
  params, extra, config = reader.load_params(folder)
  flat = param_tree.flatten({"params": params, "extra": extra})
  table = {name: (x, name) for name, x in flat.items()}
  for name, x in flat.items():
    group, path = name.split("/", 1)
    table.setdefault(f"{group}/{config['stage']}/{path}", (x, name))
  return table, set(flat)


def _warn(report: Report) -> None:
  for name, why in report.missing.items():
    logging.warning("Warm start: %s keeps its initial value: %s.", name, why)
  for name in report.unused:
    logging.warning("Warm start: the source's %s is not used.", name)
