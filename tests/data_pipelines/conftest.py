"""Provides procgen, or skips the tests that need it and states the reason."""

import pytest

from data_pipelines.procgen import client as procgen_client
from genie_jax.core import errors


@pytest.fixture(scope="session")
def procgen():
  """Returns the client's module with its library loaded."""
  try:
    procgen_client.load()
  except errors.UserError as error:
    pytest.skip(f"procgen cannot be loaded here: {error}")
  return procgen_client
