"""Tests of CoinRun need procgen's library; without it they say what lacks."""

import pytest

from data_pipelines.coinrun import procgen_client
from genie_jax.core import errors


@pytest.fixture(scope="session")
def procgen():
  """Returns the client's module once its library has loaded."""
  try:
    procgen_client.load()
  except errors.UserError as error:
    pytest.skip(f"procgen cannot be had here: {error}")
  return procgen_client
