"""Tests of all configs in experiments/ in all modes."""

import ast
import importlib
import pathlib

import flax.linen as nn
import jax
import numpy as np
import pytest

from genie_jax.core import chips, errors
from genie_jax.core import config as config_lib
from genie_jax.models import build
from genie_jax.scaling import table
from genie_jax.sharding import rules
from genie_jax.stages import registry
from genie_jax.train import optimizer as optimizer_lib
from genie_jax.train import state as state_lib
from genie_jax.train import step as step_lib
from tests.fixtures import stage_training
from tests.sharding import layouts

ROOT = pathlib.Path(__file__).parent.parent


def _has_get_config(path):
  return any(
    isinstance(node, ast.FunctionDef) and node.name == "get_config"
    for node in ast.parse(path.read_text()).body
  )


FILES = [
  str(path.relative_to(ROOT))
  for path in sorted((ROOT / "experiments").rglob("*.py"))
  if _has_get_config(path)
]


def modes(file):
  """Returns the modes of a config."""
  module = importlib.import_module(file.removesuffix(".py").replace("/", "."))
  return module.MODES if hasattr(module, "MODES") else module.common.MODES


def load(file, mode=""):
  return config_lib.load(f"{ROOT / file}:{mode}")


CASES = [(file, mode) for file in FILES for mode in modes(file)]
# Scaling configs differ only in size; the smallest and the largest are traced,
# and one of the miniature study.
TRACED = [
  (file, mode)
  for file, mode in CASES
  if mode != "smoke"
  and ("scaling" not in file or mode in ("41M", "10.1B", "64x4"))
]


def test_all_models_of_the_paper_have_a_config():
  for folder in ("coinrun", "platformers"):
    for stage in ("tokenizer", "lam", "dynamics", "joint"):
      assert f"experiments/{folder}/{stage}.py" in FILES
  assert "experiments/scaling/dynamics.py" in FILES


@pytest.mark.parametrize("file, mode", CASES)
def test_every_mode_loads_locks_and_splits_over_its_steps(file, mode):
  config = load(file, mode)
  with pytest.raises(AttributeError):
    config.no_such_field = 1
  assert (
    config.stage == "dynamics" if "scaling" in file else config.stage in file
  )
  assert len(config_lib.fingerprint(config)) == 64
  optimizer_lib.make(config.optimizer, config.steps, frozenset())
  assert config.data.num_frames <= config.world.num_frames
  # Microbatches must have equal sizes.
  assert config.data.batch_size % config.optimizer.accumulate == 0


@pytest.mark.parametrize("file", FILES)
def test_the_error_for_an_unknown_mode_lists_the_known_ones(file):
  with pytest.raises(errors.UserError, match="Unknown mode 'huge'") as raised:
    load(file, "huge")
  for mode in modes(file):
    assert repr(mode) in str(raised.value)


@pytest.mark.parametrize("file", FILES)
def test_a_docstring_states_command_source_and_result(file):
  text = ast.get_docstring(ast.parse((ROOT / file).read_text()))
  assert f"genie train --config {file}" in text.replace("\\\n", "")
  for heading in ("After:", "Run:", "Try it:", "Source:", "Result:"):
    assert f"\n{heading}" in text, heading
  assert ":smoke" in text and "--workdir" in text


@pytest.mark.parametrize("file, mode", TRACED)
def test_every_size_traces_without_memory(file, mode):
  config = load(file, mode).unlock()
  if "start" in config:
    config.start = "random"  # Other values read the token folder's tokenizer.
  stage = registry.make(config)
  params, extra = jax.eval_shape(stage.init, jax.random.key(0))
  params = nn.unbox(params)
  batch = {
    name: jax.ShapeDtypeStruct(
      (config.data.batch_size, *feature.shape), feature.dtype
    )
    for name, feature in stage.features.items()
  }

  def step(params, extra, batch, rng):
    outcome = stage.loss(params, extra, batch, rng, 0)
    return outcome, stage.after_update(params, outcome.extra, outcome.aux, rng)

  rng = jax.random.key(0)
  outcome, after = jax.eval_shape(step, params, extra, batch, rng)
  assert set(outcome.losses) == set(stage.loss_scales)
  shapes = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype), tree)
  assert shapes(after) == shapes((params, extra))
  assert stage.flops_per_clip > 0


@pytest.mark.parametrize(
  "file",
  [
    # The joint stage trains two of the models and compiles for longer.
    pytest.param(file, marks=pytest.mark.slow)
    if file.endswith(("lam.py", "joint.py"))
    else file
    for file in FILES
    if "platformers" in file
  ],
)
def test_the_smoke_configs_of_large_models_train_two_steps(file):
  config = load(file, "smoke").unlock()
  if "start" in config:
    config.start = "random"
  batch = stage_training.random_batch(registry.make(config), config)
  stage_training.check(stage_training.train(config, batch, evaluates=False))


def test_the_smoke_config_of_the_scaling_study_is_that_of_platformers():
  assert config_lib.fingerprint(
    load("experiments/scaling/dynamics.py", "smoke")
  ) == (
    config_lib.fingerprint(load("experiments/platformers/dynamics.py", "smoke"))
  )


@pytest.mark.parametrize(
  "file, chips",
  [
    ("experiments/platformers/dynamics.py:", 256),
    ("experiments/platformers/joint.py:", 256),
    ("experiments/platformers/tokenizer.py:", 128),
    ("experiments/scaling/dynamics.py:2.7B", 256),
    ("experiments/coinrun/dynamics.py:", 4),
  ],
)
def test_states_and_batches_divide_over_the_papers_chips(file, chips):
  config = load(*file.split(":"))
  stage = registry.make(config)
  mesh = layouts.mesh_of(config, chips)
  sizes = dict(mesh.shape)
  optimizer = optimizer_lib.make(config.optimizer, config.steps, stage.no_decay)
  state = state_lib.abstract(stage, optimizer, mesh)
  step_lib.batch_shardings(
    stage, mesh, config.data.batch_size, config.optimizer.accumulate
  )
  kept = lambda x: np.prod(x.sharding.shard_shape(x.shape)) * 4
  whole = sum(np.prod(x.shape) * 4 for x in jax.tree.leaves(state.params))
  mine = sum(kept(x) for x in jax.tree.leaves(state.params))
  # ZeRO-3: nearly all of the state is sharded over the chips of a replica.
  assert mine < 1.3 * whole / (chips / sizes["data"])
  assert set(sizes) == set(rules.MESH_AXES)


def test_the_world_of_the_final_model_is_that_of_the_paper():
  config = load("experiments/platformers/dynamics.py")
  assert build.token_grid(config.world) == (23, 40)  # S = 920
  assert (config.world.num_frames, config.world.fps) == (16, 10)
  assert (config.world.num_codes, config.world.num_latent_actions) == (1024, 8)
  assert (config.data.batch_size, config.steps) == (512, 125_000)
  clips = config.data.batch_size * config.steps
  assert clips * 16 * 920 == pytest.approx(942e9, rel=1e-3)


def test_docstrings_of_large_models_state_their_size():
  counted = {
    part: table.count(part, load(f"experiments/platformers/{part}.py"))
    for part in ("tokenizer", "lam", "dynamics")
  }
  stated = {
    "tokenizer": f"{counted['tokenizer'] / 1e6:.0f}M",
    "lam": f"{counted['lam'] / 1e6:.0f}M",
    "dynamics": f"{counted['dynamics'] / 1e9:.2f}B",
    "joint": f"{(counted['lam'] + counted['dynamics']) / 1e9:.2f}B",
  }
  for name, text in stated.items():
    source = (ROOT / f"experiments/platformers/{name}.py").read_text()
    assert f"Size:    {text}" in source, (name, text)
  assert (
    f"{sum(counted.values()) / 1e9:.2f}B"
    in (ROOT / "experiments/platformers/joint.py").read_text()
  )


def test_the_planned_hours_of_one_gpu_follow_from_the_flops_of_its_stages():
  text = (ROOT / "docs/gpu.md").read_text()
  rate = 0.2 * chips.device_peak_flops("NVIDIA L4")
  total = 0.0
  for name in ("tokenizer_images", "tokenizer", "lam", "dynamics"):
    config = load(f"experiments/coinrun/{name}.py", "gpu").unlock()
    if "start" in config:
      config.start = "random"
    step = registry.make(config).flops_per_clip * config.data.batch_size
    flops = step * config.steps
    total += flops
    row = next(line for line in text.splitlines() if f"| `{name}` |" in line)
    assert f"{config.steps:,} of {config.data.batch_size}" in row
    power = lambda number: f"{number:.2e}".replace("e+", "e")
    assert row.endswith(
      f"| {power(step)} | {power(flops)} | {flops / rate / 3600:.2f} |"
    )
  assert f"| all | | | {power(total)} | {total / rate / 3600:.2f} |" in text


@pytest.mark.parametrize("mode", sorted(table.SIZES))
def test_each_scaling_config_equals_its_row_of_the_table(mode):
  config = load("experiments/scaling/dynamics.py", mode)
  size = table.SIZES[mode]
  stack = config.model.transformer
  assert (stack.num_layers, stack.num_heads, stack.width, stack.head_dim) == (
    size.layers,
    size.heads,
    size.width,
    size.head_dim,
  )
  wanted = (512, 125_000) if mode == "10.1B" else (256, 200_000)
  assert (config.data.batch_size, config.steps) == wanted
  assert build.token_grid(config.world) == (23, 40)
