"""Tests that the lists of files in CONTRIBUTING.md are short and correct.

Other tests add parts from a package outside genie_jax:
`tests/test_foreign_parts.py` a dynamics model and a sampler,
`tests/stages/test_foreign_stage.py` a stage and a model, and
`tests/evals/test_metric_registry.py` a metric.
"""

import dataclasses
import pathlib
import re

import jax
import jax.numpy as jnp
import pytest

from genie_jax.core import chips, errors
from genie_jax.nn import codes, quantizers
from genie_jax.plan import topology

ROOT = pathlib.Path(__file__).parent.parent
TEXT = (ROOT / "CONTRIBUTING.md").read_text()
# Largest number of files to touch for each part that can be added.
MOST = {
  "a game": 3,
  "a stage": 2,
  "a model": 2,
  "a quantizer": 3,
  "a sampler": 2,
  "a metric": 2,
  "a chip": 1,
}


def sections():
  """Returns title -> [("new" or "edit", path)] of the lists of files."""
  part = TEXT[TEXT.index("## How to add") :]
  return {
    title: re.findall(r"^- (new|edit): `([^`]+)`", body, re.MULTILINE)
    for title, body in re.findall(
      r"^### (.+?)\n(.*?)(?=^### |\Z)", part, re.MULTILINE | re.DOTALL
    )
  }


def test_every_part_that_can_be_added_has_a_section():
  assert set(sections()) == set(MOST)


@pytest.mark.parametrize("title", MOST)
def test_a_part_touches_few_files(title):
  listed = sections()[title]
  assert 1 <= len(listed) <= MOST[title]
  # A stage with a model, and a dynamics model with a sampler: four files.
  assert len(sections()["a stage"] + sections()["a model"]) <= 4
  assert len(sections()["a model"] + sections()["a sampler"]) <= 4


@pytest.mark.parametrize("title", MOST)
def test_files_to_edit_exist_and_new_ones_have_a_neighbour(title):
  for kind, path in sections()[title]:
    if kind == "edit":
      assert (ROOT / path).is_file(), path
      continue
    assert "NAME" in path
    pattern = path.replace("NAME", "*")
    assert list(ROOT.glob(pattern)), f"nothing like {path}"


@pytest.mark.parametrize(
  "title", ["a stage", "a model", "a quantizer", "a sampler", "a metric"]
)
def test_the_file_to_edit_registers_the_parts_that_exist(title):
  edited = [path for kind, path in sections()[title] if kind == "edit"]
  assert re.search(r"^register\(", (ROOT / edited[0]).read_text(), re.MULTILINE)


def test_links_of_contributing_have_a_target():
  for target in re.findall(r"\]\(([^)#]+)", TEXT):
    assert (ROOT / target).exists(), target


class Rounded(codes.Quantizer):
  """Rounds one number to one of `num_codes` levels from -1 to 1."""

  num_codes: int

  code_dim = 1

  @classmethod
  def build(cls, num_codes, fields):
    del fields
    return cls(num_codes=num_codes)

  def __call__(self, x):
    top = self.num_codes - 1
    bounded = jnp.tanh(x.astype(jnp.float32))
    digits = jnp.round((bounded + 1) / 2 * top)
    vectors = bounded + jax.lax.stop_gradient(digits / top * 2 - 1 - bounded)
    return codes.Quantized(
      vectors=vectors,
      codes=digits[..., 0].astype(jnp.int32),
      inputs=bounded,
      losses={},
    )

  def lookup(self, codes):
    return (codes[..., None] / (self.num_codes - 1) * 2 - 1).astype(jnp.float32)


@pytest.fixture
def registered(monkeypatch):
  monkeypatch.setattr(
    quantizers._REGISTRY, "_values", dict(quantizers._REGISTRY._values)
  )
  return quantizers.register("rounded", Rounded)


def test_a_quantizer_needs_only_a_class_and_a_call_of_register(registered):
  assert quantizers.of("rounded") is registered
  completed = {"name": "rounded"}
  module = quantizers.build(completed, num_codes=5, code_dim=1, unit_norm=False)
  x = jnp.linspace(-3, 3, 7)[:, None]
  out = module.apply({}, x)
  assert out.codes.tolist() == [0, 0, 0, 2, 4, 4, 4]
  again = module.apply({}, out.codes, method="lookup")
  assert jnp.allclose(again, out.vectors)
  gradient = jax.grad(lambda x: module.apply({}, x).vectors.sum())(x)
  assert (gradient > 0).all()  # Straight through the rounding.


def test_a_chip_is_one_entry_of_the_table(monkeypatch):
  new = dataclasses.replace(
    chips.CHIPS["v5p"], name="v9x", peak_flops=1e15, assumptions=()
  )
  with pytest.raises(errors.UserError, match="v9x"):
    topology.parse("v9x:2x2x1")
  monkeypatch.setitem(chips.CHIPS, "v9x", new)
  found = topology.parse("v9x:2x2x1")
  assert (found.num_chips, found.chip.peak_flops) == (4, 1e15)
