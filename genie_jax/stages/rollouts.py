"""Pictures of free rollouts while a dynamics model trains."""

import pathlib
from typing import Any

import jax
import ml_collections
import numpy as np

from genie_jax.core import files, images
from genie_jax.models import dynamics as dynamics_lib
from genie_jax.models import saved
from genie_jax.sampling import maskgit, pixels, rollout
from genie_jax.stages import autoencoding


def tokenizer_of(folder: files.PathLike) -> saved.Part:
  """Returns the tokenizer that made a token folder, which carries it."""
  return saved.load(pathlib.Path(folder) / "tokenizer").parts["tokenizer"]


class Preview:
  """Rolls held-out clips out from their first frame.

  The tokenizer comes from the token folder, which carries the one that made
  it; it is loaded when the first picture is drawn.

  Attributes:
    config: The training config.
    model: The dynamics model.
  """

  def __init__(
      self, config: ml_collections.ConfigDict, model: dynamics_lib.Dynamics
  ):
    self.config = config
    self.model = model
    self._sampling = maskgit.make_sampling(config.sampling.to_dict())
    self._tokenizer: saved.Part | None = None

  def __call__(
      self, params: Any, tokens: jax.Array, actions: jax.Array, rng: jax.Array
  ) -> dict[str, dict[str, np.ndarray]]:
    """Returns strips of truth, free rollout and error for one clip.

    Args:
      params: Parameters of the dynamics model.
      tokens: int32 [B, T, h, w]; the first clip is shown.
      actions: int32 [B, T-1], the actions that it is rolled out with.
      rng: Key of the draws.

    Returns:
      {"rollout": {row: uint8 [T, H, W, 3]}}; the truth is the tokenizer's
      reconstruction, the best that tokens can show.
    """
    if self._tokenizer is None:
      self._tokenizer = tokenizer_of(self.config.data.path)
    tokenizer = self._tokenizer
    frames = tokens.shape[1]
    drawn = rollout.rollout(
        self.model, params, tokens[:1, :1], actions[:1], rng,
        num_frames=frames - 1, window=frames, sampling=self._sampling)
    show = lambda z: np.asarray(pixels.decode(
        tokenizer.module, tokenizer.params, z,
        window=self.config.world.num_frames)[0])
    truth, made = show(tokens[:1]), show(drawn)
    return {"rollout": {
        "truth (tokens)": images.to_uint8(truth),
        "prediction": images.to_uint8(made),
        "error": autoencoding.error_frames(truth, made)}}
