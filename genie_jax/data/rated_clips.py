"""Rated clips as training data of a classifier of good and bad clips.

Genie, appendix B.1: clips that were rated 5 are good, those rated 1 are bad,
and those between are left out.

Shapes:
  T  frames that are read from a clip     H W C  rows, columns, channels
  n  elements gathered by one call
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from absl import logging

from genie_jax.core import config, errors, files
from genie_jax.data import clip_list, ratings, sources
from genie_jax.data import manifest as manifest_lib


class RatedClips(sources.Source):
  """The clips of a split that were rated 5 or 1.

  Elements: {"frames": uint8 [T, H, W, C] (runs of adjacent frames that are
  spread over the clip, see `clip_list.run_places`), "labels": int32, 1 for
  good and 0 for bad, "source": int32}.

  Args:
    folder: A clips folder.
    labels: A table of ratings, see `ratings`.
    split: "train", "validation" or "test". Splits are disjoint by source.
    num_frames: T, a multiple of `run`.
    clip_frames: Most frames of a clip, as they were rated.
    run: Frames of a run, 2 or more.
    shifts: Each clip is this many elements, with runs at other places.
    balance: Whether clips of the rarer class are repeated until both classes
      have nearly the same number of elements.

  Raises:
    UserError: There is no such folder, table or split, T is not a multiple of
      `run`, or the split does not have clips of both classes.
  """

  def __init__(
    self,
    folder: files.PathLike,
    labels: files.PathLike,
    split: str,
    num_frames: int,
    *,
    clip_frames: int = clip_list.CLIP_FRAMES,
    run: int = 2,
    shifts: int = 1,
    balance: bool = False,
  ):
    if run < 2 or num_frames < run or num_frames % run or shifts < 1:
      raise errors.UserError(
        f"config.data has num_frames={num_frames} and shifts={shifts}; frames "
        f"are read in runs of {run}, so give a multiple of {run}, and at least "
        "1 shift."
      )
    manifest = manifest_lib.Manifest.read(folder)
    found = ratings.read(labels)
    if found.torn:
      logging.warning("%s ends within a line, which is ignored.", labels)
    every = clip_list.clips(manifest, clip_frames)
    if unknown := found.check({clip.id for clip in every}, labels):
      logging.warning(
        "%d of %d rated clips of %s are not in %s.",
        unknown,
        len(found),
        labels,
        folder,
      )
    if split not in manifest.splits:
      manifest.shards(split)  # Raises, and names the splits.
    rated, wanted = found.rated, (ratings.BAD, ratings.GOOD)
    chosen = [
      (clip, wanted.index(rated[clip.id]))
      for clip in every
      if rated.get(clip.id) in wanted
    ]
    mine = [pair for pair in chosen if pair[0].split == split]
    counts = [sum(label == name for _, label in mine) for name in (0, 1)]
    if not all(counts):
      raise errors.UserError(
        f"Split {split!r} of {folder} has {counts[1]} clips rated 5 and "
        f"{counts[0]} rated 1 in {labels}; rate more clips until it has both."
      )
    self.num_good, self.num_bad = counts[1], counts[0]
    self._elements = _balanced(mine) if balance else mine
    self._num_frames, self._run, self._shifts = num_frames, run, shifts
    self._reader = clip_list.Reader(manifest)
    self._shape = manifest.frame_shape
    used = [[clip.id, label] for clip, label in chosen]
    # Of the ratings only what is used counts, so that rows that do not change
    # it do not forbid to resume a run.
    self.manifest = dataclasses.replace(
      manifest,
      made_by={
        **manifest.made_by,
        "labels": config.fingerprint({"labels": used}),
      },
    )

  def __len__(self) -> int:
    return len(self._elements) * self._shifts

  def gather(self, indices: Sequence[int] | np.ndarray) -> sources.Batch:
    """Returns stacked elements, with a first axis n."""
    shape = (len(indices), self._num_frames, *self._shape)
    out: sources.Batch = {
      "frames": np.empty(shape, np.uint8),
      "labels": np.empty(len(indices), np.int32),
      "source": np.empty(len(indices), np.int32),
    }
    for row, index in enumerate(indices):
      if not 0 <= index < len(self):
        raise IndexError(f"Element {index} of {len(self)}.")
      clip, label = self._elements[int(index) // self._shifts]
      places = clip_list.run_places(
        clip.length,
        self._num_frames // self._run,
        int(index) % self._shifts,
        self._shifts,
        size=self._run,
      )
      out["frames"][row] = self._reader.frames(clip, places)
      out["labels"][row], out["source"][row] = label, clip.source
    return out


def _balanced(
  elements: list[tuple[clip_list.Clip, int]],
) -> list[tuple[clip_list.Clip, int]]:
  """Repeats the elements of the rarer class."""
  of = [[each for each in elements if each[1] == label] for label in (0, 1)]
  few, many = sorted(of, key=len)
  extra = len(many) - len(few)
  return elements + [few[number % len(few)] for number in range(extra)]
