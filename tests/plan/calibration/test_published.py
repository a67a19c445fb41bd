"""Tests of the table of published runs."""

import dataclasses
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from genie_jax.core import errors, files
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
  for batch in (run.batch_per_device, run.planned_batch):
    assert batch * found.num_devices % run.fsdp == 0
  assert run.planned_batch <= run.batch_per_device
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
  # 31.66B parameters, six sequences of 2048 tokens a chip, 328 TFLOP/s; five of
  # them are planned.
  assert run.batch_per_device == 6
  seconds = calibrate.published_seconds(run)
  assert seconds == pytest.approx(7.24 * 5 / 6, rel=0.005)
  stated = dataclasses.replace(run, teraflops=None, seconds=7.24)
  assert calibrate.published_seconds(stated) == pytest.approx(7.24 * 5 / 6)


def test_an_unknown_run_is_rejected_with_the_known_ones():
  assert published.find("all") == list(RUNS)
  name = "Llama 3.1 8B on v6e-8"
  assert published.find(name) == [published.RUNS[name]]
  with pytest.raises(errors.UserError, match="did you mean") as raised:
    published.find("Llama 3.1 8B on v6e-9")
  assert "MaxText 32B on v5p-128" in str(raised.value)


def stored(values, share=0.9):
  return {
    "version": ratios.VERSION,
    "commits": ["0123456789abcdef"],
    "rows": [
      {"name": "a", "topology": "v5p:4x4x4", "ratio": x, "share_of_peak": share}
      for x in values
    ],
  }


def test_the_interval_is_that_of_student_for_one_further_ratio():
  # Logarithms 0, 0.1 and 0.2: mean 0.1, deviation 0.1; the quantile of 95 % of
  # Student's distribution with two degrees of freedom is 2.91999.
  low, high = ratios.interval(np.exp([0.0, 0.1, 0.2]))
  half = 2.91999 * 0.1 * (4 / 3) ** 0.5
  assert np.log([low, high]) == pytest.approx(
    [0.1 - half, 0.1 + half], rel=1e-5
  )


def test_the_interval_holds_its_confidence():
  rng = np.random.default_rng(0)
  draws = np.exp(0.2 + 0.1 * rng.standard_normal((1000, 7)))
  inside = 0
  for *seen, new in draws:
    low, high = ratios.interval(seen)
    inside += low <= new <= high
  # Four standard errors of a share of 0.9 of 1000 draws.
  assert inside / 1000 == pytest.approx(ratios.CONFIDENCE, abs=0.038)


def test_each_ratio_is_predicted_from_the_others():
  found = ratios.held_out([1.0, 1.0, 1.0, 2.0])
  # The three equal ratios of the others exclude 2; the other intervals, which
  # contain it, are wide.
  assert found["runs"] == 4 and found["inside"] == 3
  assert found["highest"] == pytest.approx(2)
  assert found["lowest"] == pytest.approx(2 ** (-1 / 3))
  assert ratios.held_out([1.0, 1.1]) is None


def test_the_range_of_seconds_follows_from_the_ratios():
  values = [1.0, 1.01, 1.0201]
  found = ratios.calibrated(6.0, 0.3, 0.3, "v5p", stored(values))
  low, high = ratios.interval(values)
  assert found["seconds_low"] == pytest.approx(6 / high)
  assert found["seconds_middle"] == pytest.approx(6 / 1.01)
  assert found["seconds_high"] == pytest.approx(6 / low)
  # MFU and seconds are inverse.
  for name, other in (("low", "high"), ("middle", "middle"), ("high", "low")):
    assert found[f"mfu_{name}"] * found[f"seconds_{other}"] == pytest.approx(
      0.3 * 6
    )
  assert low < 1 and not found["limited"]
  assert found["runs"] == found["runs_on_chip"] == 3
  text = "\n".join(ratios.render(found, "v5p"))
  assert "3 runs, 3 of them on v5p" in text
  assert "of 3 in the interval" in text and "of peak" not in text
  other = ratios.calibrated(6.0, 0.3, 0.3, "v6e", stored(values))
  assert "none of them on v6e" in "\n".join(ratios.render(other, "v6e"))
  assert "no range" in ratios.render(None, "v5p")[0]


@pytest.mark.parametrize("ratio", [1.2, 0.8])
def test_a_range_includes_the_planned_seconds(ratio):
  values = [ratio, ratio * 1.001, ratio * 0.999]
  low, high = ratios.interval(values)
  assert (low > 1) if ratio > 1 else (high < 1)
  found = ratios.calibrated(6.0, 0.3, 0.3, "v5p", stored(values))
  ends = sorted([6.0, 6 / (high if ratio > 1 else low)])
  assert [found["seconds_low"], found["seconds_high"]] == pytest.approx(ends)


def test_no_range_is_faster_than_the_largest_published_share_of_peak():
  # A plan at 70 % of peak, of a chip where runs reached 80 %: at most 8 / 7
  # times as fast, although the ratios alone would say twice as fast.
  found = ratios.calibrated(7.0, 0.5, 0.7, "v5p", stored([2.0] * 3, 0.8))
  assert found["limited"]
  assert found["seconds_low"] == pytest.approx(7 * 7 / 8)
  assert found["mfu_high"] == pytest.approx(0.5 * 8 / 7)
  assert found["seconds_low"] <= found["seconds_middle"]
  assert "80.0% of peak" in "\n".join(ratios.render(found, "v5p"))


def test_the_share_of_peak_is_that_of_the_same_chip_where_there_is_one():
  rows = stored([2.0] * 3, 0.8)
  rows["rows"][0] |= {"topology": "v5e:16x16", "share_of_peak": 0.9}
  most = lambda chip: ratios.calibrated(7.0, 0.5, 0.7, chip, rows)
  assert most("v5p")["share_of_peak"] == 0.8
  assert most("v5e")["share_of_peak"] == 0.9
  assert most("v6e")["share_of_peak"] == 0.9
  assert "the most of those on v5p" in "\n".join(
    ratios.render(most("v5p"), "v5p")
  )
  assert "the most of these runs" in "\n".join(
    ratios.render(most("v6e"), "v6e")
  )


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


def test_rows_of_the_same_program_and_rows_not_wanted_are_kept(monkeypatch):
  here = {"commit": "a", "clean": True, "libraries": {"jax": "1"}}
  monkeypatch.setattr(calibrate, "program", lambda: here)
  first, second, third = list(published.RUNS)[:3]
  row = lambda name, ratio: {
    "name": name,
    "ratio": ratio,
    "fits": ratio is not None,
    "program": here,
  }
  rows = [row(first, 1.0), row(second, 2.0), row(third, None)]
  found = calibrate.result(rows[::-1], "genie plan --calibrate all")
  assert found["rows"] == rows  # In the order of the table.
  assert found["geometric_mean"] == pytest.approx(2**0.5)
  assert found["worst"] == 2.0 and found["held_out"] is None
  # A run that does not fit would not fit again.
  assert calibrate.resumed(found, [first, third]) == rows
  # One that the compiler crashed on is tried again.
  crashed = found | {"rows": [*rows[:2], rows[2] | {"refused": "a crash"}]}
  assert calibrate.resumed(crashed, [first, third]) == rows[:2]
  # Another commit plans the wanted rows again and keeps the others.
  for change in ({"commit": "b"}, {"clean": False}, {"libraries": {}}):
    monkeypatch.setattr(calibrate, "program", lambda c=change: here | c)
    assert calibrate.resumed(found, [first, third]) == rows[1:2]
  with pytest.raises(errors.UserError, match="version 1"):
    calibrate.resumed({"version": 1}, [first])


def test_rows_that_do_not_fit_are_shown_and_not_compared():
  names = list(published.RUNS)[:2]
  rows = [
    {
      "name": name,
      "ratio": ratio,
      "fits": fits,
      "published_seconds": 1.0,
      "planned_seconds": ratio,
      "mfu": 0.5,
    }
    for name, ratio, fits in zip(names, (1.5, 1.1), (False, True), strict=True)
  ]
  found = calibrate.result(rows, "genie plan --calibrate all")
  assert found["geometric_mean"] == found["worst"] == pytest.approx(1.1)
  lines = calibrate.render(found).splitlines()
  assert lines[1].endswith("does not fit") and "1.500" in lines[1]
  assert lines[2].endswith("50.0%") and "of 1 runs that fit" in lines[3]
  assert calibrate.failures(rows) == [f"{names[0]} does not fit its chips"]


def test_stored_ratios_need_three_rows_and_state_their_commits():
  row = {
    "name": "a",
    "fits": True,
    "topology": "v5p:4x4x4",
    "ratio": 1.1,
    "published_mfu": 0.7,
    "compiled_flops_over_model_flops": 1.1,
    "program": {"commit": "c"},
  }
  other = row | {"program": {"commit": None}}
  found = calibrate.stored_ratios({"rows": [row, row, other]})
  assert found["commits"] == ["c", "unknown"]
  assert found["rows"][0]["share_of_peak"] == pytest.approx(0.77)
  with pytest.raises(errors.UserError, match=r"needs 3 runs that fit.* 2;"):
    calibrate.stored_ratios({"rows": [row, other, row | {"fits": False}]})


def test_the_stored_result_has_six_runs_and_its_ratios_ship():
  path = pathlib.Path(__file__).parents[3]
  found = files.read_json(path / "experiments/scaling/results/calibration.json")
  assert found["version"] == calibrate.VERSION and len(found["rows"]) >= 6
  values = [row["ratio"] for row in calibrate.compared(found["rows"])]
  assert found["geometric_mean"] == pytest.approx(ratios.geometric_mean(values))
  assert found["held_out"] == pytest.approx(ratios.held_out(values))
  assert ratios.load() == calibrate.stored_ratios(found)


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
