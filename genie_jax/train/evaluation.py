"""Held-out loss and previews during training.

There are two kinds of held-out figures. `Stage.evaluate` gives the stage's
quality on a few batches. `Stage.score` gives the loss by which runs are
compared: on a fixed list of clips with a fixed key for each, so that runs of
any size, seed, batch size and mesh are judged on the same clips and masks.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable
from typing import Any

import jax
import ml_collections
import numpy as np
from absl import logging
from etils import epath
from jax.sharding import Mesh

from genie_jax.core import errors
from genie_jax.sharding import hosts
from genie_jax.sharding import mesh as mesh_lib
from genie_jax.train import metrics, previews
from genie_jax.train import stage as stage_lib
from genie_jax.train import state as state_lib
from genie_jax.train import step as step_lib

_SQUARED = "squared_error"
# Fixed, so that all evaluations of all runs hide the same tokens.
SEED = 0


@dataclasses.dataclass(frozen=True)
class FixedClips:
  """The held-out clips by which runs are compared.

  Attributes:
    make_batches: Share of rows -> iterator over batches of these clips in a
      fixed order, followed by any other clips.
    num_clips: Number of clips.
  """

  make_batches: Callable[[hosts.Share], Any]
  num_clips: int


class HeldOut:
  """Evaluates a state on the same held-out batches each time."""

  def __init__(
    self,
    stage: stage_lib.Stage,
    config: ml_collections.ConfigDict,
    mesh: Mesh,
    like: state_lib.TrainState,
    share: hosts.Share,
    workdir: epath.Path,
    make_batches: Callable[[hosts.Share], Any] | None,
    fixed: FixedClips | None = None,
  ):
    """Prepares the evaluation step; no data is read yet.

    Args:
      stage: The stage.
      config: The config; data.batch_size and eval_batches are read.
      mesh: The device mesh.
      like: The abstract state.
      share: This process's rows.
      workdir: Previews are written to its folder "previews".
      make_batches: Share -> iterator; None turns evaluation off.
      fixed: Clips for `Stage.score`; None for no such loss.
    """
    self._stage, self._share = stage, share
    self._make_batches = make_batches
    self._count = config.eval_batches
    self._pictures = previews.Pictures(stage, mesh, like, workdir)
    size = config.data.batch_size
    self._rows = share.rows(size)
    self._layout = step_lib.batch_shardings(stage, mesh, size)
    self._step = step_lib.make_eval_step(stage, mesh, like, size)
    self._fixed = fixed if stage.score else None
    if self._fixed:
      self._score = step_lib.make_score_step(stage, mesh, like, size, SEED)
    self._size = size
    self._first = jax.jit(
      lambda batch: jax.tree.map(lambda x: x[:1], batch),
      in_shardings=(self._layout,),
      out_shardings=mesh_lib.replicated(mesh),
    )
    self._clip: dict[str, np.ndarray] | None = None

  def check(self, state: state_lib.TrainState) -> None:
    """Evaluates one batch of each kind, and discards the result.

    Compiles the programs of `run` and finds faults in them and in the data.

    Raises:
      UserError: The held-out clips are less than one batch, or do not fit.
    """
    self._evaluate(state, min(self._count, 1))
    self._score_fixed(state, 1)

  def run(
    self, step: int, state: state_lib.TrainState, writer: metrics.Writer
  ) -> dict[str, float]:
    """Evaluates, and writes and returns the metrics "eval/<name>"."""
    values = self._evaluate(state, self._count) | self._score_fixed(
      state, self._fixed.num_clips if self._fixed else 0
    )
    if not values:
      return {}
    writer.scalars(step, values)
    logging.info(
      "step %d held out: %s",
      step,
      ", ".join(
        f"{name.removeprefix('eval/')} {x:.5g}" for name, x in values.items()
      ),
    )
    return values

  def _evaluate(
    self, state: state_lib.TrainState, num_batches: int
  ) -> dict[str, float]:
    """Returns the means of `Stage.evaluate` over the first batches."""
    if self._make_batches is None or num_batches < 1:
      return {}
    terms = []
    base = jax.random.key(SEED)
    batches = self._make_batches(self._share)
    try:
      for number, batch in enumerate(itertools.islice(batches, num_batches)):
        step_lib.check_batch(self._stage, batch, self._rows)
        batch = hosts.to_global(batch, self._layout, self._share)
        if self._clip is None:
          self._clip = jax.device_get(self._first(batch))
        terms.append(
          self._step(
            state.params, state.extra, batch, jax.random.fold_in(base, number)
          )
        )
    finally:
      batches.close()
    if not terms:
      raise errors.UserError(
        "config.data.eval_split has less than one batch; use a smaller "
        "config.data.batch_size or more held-out clips."
      )
    return _means(jax.device_get(terms))

  def _score_fixed(
    self, state: state_lib.TrainState, count: int
  ) -> dict[str, float]:
    """Returns the means of `Stage.score` over the first `count` clips.

    The number of judged values is among them.
    """
    if self._fixed is None:
      return {}
    terms = []
    batches = self._fixed.make_batches(self._share)
    try:
      for number in range(math.ceil(count / self._size)):
        batch = next(batches)
        step_lib.check_batch(self._stage, batch, self._rows)
        batch = hosts.to_global(batch, self._layout, self._share)
        first = np.int32(number * self._size)
        terms.append(
          self._score(state.params, state.extra, batch, first, np.int32(count))
        )
    finally:
      batches.close()
    terms = jax.device_get(terms)
    judged = sum(float(term["held_out_loss"].count) for term in terms)
    return _means(terms) | {"eval/held_out_tokens": judged}

  def draw(
    self, step: int, state: state_lib.TrainState, writer: metrics.Writer
  ) -> None:
    """Writes previews of the first held-out clip, once `run` has read it."""
    if self._clip is not None:
      self._pictures.draw(step, state, self._clip, jax.random.key(SEED), writer)


def _means(terms: list[dict[str, stage_lib.Term]]) -> dict[str, float]:
  """Returns sum of totals / sum of counts for each name.

  For each squared error of pixels in [0, 1] the PSNR in dB is added, computed
  from the mean error over all batches.
  """
  means = {
    f"eval/{name}": float(
      np.sum([batch[name].total for batch in terms], dtype=np.float64)
      / max(np.sum([batch[name].count for batch in terms]), 1e-9)
    )
    for name in terms[0]
  }
  return means | {
    name.removesuffix(_SQUARED) + "psnr": float(
      -10 * np.log10(max(error, 1e-12))
    )
    for name, error in means.items()
    if name.endswith(_SQUARED)
  }
