"""Fixtures of the tests of `data_pipelines.videos`."""

import pytest
from films import play, write_film


@pytest.fixture
def film(tmp_path):
  """Returns a function that writes a film of a game in the test's folder."""

  def make(name="film.mp4", seed=0, **fields):
    shape = {
      key: fields.pop(key)
      for key in ("frames", "height", "width", "shots")
      if key in fields
    }
    return write_film(tmp_path / name, play(seed, **shape), **fields)

  return make
