"""Tests that docs/world_format.md describes the code and the shipped world."""

import dataclasses
import json
import pathlib
import re

import pytest

from genie_jax.core import errors, files
from genie_jax.models import dynamics, lam, store, tokenizer
from genie_jax.nn import st_transformer
from genie_jax.weights import tensor_files
from genie_jax.worlds import world_manifest
from tests.fixtures import tiny_world

ROOT = pathlib.Path(__file__).parents[2]
WORLD = ROOT / "experiments/coinrun/results/world"
TEXT = (ROOT / "docs/world_format.md").read_text()


def fields(heading):
  """Returns the names in the first column of a section's first table."""
  section = TEXT.split(f"\n## {heading}\n")[1].split("\n## ")[0]
  return set(re.findall(r"^\| `([\w.]+)` \|", section, re.MULTILINE))


def test_the_documented_tensors_are_those_of_the_shipped_world():
  rows = re.findall(r"^\| `(\w+/[\w/]+)` \| ([\d, ]+) \|$", TEXT, re.MULTILINE)
  documented = {
    name: tuple(map(int, shape.split(", "))) for name, shape in rows
  }
  assert documented == {
    name: tensor.shape for name, tensor in tensor_files.read(WORLD).items()
  }


def test_the_documented_fields_are_those_of_the_shipped_world():
  manifest = files.read_json(WORLD / "manifest.json")
  assert fields("manifest.json") - set(manifest) <= {"buttons"}
  assert set(manifest) <= fields("manifest.json")
  config = files.read_json(WORLD / "config.json")
  assert fields("config.json") - set(config) <= {
    "made_by",
    "slide",
    "trained_frames",
  }
  assert set(config) <= fields("config.json")


def test_the_stated_fingerprint_is_that_of_the_stored_models():
  manifest = world_manifest.read_manifest(WORLD)
  assert store.load(WORLD).fingerprint == manifest["fingerprint"]


# Sizes that the group `world` states, so that models do not repeat them.
STATED = {
  "height",
  "width",
  "channels",
  "num_codes",
  "num_latent_actions",
  "grid",
}
KINDS = {
  int: "int",
  float: "float",
  str: "str",
  bool: "bool",
  tuple[int, int]: "pair",
}


@pytest.mark.parametrize(
  "heading, module, elsewhere",
  (
    ("Tokenizer", tokenizer.Tokenizer, STATED | {"patch", "quantizer"}),
    ("Latent action model", lam.Lam, STATED | {"quantizer"}),
    ("Dynamics", dynamics.Dynamics, STATED),
    ("Stacks", st_transformer.STTransformer, set()),
  ),
)
def test_the_documented_fields_of_a_model_are_those_of_the_code(
  heading, module, elsewhere
):
  section = TEXT.split(f"\n### {heading}\n")[1].split("\n##")[0]
  documented = {
    name: (kind, default)
    for name, kind, default in re.findall(
      r"^\| `(\w+)` \| (\w+) \| (\S+) \| .+ \|$", section, re.MULTILINE
    )
  }
  wanted = {}
  for field in dataclasses.fields(module):
    if field.name not in elsewhere | {"parent", "name"}:
      # A stack's dtype has a default only in the code; files must state it.
      needed = field.default is dataclasses.MISSING or field.name == "dtype"
      wanted[field.name] = (
        KINDS.get(field.type, "group"),
        "-" if needed else json.dumps(field.default, separators=(",", ":")),
      )
  assert documented == wanted


def test_a_stack_that_does_not_state_its_dtype_is_refused():
  stack = {**tiny_world.MODELS["dynamics"]["transformer"]}
  del stack["dtype"]
  with pytest.raises(errors.UserError, match="dtype is missing"):
    store.part(
      "dynamics",
      {"world": tiny_world.WORLD, "model": {"transformer": stack}},
      {},
    )
