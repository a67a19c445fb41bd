"""How far long rollouts move away from the real game.

Free rollouts with random buttons are compared with real clips of the same
levels at the same distance from their first frame. Every figure is a sum over
levels, given relative to that of the real clips, so 1 means "like the game".
The same figures of four other sequences show what a figure is worth:

  tokenizer    the real clips after the tokenizer, the ceiling of a world
  frozen       the first frame for ever: it keeps palette, tokens and hero
  other level  a real clip of another level: it moves, but it is elsewhere

No figure looks at what follows what, so real frames of the level in random
order would pass; motion in `controllability` and delta PSNR see that.

Shapes:
  L  levels     t  frames after the first one     S  the last frames up to t
  V  codes      K  reference frames of a level    Q  quantiles
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from genie_jax.evals import codebook, identity, intervals, long_clips, metric

HORIZONS = (16, 64, 160)
SPAN = metric.DRIFT_SPAN  # S; figures after t frames are of S frames up to t.
REFERENCES = 8  # Windows of a level's other frames.
RARE_SHARE = 0.01  # The rarest codes, which make up this share of real tokens.
_CROP = 4  # The hero's crop has a quarter of the frame's height and width.
_MOST = 100.0  # Ratios are limited to this; the real figure may be 0.
ROWS = ("world", "tokenizer", "frozen", "other_level")

FIGURES = {
  "palette": "colours: distance to the nearest frame of the level",
  "palette_from_first": "colours: distance to the first frame",
  "tokens": "tokens: divergence from the level's",
  "rare_tokens": "tokens: share of those that are rare in the game",
  "hero": "centre: distance to the nearest centre of the level",
  "hero_detail": "centre: local contrast",
  "motion": "change from frame to frame",
}
# Distances to the level: less than that of real clips is no fault. Of the other
# figures, too little is as wrong as too much.
DISTANCES = ("palette", "tokens", "hero")
# Rare tokens are few, so their ratio is noisy; `tokens` contains them.
LIKENESS_OF = tuple(name for name in FIGURES if name != "rare_tokens")


@dataclasses.dataclass(frozen=True)
class Stretch:
  """The last frames of one sequence, and its first frame.

  Attributes:
    first: uint8 [H, W, C], the frame that it began with, after the tokenizer if
      the others are, too.
    frames: uint8 [S + 1, H, W, C]; the first one is only needed for motion.
    tokens: int [S, h, w].
  """

  first: np.ndarray
  frames: np.ndarray
  tokens: np.ndarray


@dataclasses.dataclass(frozen=True)
class Level:
  """What real frames of a level look like.

  Attributes:
    palettes: float [K, C, Q].
    crops: float [K, h', w', C], centres of frames.
    token_counts: int [V].
    rare: bool [V], the codes that are rare in all levels together.
  """

  palettes: np.ndarray
  crops: np.ndarray
  token_counts: np.ndarray
  rare: np.ndarray


def centre(frames: np.ndarray) -> np.ndarray:
  """Returns the middle quarter of height and width, float [n, h', w', C].

  In procgen's platformers the camera follows the hero, who is there.

  Args:
    frames: uint8 [n, H, W, C].
  """
  height, width = frames.shape[1:3]
  tall, wide = max(height // _CROP, 2), max(width // _CROP, 2)
  top, left = (height - tall) // 2, (width - wide) // 2
  return frames[:, top : top + tall, left : left + wide].astype(np.float64)


def rare_codes(counts: np.ndarray) -> np.ndarray:
  """Returns the rarest codes, which together make up `RARE_SHARE`, bool [V].

  Args:
    counts: int [V], how often each code occurs in real frames.
  """
  order = np.argsort(counts, kind="stable")
  within = np.cumsum(counts[order]) <= RARE_SHARE * counts.sum()
  rare = np.zeros(len(counts), bool)
  rare[order[within]] = True
  return rare


def divergence(first: np.ndarray, second: np.ndarray) -> float:
  """Returns the Jensen-Shannon divergence of two histograms, 0 to 1 bit.

  Args:
    first: Counts [V], not all 0.
    second: Counts [V], not all 0.
  """
  p, q = first / first.sum(), second / second.sum()
  return float(
    codebook.entropy((p + q) / 2)
    - (codebook.entropy(p) + codebook.entropy(q)) / 2
  )


def describe(frames: np.ndarray, tokens: np.ndarray, rare: np.ndarray) -> Level:
  """Returns what real frames of a level look like.

  Args:
    frames: uint8 [K, H, W, C].
    tokens: int, tokens of frames of the level.
    rare: bool [V].
  """
  counts = codebook.counts(tokens, len(rare))
  return Level(identity.palette(frames), centre(frames), counts, rare)


def figures(found: Stretch, level: Level) -> dict[str, float]:
  """Returns the `FIGURES` of one sequence.

  Args:
    found: Its last frames.
    level: The level that it should look like.
  """
  frames = found.frames[1:]
  colours, crops = identity.palette(frames), centre(frames)
  apart = np.abs(colours[:, None] - level.palettes).mean((2, 3))  # [S, K]
  squared = np.square(crops[:, None] - level.crops).mean((2, 3, 4))  # [S, K]
  contrast = [np.abs(np.diff(crops, axis=axis)).mean() for axis in (1, 2)]
  change = np.diff(found.frames.astype(np.float32), axis=0)
  return {
    "palette": float(apart.min(1).mean()),
    "palette_from_first": float(
      np.abs(colours - identity.palette(found.first[None])).mean()
    ),
    "tokens": divergence(
      codebook.counts(found.tokens, len(level.rare)), level.token_counts
    ),
    "rare_tokens": float(level.rare[found.tokens].mean()),
    "hero": float(np.sqrt(squared.min(1)).mean()),
    "hero_detail": float(np.mean(contrast)),
    "motion": float(np.abs(change).mean(dtype=np.float64)),
  }


def compare(
  values: Mapping[str, Mapping[str, np.ndarray]], *, seed: int
) -> dict[str, Any]:
  """Compares the figures of sequences with those of real clips.

  Args:
    values: Row ("real" and `ROWS`) -> figure -> [L], one of each level.
    seed: Seed of the bootstrap over levels.

  Returns:
    `values`, figure -> row -> the mean over levels; `ratios`, figure -> row ->
    Interval of the sum relative to the real clips'; `likeness`, row ->
    Interval of the geometric mean over the figures of `LIKENESS_OF` of these
    ratios, or of their inverses if they are above 1 (ratios of `DISTANCES`
    below 1 count as 1): 1 if all equal the game's, 0 if one is missing.
  """
  sums = {
    f"{row} {name}": part
    for row, parts in values.items()
    for name, part in parts.items()
  }

  def ratio(row, name):
    def divide(s):
      ours, real = s[f"{row} {name}"], s[f"real {name}"]
      found = np.minimum(ours / np.maximum(real, 1e-12), _MOST)
      return np.where((ours == 0) & (real == 0), 1.0, found)

    return divide

  def likeness(row):
    def mean(s):
      alike = []
      for name in LIKENESS_OF:
        found = ratio(row, name)(s)
        less = 1.0 if name in DISTANCES else found
        alike.append(np.minimum(less, 1 / np.maximum(found, 1e-12)))
      return np.minimum(np.prod(alike, 0), 1.0) ** (1 / len(alike))

    return mean

  interval = lambda f: intervals.bootstrap(f, sums, seed=seed)
  return {
    "values": {
      name: {row: float(np.mean(parts[name])) for row, parts in values.items()}
      for name in FIGURES
    },
    "ratios": {
      name: {row: interval(ratio(row, name)) for row in ROWS}
      for name in FIGURES
    },
    "likeness": {row: interval(likeness(row)) for row in ROWS},
  }


def horizons(frames: int) -> tuple[int, ...]:
  """Returns after how many frames a rollout of `frames` frames is judged."""
  return (*(t for t in HORIZONS if t < frames), frames)


def measure(work: metric.Work) -> metric.Result:
  """Plays long free rollouts and compares them with real clips.

  Raises:
    UserError: The clips have too few levels, or they are too short.
  """
  subject, options = work.subject, work.options
  after = horizons(options.drift_frames)
  clips = long_clips.pick(
    work.folder,
    options.split,
    lengths=[t + 1 for t in after],
    window=subject.num_frames,
    num_references=REFERENCES,
    num_levels=options.drift_levels,
    seed=options.seed,
  )
  count = len(clips.levels)
  references = clips.references
  seen = subject.encode(references.reshape(-1, *references.shape[2:]))
  seen = seen.reshape(*references.shape[:2], *seen.shape[1:])
  rare = rare_codes(codebook.counts(seen, subject.num_codes))
  levels = [
    describe(shown.reshape(-1, *shown.shape[2:]), tokens, rare)
    for shown, tokens in zip(references, seen, strict=True)
  ]
  real_tokens = _encode(work, clips.frames)
  buttons = np.random.default_rng(options.seed + 3).choice(
    subject.choices(work.manifest.action_aliases), (count, after[-1])
  )
  drawn = subject.rollout(
    real_tokens[:, :1],
    buttons.astype(np.int32),
    np.arange(count, dtype=np.int32),
    options.seed + 3,
  )
  found, shown, kept = {}, {}, {}
  firsts = subject.decode(real_tokens[:, :1])[:, 0]
  for t in after:
    # A frame is decoded with the T - 1 frames before it.
    piece = slice(max(0, t - SPAN - subject.num_frames + 1), t + 1)
    rebuilt = subject.decode(real_tokens[:, piece])[:, -SPAN - 1 :]
    world = subject.decode(drawn[:, piece])[:, -SPAN - 1 :]
    shown[t] = world[:, -1]
    there = np.flatnonzero(clips.lengths > t)
    kept[t] = _identity(
      firsts, world[:, 1:], rebuilt[:, 1:], there, clips.levels, options.seed
    )
    if len(there) < 2:  # No interval, and no other level.
      continue
    last = slice(t - SPAN, t + 1)
    others = dict(zip(there, np.roll(there, 1), strict=True))
    still = lambda x: np.repeat(x[None], SPAN + 1, 0)
    values = {row: {name: [] for name in FIGURES} for row in ("real", *ROWS)}
    for n in there:
      tokens, first = real_tokens[n, last][1:], clips.frames[n, 0]
      other = others[n]
      stretches = {
        "real": Stretch(first, clips.frames[n, last], tokens),
        "world": Stretch(firsts[n], world[n], drawn[n, last][1:]),
        "tokenizer": Stretch(firsts[n], rebuilt[n], tokens),
        "frozen": Stretch(
          firsts[n], still(firsts[n]), still(real_tokens[n, 0])[1:]
        ),
        "other_level": Stretch(
          first, clips.frames[other, last], real_tokens[other, last][1:]
        ),
      }
      for row, stretch in stretches.items():
        for name, value in figures(stretch, levels[n]).items():
          values[row][name].append(value)
    found[str(t)] = {
      "levels": len(there),
      **compare(
        {
          row: {name: np.array(part) for name, part in parts.items()}
          for row, parts in values.items()
        },
        seed=options.seed,
      ),
    }
  return _result(clips, after, found, shown, firsts, kept)


def _identity(firsts, world, rebuilt, there, levels, seed) -> dict[str, Any]:
  """Returns how often players keep their colours, as intervals.

  "tokenizer" is of the real clips `there`, None if there are fewer than two.
  """

  def share(rows, ends):
    found = identity.kept(firsts[rows], ends[rows])
    return intervals.ratio(found, np.ones(len(rows)), levels[rows], seed=seed)

  everyone = np.arange(len(levels))
  return {
    "levels": len(levels),
    "world": share(everyone, world),
    "tokenizer": share(there, rebuilt) if len(there) > 1 else None,
  }


def _encode(work: metric.Work, frames: np.ndarray) -> np.ndarray:
  """Encodes long clips [L, F + 1, H, W, C] in pieces of T frames."""
  window, (count, length) = work.subject.num_frames, frames.shape[:2]
  missing = -length % window
  frames = np.concatenate([frames, frames[:, -1:].repeat(missing, 1)], 1)
  tokens = work.subject.encode(frames.reshape(-1, window, *frames.shape[2:]))
  return tokens.reshape(count, -1, *tokens.shape[2:])[:, :length]


def _result(
  clips: long_clips.LongClips,
  after: Sequence[int],
  found: Mapping[str, Any],
  shown: Mapping[int, np.ndarray],
  firsts: np.ndarray,
  colours: Mapping[int, Mapping[str, Any]],
) -> metric.Result:
  details = {
    "frames": after[-1],
    "levels": len(clips.levels),
    "real_lengths": clips.lengths,
    "reference_frames": clips.references.shape[1] * clips.references.shape[2],
    "span": SPAN,
    "horizons": found,
    "identity": {str(t): part for t, part in colours.items()},
  }
  last = colours[after[-1]]["world"]
  identity_figures = {
    "palette_share": last.value,
    "palette_share_low": last.low,
  }
  headline, rows = {}, [_identity_row(t, part) for t, part in colours.items()]
  for t, part in found.items():
    likeness = part["likeness"]
    world = likeness["world"]
    rows.append(
      metric.Row(
        f"Long rollouts, likeness after {t} frames",
        f"{world.value:.3f}",
        f"{world.low:.3f} to {world.high:.3f}",
        f"frozen {likeness['frozen'].value:.3f}, another level "
        f"{likeness['other_level'].value:.3f}, tokenizer "
        f"{likeness['tokenizer'].value:.3f}",
        f"1 if colours, tokens, centre and motion equal the game's; "
        f"{part['levels']} levels.",
      )
    )
    headline = {
      "drift_frames": int(t),
      "drift_likeness": world.value,
      "drift_likeness_low": world.low,
      "drift_likeness_high": world.high,
    }
  # Real frames are shown as far as they exist.
  kept = slice(0, 4)
  return metric.Result(
    details,
    {**headline, **identity_figures},
    tuple(rows),
    {
      "drift_world": np.stack(
        [firsts[kept], *(shown[t][kept] for t in after)], 1
      ),
      "drift_real": clips.frames[kept][:, [0, *after]],
    },
  )


def _identity_row(t: int, found: Mapping[str, Any]) -> metric.Row:
  world, rebuilt = found["world"], found["tokenizer"]
  return metric.Row(
    f"Long rollouts, the player's own colours after {t} frames",
    f"{100 * world.value:.0f} %",
    f"{100 * world.low:.0f} to {100 * world.high:.0f} %",
    "chance 50 %, frozen 100 %"
    + (
      f", the game after the tokenizer {100 * rebuilt.value:.0f} %"
      if rebuilt is not None
      else ""
    ),
    "Nearer to those of his own start than to those of a level in which the "
    f"player looks different; {found['levels']} levels.",
  )


def applies(work: metric.Work) -> bool:
  """Returns whether long rollouts are asked for."""
  return work.options.drift_frames > 0
