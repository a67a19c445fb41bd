"""Tests of `genie scaling plot`."""

import csv
import dataclasses
import json
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from genie_jax.scaling import figures, results
from tests.cli.test_main import call, refused
from tests.fixtures import scaling_runs


@pytest.fixture(scope="module")
def result(tmp_path_factory):
  """Writes a result with training curves and a study of batches."""
  folder = tmp_path_factory.mktemp("study")
  rungs = []
  for run in scaling_runs.ladder(0.003, scaling_runs.generator(2)):
    workdir = folder / run.name
    scaling_runs.write_log(workdir, final=run.final_loss)
    rungs.append(dataclasses.replace(run, workdir=str(workdir)))
  cells = [
    scaling_runs.run(480e3, 1.9, batch=batch, steps=4096 // batch, role="cell")
    for batch in (4, 16)
  ]
  study = scaling_runs.study([*rungs, *cells])
  found = results.assemble(study, "params", {}, resamples=5)
  (folder / "results.json").write_text(json.dumps(found))
  return folder / "results.json"


def test_the_figures_need_nothing_but_the_result(result, tmp_path, capsys):
  moved = tmp_path / "only.json"
  moved.write_bytes(result.read_bytes())
  out = tmp_path / "figures"
  assert call(capsys, "scaling", "plot", moved, "--out", out) == (0, "")
  for name in ("figure9", "fit"):
    ElementTree.parse(out / f"{name}.svg")
    with Image.open(out / f"{name}.png") as picture:
      assert picture.width == 2160  # 7.2 inches at 300 dots.
  with open(out / "runs.csv", newline="") as file:
    rows = list(csv.DictReader(file))
  wanted = results.read(moved)
  assert len(rows) == len(wanted["rungs"]) + len(wanted["cells"]) == 16
  for row, run in zip(rows, [*wanted["rungs"], *wanted["cells"]], strict=True):
    assert float(row["final_loss"]) == run["final_loss"]
    assert int(row["params"]) == run["params"]


def lines(ax):
  """Returns the x and y of every line of a panel."""
  return [
    (
      np.asarray(line.get_xdata()).tolist(),
      np.asarray(line.get_ydata()).tolist(),
    )
    for line in ax.get_lines()
    if len(line.get_xdata())
  ]


def test_the_panels_show_the_numbers_of_the_result(result):
  found = results.read(result)
  training, loss, batches = figures.study(found).axes
  sizes = {run["params"] for run in found["rungs"]}
  assert len(lines(training)) == len(sizes)
  points = {(x[0], y[0]) for x, y in lines(loss) if len(x) == 1}
  assert points == {(run["flops"], run["final_loss"]) for run in found["rungs"]}
  # The rung is a batch of its size too.
  (curve,) = [(x, y) for x, y in lines(batches) if len(set(x)) > 1]
  assert curve[0] == [4, 8, 16]
  ends = [x[-1] for x, _ in lines(training)]
  assert max(ends) <= max(run["flops"] for run in found["rungs"])


def test_the_law_is_drawn_with_its_prediction_and_measurement(result):
  found = results.read(result)
  law, residuals = figures.law(found).axes
  drawn = lines(law)
  measured = [run for run in found["rungs"] if run["held_out"]]
  assert (
    [run["params"] for run in measured],
    [run["final_loss"] for run in measured],
  ) in drawn
  assert ([6_800_000], [found["predicted_largest"]]) in drawn
  assert sum(len(x) for x, _ in lines(residuals)) == len(found["rungs"]) + 2


def test_a_panel_without_data_is_left_out(result):
  found = results.read(result)
  found["batch_study"] = []
  for run in found["rungs"]:
    run["curve"] = None
  assert len(figures.study(found).axes) == 1


def test_the_same_result_gives_the_same_bytes(result, tmp_path):
  found = results.read(result)
  for out in ("one", "two"):
    figures.draw(found, tmp_path / out, ["svg"])
  for path in (tmp_path / "one").iterdir():
    assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()


def test_a_file_that_is_not_a_result_is_one_line(tmp_path, capsys):
  path = tmp_path / "other.json"
  plot = ("scaling", "plot", path, "--out", tmp_path / "figures")
  assert "does not exist" in refused(capsys, *plot)
  path.write_text("{}")
  assert "is not a result of a scaling study" in refused(capsys, *plot)
  path.write_text('{"version": 2, "rungs": [], "laws": {}}')
  assert "has version 2, but" in refused(capsys, *plot)
