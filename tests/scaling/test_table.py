"""Tests of the scaling table and of its parameter counts."""

import math

import jax
import pytest

from genie_jax.core import errors
from genie_jax.models import store
from genie_jax.scaling import table


@pytest.fixture(scope="module")
def rows():
  return {row["name"]: row for row in table.rows()}


def test_the_table_has_every_row_of_the_paper(rows):
  shapes = {
    name: (row["layers"], row["heads"], row["width"], row["head_dim"])
    for name, row in rows.items()
  }
  assert shapes == {
    "41M": (18, 8, 512, 64),
    "96M": (16, 16, 768, 64),
    "192M": (20, 18, 1024, 64),
    "404M": (21, 12, 1536, 128),
    "811M": (20, 20, 2048, 128),
    "1.6B": (28, 22, 2560, 128),
    "2.7B": (36, 22, 3072, 128),
    "2.3B": (34, 20, 2560, 128),
    "10.1B": (48, 36, 5120, 128),
  }


def test_the_final_model_has_the_papers_parameter_count(rows):
  assert 10.0e9 < rows["10.1B"]["parameters"] < 10.2e9


def test_every_count_is_within_15_percent_of_the_papers_count(rows):
  for row in rows.values():
    assert 0.85 < row["ratio"] < 1.15, row
    assert row["ratio"] == pytest.approx(
      row["parameters"] / row["paper_parameters"], abs=1e-4
    )


def test_counts_match_a_formula(rows):
  for row in rows.values():
    width, inner = row["width"], row["heads"] * row["head_dim"]
    layer = (
      2 * (4 * width * inner + 2 * row["head_dim"])  # q, k, v, out; QK norm
      + 2 * width * row["mlp_dim"]  # MLP
      + 3 * width  # norms
    )
    other = (
      1024 * width  # tokens
      + width  # hidden token
      + 9 * width  # actions
      + (23 + 40) * width  # positions
      + width  # last norm
      + 1024 * width  # logits
      + 1024
    )
    assert row["parameters"] == row["layers"] * layer + other, row["name"]


def test_token_counts_match_the_paper(rows):
  assert rows["41M"]["tokens"] == pytest.approx(754e9, rel=1e-3)
  assert rows["10.1B"]["tokens"] == pytest.approx(942e9, rel=1e-3)


def test_flops_are_six_per_parameter_and_token_plus_attention(rows):
  for row in rows.values():
    without_attention = 6 * row["parameters"] * row["tokens"]
    # Scores and weighted sums over 920 tokens and on average 8.5 of 16 frames,
    # in three passes.
    attention = (
      3
      * 4
      * row["layers"]
      * row["heads"]
      * row["head_dim"]
      * (920 + 8.5)
      * row["tokens"]
    )
    # Embedding lookups are not matrix products, which matters for small models.
    assert row["flops"] == pytest.approx(
      without_attention + attention, rel=0.05
    )


def test_counting_creates_no_arrays(monkeypatch):
  def fail(*_, **__):
    raise AssertionError("An array was created.")

  fields = {"world": table.WORLD, "model": table.model(table.find("41M"))}
  monkeypatch.setattr(jax, "device_put", fail)
  live = len(jax.live_arrays())
  assert table.count("dynamics", fields) > 4e7
  assert len(jax.live_arrays()) <= live + 1  # The key of the initializer.


def test_the_count_is_the_sum_over_all_arrays():
  fields = {
    "world": {**table.WORLD, "height": 8, "width": 8},
    "model": {
      "transformer": {
        "num_layers": 1,
        "width": 8,
        "num_heads": 1,
        "head_dim": 4,
        "mlp_dim": 6,
        "dtype": "float32",
      }
    },
  }
  shapes = jax.tree.leaves(store.abstract_params("dynamics", fields))
  assert table.count("dynamics", fields) == sum(
    math.prod(shape.shape) for shape in shapes
  )


def test_the_feed_forward_width_is_two_fifths_rounded_to_128():
  for size in table.SIZES.values():
    width = table.mlp_dim(size.width)
    assert width % 128 == 0
    assert abs(width - 2 * size.width / 5) <= 64
  assert table.mlp_dim(5120) == 2048 and table.mlp_dim(8) == 128


def test_the_error_for_an_unknown_size_suggests_the_closest_name():
  with pytest.raises(errors.UserError, match="did you mean '811M'"):
    table.find("810M")


def test_lines_of_the_table_have_at_most_80_columns(rows):
  lines = table.render(list(rows.values())).splitlines()
  assert len(lines) == 2 + len(rows)
  assert max(map(len, lines)) <= 80
