"""Pictures of free rollouts while a dynamics model trains."""

from typing import Any

import jax
import ml_collections
import numpy as np

from genie_jax.core import errors, files, images
from genie_jax.data import manifest as manifest_lib
from genie_jax.models import protocols, store
from genie_jax.sampling import decoding, rollout, samplers
from genie_jax.stages import autoencoding


def tokenizer_of(folder: files.PathLike) -> store.Part:
  """Returns the tokenizer that made a token folder, which carries it.

  Raises:
    UserError: The folder has none; or its copy, where the folder is in a
      bucket, is not the one that its manifest describes.
  """
  manifest = manifest_lib.Manifest.read(folder)
  place = manifest.model_folder("tokenizer")
  found = store.load(place)
  if manifest.address and found.fingerprint != manifest.tokenizer_fingerprint:
    raise errors.UserError(
      f"{place} is not the tokenizer that made {manifest.address}; remove "
      "that copy, and if it is the same again, copy the folder to the "
      "bucket again."
    )
  return found.parts["tokenizer"]


class Preview:
  """Rolls held-out clips out from their first frame.

  The tokenizer comes from the token folder, which carries the one that made
  it; it is loaded when the first picture is drawn.

  Attributes:
    config: The training config.
    model: The dynamics model.
  """

  def __init__(
    self, config: ml_collections.ConfigDict, model: protocols.DynamicsModel
  ):
    self.config = config
    self.model = model
    self._sampling = samplers.make(config.sampling.to_dict(), trusted=True)
    self._tokenizer: store.Part | None = None

  def draw(
    self, params: Any, tokens: jax.Array, actions: jax.Array, rng: jax.Array
  ) -> tuple[jax.Array, jax.Array]:
    """Returns true and drawn tokens, each int32 [B, T, h, w].

    Part of a compiled function. No frame leaves the window.

    Args:
      params: Parameters of the dynamics model.
      tokens: int32 [B, T, h, w].
      actions: int32 [B, T-1], the actions that they are rolled out with.
      rng: Key of the draws.
    """
    frames = tokens.shape[1]
    return tokens, rollout.rollout(
      self.model,
      params,
      tokens[:, :1],
      actions,
      rng,
      num_frames=frames - 1,
      window=frames,
      sampling=self._sampling,
    )

  def show(
    self, drawn: tuple[np.ndarray, np.ndarray]
  ) -> dict[str, dict[str, np.ndarray]]:
    """Returns strips of truth, free rollout and error for one clip.

    Args:
      drawn: What `draw` made of it, each [T, h, w].

    Returns:
      {"rollout": {row: uint8 [T, H, W, 3]}}; the truth is the tokenizer's
      reconstruction, the best that tokens can show.

    Raises:
      UserError: The token folder carries no tokenizer.
    """
    if self._tokenizer is None:
      self._tokenizer = tokenizer_of(self.config.data.path)
    tokenizer = self._tokenizer
    truth, made = np.asarray(
      decoding.decode(
        tokenizer.module,
        tokenizer.params,
        np.stack(drawn),
        window=self.config.world.num_frames,
      )
    )
    return {
      "rollout": {
        "truth (tokens)": images.to_uint8(truth),
        "prediction": images.to_uint8(made),
        "error": autoencoding.error_frames(truth, made),
      }
    }
