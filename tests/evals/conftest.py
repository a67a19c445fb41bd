"""Fixtures for the tests of metrics."""

import pathlib

import grey_game
import pytest


@pytest.fixture(scope="session")
def clips(tmp_path_factory) -> pathlib.Path:
  """Returns a folder with the game's train and test levels."""
  return grey_game.write_clips(tmp_path_factory.mktemp("game"))
