"""Tests of plans for GPUs, which are counted and not compiled."""

import json
import pathlib
import shlex

import pytest

from genie_jax.cli import main
from genie_jax.core import chips, errors, gpus
from genie_jax.core import config as config_lib
from genie_jax.plan import gpu, training
from genie_jax.plan.search import analytic
from genie_jax.sharding import mesh, rules

ROOT = pathlib.Path(__file__).parents[2]
FLAGSHIP = str(ROOT / "experiments/platformers/dynamics.py")
ONE = {"data": 1, "fsdp": 1, "tensor": 1, "frame": 1}


def flagship(*overrides):
  return config_lib.load(FLAGSHIP, overrides)


def test_gpus_are_named_by_kind_nodes_and_number():
  cluster = gpu.parse("H100:32x8")
  assert (cluster.gpu.name, cluster.nodes, cluster.per_node) == ("h100", 32, 8)
  assert cluster.num_gpus == 256 and cluster.name == "h100:32x8"
  assert gpu.parse("l40s:2").name == "l40s:1x2"
  assert gpu.names_gpu("b200:8") and not gpu.names_gpu("v5p:4x8x8")


@pytest.mark.parametrize(
  "text, message",
  [
    ("h100:0", "not a number of GPUs"),
    ("h100:4x8x8", "not a number of GPUs"),
    ("h100-8", "not a number of GPUs"),
    ("h100:2x16", "a node of h100 has 8 GPUs, not 16"),
  ],
)
def test_other_numbers_of_gpus_are_refused(text, message):
  with pytest.raises(errors.UserError, match=message):
    gpu.parse(text)


def test_every_gpu_has_a_peak_for_the_training_log():
  assert set(gpus.GPUS) == {"a100", "h100", "h200", "b200", "l40s"}
  for found in gpus.GPUS.values():
    for kind in found.device_kinds:
      assert chips.device_peak_flops(kind) == found.peak_flops
    # In a node links are at least as fast as the network, and memory faster.
    assert found.network_bandwidth <= found.link_bandwidth
    assert found.link_bandwidth < found.memory_bandwidth
  assert chips.device_peak_flops("NVIDIA L4") == 121e12
  assert chips.device_peak_flops("NVIDIA T4") is None


def test_memory_by_formula_is_near_that_of_compiled_plans():
  # The margin of a plan for GPUs covers every stored plan of a TPU with fused
  # attention and one remat policy.
  stored = json.loads(
    (ROOT / "experiments/platformers/results/plans.json").read_text()
  )["plans"]
  ratios = []
  for plan in stored:
    words = shlex.split(plan["command"])
    overrides = [word for word in words if word.startswith("--config.")]
    config = config_lib.load(str(ROOT / words[3]), overrides)
    remat = training.remat_of(config)
    if "plain" in plan["command"] or not isinstance(remat, str):
      continue
    counts = analytic.count(
      analytic.facts(config),
      plan["mesh"],
      remat,
      config.optimizer.get("accumulate", 1),
    )
    ratios.append(plan["hbm_gib_per_chip"] * 2**30 / counts.hbm_bytes)
  assert len(ratios) >= 8
  assert min(ratios) > 1 and max(ratios) < gpu.MARGIN


def test_an_exchange_takes_the_slower_of_links_and_network():
  cluster = gpu.parse("h100:4x8")
  h100 = cluster.gpu
  link = gpu.LINKS * h100.link_bandwidth
  network = gpu.NETWORK * h100.network_bandwidth
  seconds = lambda axes, sizes, **kwargs: gpu.exchange_seconds(
    1e9, axes, ONE | sizes, cluster, **kwargs
  )
  # Within a node: seven eighths of the array come over the links.
  inside = seconds(("tensor",), {"data": 4, "tensor": 8})
  assert inside == pytest.approx(7 / 8 * 1e9 / link)
  # Over four nodes of eight: a GPU's card receives an eighth of what the other
  # three nodes have.
  across = seconds(("fsdp",), {"fsdp": 32})
  assert across == pytest.approx(3 / 4 * 1e9 / 8 / network)
  # One GPU of each node: nothing is shared.
  apart = seconds(("data",), {"data": 4, "fsdp": 8})
  assert apart == pytest.approx(3 / 4 * 1e9 / network)
  # Neither is it in an all-to-all.
  swapped = seconds(("fsdp",), {"fsdp": 32}, all_to_all=True)
  assert swapped == pytest.approx(3 / 4 * 1e9 / network)
  # Axes that are not neighbours: fsdp 4 around tensor 4 and frame 2.
  sizes = {"fsdp": 4, "tensor": 4, "frame": 2}
  assert seconds(("fsdp", "frame"), sizes) == pytest.approx(
    3 / 4 * 1e9 / 2 / network
  )
  assert seconds(("data",), {"fsdp": 32}) == 0


def test_compute_is_counted_by_hand():
  config = flagship("--config.model.transformer.remat=full")
  found = analytic.facts(config)
  sizes = mesh.sizes(config.mesh, 256)
  counts = analytic.count(found, sizes, "full", 2)
  gpu_ = gpus.GPUS["h100"]
  parts = gpu.compute_seconds(found, counts, sizes, "full", 2, gpu_)
  tokens, inner = 2 * 16 * 920, 36 * 128  # Two clips a GPU.
  rows = 48 * tokens
  # Scores and values: 4 FLOPs per pair and channel, forward, backward twice,
  # and in space again. Of the pairs in time, the model counts half.
  pairs = lambda time: rows * 4 * inner * ((3 + 1) * 920 + 3 * time)
  flops = counts.flops + counts.recomputed_flops - pairs(16 / 2)
  assert parts["products"] == pytest.approx(
    flops / (gpu.PRODUCTS * gpu_.peak_flops)
  )
  # Scores in time are written and read four times in each of four passes.
  scores = rows * 36 * 16 * 4 * 4 * 4 / (gpu.MEMORY * gpu_.memory_bandwidth)
  assert parts["attention"] == pytest.approx(
    pairs(16) / (gpu.ATTENTION * gpu_.peak_flops) + scores
  )
  # Without cuDNN the scores in space go through memory as well.
  plain = analytic.facts(
    flagship(
      "--config.model.transformer.remat=full",
      "--config.model.transformer.attention=plain",
    )
  )
  slower = gpu.compute_seconds(plain, counts, sizes, "full", 2, gpu_)
  assert slower["attention"] - parts["attention"] == pytest.approx(
    scores * 920 / 16
  )
  assert gpu.score_memory(plain, counts, sizes) == pytest.approx(
    16 * 920 * 36 * (920 + 16) * 4 * 3
  )


def test_a_plan_states_a_range_from_full_overlap_to_none():
  found = gpu.plan(flagship(), gpu.parse("h200:32x8"), price=2.0)
  compute = sum(found["seconds_by_part"].values())
  exchange = sum(found["collective_seconds"].values())
  assert found["step_seconds_low"] == pytest.approx(compute)
  assert found["step_seconds_high"] == pytest.approx(compute + exchange)
  assert found["mfu_high"] * found["step_seconds_low"] == pytest.approx(
    found["model_flops_per_step"] / (256 * 989e12)
  )
  assert found["cost_high"] == pytest.approx(2 * 24 * 256 * found["days_high"])
  assert found["calibrated"] is None and found["fits"]
  assert set(found["mesh"]) == set(rules.MESH_AXES)
  text = gpu.render(found)
  assert "not calibrated" in text and "not compared with any" in text
  assert "assumed: products at 70%" in text
  assert "network: 400 Gb/s" in gpu.render(
    gpu.plan(flagship(), gpu.parse("l40s:32x8"))
  )


DOCS = [
  ("a100:32x8", "full"),
  ("h100:32x8", "full"),
  ("h200:32x8", "products"),
  ("b200:32x8", "products"),
]


@pytest.mark.parametrize("name, remat", DOCS)
def test_docs_show_the_plans_of_the_final_model(name, remat):
  found = gpu.plan(
    flagship(f"--config.model.transformer.remat={remat}"), gpu.parse(name)
  )
  ends = lambda key, form, unit=1: " to ".join(
    f"{unit * found[f'{key}_{end}']:{form}}" for end in ("low", "high")
  )
  row = (
    f"| `{name}` | `{remat}` | {found['memory_gib_per_gpu']:.1f} of "
    f"{found['memory_limit_gib']:.1f} | {ends('step_seconds', '.2f')} s | "
    f"{ends('mfu', '.0f', 100)} % | {ends('days', '.1f')} |"
  )
  assert row in (ROOT / "docs/plan.md").read_text()


def test_docs_show_the_table_of_gpus():
  text = (ROOT / "docs/plan.md").read_text()
  for found in gpus.GPUS.values():
    rates = (
      found.memory_bandwidth,
      found.link_bandwidth,
      found.network_bandwidth,
    )
    memory, link, network = (f"{rate / 1e9:g}" for rate in rates)
    assert (
      f"| {found.name} | {found.memory_gb:g} | {memory} | "
      f"{found.peak_flops / 1e12:.0f} | {link} | {network} |"
    ) in text


def test_more_nodes_take_less_time_and_less_memory():
  small = gpu.plan(
    flagship("--config.optimizer.accumulate=2"), gpu.parse("h200:32x8")
  )
  large = gpu.plan(
    flagship("--config.optimizer.accumulate=1"), gpu.parse("h200:64x8")
  )
  assert large["step_seconds_low"] < 0.6 * small["step_seconds_low"]
  assert large["memory_gib_per_gpu"] < small["memory_gib_per_gpu"]


def test_the_command_plans_gpus_without_a_compiler(capsys, tmp_path):
  path = tmp_path / "plan.json"
  argv = ["plan", "--config", FLAGSHIP, "--json", str(path), "--topology"]
  assert main.main([*argv, "h200:32x8"]) == 0
  assert "32x8 (256 GPUs)" in capsys.readouterr().out
  found = json.loads(path.read_text())
  assert found["topology"] == "h200:32x8" and found["config"] == FLAGSHIP

  def refused(*words):
    assert main.main([*argv, *words]) == 2
    [line] = capsys.readouterr().err.strip().splitlines()
    return line

  # It does not fit, and the plan is written all the same.
  assert "of a GPU of h100:32x8" in refused("h100:32x8")
  assert not json.loads(path.read_text())["fits"]
  for flag in ("--search", "--sample", "--whole-run", "--breakdown"):
    assert f"{flag} needs a compiled program" in refused("h200:32x8", flag)
  assert "are for TPUs" in refused("h200:32x8", "--slices", "2")
  assert "and the GPUs a100, h100" in refused("h300:8")
  assert "change config.mesh" in refused("h200:8")
  assert "does not split" in refused("h200:64x8")
  argv[2] = str(ROOT / "experiments/platformers/lam.py")
  assert "'lam' sees others" in refused("h200:32x8")
