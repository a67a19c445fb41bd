"""Tests that the layout of every config's arrays matches its golden file."""

import json

import pytest

from tests import test_configs
from tests.sharding import layouts


@pytest.mark.parametrize("name", sorted(layouts.CASES))
def test_the_layout_of_a_config_matches_its_golden_file(name):
  golden = json.loads(layouts.path_of(name).read_text())
  found = json.loads(json.dumps(layouts.all_of(name)))
  assert found == golden, (
    "If the change is intended, run `python -m tests.sharding.layouts`."
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
