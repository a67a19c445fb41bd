"""Judges a world: every metric of the first protocol, and pictures of it.

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
from genie_jax.evals import (
  actions,
  codebook,
  controllability,
  evaluated_world,
  kmeans,
  prediction,
  reconstruction,
  rollouts,
)
from genie_jax.evals import clips as clips_lib

MIN_LEVELS = 50  # Of the protocol; fewer are reported as not meeting it.
MIN_PATCHES = 200_000


@dataclasses.dataclass(frozen=True)
class Options:
  """How much to judge a world on.

  Attributes:
    split: Held-out split.
    num_clips: Clips for reconstruction, prediction and delta PSNR.
    num_levels: Levels that they come from.
    num_action_clips: Clips for the agreement of actions, which is cheap.
    num_prompts: Prompts on which every button is held.
    num_free: Clips of the free rollouts.
    train_patches: Patches that the k-means baseline is fitted on.
    train_clips: Training clips for the most frequent tokens.
    seed: Of the choice of clips, the draws and the bootstrap.
  """

  split: str = "test"
  num_clips: int = 256
  num_levels: int = 60
  num_action_clips: int = 1024
  num_prompts: int = 8
  num_free: int = 32
  train_patches: int = 204_800
  train_clips: int = 256
  seed: int = 0


@dataclasses.dataclass(frozen=True)
class Results:
  """What `evaluate` found.

  Attributes:
    metrics: JSON types only: the headline figures and `details`.
    pictures: Name -> uint8 frames, for the report.
  """

  metrics: dict[str, Any]
  pictures: dict[str, np.ndarray]


@dataclasses.dataclass
class _Work:
  """What the parts share, each made once."""

  subject: evaluated_world.Subject
  folder: files.PathLike
  manifest: manifest_lib.Manifest
  options: Options
  clips: clips_lib.Clips
  tokens: np.ndarray  # int32 [n, T, h, w]
  rebuilt: np.ndarray  # uint8 [n, T, H, W, C]
  buttons: np.ndarray  # int32 [n, T-1], those really pressed


def evaluate(
  subject: evaluated_world.Subject,
  folder: files.PathLike,
  options: Options,
  *,
  true_actions: evaluated_world.Subject | None = None,
) -> Results:
  """Judges a world on held-out clips.

  Args:
    subject: The world.
    folder: A clips folder; its train split serves the baselines.
    options: How much to judge it on.
    true_actions: A world trained on true actions, for the same tables.

  Raises:
    UserError: The clips have another shape, or too few levels.
  """
  manifest = manifest_lib.Manifest.read(folder)
  manifest.check({"kind": "clips", "frame_shape": subject.frame_shape})
  if options.num_levels < MIN_LEVELS:
    logging.warning(
      "Only %d levels; the protocol asks for %d, and the intervals of this "
      "run are not to be trusted.",
      options.num_levels,
      MIN_LEVELS,
    )
  if min(options.num_clips, options.num_action_clips) < options.num_levels:
    raise errors.UserError(
      f"{options.num_clips} clips (and {options.num_action_clips} for the "
      f"actions) cannot come from {options.num_levels} levels; give at "
      "least one clip a level."
    )
  if true_actions is not None and (
    true_actions.num_frames != subject.num_frames
  ):
    raise errors.UserError(
      f"The world of true actions was trained on {true_actions.num_frames} "
      f"frames, this one on {subject.num_frames}; compare worlds of equal "
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
  work = _Work(
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
    "reconstruction": _reconstruction,
    "codebook": _codebook,
    "actions": _actions,
    "prediction": _prediction,
    "controllability": _controllability,
  }
  if not known or subject.infer is None:
    del parts["actions"]
  details, pictures = {}, {}
  for name, part in progress.track(
    parts.items(), total=len(parts), unit="parts", description="judging"
  ):
    started = time.monotonic()
    details[name], found = part(work)
    pictures.update(found)
    seconds[name] = time.monotonic() - started
  if true_actions is not None:
    started = time.monotonic()
    details["true_actions"] = _true_actions(work, true_actions)
    seconds["true_actions"] = time.monotonic() - started
  metrics = {
    **_headline(details),
    "eval_seconds": {name: round(s, 2) for name, s in seconds.items()},
    "num_clips": len(clips.frames),
    "num_levels": len(np.unique(clips.levels)),
    "meets_protocol": _meets_protocol(details, clips),
    "actions": "true" if subject.infer is None else "latent",
    "split": options.split,
    "seed": options.seed,
    "sampling": dict(subject.sampling),
    "world_fingerprint": subject.fingerprint,
    "data_fingerprint": manifest.fingerprint,
    "details": _json(details),
  }
  return Results(metrics, pictures)


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
  delta = details["controllability"]["delta_psnr"]["delta"]
  found = {
    "tokenizer_psnr": rebuilt["tokenizer_psnr"].value,
    "tokenizer_ssim": rebuilt["tokenizer_ssim"].value,
    "kmeans_psnr": rebuilt["kmeans_psnr"].value,
    "changed_token_accuracy": guessed["tokens"]["changed_world"].value,
    "changed_pixel_psnr": guessed["pixels"]["world"].value,
    "copy_last_frame_changed_pixel_psnr": guessed["pixels"]["copy_last"].value,
    "delta_psnr": delta.value,
    "delta_psnr_low": delta.low,
    "delta_psnr_high": delta.high,
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
  if dataclasses.is_dataclass(value):
    return dataclasses.asdict(value)
  if isinstance(value, Mapping):
    return {name: _json(part) for name, part in value.items()}
  if isinstance(value, np.ndarray):
    return value.tolist()
  return value


def _reconstruction(work: _Work):
  """Tokenizer and k-means at equal bits a frame, on the same frames."""
  options, subject, truth = work.options, work.subject, work.clips.frames
  levels, seed = work.clips.levels, options.seed
  per_frame = work.tokens[0, 0].size
  # Twice the frames, each giving half its patches: more levels and moments.
  frames = clips_lib.random_clips(
    work.folder,
    "train",
    num_frames=1,
    seed=seed,
    num_clips=2 * -(-options.train_patches // per_frame),
  )[:, 0]
  patches = kmeans.to_patches(frames, subject.token_patch)
  patches = np.random.default_rng(seed).permutation(patches)[
    : options.train_patches
  ]
  fitted = kmeans.fit(patches, subject.num_codes, seed)
  baseline = kmeans.reconstruct(
    truth.reshape(-1, *truth.shape[2:]), subject.token_patch, fitted.centres
  ).reshape(truth.shape)
  errors = reconstruction.clip_errors(truth, work.rebuilt)
  base_errors = reconstruction.clip_errors(truth, baseline)
  details = {
    "tokenizer_psnr": reconstruction.pooled_psnr(errors, levels, seed=seed),
    "kmeans_psnr": reconstruction.pooled_psnr(base_errors, levels, seed=seed),
    "margin": reconstruction.margin(errors, base_errors, levels, seed=seed),
    "tokenizer_ssim": reconstruction.ssim(
      truth, work.rebuilt, levels, seed=seed
    ),
    "kmeans_ssim": reconstruction.ssim(truth, baseline, levels, seed=seed),
    "bits_per_frame": float(per_frame * np.log2(subject.num_codes)),
    "kmeans": {
      "patches": len(patches),
      "iterations": fitted.iterations,
      "converged": fitted.converged,
      "inertia": fitted.inertia,
      "centres": len(fitted.centres),
    },
  }
  shown = slice(0, 8)  # Clips come in turns from the levels: eight levels.
  middle = truth.shape[1] // 2
  return details, {
    "rebuilt_truth": truth[shown, middle],
    "rebuilt_tokenizer": work.rebuilt[shown, middle],
    "rebuilt_kmeans": baseline[shown, middle],
  }


def _codebook(work: _Work):
  counts = codebook.counts(work.tokens, work.subject.num_codes)
  return {"tokens": codebook.summary(counts), "token_counts": counts}, {}


def _actions(work: _Work):
  """Latent against true actions, on more clips: the LAM is cheap."""
  options, subject = work.options, work.subject
  clips = clips_lib.pick(
    work.folder,
    options.split,
    num_frames=subject.num_frames,
    num_clips=options.num_action_clips,
    num_levels=options.num_levels,
    with_actions=True,
    seed=options.seed,
  )
  latent = subject.infer(clips.frames)
  found = actions.agreement(
    latent.ravel(),
    clips.actions.ravel(),
    np.repeat(clips.levels, latent.shape[1]),
    subject.num_buttons,
    aliases=work.manifest.action_aliases,
    seed=options.seed,
  )
  counts = codebook.counts(latent, subject.num_buttons)
  return {
    "codebook": codebook.summary(counts),
    "nmi": found.nmi,
    "shuffled_nmi": found.shuffled_nmi,
    "purity": found.purity,
    "majority": found.majority,
    "table": found.table,
    "true_actions": list(found.true_actions),
  }, {}


def _prediction(work: _Work):
  """The last frame of each clip, given the true ones before it."""
  options, subject, clips = work.options, work.subject, work.clips
  drawn = subject.next_frame(work.tokens, work.buttons, options.seed)
  shown = subject.decode(
    np.concatenate([work.tokens[:, :-1], drawn[:, None]], 1)
  )[:, -1]
  train = clips_lib.random_clips(
    work.folder,
    "train",
    num_frames=subject.num_frames,
    num_clips=options.train_clips,
    seed=options.seed,
  )
  frequent = prediction.most_frequent(subject.encode(train), subject.num_codes)
  details = {
    "tokens": prediction.token_scores(
      drawn,
      work.tokens[:, -1],
      work.tokens[:, -2],
      frequent,
      clips.levels,
      seed=options.seed,
    ),
    "pixels": prediction.pixel_scores(
      shown,
      clips.frames[:, -1],
      clips.frames[:, -2],
      work.rebuilt[:, -1],
      clips.levels,
      seed=options.seed,
    ),
  }
  count = slice(0, 8)
  return details, {
    "next_last": clips.frames[count, -2],
    "next_truth": clips.frames[count, -1],
    "next_world": shown[count],
  }


def _controllability(work: _Work):
  options, subject, clips = work.options, work.subject, work.clips
  prompts = work.tokens[:, :1]
  choices = subject.choices(work.manifest.action_aliases)
  delta = rollouts.delta(
    subject,
    prompts,
    clips.frames,
    work.buttons,
    choices,
    clips.levels,
    seed=options.seed,
  )
  held, held_frames, followed = rollouts.hold(
    subject,
    prompts[: options.num_prompts],
    choices,
    work.buttons[: options.num_prompts][:4],
    seed=options.seed,
  )
  free, free_frames = rollouts.free(
    subject, prompts[: options.num_free], choices, seed=options.seed
  )
  count = options.num_free
  details = {
    "delta_psnr": delta,
    "held": held,
    "liveliness": {
      "free_rollouts": free,
      "real_clips": controllability.liveliness(
        clips.frames[:count], work.tokens[:count], subject.num_codes
      ),
      "tokenizer": controllability.liveliness(
        work.rebuilt[:count], work.tokens[:count], subject.num_codes
      ),
    },
  }
  return details, {
    "rollout_truth": clips.frames[: len(followed)],
    "rollout_world": followed,
    "held": held_frames[:, 0],
    "free": free_frames[:8],
  }


def _true_actions(work: _Work, subject: evaluated_world.Subject):
  """The same controllability of a world trained on true actions."""
  tokens = subject.encode(work.clips.frames)
  work = dataclasses.replace(
    work,
    subject=subject,
    tokens=tokens,
    rebuilt=subject.decode(tokens),
    buttons=_buttons(subject, work.clips, work.manifest),
  )
  controlled, _ = _controllability(work)
  guessed, _ = _prediction(work)
  return {**controlled, "prediction": guessed}


def _buttons(
  subject: evaluated_world.Subject,
  clips: clips_lib.Clips,
  manifest: manifest_lib.Manifest,
) -> np.ndarray:
  return subject.buttons(clips.frames, clips.actions, manifest.action_aliases)
