"""Tests of how every config lays its arrays out, against golden files."""

import json

import pytest

from tests import test_configs
from tests.sharding import layouts


@pytest.mark.parametrize("name", sorted(layouts.CASES))
def test_a_config_lays_its_arrays_out_as_its_golden_file_says(name):
  golden = json.loads(layouts.path_of(name).read_text())
  found = json.loads(json.dumps(layouts.all_of(name)))
  assert found == golden, (
    "If this is meant, type `python -m tests.sharding.layouts`."
  )


def test_every_config_has_a_golden_file():
  names = {
    file.removeprefix("experiments/").removesuffix(".py")
    for file in test_configs.FILES
  }
  assert names == {name.partition(":")[0] for name in layouts.CASES}
  assert {path.name for path in layouts.GOLDEN.iterdir()} == {
    layouts.path_of(name).name for name in names
  }
