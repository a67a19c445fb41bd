"""The metrics of the protocol, computed on the clips of one evaluation.

Shapes:
  n  clips     T  frames of a clip     A  buttons     F  frames drawn
"""

import numpy as np

from genie_jax.evals import (
  actions,
  codebook,
  controllability,
  intervals,
  kmeans,
  metric,
  prediction,
  reconstruction,
  rollouts,
)
from genie_jax.evals import clips as clips_lib


def _centre_errors(truth: np.ndarray, drawn: np.ndarray) -> np.ndarray:
  return reconstruction.clip_errors(
    reconstruction.centre(truth), reconstruction.centre(drawn)
  )


def measure_reconstruction(work: metric.Work) -> metric.Result:
  """Compares tokenizer and k-means at equal bits per frame."""
  options, subject, truth = work.options, work.subject, work.clips.frames
  levels, seed = work.clips.levels, options.seed
  per_frame = work.tokens[0, 0].size
  # Half the patches of twice as many frames, for more levels and moments.
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
    "centre_psnr": reconstruction.pooled_psnr(
      _centre_errors(truth, work.rebuilt), levels, seed=seed
    ),
    "kmeans_centre_psnr": reconstruction.pooled_psnr(
      _centre_errors(truth, baseline), levels, seed=seed
    ),
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
  shown = slice(0, 8)  # Levels take turns, so these are of eight levels.
  middle = truth.shape[1] // 2
  return metric.Result(
    details,
    pictures={
      "rebuilt_truth": truth[shown, middle],
      "rebuilt_tokenizer": work.rebuilt[shown, middle],
      "rebuilt_kmeans": baseline[shown, middle],
    },
  )


def measure_codebook(work: metric.Work) -> metric.Result:
  """Counts how often the clips use each of the tokenizer's codes."""
  counts = codebook.counts(work.tokens, work.subject.num_codes)
  return metric.Result(
    {"tokens": codebook.summary(counts), "token_counts": counts}
  )


def measure_actions(work: metric.Work) -> metric.Result:
  """Compares latent with true actions, on more clips as the LAM is cheap."""
  options, subject = work.options, work.subject
  clips = metric.pick_action_clips(work)
  # `registry` leaves this metric out if either kind of action is missing.
  assert subject.infer is not None and clips.actions is not None
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
  return metric.Result(
    {
      "codebook": codebook.summary(counts),
      "nmi": found.nmi,
      "shuffled_nmi": found.shuffled_nmi,
      "purity": found.purity,
      "majority": found.majority,
      "table": found.table,
      "true_actions": list(found.true_actions),
    }
  )


def measure_prediction(work: metric.Work) -> metric.Result:
  """Predicts the last frame of each clip from the true frames before it."""
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
  return metric.Result(
    details,
    pictures={
      "next_last": clips.frames[count, -2],
      "next_truth": clips.frames[count, -1],
      "next_world": shown[count],
    },
  )


def measure_controllability(work: metric.Work) -> metric.Result:
  """Measures delta PSNR, the effect of held buttons, and free rollouts."""
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
  previous = rollouts.delta_previous(
    subject,
    work.tokens,
    clips.frames,
    work.rebuilt,
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
  t = controllability.DELTA_FRAME
  details = {
    "delta_psnr": delta,
    # The mean PSNR of a perfect prediction, as its tokens are decoded.
    "delta_ceiling": intervals.ratio(
      reconstruction.psnr(
        reconstruction.clip_errors(clips.frames[:, t], work.rebuilt[:, t])
      ),
      np.ones(len(clips.frames)),
      clips.levels,
      seed=options.seed,
    ),
    "delta_previous": previous,
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
    "late_motion": controllability.late_motion(
      free_frames, clips.frames[:count], clips.levels[:count], seed=options.seed
    ),
  }
  return metric.Result(
    details,
    pictures={
      "rollout_truth": clips.frames[: len(followed)],
      "rollout_world": followed,
      "held": held_frames[:, 0],
      "free": free_frames[:8],
    },
  )
