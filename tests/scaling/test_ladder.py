"""Tests of ladder files and of the cells they expand to."""

import pathlib

import pytest

from genie_jax.core import errors
from genie_jax.scaling import ladder

ROOT = pathlib.Path(__file__).parents[2]
DEFAULTS = {
  size: {"steps": 512, "batch_size": 8, "peak_lr": 3e-5} for size in ("a", "b")
}


def parse(*groups, **fields):
  found = {"config": "config.py", "groups": list(groups), **fields}
  return ladder.parse(found, "ladder.py")


def expand(*groups, **fields):
  return ladder.expand(parse(*groups, **fields), DEFAULTS)


def group(name="rungs", **fields):
  return {"name": name, "sizes": ["a"], **fields}


def test_a_group_is_a_product_of_its_lists():
  cells = expand(
    group(sizes=["a", "b"], seeds=[0, 1], batch_sizes=[4, 8], peak_lrs=[1e-3])
  )
  assert len(cells) == len({cell.name for cell in cells}) == 8
  assert {(c.size, c.seed, c.batch_size) for c in cells} == {
    (size, seed, batch) for size in "ab" for seed in (0, 1) for batch in (4, 8)
  }


def test_what_a_group_does_not_state_is_that_of_the_config():
  (cell,) = expand(group())
  assert (cell.steps, cell.batch_size, cell.peak_lr) == (512, 8, 3e-5)
  assert cell.flags(cell.peak_lr) == [
    "--config.seed=0",
    "--config.steps=512",
    "--config.data.batch_size=8",
    "--config.optimizer.peak_lr=3e-05",
  ]


def test_a_cell_of_several_groups_is_one_run_and_a_rung_if_one_says_so():
  cells = expand(
    group("sweep", peak_lrs=[1e-3, 2e-3]),
    group("rungs", role="rung", peak_lrs=[2e-3], cool_downs=[128]),
    decay_share=0.25,
  )
  assert [(c.role, c.peak_lr, c.steps) for c in cells] == [
    ("cell", 1e-3, 512),
    ("rung", 2e-3, 512),
    ("cell", 2e-3, 128),
  ]
  assert cells[1].groups == ("sweep", "rungs")
  # The trunk keeps the step at which the other begins.
  assert cells[1].checkpoint_every == cells[2].fork_step == 96


def test_cool_downs_fork_from_their_trunk_where_their_decay_begins():
  trunk, short, longer = expand(
    group(role="rung", cool_downs=[128, 256]), decay_share=0.25
  )
  assert (trunk.trunk, trunk.decay_steps, trunk.role) == ("", 128, "rung")
  for cell, steps in ((short, 128), (longer, 256)):
    assert (cell.trunk, cell.role, cell.steps) == (trunk.name, "cell", steps)
    assert cell.fork_step == steps * 3 // 4
    assert cell.fork_step % trunk.checkpoint_every == 0
    assert "--config.optimizer.schedule=wsd" in cell.flags(1e-3)
    assert f"--config.optimizer.decay_steps={steps // 4}" in cell.flags(1e-3)
  assert f"--config.keep_every={trunk.checkpoint_every}" in trunk.flags(1e-3)


@pytest.mark.parametrize(
  "groups, fields, message",
  [
    ([], {}, r"groups is \[\]; it must be a list of at least one group"),
    ([group(size=["a"])], {}, r"Unknown field .*groups\[0\]\.size \(did you"),
    (
      [group()],
      {"confg": 1},
      r"Unknown field ladder\.py\.confg \(did you mean",
    ),
    ([{"sizes": ["a"]}], {}, r"groups\[0\] has no field 'name'; add it"),
    ([group(), group()], {}, "it must be of different names"),
    ([group(sizes="a")], {}, "sizes is 'a'; it must be a list"),
    ([group(seeds=[])], {}, r"seeds is \(\)"),
    ([group(seeds=[0.5])], {}, "whole numbers from 0"),
    ([group(steps=[0])], {}, "whole numbers from 1"),
    ([group(role="top")], {}, "role is 'top'; it must be one of rung, cell"),
    ([group(peak_lrs=[float("nan")])], {}, "finite positive numbers"),
    ([group(peak_lrs="law")], {}, '"law" if the ladder has learning_rates'),
    ([group(cool_downs=[8])], {}, "the ladder has no decay_share"),
    ([group()], {"decay_share": 0}, "decay_share is 0; it must be above 0"),
    (
      [group()],
      {"learning_rates": {"sweep": "swep"}},
      "learning_rates.sweep is 'swep'; it must be one or several of the groups "
      "rungs",
    ),
    (
      [group()],
      {"learning_rates": {"sweep": "rungs", "law": "line"}},
      "it must be power or constant",
    ),
    (
      [group(overrides={"optimizer.peak_lr": 1})],
      {},
      "overrides is 'optimizer.peak_lr'; it must be set by the group's own",
    ),
  ],
)
def test_a_faulty_ladder_is_refused_in_one_line(groups, fields, message):
  with pytest.raises(errors.UserError, match=message) as raised:
    parse(*groups, **fields)
  assert "\n" not in str(raised.value)
  assert "ladder.py" in str(raised.value)


def test_different_cells_in_one_folder_are_refused():
  # Both rates are written as 0.001 in the name of the folder.
  with pytest.raises(errors.UserError) as raised:
    expand(group("one", peak_lrs=[1e-3]), group("two", peak_lrs=[1.0001e-3]))
  text = str(raised.value)
  assert "'one' and 'two' both have a cell a-b8-s512-lr0.001-seed0" in text
  assert "different peak_lr" in text and "\n" not in text


def test_a_run_cannot_be_both_fitted_and_held_out():
  with pytest.raises(errors.UserError, match="different held_out"):
    expand(group("one"), group("two", held_out=True))


@pytest.mark.parametrize("steps", [1024, 640, 1])
def test_a_cool_down_outside_its_trunk_is_refused(steps):
  # The trunk's own decay begins at step 384. These would begin theirs at steps
  # 768, 480 and 0.
  with pytest.raises(errors.UserError, match="outside the constant part of"):
    expand(group(cool_downs=[steps]), decay_share=0.25)


def test_a_file_without_a_ladder_is_refused(tmp_path):
  with pytest.raises(errors.UserError, match="is not a file; give a ladder"):
    ladder.load(str(tmp_path / "none.py"))
  path = tmp_path / "empty.py"
  path.write_text("x = 1\n")
  with pytest.raises(errors.UserError, match=r"has no function get_ladder\(\)"):
    ladder.load(str(path))
  path.write_text("import no_such_module\n")
  with pytest.raises(errors.UserError, match="cannot be imported"):
    ladder.load(str(path))
