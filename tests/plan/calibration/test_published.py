"""Tests of the table of published runs."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from genie_jax.core import errors
from genie_jax.plan import topology
from genie_jax.plan.calibration import calibrate, decoder, published, ratios

RUNS = published.RUNS.values()


@pytest.mark.parametrize(
  "scale, billions", [(16, 16), (32, 32), (64, 64), (128, 128)]
)
def test_a_scale_of_maxtext_is_its_number_of_parameters(scale, billions):
  assert published.scaled(scale).params / 1e9 == pytest.approx(
    billions, rel=0.03
  )


def test_the_parameters_of_llama_are_those_of_its_authors():
  # arXiv:2407.21783, table 3, and the released weights: 8.03B and 70.6B.
  sizes = {run.name: run.shape for run in RUNS}
  assert sizes["Llama 3.1 8B on v6e-8"].params == 8_030_261_248
  assert sizes["Llama 3.1 70B on v6e-256"].params == 70_553_706_496


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.name)
def test_every_row_has_its_sources_and_fits_its_mesh(run):
  for url in (run.source, run.setup):
    assert url.startswith("https://github.com/AI-Hypercomputer/")
    # A commit, so that the figure stays where it is.
    assert len(url.split("/blob/")[1].split("/")[0]) == 40
  found = topology.parse(run.topology)
  assert run.fsdp * run.tensor == found.num_devices
  assert run.batch_per_device * found.num_devices % run.fsdp == 0
  assert (run.seconds is None) != (run.teraflops is None)
  assert run.shape.heads % (run.tensor * 1) == 0
  assert run.length % run.kernel.block == 0


def test_there_are_six_rows_on_four_kinds_of_chips():
  assert len(RUNS) >= 6
  kinds = {topology.parse(run.topology).chip.name for run in RUNS}
  assert kinds == {"v5e", "v5p", "v6e", "v7x"}


@pytest.mark.parametrize(
  "name, teraflops, attention",
  [
    ("Llama 3.1 8B on v6e-8", 413.433, 2),
    ("Llama 3.1 8B on v6e-256", 417.397, 2),
    ("Llama 3.1 70B on v6e-256", 462.297, 2),
    # Published for a chip, which has two devices.
    ("Llama 3.1 70B on Ironwood 4x4x4", 1207.05 / 2, 1),
  ],
)
def test_shape_and_batch_give_the_teraflops_that_the_recipes_print(
  name, teraflops, attention
):
  # They print TFLOP/s beside the seconds, which we do not use. MaxText left out
  # the table of embeddings, whose lookup is not a product, and counted the
  # hidden half of attention until July 2025.
  run = published.RUNS[name]
  shape, length = run.shape, run.length
  half = 6 * shape.layers * shape.heads * shape.head_dim * length**2
  flops = run.batch_per_device * (
    6 * (shape.params - shape.vocab * shape.width) * length + attention * half
  )
  assert flops / run.seconds / 1e12 == pytest.approx(teraflops, rel=1e-3)


def test_published_teraflops_give_the_seconds_of_a_step():
  run = published.RUNS["MaxText 32B on v5p-128"]
  # 31.66B parameters, six sequences of 2048 tokens a chip, 328 TFLOP/s.
  assert calibrate.published_seconds(run) == pytest.approx(7.24, rel=0.005)


def test_an_unknown_run_is_rejected_with_the_known_ones():
  assert published.find("all") == list(RUNS)
  name = "Llama 3.1 8B on v6e-8"
  assert published.find(name) == [published.RUNS[name]]
  with pytest.raises(errors.UserError, match="did you mean") as raised:
    published.find("Llama 3.1 8B on v6e-9")
  assert "MaxText 32B on v5p-128" in str(raised.value)


def test_the_range_of_mfu_follows_from_the_ratios():
  stored = {
    "version": ratios.VERSION,
    "commit": "0123456789abcdef",
    "rows": [{"name": n, "ratio": r} for n, r in (("a", 0.8), ("b", 1.25))],
  }
  found = ratios.calibrated(0.6, stored)
  assert found["low"] == pytest.approx(0.48)
  assert found["middle"] == pytest.approx(0.6)
  assert found["high"] == pytest.approx(0.75)
  text = ratios.render(found)
  assert "48.0% to 75.0%" in text and "2 public training runs" in text
  assert "0123456789)" in text
  assert "no range" in ratios.render(None)


def test_the_worst_ratio_is_the_furthest_in_either_direction():
  assert ratios.worst([0.7, 1.0, 1.35]) == 0.7
  assert ratios.worst([0.8, 1.0, 1.35]) == 1.35
  assert ratios.geometric_mean([0.5, 2.0]) == pytest.approx(1)


def test_ratios_of_another_version_are_rejected(tmp_path):
  path = tmp_path / "ratios.json"
  assert ratios.load(path) is None
  path.write_text(json.dumps({"version": 99}))
  ratios.load.cache_clear()
  with pytest.raises(ValueError, match="version 99"):
    ratios.load(path)


def test_rows_of_another_program_are_not_resumed(monkeypatch):
  here = {"commit": "a", "clean": True, "libraries": {"jax": "1"}}
  monkeypatch.setattr(calibrate, "program", lambda: here)
  rows = [{"name": "x", "ratio": 1.0}, {"name": "y", "ratio": 2.0}]
  found = calibrate.result(rows, "genie plan --calibrate all")
  assert found["geometric_mean"] == pytest.approx(2**0.5)
  assert found["worst"] == 2.0 and found["provenance"]["commit"] == "a"
  assert calibrate.resumed(found, ["y"]) == rows[1:]
  monkeypatch.setattr(calibrate, "program", lambda: here | {"commit": "b"})
  with pytest.raises(errors.UserError, match=r"another program \(commit\)"):
    calibrate.resumed(found, ["y"])


def test_the_loss_of_the_decoder_is_the_cross_entropy():
  rng = jax.random.key(0)
  logits = jax.random.normal(rng, (2, 3, 8)).astype(jnp.bfloat16)
  targets = jax.random.randint(rng, (2, 3), 0, 8)
  wanted = optax.softmax_cross_entropy_with_integer_labels(
    logits.astype(jnp.float32), targets
  )
  found = decoder.cross_entropy(logits, targets)
  assert found.dtype == jnp.float32
  np.testing.assert_allclose(found, wanted, rtol=1e-5)


def test_the_flops_of_a_decoder_are_counted_by_hand():
  shape = decoder.Shape(2, 8, 4, 2, 4, 16, 32)
  layer = 8 * 4 * 4 * 2 + 8 * 2 * 4 * 2 + 3 * 8 * 16 + 2 * 8
  assert shape.params == 2 * layer + 2 * 32 * 8 + 8
  # Causal scores and values: 2 * 2 FLOPs for half of the pairs, three passes.
  assert shape.flops_per_sequence(10) == (
    6 * shape.params * 10 + 3 * 2 * 4 * 4 * 4 * 10**2 / 2
  )
