"""What docs/world_format.md says of a world is so."""

import pathlib
import re

from genie_jax.core import files, tensors
from genie_jax.infer import folder as folders
from genie_jax.models import saved

ROOT = pathlib.Path(__file__).parents[2]
WORLD = ROOT / "experiments/coinrun/results/small/world"
TEXT = (ROOT / "docs/world_format.md").read_text()


def fields(heading):
  """Returns the names in the first column of a section's first table."""
  section = TEXT.split(f"\n## {heading}\n")[1].split("\n## ")[0]
  return set(re.findall(r"^\| `([\w.]+)` \|", section, re.MULTILINE))


def test_the_documented_tensors_are_those_of_the_shipped_world():
  rows = re.findall(r"^\| `(\w+/[\w/]+)` \| ([\d, ]+) \|$", TEXT, re.MULTILINE)
  documented = {
      name: tuple(map(int, shape.split(", "))) for name, shape in rows}
  assert documented == {
      name: tensor.shape for name, tensor in tensors.read(WORLD).items()}


def test_the_documented_fields_are_those_of_the_shipped_world():
  manifest = files.read_json(WORLD / "manifest.json")
  assert fields("manifest.json") == set(manifest)
  config = files.read_json(WORLD / "config.json")
  assert fields("config.json") - set(config) <= {"slide"}
  assert set(config) <= fields("config.json")


def test_the_fingerprint_is_made_as_documented():
  manifest = folders.read_manifest(WORLD)
  assert saved.load(WORLD).fingerprint == manifest["fingerprint"]
