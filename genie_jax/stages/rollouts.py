"""Previews of free rollouts while a dynamics model is trained."""

from typing import Any

import jax
import ml_collections
import numpy as np

from genie_jax.core import errors, files, images
from genie_jax.data import manifest as manifest_lib
from genie_jax.data import mixtures
from genie_jax.models import button_map, protocols, store
from genie_jax.sampling import decoding, rollout, samplers
from genie_jax.stages import autoencoding


def tokenizer_of(folder: files.PathLike) -> store.Part:
  """Returns the tokenizer that made a token folder, from a copy in the folder.

  Raises:
    UserError: The folder has no tokenizer; or the folder is in a bucket and
      the local copy of its tokenizer differs from the manifest.
  """
  manifest = manifest_lib.Manifest.read(folder)
  place = manifest.model_folder("tokenizer")
  found = store.load(place)
  if manifest.address and found.fingerprint != manifest.tokenizer_fingerprint:
    raise errors.UserError(
      f"{place} is not the tokenizer that made {manifest.address}; remove "
      "this local copy, and if the error remains, copy the folder to the "
      "bucket again."
    )
  return found.parts["tokenizer"]


def buttons_of(folder: files.PathLike) -> button_map.ButtonMap | None:
  """Returns the buttons of a token folder; None if its LAM only has codes.

  Raises:
    UserError: The folder has no LAM.
  """
  place = manifest_lib.Manifest.read(folder).model_folder("lam")
  config = store.load(place).parts["lam"].config
  fields = config["model"].get("buttons")
  if fields is None:
    return None
  return button_map.from_config(fields, config["world"]["num_latent_actions"])


class Preview:
  """Generates rollouts of held-out clips from their first frame.

  The token folder contains the tokenizer that made it, which is loaded when
  the first preview is shown.

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
    """Returns true and generated tokens, each int32 [B, T, h, w].

    It is called within a compiled function. The window has T frames, so it
    does not slide.

    Args:
      params: Parameters of the dynamics model.
      tokens: int32 [B, T, h, w].
      actions: int32 [B, T-1], the actions of the rollout.
      rng: Key for sampling.
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
      drawn: The arrays of `draw` for the clip, each [T, h, w].

    Returns:
      {"rollout": {row: uint8 [T, H, W, 3]}}; the truth is the tokenizer's
      reconstruction of the true frames.

    Raises:
      UserError: The token folder has no tokenizer.
    """
    if self._tokenizer is None:
      self._tokenizer = tokenizer_of(mixtures.main_folder(self.config.data))
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
