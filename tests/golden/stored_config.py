"""A training config that is read from a file, which `:FILE.json` names."""

import json
import pathlib

import ml_collections


def get_config(mode: str) -> ml_collections.ConfigDict:
  """Returns the config in a workdir's `config.json`."""
  return ml_collections.ConfigDict(json.loads(pathlib.Path(mode).read_text()))
