"""Scores the clips of a folder with a trained classifier.

The table has one row for each clip: its place, the classifier's logit, the
calibrated probability of being good, the prediction and its confidence, simple
figures of its frames, and its rating where there is one.

Shapes:
  n  clips of the folder     T  frames that are read from a clip
"""

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from genie_jax.core import buckets, errors, files, progress
from genie_jax.data import clip_list, ratings
from genie_jax.data import manifest as manifest_lib
from genie_jax.evals import clip_figures
from genie_jax.models import store
from genie_jax.worlds import trained_models

SCHEMA_VERSION = 1


@dataclasses.dataclass(frozen=True)
class Looked:
  """What was computed from the frames of clips.

  Attributes:
    logits: float32 [n].
    features: Name -> float32 [n], of `clip_figures.FEATURES`: the mean change
      between adjacent frames, the mean and the standard deviation of pixels,
      all of values from 0 to 1.
  """

  logits: np.ndarray
  features: dict[str, np.ndarray]


def look(
  part: store.Part,
  manifest: manifest_lib.Manifest,
  clips: list[clip_list.Clip],
  *,
  runs: int,
  batch: int,
) -> Looked:
  """Runs a classifier on clips.

  Args:
    part: The classifier.
    manifest: Of the clips' folder, read from it.
    clips: The clips.
    runs: Runs of adjacent frames that are read from each clip.
    batch: Clips that are scored at once.

  Raises:
    UserError: The frames have another shape than the classifier was trained
      on, or a record is damaged.
  """
  module = part.module
  manifest.check(
    {"frame_shape": [module.height, module.width, module.channels]}
  )
  reader = clip_list.Reader(manifest)
  logits_of = jax.jit(
    lambda params, frames: module.apply(
      {"params": params}, frames.astype(jnp.float32) / 255
    )
  )
  params = jax.device_put(part.params)
  logits = np.empty(len(clips), np.float32)
  features = {
    name: np.empty(len(clips), np.float32) for name in clip_figures.FEATURES
  }
  size = module.run
  frames = np.zeros((batch, size * runs, *manifest.frame_shape), np.uint8)
  with progress.track(
    total=len(clips), unit="clips", description="scoring"
  ) as bar:
    for first in range(0, len(clips), batch):
      some = clips[first : first + batch]
      for row, clip in enumerate(some):
        places = clip_list.run_places(clip.length, runs, size=size)
        frames[row] = reader.frames(clip, places)
        at = first + row
        values = frames[row].astype(np.float32) / 255
        each = values.reshape(runs, size, *values.shape[1:])
        features["motion"][at] = np.abs(np.diff(each, axis=1)).mean()
        features["brightness"][at] = values.mean()
        features["contrast"][at] = values.std()
      # The last batch is filled up with earlier clips, so that one shape is
      # compiled.
      logits[first : first + len(some)] = np.asarray(logits_of(params, frames))[
        : len(some)
      ]
      bar.update(len(some))
  return Looked(logits, features)


def score(
  classifier: files.PathLike,
  folder: files.PathLike,
  out: files.PathLike,
  *,
  labels: files.PathLike | None = None,
  clip_frames: int = clip_list.CLIP_FRAMES,
  runs: int = 8,
  batch: int = 16,
  confidence: float = 0.9,
) -> dict[str, Any]:
  """Writes the table of scores, and returns the figures.

  With ratings, the probabilities are calibrated on the validation split, and
  the figures are also written beside the table, with the ending .json.

  Args:
    classifier: A workdir of the stage classifier, or a saved model.
    folder: The clips.
    out: The Parquet file to write.
    labels: A table of ratings.
    clip_frames: Most frames of a clip.
    runs: Runs of adjacent frames that are read from each clip.
    batch: Clips that are scored at once.
    confidence: Of the decision rule for which figures are stated.

  Returns:
    The content of the JSON file.

  Raises:
    UserError: An input is missing, damaged or does not fit the others.
  """
  target = buckets.disk(out, "--out")
  if target.suffix != ".parquet":
    raise errors.UserError(
      f"--out {target}: give a file that ends in .parquet."
    )
  files.check_writable(target.parent, "--out")
  if target.is_dir():
    raise errors.UserError(f"--out {target} is a folder; give a file.")
  part, fingerprint = trained_models.part(classifier, "classifier")
  manifest = manifest_lib.Manifest.read(folder)
  clips = clip_list.clips(manifest, clip_frames)
  rated: dict[str, int] = {}
  if labels is not None:
    found = ratings.read(labels)
    found.check({clip.id for clip in clips}, labels)
    rated = found.rated
  seen = look(part, manifest, clips, runs=runs, batch=batch)
  wanted = {ratings.GOOD: 1, ratings.BAD: 0}
  label = np.array(
    [wanted.get(rated.get(clip.id, 0), -1) for clip in clips], np.int64
  )
  split = np.array([clip.split for clip in clips])
  source = np.array([clip.source for clip in clips])
  held = (split == "validation") & (label >= 0)
  calibration = clip_figures.Calibration()
  if held.any():
    calibration = clip_figures.calibrate(seen.logits[held], label[held])
  probability = calibration(seen.logits.astype(np.float64))
  report = {
    "schema_version": SCHEMA_VERSION,
    "classifier": fingerprint,
    "clips": manifest.fingerprint,
    "clip_frames": clip_frames,
    "runs": runs,
    "calibration": dataclasses.asdict(calibration),
    "scored_clips": len(clips),
    "scored_frames": sum(clip.length for clip in clips),
    "kept_clips": int((probability >= confidence).sum()),
    "confidence": confidence,
  }
  if labels is not None:
    splits = {}
    for name in manifest.splits:
      chosen = (split == name) & (label >= 0)
      splits[name] = clip_figures.figures(
        probability[chosen], label[chosen], source[chosen], confidence
      )
    testing = (split == "test") & (label >= 0)
    if testing.any():
      splits["test"]["calibration_error_before"] = clip_figures.reliability(
        clip_figures.Calibration()(seen.logits[testing].astype(np.float64)),
        label[testing],
      )[0]
    report["splits"] = splits
    report["baselines"] = clip_figures.baselines(
      seen.features,
      label,
      source,
      (split == "train") & (label >= 0),
      testing,
    )
  _write(target, clips, seen, probability, rated, report)
  if labels is not None:
    files.write_json(target.with_suffix(".json"), report)
  return report


def _write(
  target: pathlib.Path,
  clips: list[clip_list.Clip],
  seen: Looked,
  probability: np.ndarray,
  rated: Mapping[str, int],
  report: Mapping[str, Any],
) -> None:
  """Writes the table, atomically."""
  try:
    import pyarrow
    from pyarrow import parquet
  except ModuleNotFoundError as error:
    raise errors.UserError(
      "A table of scores needs pyarrow; install genie_jax with `pip install "
      "'genie_jax[videos]'`."
    ) from error
  good = probability >= 0.5
  fields = ("split", "shard", "source", "record", "start", "length")
  table = pyarrow.table(
    {
      "clip_id": [clip.id for clip in clips],
      **{name: [getattr(clip, name) for clip in clips] for name in fields},
      "logit": seen.logits,
      "probability": probability,
      "good": good,
      "confidence": np.where(good, probability, 1 - probability),
      **seen.features,
      "rating": pyarrow.array(
        [rated.get(clip.id) for clip in clips], pyarrow.int8()
      ),
    }
  )
  described = {
    name: report[name]
    for name in (
      "schema_version",
      "classifier",
      "clips",
      "clip_frames",
      "calibration",
      "splits",
      "baselines",
    )
    if name in report
  }
  table = table.replace_schema_metadata(
    {clip_list.TABLE_METADATA: json.dumps(described)}
  )
  target.parent.mkdir(parents=True, exist_ok=True)
  temporary = files.temporary_sibling(target)
  try:
    parquet.write_table(table, temporary)
    temporary.replace(target)
  finally:
    temporary.unlink(missing_ok=True)


def summary(report: Mapping[str, Any]) -> str:
  """Returns a few lines about the figures of `score`."""
  total = report["scored_clips"]
  lines = [
    f"{total} clips scored; {report['kept_clips']} "
    f"({100 * report['kept_clips'] / total:.1f} %) are predicted good with a "
    f"confidence of at least {report['confidence']}"
  ]
  calibration = report["calibration"]
  if "splits" in report:
    lines.append(
      f"calibrated on {calibration['clips']} validation clips"
      if calibration["clips"]
      else "not calibrated: the validation split does not have clips rated 5 "
      "and clips rated 1"
    )
    found = report["splits"].get("test", {"clips": 0})
    if not found["clips"]:
      lines.append("not measured: the test split has no clips rated 5 or 1")
      return "\n".join(lines)
    lines.append(
      f"test: {found['good_clips']} good and {found['bad_clips']} bad clips of "
      f"{found['sources']} sources; calibration error "
      f"{found['calibration_error_before']:.3f} before and "
      f"{found['calibration_error']:.3f} after"
    )
    rows = {
      "predicted good": found["good"],
      "kept by the rule": found["kept"],
      **{f"baseline: {k}": v for k, v in report["baselines"].items()},
    }
    for name, row in rows.items():
      lines.append(
        f"  {name}: precision {_shown(row['precision'])}, recall "
        f"{_shown(row['recall'])}"
      )
  return "\n".join(lines)


def _shown(found: Mapping[str, float] | None) -> str:
  if found is None:
    return "none"
  return f"{found['value']:.3f} ({found['low']:.3f} to {found['high']:.3f})"
