"""What the tests of worlds share."""

import pathlib

import pytest

from genie_jax.models import store
from tests.fixtures import tiny_world


@pytest.fixture(scope="session")
def parts() -> dict[str, store.Part]:
  """A tokenizer, a LAM and a dynamics model."""
  return {name: tiny_world.make_part(name) for name in tiny_world.MODELS}


@pytest.fixture(scope="session")
def models(parts, tmp_path_factory) -> dict[str, pathlib.Path]:
  """Folders of the saved tokenizer and LAM."""
  folder = tmp_path_factory.mktemp("models")
  for name in ("tokenizer", "lam"):
    store.save(folder / name, {name: parts[name]})
  return {name: folder / name for name in ("tokenizer", "lam")}


@pytest.fixture(scope="session")
def clips(tmp_path_factory) -> pathlib.Path:
  """Clips of two splits."""
  return tiny_world.write_clips(
    tmp_path_factory.mktemp("data") / "clips",
    {"train": [0, 1, 2], "validation": [7]},
  )
