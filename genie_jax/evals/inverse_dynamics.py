"""A supervised inverse-dynamics model, which reads the pressed key from frames.

The model is used only for evaluation. It is trained on the true keys of the
train split, and answers two questions: how much of the keys can be seen in real
clips (`control`), and whether the frames that a world dreams show the key that
was commanded (`obedience`).

Shapes:
  n  clips     T  frames of a clip     F  frames that are read per transition
  H W C  rows, columns, channels       K  keys     E  classes of keys
  m  transitions of a batch
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from genie_jax.core import errors, files
from genie_jax.data import manifest as manifest_lib
from genie_jax.data import sources
from genie_jax.evals import actions, evaluated_world

# Frames that are read around the transition from frame t to t + 1. They and the
# crop were chosen on validation levels of CoinRun (docs/evaluation.md); the
# other constants were not tuned.
OFFSETS = (-1, 0, 1)
_CROP = 24  # Side of the centre that is read at full resolution, in pixels.
_COARSE = 16  # Side of the coarse picture of the whole frame.
_CHANNELS = (32, 64, 64)
_HIDDEN = 128
_BATCH = 64
_PEAK_RATE = 2e-3
_WEIGHT_DECAY = 1e-3
STEPS = 1000  # About 40 seconds of one CPU core.
_READ_BATCH = 256
_MAX_FRAMES = 32_768  # Of the training clips, 400 MB at 64 x 64 x 3.


class Network(nn.Module):
  """Scores the classes of a key from the frames around its transition.

  Two stacks of convolutions, on the centre at full resolution (where the agent
  is, in games whose camera follows it) and on a coarse picture of the whole
  frame.

  Attributes:
    num_classes: E.
  """

  num_classes: int

  @nn.compact
  def __call__(self, frames: jax.Array) -> jax.Array:
    """Returns logits [m, E] for frames in [0, 1], float32 [m, F, H, W, C]."""
    rows, height, width = frames.shape[0], frames.shape[2], frames.shape[3]
    # The frame before the transition, and how the others differ from it.
    base = frames[:, OFFSETS.index(0)]
    others = [
      4 * (frames[:, i] - base) for i, at in enumerate(OFFSETS) if at != 0
    ]
    x = jnp.concatenate([2 * base - 1, *others], -1)  # [m, H, W, F * C]
    size = min(_CROP, height, width)
    top, left = (height - size) // 2, (width - size) // 2
    centre = x[:, top : top + size, left : left + size]
    factor = max(1, min(height, width) // _COARSE)
    coarse = nn.avg_pool(x, (factor, factor), (factor, factor))
    features = []
    for picture, widths in ((centre, _CHANNELS), (coarse, _CHANNELS[:2])):
      for features_out in widths:
        picture = nn.Conv(features_out, (3, 3), (2, 2))(picture)
        picture = nn.relu(picture)
      features.append(picture.reshape(rows, -1))
    hidden = nn.relu(nn.Dense(_HIDDEN)(jnp.concatenate(features, -1)))
    return nn.Dense(self.num_classes)(hidden)


@dataclasses.dataclass(frozen=True)
class KeyReader:
  """A trained inverse-dynamics model.

  Attributes:
    classify: uint8 frames [m, F, H, W, C] -> float32 [m, E], probabilities.
    batch: m of `classify`.
    answers: Question -> int [E], the label of each class of keys; labels are
      those of `actions.key_labels`.
    steps: Optimizer steps of the training.
    transitions: Different transitions it was trained on.
  """

  classify: Callable[[np.ndarray], np.ndarray]
  batch: int
  answers: Mapping[str, np.ndarray]
  steps: int
  transitions: int

  def read(self, frames: np.ndarray) -> dict[str, np.ndarray]:
    """Reads the keys that were pressed in clips.

    The answer to a question is the label with the largest probability, summed
    over the classes that have it.

    Args:
      frames: uint8 [n, T, H, W, C], T at least 2. Frames outside the clip are
        replaced by its first or last.

    Returns:
      Question -> int64 [n, T-1], labels of `actions.key_labels`.
    """
    count, length = len(frames), frames.shape[1] - 1
    clips, times = np.divmod(np.arange(count * length), length)
    share = evaluated_world.in_batches(
      lambda clips, times: self.classify(_around(frames, clips, times)),
      self.batch,
      clips,
      times,
    )
    found = {}
    for question, labels in self.answers.items():
      table = np.eye(int(labels.max()) + 1)[labels]  # [E, labels]
      found[question] = (share @ table).argmax(-1).reshape(count, length)
    return found


def _around(
  frames: np.ndarray, clips: np.ndarray, times: np.ndarray
) -> np.ndarray:
  """Returns the frames around transitions, [m, F, H, W, C]."""
  at = np.clip(times[:, None] + np.array(OFFSETS), 0, frames.shape[1] - 1)
  return frames[clips[:, None], at]


def fit(
  frames: np.ndarray,
  keys: np.ndarray,
  meanings: Mapping[str, Sequence[int]],
  *,
  steps: int = STEPS,
  seed: int,
) -> KeyReader:
  """Trains an inverse-dynamics model on clips with true keys.

  Keys with equal meanings are one class.

  Args:
    frames: uint8 [n, T, H, W, C] of the train split, T at least 2. Clips that
      are read later should be as long, because frames are missing at the ends
      of a clip.
    keys: int [n, T-1], the key that was pressed in each transition.
    meanings: Question -> value of each key, `made_by["keys"]` of a manifest.
    steps: Optimizer steps, at least 1.
    seed: Seed of parameters and batches; equal seeds give equal models.

  Raises:
    UserError: A key has no meaning.
  """
  labels = actions.key_labels(meanings)
  num_keys = len(next(iter(labels.values())))
  if keys.min() < 0 or keys.max() >= num_keys:
    raise errors.UserError(
      f"The clips contain the actions {keys.min()} to {keys.max()}, but their "
      f"manifest's made_by.keys describes {num_keys}; collect them again with "
      "--states."
    )
  # Columns are the keys; equal ones are one class.
  merged, classes = np.unique(
    np.stack(list(labels.values())), axis=1, return_inverse=True
  )
  targets = classes.ravel()[keys]
  network = Network(merged.shape[1])

  def score(params: Any, windows: jax.Array) -> Any:
    frames = windows.astype(jnp.float32) / 255
    return network.apply({"params": params}, frames)

  shape = (1, len(OFFSETS), *frames.shape[2:])
  params = network.init(jax.random.key(seed), jnp.zeros(shape))["params"]
  optimizer = optax.adamw(
    optax.cosine_onecycle_schedule(max(steps, 2), _PEAK_RATE, pct_start=0.1),
    weight_decay=_WEIGHT_DECAY,
  )

  @functools.partial(jax.jit, donate_argnums=(0, 1))
  def step(params, moments, windows, wanted):
    def loss(params):
      return optax.softmax_cross_entropy_with_integer_labels(
        score(params, windows), wanted
      ).mean()

    updates, moments = optimizer.update(jax.grad(loss)(params), moments, params)
    return optax.apply_updates(params, updates), moments

  rng = np.random.default_rng(seed)
  moments = optimizer.init(params)
  order = np.zeros(0, np.int64)
  for _ in range(steps):
    while len(order) < _BATCH:  # The next pass over all transitions.
      order = np.concatenate([order, rng.permutation(targets.size)])
    rows, order = order[:_BATCH], order[_BATCH:]
    clips, times = np.divmod(rows, targets.shape[1])
    params, moments = step(
      params, moments, _around(frames, clips, times), targets[clips, times]
    )
  trained = params

  @jax.jit
  def classify(windows):
    return nn.softmax(score(trained, windows))

  return KeyReader(
    classify=classify,
    batch=_READ_BATCH,
    answers=dict(zip(labels, merged, strict=True)),
    steps=steps,
    transitions=min(targets.size, steps * _BATCH),
  )


def fit_folder(
  folder: files.PathLike, *, num_frames: int, steps: int = STEPS, seed: int
) -> KeyReader:
  """Trains an inverse-dynamics model on the train split of a clips folder.

  Args:
    folder: Clips that were collected with `--states`.
    num_frames: T of the clips to train on; that of the clips to be read.
    steps: Optimizer steps.
    seed: Seed of the clips, the parameters and the batches.

  Raises:
    UserError: The manifest does not state what keys do, there is no train
      split, or it has no clip of `num_frames`.
  """
  manifest = manifest_lib.Manifest.read(folder)
  if "keys" not in manifest.made_by:
    raise errors.UserError(
      f"{folder} does not state what its keys do (made_by.keys of its "
      "manifest); collect the clips with `genie data procgen --states`."
    )
  source = sources.WindowSource(folder, "train", num_frames)
  rng = np.random.default_rng(seed)
  # No more clips than are read once, and no more than fit in memory.
  most = min(_MAX_FRAMES // num_frames, -(-steps * _BATCH // (num_frames - 1)))
  order = rng.choice(len(source), min(len(source), most), replace=False)
  found = source.gather(np.sort(order))
  return fit(
    found["frames"],
    found["actions"],
    manifest.made_by["keys"],
    steps=steps,
    seed=seed,
  )
