"""Fixtures of the server's tests."""

import fake_world
import players
import pytest


@pytest.fixture()
def server():
  """A server of the fake world, and its address."""
  with players.serving(fake_world.make_engine()) as found:
    yield found


@pytest.fixture()
def host(server):
  """The server's address, "127.0.0.1:PORT"."""
  return server[1]
