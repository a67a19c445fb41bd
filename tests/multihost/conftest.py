"""Data of the runs of several processes."""

import pytest

from tests.fixtures import stage_data


@pytest.fixture(scope="module")
def tokens(tmp_path_factory):
  return stage_data.write_tokens(
    tmp_path_factory.mktemp("data") / "tokens",
    (64, 64, 3),
    grid=(4, 4),
    num_codes=64,
  )
