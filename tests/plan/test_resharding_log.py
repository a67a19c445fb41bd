"""Tests of layouts of compiled programs, and of the TPU compiler's log."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from genie_jax.core import config as config_lib
from genie_jax.plan import aot_compile, child_process, topology, training
from genie_jax.plan.hlo import parse
from genie_jax.scaling import table
from genie_jax.train import step as step_lib
from tests.plan import tpu_compiler


def _change_layout(after):
  """Compiles a change of layout; runs in a child process."""
  aot_compile.set_up_compiler()
  devices = topology.devices(topology.parse("v5e:2x4"))
  mesh = Mesh(np.array(devices).reshape(2, 2, 2), ("a", "b", "c"))
  before = NamedSharding(mesh, P(("a", "b", "c")))
  after = NamedSharding(mesh, after)
  x = jax.ShapeDtypeStruct((8, 16, 512), jnp.float32, sharding=before)
  change = lambda x: jax.lax.with_sharding_constraint(jnp.sin(x), after) * 2
  jax.jit(change, out_shardings=after).lower(x).compile()
  return {}, ""


@tpu_compiler.required
def test_a_fully_replicated_tensor_is_found_in_the_log():
  report, _ = child_process._in_child_process(
    _change_layout, P(None, None, ("c", "b"))
  )
  line, *rest = report["copied_whole"]
  assert not rest, rest
  assert "f32[1,16,512]" in line, line
  # Of the two ways in which compilers write layouts.
  before, after = (
    ("[8,1,1]", "[1,1,4,2]") if "[8,1,1]" in line else ("{'a', ", "{'c', ")
  )
  assert line.index(before) < line.index(after), line
  shown = "\n".join(training.copied_lines(report))
  assert "copied completely" in shown and line in shown


@tpu_compiler.required
def test_a_supported_change_of_layout_reports_nothing():
  report, _ = child_process._in_child_process(
    _change_layout, P(("a", "b"), "c")
  )
  assert report["copied_whole"] == []
  assert not training.copied_lines(report)


# (config, topology that it is meant for); see BUILD.md and docs/plan.md.
SHIPPED = (
  ("platformers/tokenizer.py", "v5p:4x4x8"),
  ("platformers/lam.py", "v5p:4x8x8"),
  ("platformers/dynamics.py", "v5p:4x8x8"),
  ("platformers/joint.py", "v5p:4x8x8"),
  *(
    (f"scaling/dynamics.py:{size}", "v5p:4x4x8")
    for size in table.SIZES
    if size != "10.1B"
  ),
  ("coinrun/tokenizer_images.py:small", "v5e:2x2"),
  ("coinrun/tokenizer.py", "v5e:2x2"),
  ("coinrun/lam.py", "v5e:2x2"),
  ("coinrun/dynamics.py", "v5e:2x2"),
  ("coinrun/joint.py", "v5e:2x2"),
)


@tpu_compiler.required
@pytest.mark.slow
def test_the_policy_offload_saves_attention_in_the_hosts_memory():
  config = config_lib.load("experiments/platformers/dynamics.py:smoke").unlock()
  kept = {}
  for policy in ("attention", "offload"):
    config.model.transformer.remat = policy
    report, text = child_process.plan_training(
      config, topology.parse("v5e:1x1")
    )
    assert report["fits"] and report["remat"] == policy
    kept[policy] = "S(5)" in text  # The compiler's mark for host memory.
  assert kept == {"attention": False, "offload": True}


def test_the_check_detects_gradients_that_are_all_reduced():
  row = lambda gigabytes: {"bytes": gigabytes * 1e9}
  report = {"params": 10e9, "params_per_chip": 0.16e9, "accumulate": 2}
  check_gradients_are_scattered(
    report
    | {"collectives": {"reduce-scatter": row(39.7), "all-reduce": row(1.1)}}
  )
  with pytest.raises(AssertionError):
    check_gradients_are_scattered(
      report
      | {"collectives": {"reduce-scatter": row(0.5), "all-reduce": row(80.0)}}
    )
  with pytest.raises(AssertionError):
    check_gradients_are_scattered(
      report
      | {"collectives": {"reduce-scatter": row(39.7), "all-reduce": row(20.0)}}
    )


@tpu_compiler.required
@pytest.mark.slow
@pytest.mark.parametrize("name, shape", SHIPPED)
def test_every_shipped_config_fits_and_replicates_no_tensor_fully(name, shape):
  config = config_lib.load(f"experiments/{name}")
  report, _ = child_process.plan_training(config, topology.parse(shape))
  assert report["copied_whole"] == []
  assert report["fits"]
  if name == "platformers/dynamics.py":
    check_gradients_are_scattered(report)
    assert 10.0e9 < report["params"] < 10.2e9
    assert report["mfu"] > 0.64
    assert report["mfu_kernels_twice_as_slow"] > 0.60


# Mesh of the final model on more chips than clips, as in README.md.
MANY_CHIPS = dict(fsdp=32, frame=2)


@tpu_compiler.required
@pytest.mark.slow
def test_the_final_model_exchanges_frames_by_all_to_all_and_not_by_all_gather():
  config = config_lib.load("experiments/platformers/dynamics.py").unlock()
  config.mesh.update(MANY_CHIPS)
  config.optimizer.accumulate = 1
  report, text = child_process.plan_training(
    config, topology.parse("v5p:8x8x16")
  )
  assert report["copied_whole"] == [] and report["fits"]
  # Each of 48 layers splits tokens instead of frames and then frames again,
  # forward and backward.
  assert report["collectives"]["all-to-all"]["count"] == 4 * 48
  # A device has half a clip: 8 of 16 frames of 920 tokens.
  clip = 8 * 920 * config.model.transformer.width
  gathered = [
    math.prod(array.shape)
    for block in parse.parse(text).computations.values()
    for x in block
    if x.opcode.startswith("all-gather")
    for array in x.results
  ]
  assert gathered and max(gathered) < clip, max(gathered)
  assert report["mfu"] > 0.56


def _evaluation(config, slice_):
  """Compiles the evaluation step; runs in a child process."""
  aot_compile.set_up_compiler()
  step = aot_compile.build(config, slice_)
  program = (
    step_lib.make_eval_step(
      step.stage, step.mesh, step.abstract_state, config.data.batch_size
    )
    .lower(
      step.abstract_state.params,
      step.abstract_state.extra,
      step.abstract_batch,
      jax.eval_shape(lambda: jax.random.key(0)),
    )
    .compile()
  )
  found = aot_compile.memory_of(
    program.memory_analysis(),
    aot_compile.device_bytes(step.abstract_state.params),
    0.0,
  )
  return {
    "gib": found.peak / aot_compile.GIB,
    "optimizer_gib": aot_compile.device_bytes(step.abstract_state.opt_state)
    / aot_compile.GIB,
  }, ""


@tpu_compiler.required
@pytest.mark.slow
@pytest.mark.parametrize(
  "name, shape, axes",
  [
    ("dynamics", "v5p:4x8x8", {}),
    ("dynamics", "v5p:8x8x16", MANY_CHIPS),
    ("joint", "v5p:4x8x8", {}),
    ("tokenizer", "v5p:4x4x8", {}),
  ],
)
def test_evaluation_fits_together_with_the_optimizer_state(name, shape, axes):
  config = config_lib.load(f"experiments/platformers/{name}.py").unlock()
  config.mesh.update(axes)
  if axes:
    config.optimizer.accumulate = 1
  slice_ = topology.parse(shape)
  report, _ = child_process._in_child_process(_evaluation, config, slice_)
  assert report["copied_whole"] == []
  assert report["gib"] + report["optimizer_gib"] < slice_.chip.hbm_gib / 2


def check_gradients_are_scattered(report):
  """Asserts that gradients are reduce-scattered and not all-reduced."""
  moved = {kind: row["bytes"] for kind, row in report["collectives"].items()}
  # Two bytes per parameter, once in every microbatch.
  gradients = 2 * report["params"] * report["accumulate"]
  assert 0.9 < moved["reduce-scatter"] / gradients < 1.1, moved
  # Only replicas of the same shard, and arrays that are never split.
  assert moved["all-reduce"] < 0.05 * gradients, moved
  assert report["params_per_chip"] < 0.02 * report["params"]
