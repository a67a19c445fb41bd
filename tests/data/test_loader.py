"""Tests that batches depend only on the seed and their number."""

import itertools
import json

import numpy as np
import pytest

from genie_jax.core import errors
from genie_jax.data import loader, sources
from tests.fixtures import batches


@pytest.fixture
def windows(make_clips):
  return sources.WindowSource(make_clips().folder, "train", 8)


@pytest.mark.parametrize("count", [2, 4])
def test_the_global_batch_is_the_same_for_any_number_of_processes(
  windows, count
):
  alone = batches.take(loader.make_iterator(windows, 8, 3), 20)
  shares = [
    batches.take(
      loader.make_iterator(windows, 8, 3, parts=(index,), num_parts=count), 20
    )
    for index in range(count)
  ]
  assert shares[0][0]["frames"].shape == (8 // count, 8, 6, 8, 3)
  batches.assert_equal(batches.joined(shares), alone)


def test_another_seed_gives_another_order(windows):
  one = batches.take(loader.make_iterator(windows, 8, 3), 4)
  other = batches.take(loader.make_iterator(windows, 8, 4), 4)
  assert any(
    (a["start"] != b["start"]).any() for a, b in zip(one, other, strict=True)
  )


def test_an_epoch_has_every_window_once_and_epochs_differ_in_order(windows):
  count = len(windows)
  made = batches.take(loader.make_iterator(windows, 1, 0), 2 * count)
  places = [(int(b["source"][0]), int(b["start"][0])) for b in made]
  first, second = places[:count], places[count:]
  assert len(set(first)) == count
  assert sorted(first) == sorted(second)
  assert first != second


@pytest.mark.parametrize("taken", [0, 1, 9])
def test_a_restored_iterator_continues_with_the_same_batches(windows, taken):
  straight = batches.take(loader.make_iterator(windows, 4, 1), taken + 30)
  iterator = loader.make_iterator(windows, 4, 1)
  for _ in range(taken):
    next(iterator)
  state = json.loads(json.dumps(iterator.get_state()))
  iterator.close()
  fresh = loader.make_iterator(windows, 4, 1, num_threads=0)
  fresh.set_state(state)
  batches.assert_equal(batches.take(fresh, 30), straight[taken:])


def test_set_state_can_reset_a_running_iterator(windows):
  iterator = loader.make_iterator(windows, 4, 1)
  state = iterator.get_state()
  first = list(itertools.islice(iterator, 3))
  iterator.set_state(state)
  batches.assert_equal(batches.take(iterator, 3), first)


def test_a_state_can_be_restored_with_any_number_of_processes_and_workers(
  windows,
):
  straight = batches.take(loader.make_iterator(windows, 8, 5), 8)
  two = [
    loader.make_iterator(windows, 8, 5, parts=(index,), num_parts=2)
    for index in range(2)
  ]
  for iterator in two:
    list(itertools.islice(iterator, 3))
  assert two[0].get_state() == two[1].get_state()
  # Two reading processes, restored from a run with two training processes.
  workers = loader.make_iterator(windows, 8, 5, num_workers=2)
  workers.set_state(two[0].get_state())
  for iterator in two:
    iterator.close()
  batches.assert_equal(batches.take(workers, 5), straight[3:])


def test_a_state_of_another_batch_size_is_refused_with_both_values(windows):
  iterator = loader.make_iterator(windows, 8, 0)
  with pytest.raises(errors.UserError, match=r"batch_size 4, but.*has 8"):
    iterator.set_state(loader.make_iterator(windows, 4, 0).get_state())


def test_without_repeat_one_epoch_has_only_whole_batches(windows):
  made = list(loader.make_iterator(windows, 7, 0, shuffle=False, repeat=False))
  assert len(made) == len(windows) // 7
  assert made[0]["start"].tolist() == list(range(7))


def test_any_list_of_dictionaries_is_a_source():
  elements = [{"x": np.full(2, i)} for i in range(6)]
  (batch,) = loader.make_iterator(elements, 6, 0, shuffle=False, repeat=False)
  assert batch["x"][:, 0].tolist() == list(range(6))


@pytest.mark.parametrize("batch, parts", [(6, 4), (0, 1)])
def test_a_batch_that_cannot_be_split_is_refused(windows, batch, parts):
  with pytest.raises(errors.UserError, match=f"{batch} cannot be split"):
    loader.make_iterator(windows, batch, 0, num_parts=parts)


def test_a_part_that_does_not_exist_is_refused(windows):
  with pytest.raises(errors.UserError, match=r"of 2 parts has no parts \(2,\)"):
    loader.make_iterator(windows, 8, 0, parts=(2,), num_parts=2)


def test_parts_that_are_not_adjacent_are_concatenated(windows):
  alone = batches.take(loader.make_iterator(windows, 8, 3), 4)
  apart = batches.take(
    loader.make_iterator(windows, 8, 3, parts=(0, 2), num_parts=4), 4
  )
  batches.assert_equal(
    apart,
    [{name: x[[0, 1, 4, 5]] for name, x in batch.items()} for batch in alone],
  )


def test_an_epoch_smaller_than_a_batch_is_refused(windows):
  with pytest.raises(errors.UserError, match="less than one batch of 1000"):
    loader.make_iterator(windows, 1000, 0, repeat=False)


@pytest.mark.parametrize("threads", [0, 2])
def test_a_damaged_record_raises_a_clear_error(make_clips, threads):
  made = make_clips("damaged")
  path, _ = made.shards("train")[1]
  data = bytearray(path.read_bytes())
  data[max(i for i in range(2000) if data[i]) - 100] ^= 1
  path.write_bytes(bytes(data))
  source = sources.WindowSource(made.folder, "train", 16)
  iterator = loader.make_iterator(source, 4, 0, num_threads=threads)
  with pytest.raises(errors.UserError, match="is damaged in record"):
    batches.take(iterator, 40)
