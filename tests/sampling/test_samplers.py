"""Tests of the registry of frame samplers and of their protocol."""

import pathlib
import re
import sys
import textwrap

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genie_jax.core import errors, registry
from genie_jax.sampling import maskgit, samplers
from tests.fixtures import foreign_parts

ROOT = pathlib.Path(__file__).parent.parent.parent
FOREIGN = "tests.fixtures.foreign_parts:Raster"


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
  """Restores the registry after each test."""
  monkeypatch.delenv(registry.PLUGINS, raising=False)
  known = samplers.REGISTRY
  monkeypatch.setattr(
    known, "_values", {"maskgit": known.get("maskgit", where="")}
  )


def test_a_config_without_a_name_uses_maskgit():
  fields = {"refinements": 3, "temperature": 0.5}
  made = samplers.make(fields)
  assert made == maskgit.MaskGIT(3, temperature=0.5)
  assert samplers.make({**fields, "name": "maskgit"}) == made
  assert samplers.default() == maskgit.MaskGIT()
  assert samplers.make(samplers.to_config(made)) == made
  assert "name" not in samplers.to_config(made)
  assert samplers.name_of(made) == "maskgit"
  assert list(samplers.to_config(made)) == list(vars(made))


def test_a_registered_sampler_is_made_by_its_name():
  samplers.register("raster", foreign_parts.Raster)
  made = samplers.make({"name": "raster", "temperature": 0.5})
  assert made == foreign_parts.Raster(0.5)
  assert samplers.to_config(made) == {"name": "raster", "temperature": 0.5}
  with pytest.raises(errors.UserError, match="did you mean 'raster'"):
    samplers.make({"name": "rasters"})
  with pytest.raises(errors.UserError, match=r"Unknown field sampling\.heat"):
    samplers.make({"name": "raster", "heat": 0.5})


def test_only_trusted_configs_import_a_sampler(monkeypatch):
  fields = {"name": FOREIGN}
  with pytest.raises(errors.UserError, match=r"GENIE_PLUGINS=tests\.fix"):
    samplers.make(fields)
  monkeypatch.setenv(registry.PLUGINS, "tests.fixtures.foreign_parts")
  assert samplers.make(fields) == foreign_parts.Raster()


def test_a_trusted_config_names_a_class_of_any_module():
  made = samplers.make({"name": FOREIGN, "temperature": 0}, trusted=True)
  assert made == foreign_parts.Raster(0)
  assert samplers.to_config(made) == {"name": FOREIGN, "temperature": 0.0}
  assert samplers.make({"name": FOREIGN}) == foreign_parts.Raster()


def test_the_name_of_an_unregistered_sampler_is_its_module_and_class():
  assert samplers.name_of(foreign_parts.Raster()) == FOREIGN


def test_only_existing_fields_are_replaced():
  replaced = samplers.replace(maskgit.MaskGIT(3), {"temperature": 0.5})
  assert replaced == maskgit.MaskGIT(3, temperature=0.5)
  with pytest.raises(errors.UserError, match="at least 1"):
    samplers.replace(maskgit.MaskGIT(), {"refinements": 0})
  with pytest.raises(
    errors.UserError,
    match=r"top_k=5 does not apply: .*Raster', whose fields are temperature;",
  ):
    samplers.replace(foreign_parts.Raster(), {"top_k": 5})


class Object:
  """Has all methods, but is not a pytree."""

  from_config = classmethod(lambda cls, fields: cls())
  to_config = lambda self: {}
  num_passes = lambda self, num_tokens: 1
  draw = lambda self, score, grid, keys: None


@flax.struct.dataclass
class Forgets(foreign_parts.Raster):
  width: int = flax.struct.field(pytree_node=False, default=3)


@flax.struct.dataclass
class NoCount(foreign_parts.Raster):
  def num_passes(self, num_tokens):
    return num_tokens / 2


@flax.struct.dataclass
class Text(foreign_parts.Raster):
  order: str = "rows"


@pytest.mark.parametrize(
  "made, message",
  (
    (Object(), "is not a pytree; make its class a flax.struct.dataclass"),
    (
      Forgets(width=4),
      r"to_config\(\) returns .* does not make an equal sampler",
    ),
    (NoCount(), r"num_passes\(16\) returns 8.0; return how many times draw"),
    (Text(), r"leaf 'rows' is not a number; .*pytree_node=False"),
    (3, r"has no method from_config; it needs from_config\(fields\)"),
  ),
)
def test_a_violation_of_the_protocol_is_named(made, message):
  with pytest.raises(errors.UserError, match=message):
    samplers.check(made)


def test_a_class_without_a_method_is_refused_when_it_is_registered():
  half = type("Half", (), {"draw": lambda: None, "num_passes": lambda: 1})
  with pytest.raises(
    errors.UserError,
    match=r"sampler 'half' \(Half\) has no method from_config; it needs",
  ):
    samplers.register("half", half)


def toy_scores(tokens, hidden):
  """Returns logits that depend on every known token, [B, 2, 3, 7]."""
  seen = jnp.where(hidden, -1, tokens).reshape(len(tokens), 1, 6)
  mix = jnp.sin(1.0 + (seen * (jnp.arange(6) + 1)).sum(-1, keepdims=True))
  place, code = jnp.arange(6)[:, None], jnp.arange(7)
  return jnp.sin(place * 1.3 + code * 2.1 + 5 * mix).reshape(-1, 2, 3, 7)


@pytest.mark.parametrize(
  "sampler",
  (
    maskgit.MaskGIT(4),
    maskgit.MaskGIT(25, order="confidence"),
    foreign_parts.Raster(),
  ),
)
def test_num_passes_equals_the_number_of_calls(sampler):
  calls = []

  def score(tokens, hidden):
    jax.debug.callback(lambda: calls.append(1), ordered=True)
    return toy_scores(tokens, hidden)

  frame = sampler.draw(score, (2, 3), jax.random.key(0)[None])
  jax.effects_barrier()
  assert frame.shape == (1, 2, 3) and frame.dtype == jnp.int32
  assert len(calls) == sampler.num_passes(6)


def test_raster_order_equals_a_loop_over_tokens():
  drawn = foreign_parts.Raster(0.0).draw(
    toy_scores, (2, 3), jax.random.split(jax.random.key(0), 2)
  )
  frame = np.zeros((1, 6), np.int32)
  for place in range(6):
    hidden = (np.arange(6) >= place).reshape(1, 2, 3)
    scores = toy_scores(frame.reshape(1, 2, 3), hidden)
    frame[0, place] = np.argmax(scores.reshape(6, 7)[place])
  np.testing.assert_array_equal(
    drawn, np.tile(frame.reshape(1, 2, 3), (2, 1, 1))
  )


def test_the_sampler_in_the_docs_works(tmp_path, monkeypatch):
  text = (ROOT / "docs/sampling.md").read_text()
  block = re.search(
    r"\n((?:    .*\n|\n)*    # my_samplers.py\n(?:    .*\n|\n)*)", text
  )
  (tmp_path / "my_samplers.py").write_text(textwrap.dedent(block[1]))
  monkeypatch.syspath_prepend(str(tmp_path))
  monkeypatch.delitem(sys.modules, "my_samplers", raising=False)
  fields = {"name": "my_samplers:Raster", "temperature": 0.7}
  with pytest.raises(errors.UserError, match="GENIE_PLUGINS=my_samplers if"):
    samplers.make(fields)
  made = samplers.make(fields, trusted=True)
  assert made == samplers.make({"name": "raster", "temperature": 0.7})
  keys = jax.random.split(jax.random.key(3), 4)
  np.testing.assert_array_equal(
    made.draw(toy_scores, (2, 3), keys),
    foreign_parts.Raster(0.7).draw(toy_scores, (2, 3), keys),
  )
