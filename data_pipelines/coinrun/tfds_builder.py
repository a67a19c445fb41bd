r"""CoinRun clips as a TensorFlow Datasets builder, without TensorFlow.

Run:     tfds build data_pipelines/coinrun/tfds_builder.py \
             --config tiny --file_format array_record --data_dir DIR
         (The `tfds` of TFDS 4.9.10 needs TensorFlow; without it, use
         `python -m data_pipelines.tfds_build` instead.)
Read:    tfds.data_source("coinrun_clips/tiny", data_dir=DIR)

This builder is for exchanging data. Training reads the folder that `genie data
coinrun` writes, which is faster and allows windows that start at any frame.
Frames are stored as plain bytes, because TFDS needs TensorFlow to decode images
and to write videos.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds

from data_pipelines.procgen import client, collect
from genie_jax.data import manifest

CLIP_FRAMES = 16


@dataclasses.dataclass(eq=False, kw_only=True)
class CoinrunConfig(tfds.core.BuilderConfig):
  """A size of the data set.

  Attributes:
    options: Levels, frames per level and mode, as for `genie data coinrun`.
  """

  options: collect.Options


class CoinrunClips(tfds.core.GeneratorBasedBuilder):
  """Consecutive clips of 16 frames, each within an episode."""

  VERSION = tfds.core.Version("1.0.0")
  RELEASE_NOTES: ClassVar = {"1.0.0": "Hard mode, uniformly random actions."}
  BUILDER_CONFIGS: ClassVar = [
    CoinrunConfig(
      name="tiny",
      description="Two levels of 64 frames per split.",
      options=collect.Options(2, 2, 2, 64),
    ),
    CoinrunConfig(
      name="paper",
      description="Genie, appendix F: 10,000 train levels.",
      options=collect.Options(),
    ),
  ]

  def _info(self) -> tfds.core.DatasetInfo:
    features = tfds.features.FeaturesDict(
      {
        "frames": tfds.features.Tensor(
          shape=(CLIP_FRAMES, *client.FRAME_SHAPE),
          dtype=np.uint8,
          encoding="bytes",
        ),
        # Action t leads from frame t to t + 1.
        "actions": tfds.features.Tensor(
          shape=(CLIP_FRAMES - 1,), dtype=np.int32
        ),
        "level": np.int32,
        "start": np.int32,
      }
    )
    return tfds.core.DatasetInfo(
      builder=self,
      features=features,
      description="CoinRun (procgen) under a uniformly random policy.",
      homepage="https://github.com/openai/procgen",
      license="Code: MIT. Assets: see data_pipelines/coinrun/ASSETS.md",
      citation="arXiv:1912.01588",
    )

  def _split_generators(
    self,
    dl_manager: tfds.download.DownloadManager,
  ) -> dict[str, Iterator[tuple[str, dict[str, Any]]]]:
    del dl_manager  # `procgen_client` downloads the game.
    assert self.builder_config is not None
    return {
      split: self._generate_examples(
        range(collect.SPLITS[split][0], collect.SPLITS[split][0] + count)
      )
      for split, count in self.builder_config.options.counts().items()
    }

  def _generate_examples(
    self,
    levels: range,
  ) -> Iterator[tuple[str, dict[str, Any]]]:
    assert self.builder_config is not None
    for level in levels:
      played = collect.play(level, self.builder_config.options)
      for _, _, begin, length in manifest.episodes_of(level, 0, played.first):
        for start in range(
          begin, begin + length - CLIP_FRAMES + 1, CLIP_FRAMES
        ):
          yield (
            f"{level}-{start}",
            {
              "frames": played.frames[start : start + CLIP_FRAMES],
              "actions": played.actions[start : start + CLIP_FRAMES - 1],
              "level": level,
              "start": start,
            },
          )
