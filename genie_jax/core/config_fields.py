"""The bounds of config fields, which every command checks on loading.

A field has the form of the first pattern in `FIELDS` that fits its name, such
as "optimizer.peak_lr"; `*` stands for any text. Groups within groups count as
one: "model.width" is also "model.encoder.width". Of other fields, numbers must
be finite and texts without control characters. A stage or a model may refuse
more, for example two values that do not fit together.
"""

import fnmatch
from collections.abc import Mapping
from typing import Any

from genie_jax.core import errors, schema

# Sizes of models. Larger ones would overflow the products of sizes.
_SIZE = schema.Number(1, 1 << 20, whole=True)
_REACH = schema.Number(0, 1 << 20, whole=True)
_BELOW_1 = schema.Number(0, 1, below=True)

# Pattern -> form.
FIELDS: dict[str, schema.Form] = {
  "seed": schema.NATURAL,
  "steps": schema.COUNT,
  "log_every": schema.COUNT,
  "eval_every": schema.COUNT,
  "checkpoint_every": schema.COUNT,
  "checkpoint_minutes": schema.NOT_NEGATIVE,
  "emergency_every": schema.NATURAL,
  "watchdog_seconds": schema.NOT_NEGATIVE,
  "keep_checkpoints": schema.COUNT,
  "keep_every": schema.NATURAL,
  "eval_batches": schema.NATURAL,
  "held_out_clips": schema.NATURAL,
  "copy_floor": schema.NOT_NEGATIVE,
  "z_loss": schema.NOT_NEGATIVE,
  "press_frames": [schema.COUNT],
  "augment.colour": _BELOW_1,
  "augment.gamma": schema.SHARE,
  "centre.side": schema.COUNT,
  "centre.weight": schema.Number(0, above=True),
  "codebook.*_decay": _BELOW_1,
  "codebook.dead_below": schema.NOT_NEGATIVE,
  "data.batch_size": schema.COUNT,
  "data.clip_frames": schema.COUNT,
  "data.mixture": [(str, schema.Number(0, above=True))],
  "data.num_frames": schema.COUNT,
  "data.num_threads": schema.Number(0, 1024, whole=True),
  "data.num_workers": schema.Number(0, 1024, whole=True),
  "data.shifts": schema.COUNT,
  "data.stride": schema.COUNT,
  "labels.share": schema.SHARE,
  "labels.weight": schema.NOT_NEGATIVE,
  "loss.*": schema.NOT_NEGATIVE,
  "mask.per": str,
  "mask.rate": str,
  "mask.*": schema.SHARE,
  # -1 for all remaining devices.
  "mesh.*": schema.Number(-1, schema.MOST, whole=True),
  "optimizer.accumulate": schema.COUNT,
  "optimizer.max_skipped": schema.NATURAL,
  "optimizer.*_lr": schema.NOT_NEGATIVE,
  "optimizer.b?": _BELOW_1,
  "optimizer.momentum": _BELOW_1,
  "optimizer.eps": schema.NOT_NEGATIVE,
  "optimizer.*_steps": schema.NATURAL,
  "optimizer.weight_decay": schema.NOT_NEGATIVE,
  "optimizer.clip_*": schema.NOT_NEGATIVE,
  "optimizer.base_*": schema.NATURAL,
  "quantizer.levels": [_SIZE],
  "sampling.refinements": schema.COUNT,
  "sampling.*temperature": schema.NOT_NEGATIVE,
  "world.fps": schema.Number(0, 1000, above=True),
  "world.*": _SIZE,
  "model.window": _REACH,
  "model.last_frame_reach": _REACH,
  "model.reach": [_REACH],
  "model.residual_scale": schema.NOT_NEGATIVE,
  **{
    f"model.{name}": _SIZE
    for name in (
      "code_dim",
      "features",
      "head_dim",
      "mlp_dim",
      "num_heads",
      "num_layers",
      "patch",
      "run",
      "shrink",
      "unroll",
      "width",
    )
  },
}

_added: dict[str, schema.Form] = {}


def form_of(name: str) -> schema.Form:
  """Returns the form of a field.

  Args:
    name: With dots, without "config".
  """
  first, *groups = name.split(".")
  short = ".".join([first, *groups[-1:]])
  for pattern, form in (_added | FIELDS).items():
    if fnmatch.fnmatchcase(short, pattern):
      return form
  return schema.Plain()


def check(fields: Mapping[str, Any], path: str) -> None:
  """Checks the fields of a config.

  Args:
    fields: Name with dots -> value, as JSON can represent it.
    path: The config's file, for messages.

  Raises:
    UserError: A value is out of range, has another type, or is not finite.
  """
  for name, value in fields.items():
    schema.check(
      value,
      form_of(name),
      f"config.{name}",
      f"set it with --config.{name}=VALUE or in {path}",
    )


def register(pattern: str, form: schema.Form) -> None:
  """States the bounds of fields of another package's stage or model.

  They come before those of `FIELDS`.

  Args:
    pattern: See the module, for example "regularizer.*".
    form: See `schema`.

  Raises:
    UserError: The pattern was registered with another form.
  """
  if _added.setdefault(pattern, form) != form:
    raise errors.UserError(
      f"The config fields {pattern!r} were registered with other bounds; "
      "give the fields of your package other names."
    )
