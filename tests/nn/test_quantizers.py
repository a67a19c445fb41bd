"""Tests of the registry of quantizers, and of the methods they must define."""

import pathlib
import sys
import types
from typing import ClassVar

import jax.numpy as jnp
import numpy as np
import pytest

from genie_jax.core import errors
from genie_jax.nn import fsq, quantizers, vq


class Sign(quantizers.Quantizer):
  """One code for numbers below zero, one for the others."""

  FIELDS: ClassVar[tuple[str, ...]] = ("size",)

  size: float = 1.0
  num_codes: int = 2
  code_dim: int = 1

  @classmethod
  def build(cls, num_codes, fields):
    return cls(fields.get("size", 1.0), num_codes)

  def __call__(self, x):
    codes = (x[..., 0] >= 0).astype(jnp.int32)
    return quantizers.Quantized(self.lookup(codes), codes, x, {})

  def lookup(self, codes):
    return self.size * (2.0 * codes[..., None] - 1)


@pytest.fixture
def package(monkeypatch):
  """A user's package with a quantizer that is not registered."""

  class Mine(Sign):
    pass

  module = types.ModuleType("a_users_package")
  module.Mine, module.Broken, module.number = Mine, type("Broken", (), {}), 3
  monkeypatch.setitem(sys.modules, "a_users_package", module)
  monkeypatch.setattr(
    quantizers._REGISTRY, "_values", dict(quantizers._REGISTRY._values)
  )
  return module


def build(completed):
  return quantizers.build(completed, num_codes=64, code_dim=4, unit_norm=False)


def test_a_codebook_is_the_default_and_is_not_recorded():
  for group in (None, {"name": "vq"}, {"name": "vq", "levels": ()}):
    assert quantizers.complete(group, 64) is None
  assert build(None) == vq.Codebook(64, 4, False)


def test_fsq_records_its_levels_and_is_built_from_them():
  for group in ({"name": "fsq"}, {"name": "fsq", "levels": []}):
    completed = quantizers.complete(group, 64)
    assert completed == {"name": "fsq", "levels": (8, 8)}
  given = quantizers.complete({"name": "fsq", "levels": [4, 16]}, 64)
  assert build(given) == fsq.FSQ((4, 16))
  hash(tuple(given.items()))  # Fields of compiled models must be hashable.


def test_a_quantizer_of_another_package_is_imported_only_if_trusted(package):
  name = "a_users_package:Mine"
  group = {"name": name, "size": 2.0, "levels": ()}
  with pytest.raises(errors.UserError, match="GENIE_PLUGINS=a_users_package"):
    quantizers.complete(group, 64)
  assert quantizers.of(name, trusted=True) is package.Mine
  completed = quantizers.complete(group, 64)
  assert completed == {"name": name, "size": 2.0}
  made = build(completed)
  found = made.apply({}, np.array([[-3.0], [4.0]], np.float32))
  assert np.asarray(found.vectors).tolist() == [[-2.0], [2.0]]
  assert np.asarray(made.apply({}, method="vectors")).shape == (64, 1)
  state, aux = made.update(
    made.fresh(), found, None, types.SimpleNamespace(share_decay=0.9)
  )
  assert float(made.metrics(state)["code_perplexity"]) == pytest.approx(2)
  assert made.after_update({}, state, aux, None) == ({}, state)


def test_the_example_in_the_documentation_is_a_quantizer(package):
  text = (pathlib.Path(__file__).parents[2] / "docs/quantizers.md").read_text()
  code = next(
    block for block in text.split("```python\n") if "class Signs" in block
  ).split("```")[0]
  vars(package).update(__name__="a_users_package")
  # The code block in the documentation.
  exec(code, vars(package))  # noqa: S102
  kind = quantizers.of("a_users_package:Signs", trusted=True)
  completed = quantizers.complete(
    {"name": "a_users_package:Signs", "margin": 0.5}, 64
  )
  made = quantizers.build(completed, num_codes=64, code_dim=1, unit_norm=True)
  assert isinstance(made, kind) and made.code_dim == 6
  codes = np.arange(64)
  vectors = made.apply({}, codes, method="lookup")
  found = made.apply({}, 0.3 * vectors)
  np.testing.assert_array_equal(found.codes, codes)
  np.testing.assert_allclose(found.vectors, vectors)
  assert set(found.losses) == set(kind.LOSSES)
  np.testing.assert_allclose(found.losses["commitment"], 0.04, rtol=1e-5)


@pytest.mark.parametrize(
  "name, message",
  [
    ("a_users_package:Broken", "is not a class derived from .*Quantizer"),
    ("a_users_package:number", "is not a class derived from .*Quantizer"),
    ("a_users_package:Absent", "has no 'Absent'"),
  ],
)
def test_a_wrong_type_of_quantizer_raises_a_one_line_error(
  package, name, message
):
  with pytest.raises(errors.UserError, match=message) as raised:
    quantizers.of(name, trusted=True)
  assert "\n" not in str(raised.value)


@pytest.mark.parametrize("method", ["build", "__call__", "lookup"])
def test_a_missing_method_is_named_with_its_signature(package, method):
  base = quantizers.Quantizer
  methods = {
    name: vars(Sign)[name]
    for name in ("build", "__call__", "lookup")
    if name != method
  }
  with pytest.raises(errors.UserError, match=rf"no method {method}; it needs"):
    quantizers.register("lacking", type("Lacking", (base,), methods))


@pytest.mark.parametrize(
  "group, message",
  [
    ("fsq", "config.quantizer='fsq' is not a group"),
    ([], "is not a group"),
    ({}, "config.quantizer.name=None"),
    ({"name": 3}, "config.quantizer.name=3"),
    ({"name": "fsqq"}, "'fsqq' is unknown.*did you mean 'fsq'"),
    (
      {"name": "vq", "levels": (8, 8)},
      r"levels=\(8, 8\) is not a field of the quantizer 'vq'; set "
      r"config.quantizer.name=fsq, or leave it out",
    ),
    ({"name": "fsq", "level": (8, 8)}, "level=.*did you mean 'levels'"),
    ({"name": "fsq", "levels": (8, 9)}, "multiplies to 72"),
  ],
)
def test_an_invalid_group_raises_a_one_line_error(group, message):
  with pytest.raises(errors.UserError, match=message) as raised:
    quantizers.complete(group, 64)
  assert "\n" not in str(raised.value)
