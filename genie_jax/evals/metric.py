"""The interface of metrics, functions from a world and clips to figures.

Shapes:
  n  clips     T  frames of a clip
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from genie_jax.core import errors, files
from genie_jax.data import manifest as manifest_lib
from genie_jax.evals import clips as clips_lib
from genie_jax.evals import evaluated_world, inverse_dynamics

# Figures of drift are means over so many frames.
DRIFT_SPAN = 8


@dataclasses.dataclass(frozen=True)
class Options:
  """How much data an evaluation uses.

  Attributes:
    split: Held-out split.
    num_clips: Clips for reconstruction, prediction and delta PSNR.
    num_levels: Levels that the clips come from.
    num_action_clips: Clips for the agreement of actions, which is cheap.
    num_prompts: Prompts from which each button is held.
    num_free: Clips of the free rollouts.
    drift_frames: Frames of the long rollouts that measure drift; 0 to leave
      them out.
    drift_levels: Levels of these rollouts, one of each.
    train_patches: Patches that the k-means baseline is fitted on.
    train_clips: Training clips for the most frequent tokens.
    fvd: Whether to measure the Frechet video distance, which takes minutes.
    fvd_clips: Clips of each set that it compares.
    i3d: File with the weights of its network; by default they are downloaded.
    num_idm_clips: Clips whose keys are read from dreamt frames.
    idm_steps: Optimizer steps of the inverse-dynamics model; 0 leaves out
      what it measures.
    num_moments: Most moments in which the world is compared with the game.
    counterfactuals: Folder of these moments; None for `counterfactuals` in the
      clips folder, if there is one.
    seed: Of the choice of clips, the draws and the bootstrap.

  Raises:
    UserError: There are too few frames or levels to measure drift.
  """

  split: str = "test"
  num_clips: int = 256
  num_levels: int = 60
  num_action_clips: int = 1024
  num_prompts: int = 8
  num_free: int = 32
  drift_frames: int = 0
  drift_levels: int = 16
  train_patches: int = 204_800
  train_clips: int = 256
  fvd: bool = False
  fvd_clips: int = 256
  i3d: files.PathLike | None = None
  num_idm_clips: int = 120
  idm_steps: int = inverse_dynamics.STEPS
  num_moments: int = 128
  counterfactuals: str | None = None
  seed: int = 0

  def __post_init__(self):
    if self.drift_frames != 0 and self.drift_frames < DRIFT_SPAN:
      raise errors.UserError(
        f"--drift-frames is {self.drift_frames}; give 0 to leave drift out, or "
        f"at least {DRIFT_SPAN} frames."
      )
    if self.drift_levels < 2:
      raise errors.UserError(
        f"--drift-levels is {self.drift_levels}; give at least 2, because real "
        "clips of another level are a baseline."
      )


@dataclasses.dataclass
class Work:
  """Data that all metrics of one evaluation share, each computed once.

  Attributes:
    subject: The world.
    folder: The clips folder.
    manifest: Its manifest.
    options: How much data to use.
    clips: Held-out clips.
    tokens: int32 [n, T, h, w], the clips' tokens.
    rebuilt: uint8 [n, T, H, W, C], the clips decoded from their tokens.
    buttons: int32 [n, T-1], the buttons that the clips were recorded with:
      latent actions inferred from the frames, or true actions.
  """

  subject: evaluated_world.Subject
  folder: files.PathLike
  manifest: manifest_lib.Manifest
  options: Options
  clips: clips_lib.Clips
  tokens: np.ndarray
  rebuilt: np.ndarray
  buttons: np.ndarray

  @functools.cached_property
  def key_reader(self) -> inverse_dynamics.KeyReader | None:
    """The inverse-dynamics model, trained on first use; None if it is off.

    Raises:
      UserError: As `inverse_dynamics.fit_folder` does.
    """
    if not self.options.idm_steps:
      return None
    return inverse_dynamics.fit_folder(
      self.folder,
      num_frames=self.subject.num_frames,
      steps=self.options.idm_steps,
      seed=self.options.seed,
    )


def pick_action_clips(
  work: Work, arrays: Sequence[str] = ()
) -> clips_lib.Clips:
  """Returns held-out clips with true actions, the same for all metrics.

  There are more than in `work.clips`, because inferring actions is cheap.

  Args:
    work: The evaluation.
    arrays: Names of further arrays to read, see `clips.pick`.

  Raises:
    UserError: As `clips.pick` does.
  """
  return clips_lib.pick(
    work.folder,
    work.options.split,
    num_frames=work.subject.num_frames,
    num_clips=work.options.num_action_clips,
    num_levels=work.options.num_levels,
    with_actions=True,
    seed=work.options.seed,
    arrays=arrays,
  )


@dataclasses.dataclass(frozen=True)
class Row:
  """One row of the report's table of figures, as text.

  Attributes:
    name: What is measured.
    value: The figure with its unit.
    interval: Its 95 % interval, "" if there is none.
    compared_with: Baselines or bounds to compare the figure with.
    note: How to read the figure.
  """

  name: str
  value: str
  interval: str = ""
  compared_with: str = ""
  note: str = ""


@dataclasses.dataclass(frozen=True)
class Result:
  """Figures and frames that a metric returns.

  Attributes:
    details: Figures for `details.NAME` of metrics.json; JSON types, arrays
      and intervals.
    headline: Figures for the top level of metrics.json; JSON types. Their
      names must differ from those of every other metric.
    rows: Rows of the report's table of figures.
    pictures: Name -> uint8 frames, for the report.
  """

  details: Mapping[str, Any]
  headline: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  rows: tuple[Row, ...] = ()
  pictures: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)


def not_measured(title: str, reason: str) -> Result:
  """Returns the result of a metric whose data are missing.

  Args:
    title: Name of the row in the report.
    reason: What is missing and how to get it, without a full stop.
  """
  return Result(
    {"measured": False, "reason": reason},
    rows=(Row(title, "not measured", note=f"{reason}."),),
  )


@dataclasses.dataclass(frozen=True)
class Metric:
  """A metric of `genie eval`.

  Attributes:
    measure: Computes the figures.
    applies: Whether the metric can be computed for this world and these
      clips; metrics that do not apply are left out of the report.
  """

  measure: Callable[[Work], Result]
  applies: Callable[[Work], bool] = lambda work: True
