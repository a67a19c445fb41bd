"""Held-out loss and pictures while a run goes on."""

import io
import itertools
from collections.abc import Callable
from typing import Any

import jax
import ml_collections
import numpy as np
from absl import logging
from jax.sharding import Mesh
from PIL import Image

from genie_jax.core import errors, images
from genie_jax.sharding import hosts
from genie_jax.train import metrics as metrics_lib
from genie_jax.train import stage as stage_lib
from genie_jax.train import state as state_lib
from genie_jax.train import step as step_lib
from genie_jax.train import storage

# Fixed, so that evaluations of a run, and of runs, hide the same tokens.
_SQUARED = "squared_error"
_SEED = 0


class HeldOut:
  """Evaluates a state on the same held-out batches each time."""

  def __init__(
      self,
      stage: stage_lib.Stage,
      config: ml_collections.ConfigDict,
      mesh: Mesh,
      like: state_lib.TrainState,
      share: hosts.Share,
      workdir: storage.PathLike,
      make_batches: Callable[[hosts.Share], Any] | None,
  ):
    """Prepares the compiled step; nothing is read yet.

    Args:
      stage: Evaluates and draws.
      config: Gives data.batch_size and eval_batches.
      mesh: The device mesh.
      like: The abstract state.
      share: This process's rows.
      workdir: Pictures go to its folder "previews".
      make_batches: Share -> iterator; None turns evaluation off.
    """
    self._stage, self._share = stage, share
    self._make_batches = make_batches
    self._count = config.eval_batches
    self._folder = storage.folder(workdir) / "previews"
    size = config.data.batch_size
    self._rows = size // share.count
    self._layout = step_lib.batch_shardings(stage, mesh, size)
    self._step = step_lib.make_eval_step(stage, mesh, like, size)

  def run(
      self, step: int, state: state_lib.TrainState, writer: metrics_lib.Writer
  ) -> dict[str, float]:
    """Evaluates, writes numbers and pictures, and returns "eval/<name>"."""
    if self._make_batches is None or self._count < 1:
      return {}
    terms, first = [], None
    base = jax.random.key(_SEED)
    batches = self._make_batches(self._share)
    try:
      for number, batch in enumerate(itertools.islice(batches, self._count)):
        step_lib.check_batch(self._stage, batch, self._rows)
        batch = hosts.to_global(batch, self._layout, self._share)
        first = batch if first is None else first
        terms.append(self._step(
            state.params, state.extra, batch,
            jax.random.fold_in(base, number)))
    finally:
      batches.close()
    if first is None:
      raise errors.UserError(
          "config.data.eval_split has less than one batch; use a smaller "
          "config.data.batch_size or more held-out clips.")
    values = _means(jax.device_get(terms))
    writer.scalars(step, values)
    logging.info("step %d held out: %s", step, ", ".join(
        f"{name.removeprefix('eval/')} {x:.5g}" for name, x in values.items()))
    self._draw(step, state, first, base, writer)
    return values

  def _draw(self, step, state, batch, rng, writer) -> None:
    params, extra = state.params, state.extra
    if jax.process_count() > 1:
      # Pictures are drawn outside of any compiled function, where arrays that
      # lie partly elsewhere cannot be touched.
      params, extra, batch = hosts.fetch((params, extra, batch))
    if jax.process_index() != 0:
      return
    for name, rows in self._stage.preview(params, extra, batch, rng).items():
      picture = images.strip(rows)
      _save_png(self._folder / f"{name}_{step:08d}.png", picture)
      writer.image(step, name, picture)


def _save_png(path: storage.PathLike, picture: np.ndarray) -> None:
  """Writes uint8 [H, W, 3] to a disk or a bucket."""
  buffer = io.BytesIO()
  Image.fromarray(picture).save(buffer, "PNG")
  storage.write(path, buffer.getvalue())


def _means(terms: list[dict[str, stage_lib.Term]]) -> dict[str, float]:
  """Returns sum of totals / sum of counts for each name.

  A squared error of pixels in [0, 1] also comes as PSNR in dB, of the error
  pooled over all batches.
  """
  means = {
      f"eval/{name}": float(
          np.sum([batch[name].total for batch in terms], dtype=np.float64)
          / max(np.sum([batch[name].count for batch in terms]), 1e-9))
      for name in terms[0]}
  return means | {
      name.removesuffix(_SQUARED) + "psnr": float(
          -10 * np.log10(max(error, 1e-12)))
      for name, error in means.items() if name.endswith(_SQUARED)}
