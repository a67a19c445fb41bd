"""Tests that stages train with every quantizer, including a user's own."""

import pathlib
import sys
import types
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genie_jax.core import config as config_lib
from genie_jax.core import errors
from genie_jax.models import store
from genie_jax.nn import quantizers
from genie_jax.stages import registry
from tests.fixtures import stage_data, stage_training

CONFIGS = pathlib.Path(__file__).parents[2] / "experiments" / "coinrun"


def load(name, *overrides):
  return config_lib.load(f"{CONFIGS / name}.py:smoke", overrides)


def fsq(name, *overrides):
  """Returns a config with FSQ that does not need another stage's results."""
  config = load(name, "--config.quantizer.name=fsq", *overrides).unlock()
  if "start" in config:
    config.start = "random"
  return config


@pytest.mark.parametrize(
  "name, levels",
  [
    ("tokenizer", ()),
    pytest.param("tokenizer", (4, 4, 4), marks=pytest.mark.slow),
    pytest.param("lam", (), marks=pytest.mark.slow),
    pytest.param("joint", (4, 2), marks=pytest.mark.slow),
  ],
)
def test_steps_with_fsq_move_every_parameter(name, levels):
  config = fsq(name, f"--config.quantizer.levels={levels}")
  batch = stage_training.random_batch(registry.make(config), config)
  # Patches of noise are too similar; those of a square on a background differ.
  shape = batch["frames"].shape
  batch["frames"] = np.stack(
    [stage_data.frames_of(n, shape[1], shape[2:]) for n in range(shape[0])]
  )
  made = stage_training.train(config, batch)
  stage_training.check(made)
  prefix = "lam_" if name == "joint" else ""
  assert f"{prefix}squared_error" in made.stage.loss_scales
  assert not {f"{prefix}codebook", f"{prefix}commitment"} & set(
    made.stage.loss_scales
  )
  model = made.state.params.get("lam", made.state.params)
  entries = len(levels or {"tokenizer": (8, 8), "lam": (8,)}[name])
  assert "codes" not in model
  assert model["to_code"]["kernel"].shape[-1] == entries
  share = np.asarray(made.state.extra["codes"].share)
  assert share.shape == (64 if name == "tokenizer" else 8,)
  assert share.sum() == pytest.approx(1, abs=0.02)
  for metrics in made.metrics:
    assert 0 < metrics[f"{prefix}code_usage"] <= 1
    assert metrics[f"{prefix}code_perplexity"] >= 1


def test_a_dynamics_model_can_be_initialised_from_fsq_codes(tmp_path):
  tokenizer = stage_data.random_part("tokenizer", fsq("tokenizer"))
  folder = stage_data.write_tokens(
    tmp_path, (64, 64, 3), grid=(4, 4), num_codes=64, tokenizer=tokenizer
  )
  config = load("dynamics", f"--config.data.path={folder}")
  assert config.start == "codebook"
  params, _ = jax.jit(registry.make(config).init)(jax.random.key(0))
  table = np.asarray(nn.unbox(params)["token_embedding"])
  vectors = np.asarray(
    tokenizer.module.apply({"params": tokenizer.params}, method="code_vectors")
  )
  distances = lambda x: np.linalg.norm(x[:, None] - x[None], axis=-1)
  upper = np.triu_indices(64, 1)
  assert (
    np.corrcoef(distances(vectors)[upper], distances(table)[upper])[0, 1] > 0.8
  )


class Halves(quantizers.Quantizer):
  """A user's quantizer: the sign of the first entry, and its own loss."""

  FIELDS: ClassVar[tuple[str, ...]] = ("pull",)
  LOSSES: ClassVar[tuple[str, ...]] = ("pull",)

  num_codes: int
  code_dim: int
  pull: float

  @classmethod
  def build(cls, num_codes, fields):
    return cls(num_codes, fields["code_dim"], fields["pull"])

  def __call__(self, x):
    codes = (x[..., 0] > 0).astype(jnp.int32)
    vectors = x + jax.lax.stop_gradient(self.lookup(codes) - x)
    pull = self.pull * jnp.square(x).mean(-1)
    return quantizers.Quantized(vectors, codes, x, {"pull": pull})

  def lookup(self, codes):
    return jnp.repeat(2.0 * codes[..., None] - 1, self.code_dim, axis=-1)


@pytest.fixture
def package(monkeypatch):
  module = types.ModuleType("a_package_of_quantizers")
  module.Halves = Halves
  monkeypatch.setitem(sys.modules, "a_package_of_quantizers", module)
  monkeypatch.setattr(
    quantizers._REGISTRY, "_values", dict(quantizers._REGISTRY._values)
  )
  return "a_package_of_quantizers:Halves"


def test_a_config_may_name_a_quantizer_of_another_package(package):
  config = load("lam", f"--config.quantizer.name={package}").unlock()
  config.quantizer.pull = 0.5
  fields = config_lib.to_dict(config)
  with pytest.raises(errors.UserError, match="GENIE_PLUGINS=a_package"):
    store.part("lam", fields, {})  # As with the config.json of a workdir.
  with pytest.raises(errors.UserError, match=r"config.loss.pull is missing"):
    registry.make(config)
  config.loss.pull = 0.1
  stage = registry.make(config)
  assert set(stage.loss_scales) == {"squared_error", "pull"}
  params, extra = jax.eval_shape(stage.init, jax.random.key(0))
  batch = {
    "frames": jax.ShapeDtypeStruct(
      (4, *stage.features["frames"].shape), "uint8"
    )
  }
  outcome = jax.eval_shape(
    stage.loss, nn.unbox(params), extra, batch, jax.random.key(0), np.int32(0)
  )
  assert set(outcome.losses) == set(stage.loss_scales)
  # The quantizer is registered now, and saved with its fields.
  assert store.part("lam", fields, {}).config["quantizer"] == {
    "name": package,
    "pull": 0.5,
  }


@pytest.mark.parametrize(
  "name, overrides, message",
  [
    ("tokenizer", ["name=fqs"], "did you mean 'fsq'"),
    ("tokenizer", ["levels=(8,8)"], "set config.quantizer.name=fsq"),
    (
      "tokenizer",
      ["name=fsq", "levels=(8,5,5,5)"],
      r"multiplies to 1000, but the model has 64 codes; use .*=\(8, 8\)",
    ),
    (
      "lam",
      ["name=fsq", "levels=(6,)"],
      r"multiplies to 6, but the model has 8 codes; use .*=\(8,\)",
    ),
    ("joint", ["name=fsq", "levels=(2,2)"], "has 8 codes"),
    ("lam", ["name=fsq", "levels=(6,1)"], "must be whole numbers from 2"),
    ("lam", ["name=nowhere:Quantizer"], "nowhere cannot be imported"),
  ],
)
def test_an_invalid_config_raises_a_one_line_error(name, overrides, message):
  config = load(name, *(f"--config.quantizer.{field}" for field in overrides))
  with pytest.raises(errors.UserError, match=message) as raised:
    registry.make(config)
  assert "\n" not in str(raised.value)
