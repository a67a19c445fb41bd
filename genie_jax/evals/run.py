"""Evaluates a world with all registered metrics.

Shapes:
  n  clips     T  frames of a clip     A  buttons     F  frames drawn
"""

import dataclasses
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from absl import logging

from genie_jax.core import errors, files, progress
from genie_jax.data import manifest as manifest_lib
from genie_jax.evals import clips as clips_lib
from genie_jax.evals import (
  counterfactuals,
  evaluated_world,
  metric,
  reconstruction,
  registry,
  standard,
)

MIN_LEVELS = 50  # Of the protocol; the report says if there are fewer.
MIN_PATCHES = 200_000


@dataclasses.dataclass(frozen=True)
class Results:
  """The result of `evaluate`.

  Attributes:
    metrics: JSON types only: the headline figures and `details`.
    pictures: Name -> uint8 frames, for the report.
    rows: Rows for the report's table, from the metrics that return some.
  """

  metrics: dict[str, Any]
  pictures: dict[str, np.ndarray]
  rows: tuple[metric.Row, ...] = ()


def evaluate(
  subject: evaluated_world.Subject,
  folder: files.PathLike,
  options: metric.Options,
  *,
  true_actions: evaluated_world.Subject | None = None,
  baseline: evaluated_world.Subject | None = None,
) -> Results:
  """Evaluates a world on held-out clips.

  Args:
    subject: The world.
    folder: A clips folder; baselines use its train split.
    options: How much data to use.
    true_actions: A world trained on true actions, for comparison.
    baseline: Any world, for example an older one, whose tokenizer is compared
      on the same clips.

  Raises:
    UserError: The clips have another shape, or too few levels.
  """
  manifest = manifest_lib.Manifest.read(folder)
  manifest.check({"kind": "clips", "frame_shape": subject.frame_shape})
  if options.num_levels < MIN_LEVELS:
    logging.warning(
      "Only %d levels, but the protocol needs %d; the intervals of this run "
      "are not reliable.",
      options.num_levels,
      MIN_LEVELS,
    )
  if min(options.num_clips, options.num_action_clips) < options.num_levels:
    raise errors.UserError(
      f"{options.num_clips} clips (and {options.num_action_clips} for the "
      f"actions) cannot come from {options.num_levels} levels; give at "
      "least one clip per level."
    )
  if true_actions is not None and (
    true_actions.num_frames != subject.num_frames
  ):
    raise errors.UserError(
      f"The world of true actions was trained on {true_actions.num_frames} "
      f"frames, this one on {subject.num_frames}; compare worlds with the same "
      "config.world.num_frames."
    )
  known = manifest.num_actions is not None
  started = time.monotonic()
  clips = clips_lib.pick(
    folder,
    options.split,
    num_frames=subject.num_frames,
    num_clips=options.num_clips,
    num_levels=options.num_levels,
    with_actions=known,
    seed=options.seed,
  )
  tokens = subject.encode(clips.frames)
  work = metric.Work(
    subject,
    folder,
    manifest,
    options,
    clips,
    tokens,
    subject.decode(tokens),
    _buttons(subject, clips, manifest),
  )
  seconds = {"clips": time.monotonic() - started}
  parts = {
    name: found
    for name in registry.METRICS
    if (found := registry.METRICS.get(name, where="metric")).applies(work)
  }
  details, pictures, headline, rows = {}, {}, {}, ()
  for name, part in progress.track(
    parts.items(), total=len(parts), unit="metrics", description="evaluating"
  ):
    started = time.monotonic()
    found = part.measure(work)
    details[name] = found.details
    pictures.update(found.pictures)
    rows += found.rows
    if taken := set(headline) & set(found.headline):
      raise errors.UserError(
        f"The metric {name!r} gives the headline figure {min(taken)!r}, which "
        "another metric also gives; rename it."
      )
    headline.update(found.headline)
    seconds[name] = time.monotonic() - started
  if true_actions is not None:
    started = time.monotonic()
    details["true_actions"], more = _true_actions(work, true_actions)
    rows += more
    seconds["true_actions"] = time.monotonic() - started
  if baseline is not None:
    details["baseline"], row = _baseline(work, baseline)
    rows += (row,)
  metrics = {
    **_headline(details),
    **headline,
    "eval_seconds": {name: round(s, 2) for name, s in seconds.items()},
    "num_clips": len(clips.frames),
    "num_levels": len(np.unique(clips.levels)),
    "meets_protocol": _meets_protocol(details, clips),
    "actions": "true" if subject.infer is None else "latent",
    "split": options.split,
    "seed": options.seed,
    "sampling": dict(subject.sampling),
    "slide": dict(subject.slide),
    "world_fingerprint": subject.fingerprint,
    "data_fingerprint": manifest.fingerprint,
    "details": _json(details),
  }
  return Results(metrics, pictures, rows)


def _meets_protocol(details: Mapping[str, Any], clips: clips_lib.Clips) -> bool:
  baseline = details["reconstruction"]["kmeans"]
  return bool(
    len(np.unique(clips.levels)) >= MIN_LEVELS
    and baseline["patches"] >= MIN_PATCHES
    and baseline["converged"]
  )


def _headline(details: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the figures by which runs are compared."""
  rebuilt, guessed = details["reconstruction"], details["prediction"]
  control = details["controllability"]
  delta = control["delta_psnr"]["delta"]
  previous = control["delta_previous"]["frames"]["1"]["all_pixels"]["previous"]
  found = {
    "tokenizer_psnr": rebuilt["tokenizer_psnr"].value,
    "centre_psnr": rebuilt["centre_psnr"].value,
    "tokenizer_ssim": rebuilt["tokenizer_ssim"].value,
    "kmeans_psnr": rebuilt["kmeans_psnr"].value,
    "changed_token_accuracy": guessed["tokens"]["changed_world"].value,
    "changed_pixel_psnr": guessed["pixels"]["world"].value,
    "copy_last_frame_changed_pixel_psnr": guessed["pixels"]["copy_last"].value,
    "delta_psnr": delta.value,
    "delta_psnr_low": delta.low,
    "delta_psnr_high": delta.high,
    "delta_previous_psnr": previous.value,
    "delta_previous_psnr_low": previous.low,
    "delta_previous_psnr_high": previous.high,
    "code_usage": details["codebook"]["tokens"]["usage"],
    "code_perplexity": details["codebook"]["tokens"]["perplexity"],
    "min_action_share": None,
    "action_nmi": None,
  }
  if "actions" in details:
    found["min_action_share"] = details["actions"]["codebook"]["min_share"]
    found["action_nmi"] = details["actions"]["nmi"].value
    found["action_nmi_low"] = details["actions"]["nmi"].low
    found["shuffled_nmi_high"] = details["actions"]["shuffled_nmi"].high
  return found


def _json(value: Any) -> Any:
  """Returns `value` with intervals and arrays as JSON types."""
  if dataclasses.is_dataclass(value) and not isinstance(value, type):
    return dataclasses.asdict(value)
  if isinstance(value, Mapping):
    return {name: _json(part) for name, part in value.items()}
  if isinstance(value, np.ndarray):
    return value.tolist()
  return value


def _true_actions(
  work: metric.Work, subject: evaluated_world.Subject
) -> tuple[dict[str, Any], tuple[metric.Row, ...]]:
  """Measures control and prediction of a world trained on true actions."""
  tokens = subject.encode(work.clips.frames)
  work = dataclasses.replace(
    work,
    subject=subject,
    tokens=tokens,
    rebuilt=subject.decode(tokens),
    buttons=_buttons(subject, work.clips, work.manifest),
  )
  controlled = standard.measure_controllability(work).details
  guessed = standard.measure_prediction(work).details
  found = {**controlled, "prediction": guessed}
  compared = counterfactuals.measure(work)
  if not compared.details["measured"]:
    return found, ()
  return {**found, "counterfactuals": compared.details}, tuple(
    dataclasses.replace(row, name=f"{row.name} (world on true actions)")
    for row in compared.rows
  )


def _baseline(
  work: metric.Work, subject: evaluated_world.Subject
) -> tuple[dict[str, Any], metric.Row]:
  """Measures what another world's tokenizer makes of the same clips.

  Its window may have another length; then it encodes the clips in pieces.
  """
  if subject.frame_shape != work.subject.frame_shape:
    raise errors.UserError(
      f"The baseline world has frames of {subject.frame_shape}, this one of "
      f"{work.subject.frame_shape}; give a world of the same size."
    )
  truth, levels = work.clips.frames, work.clips.levels
  rebuilt = evaluated_world.reconstruct(subject, truth)
  centre = reconstruction.centre
  psnr = lambda part: reconstruction.pooled_psnr(
    reconstruction.clip_errors(part(truth), part(rebuilt)),
    levels,
    seed=work.options.seed,
  )
  gain = lambda part: reconstruction.margin(
    reconstruction.clip_errors(part(truth), part(work.rebuilt)),
    reconstruction.clip_errors(part(truth), part(rebuilt)),
    levels,
    seed=work.options.seed,
  )
  whole = lambda frames: frames
  found = {
    "fingerprint": subject.fingerprint,
    "tokenizer_psnr": psnr(whole),
    "centre_psnr": psnr(centre),
    "margin": gain(whole),
    "centre_margin": gain(centre),
  }
  more = found["centre_margin"]
  return found, metric.Row(
    "Middle of the frame, PSNR above the baseline world's tokenizer",
    f"{more.value:+.2f} dB",
    f"{more.low:+.2f} to {more.high:+.2f} dB",
    f"the baseline {found['centre_psnr'].value:.2f} dB; whole frames "
    f"{found['tokenizer_psnr'].value:.2f} dB",
    f"World {subject.fingerprint[:12]}, on the same clips.",
  )


def _buttons(
  subject: evaluated_world.Subject,
  clips: clips_lib.Clips,
  manifest: manifest_lib.Manifest,
) -> np.ndarray:
  return subject.buttons(clips.frames, clips.actions, manifest.action_aliases)
