"""The runs of a scaling study, as the one file that fits and plots read.

`genie scaling ladder` writes this file, and `genie scaling fit` and
`genie scaling plot` need nothing else. It is JSON:

  {"version": 1, "provenance": {...}, "runs": [{...}, ...]}

with the fields of `Study` and `Run`.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, Self

from genie_jax.core import config as config_lib
from genie_jax.core import errors, files

VERSION = 1
# A rung is a run at the common token budget, one for each size (and seed); a
# cell is any other run: other token counts, batches or learning rates.
ROLES = ("rung", "cell")
# What a study's provenance must state, see `provenance.collect`.
PROVENANCE = (
  "command",
  "date",
  "commit",
  "clean",
  "config_hash",
  "data_fingerprint",
  "tokenizer_fingerprint",
  "seeds",
  "hardware",
  "seconds",
)


@dataclasses.dataclass(frozen=True)
class Run:
  """One training run of a scaling study, and what it reached.

  Attributes:
    name: Unique name of the run, and of its folder.
    role: A name in ROLES.
    held_out: Whether no fit may use the run: its loss is to be predicted.
    seed: Seed of the initial values, the masks and the order of the clips.
    size: Name of the model's size.
    params: Parameters of the model, embeddings and readout included.
    flops: Training FLOPs by formula: three times the matrix products of the
      forward pass, readout included, no recomputation, over all steps.
    compiled_flops: The same from the compiled training step, which includes
      recomputation; None if it was not counted.
    tokens: Tokens of all training clips: steps x batch_tokens.
    steps: Optimizer steps.
    batch_size: Clips per step.
    batch_tokens: Tokens per step: batch_size x tokens of a clip.
    peak_lr: Learning rate after the warm-up, before any factor for a
      parameter.
    final_loss: Held-out loss in nats per masked token, on clips and masks that
      are the same for every run.
    final_loss_per_bit: final_loss as a share of the bits of a token:
      final_loss / ln(number of codes). 1 is a uniform guess. Tokenizers that
      use their codes less evenly have lower values, so it makes vocabularies
      comparable in scale, but does not rank tokenizers.
    held_out_tokens: Masked tokens in final_loss. It is equal in all runs with
      the same held-out clips and masks.
    train_loss_last: Mean training loss of the last `train_loss_updates`
      updates, in nats per masked token (Genie, section 3.1: the last 300).
    train_loss_updates: The number of updates in that mean; less than 300 only
      if the run is shorter.
    seconds: Seconds of this run's steps, without evaluation, compilation and
      saving. A run that was forked from another counts only its own.
    workdir: The run's folder.
    forked_from: Name of the run whose state this one started from; "" if none.
    forked_step: Number of updates that the two runs share; 0 if none.
    config_hash: Fingerprint of the whole config.
    data_fingerprint: Fingerprint of the token folder's manifest.
    tokenizer_fingerprint: Fingerprint of the tokenizer of these tokens.
    extra: Other final figures, by name.
  """

  name: str
  role: str
  held_out: bool
  seed: int
  size: str
  params: int
  flops: float
  compiled_flops: float | None
  tokens: int
  steps: int
  batch_size: int
  batch_tokens: int
  peak_lr: float
  final_loss: float
  final_loss_per_bit: float
  held_out_tokens: int
  train_loss_last: float
  train_loss_updates: int
  seconds: float
  workdir: str
  forked_from: str
  forked_step: int
  config_hash: str
  data_fingerprint: str
  tokenizer_fingerprint: str
  extra: Mapping[str, float] = dataclasses.field(default_factory=dict)

  @classmethod
  def from_dict(cls, fields: Mapping[str, Any], where: str) -> Self:
    """Returns a run from its JSON object.

    Args:
      fields: The object.
      where: Where it was read, for messages.

    Raises:
      UserError: A field is unknown, missing, of the wrong type, not finite or
        out of range.
    """
    if not isinstance(fields, Mapping):
      raise errors.UserError(f"{where} is {fields!r}, not an object.")
    named = f"{where} ({fields['name']})" if "name" in fields else where
    known = [field.name for field in dataclasses.fields(cls)]
    errors.check_fields(named, fields, known)
    missing = [name for name in known if name not in fields and name != "extra"]
    if missing:
      raise errors.UserError(
        f"{named} has no {', '.join(missing)}; collect the runs again with "
        "`genie scaling ladder`."
      )
    run = cls(**fields)
    run.check(named)
    return run

  def check(self, where: str = "run") -> None:
    """Raises UserError for the first value that no finished run can have."""

    def need(ok: bool, name: str, wanted: str) -> None:
      if not ok:
        raise errors.UserError(
          f"{where}: {name} is {getattr(self, name)!r}; it must be {wanted}. "
          "Repeat the run, or leave it out."
        )

    for name in _TEXTS:
      need(isinstance(getattr(self, name), str), name, "a text")
    need(bool(self.name), "name", "a text that is not empty")
    need(self.role in ROLES, "role", f"one of {', '.join(ROLES)}")
    need(isinstance(self.held_out, bool), "held_out", "true or false")
    for name in _COUNTS:
      value = getattr(self, name)
      need(_is_whole(value) and value > 0, name, "a positive whole number")
    for name in ("seed", "forked_step"):
      value = getattr(self, name)
      need(_is_whole(value) and value >= 0, name, "a whole number from 0")
    for name in _AMOUNTS:
      value = getattr(self, name)
      need(_is_finite(value) and value > 0, name, "a finite positive number")
    need(
      _is_finite(self.seconds) and self.seconds >= 0,
      "seconds",
      "a finite number from 0",
    )
    need(
      self.compiled_flops is None
      or (_is_finite(self.compiled_flops) and self.compiled_flops > 0),
      "compiled_flops",
      "a finite positive number or null",
    )
    need(
      self.tokens == self.steps * self.batch_tokens,
      "tokens",
      f"steps x batch_tokens ({self.steps} x {self.batch_tokens})",
    )
    need(
      isinstance(self.extra, Mapping)
      and all(_is_finite(value) for value in self.extra.values()),
      "extra",
      "an object of finite numbers",
    )


_TEXTS = (
  "name",
  "size",
  "workdir",
  "forked_from",
  "config_hash",
  "data_fingerprint",
  "tokenizer_fingerprint",
)
_COUNTS = (
  "params",
  "tokens",
  "steps",
  "batch_size",
  "batch_tokens",
  "held_out_tokens",
  "train_loss_updates",
)
_AMOUNTS = (
  "flops",
  "peak_lr",
  "final_loss",
  "final_loss_per_bit",
  "train_loss_last",
)


def _is_whole(value: Any) -> bool:
  return isinstance(value, int) and not isinstance(value, bool)


def _is_finite(value: Any) -> bool:
  return (
    isinstance(value, (int, float))
    and not isinstance(value, bool)
    and math.isfinite(value)
  )


@dataclasses.dataclass(frozen=True)
class Study:
  """The runs of a study and where they come from.

  Attributes:
    provenance: At least the fields PROVENANCE.
    runs: The finished runs; their names are unique.
  """

  provenance: Mapping[str, Any]
  runs: tuple[Run, ...]

  def to_dict(self) -> dict[str, Any]:
    """Returns the content of the file."""
    return {
      "version": VERSION,
      "provenance": config_lib.to_dict(dict(self.provenance)),
      "runs": [dataclasses.asdict(run) for run in self.runs],
    }

  def write(self, path: files.PathLike) -> None:
    """Writes the file, atomically.

    Raises:
      UserError: The study breaks a rule that `read` checks.
    """
    content = self.to_dict()
    _check(content, str(path))
    files.write_json(path, content)

  @classmethod
  def read(cls, path: files.PathLike) -> Self:
    """Reads and checks a file that `write` wrote.

    Raises:
      UserError: The file is missing, of another version, or a run in it is
        incomplete or not finite.
    """
    found = files.read_json(path)
    runs = _check(found, str(path))
    return cls(found["provenance"], runs)


def _check(found: Any, path: str) -> tuple[Run, ...]:
  """Returns the runs of a file's content; raises UserError if it is invalid."""
  if not isinstance(found, Mapping) or "version" not in found:
    raise errors.UserError(
      f"{path} is not a file of runs; write it with `genie scaling ladder`."
    )
  if found["version"] != VERSION:
    raise errors.UserError(
      f"{path} has version {found['version']!r}, but this program reads "
      f"version {VERSION}; write it again with `genie scaling ladder`."
    )
  errors.check_fields(path, found, ("version", "provenance", "runs"))
  origin = found.get("provenance")
  missing = [
    name
    for name in PROVENANCE
    if not isinstance(origin, Mapping) or name not in origin
  ]
  if missing:
    raise errors.UserError(
      f"{path}: provenance has no {', '.join(missing)}; write the file again "
      "with `genie scaling ladder`."
    )
  if not isinstance(found.get("runs"), list):
    raise errors.UserError(
      f"{path} has no list of runs; write it again with `genie scaling ladder`."
    )
  runs = tuple(
    Run.from_dict(fields, f"{path}: runs[{number}]")
    for number, fields in enumerate(found["runs"])
  )
  names = [run.name for run in runs]
  for name in names:
    if names.count(name) > 1:
      raise errors.UserError(
        f"{path} has {names.count(name)} runs named {name}; leave one."
      )
  return runs


def check_comparable(runs: Sequence[Run]) -> None:
  """Checks that the losses of some runs may be compared with each other.

  Raises:
    UserError: Two runs have tokens of different tokenizers or data, or were
      evaluated on other clips or masks.
  """
  for name, what in (
    ("tokenizer_fingerprint", "tokens of different tokenizers"),
    ("data_fingerprint", "different data"),
    ("held_out_tokens", "different held-out clips or masks"),
  ):
    for run in runs[1:]:
      first, value = getattr(runs[0], name), getattr(run, name)
      if first != value:
        raise errors.UserError(
          f"Runs {runs[0].name} and {run.name} have {what} ({name} "
          f"{_short(first)} and {_short(value)}), so their losses do not "
          "compare; fit them separately."
        )


def _short(value: Any) -> str:
  return value[:12] if isinstance(value, str) else str(value)
