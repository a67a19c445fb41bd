"""Batches in an order determined by a seed, for any number of processes.

A global batch of B rows has the next B rows of the global order. It is split
into equal parts, and each process reads its own parts, so the global batch has
the same rows in the same order for any number of processes. A batch depends
only on the seed and its number, so an iterator's state is one number, and it
can be restored with another number of processes or workers.

The order of a mixture takes elements from the orders of its sets, in proportion
to their weights, and depends on nothing else either.
"""

from collections.abc import Sequence
from typing import Any, Self

import grain
import numpy as np
from absl import flags

from genie_jax.core import errors
from genie_jax.data import sources

# Number of batches read ahead, for each reading thread.
_BATCHES_AHEAD = 2


class _LocalBatches:
  """Random access to the batches of one process, as a data source for Grain."""

  def __init__(
    self,
    source: Sequence[Any],
    order: grain.MapDataset,
    batch_size: int,
    parts: Sequence[int],
    num_parts: int,
    skip: int,
  ):
    self._source, self._order, self._skip = source, order, skip
    self._batch_size = batch_size
    size = batch_size // num_parts
    self._rows = [part * size + row for part in parts for row in range(size)]

  def __len__(self) -> int:
    return max(0, len(self._order) // self._batch_size - self._skip)

  def __getitem__(self, number: int) -> sources.Batch:
    base = (self._skip + number) * self._batch_size
    order: Any = self._order  # Grain annotates its elements as optional.
    rows = [int(order[base + row]) for row in self._rows]
    if isinstance(self._source, sources.Source):
      return self._source.gather(rows)
    elements = [self._source[row] for row in rows]
    return {
      name: np.stack([element[name] for element in elements])
      for name in elements[0]
    }


def _order(
  shares: Sequence[tuple[int, float]], seed: int, shuffle: bool, repeat: bool
) -> grain.MapDataset:
  """Returns the order in which elements are read.

  Args:
    shares: Number of elements and share of each set, see `sources.Source`.
    seed: Seed of the run.
    shuffle: Whether each set is shuffled, anew in each of its epochs.
    repeat: Whether sets are repeated; a mixture that is not ends where its
      first set ends.
  """
  orders, start = [], 0
  for number, (length, _) in enumerate(shares):
    order = grain.MapDataset.range(start, start + length)
    if shuffle:
      # Sets of one length must not have one order.
      of_set = np.random.SeedSequence([seed, number]).generate_state(1)
      order = order.seed(int(of_set[0]) if number else seed).shuffle()
    orders.append(order.repeat() if repeat else order)
    start += length
  if len(orders) == 1:
    return orders[0]
  return grain.MapDataset.mix(orders, [share for _, share in shares])


class BatchIterator:
  """Iterates over a process's share of the batches; see `make_iterator`."""

  def __init__(
    self,
    source: Sequence[Any],
    batch_size: int,
    seed: int,
    shuffle: bool,
    repeat: bool,
    parts: Sequence[int],
    num_parts: int,
    num_workers: int,
    num_threads: int,
  ):
    self._source, self._batch_size = source, batch_size
    self._parts, self._num_parts = tuple(parts), num_parts
    self._num_workers, self._num_threads = num_workers, num_threads
    shares = (
      source.shares
      if isinstance(source, sources.Source)
      else [(len(source), 1.0)]
    )
    self._order = _order(shares, seed, shuffle, repeat)
    # These must be equal for a restored iterator to give the same batches.
    self._identity = {
      "rows": len(source),
      "batch_size": batch_size,
      "seed": seed,
      "shuffle": shuffle,
      "repeat": repeat,
    }
    if len(shares) > 1:
      self._identity["mixture"] = [list(share) for share in shares]
    self._next_batch = 0
    self._iterator: grain.DatasetIterator | None = None

  def __iter__(self) -> Self:
    return self

  def __next__(self) -> sources.Batch:
    if self._iterator is None:
      self._iterator = self._start(self._next_batch)
    batch = next(self._iterator)
    self._next_batch += 1
    return batch

  def _start(self, skip: int) -> grain.DatasetIterator:
    batches: Any = _LocalBatches(
      self._source,
      self._order,
      self._batch_size,
      self._parts,
      self._num_parts,
      skip,
    )
    reading = grain.ReadOptions(
      num_threads=self._num_threads,
      prefetch_buffer_size=_BATCHES_AHEAD * self._num_threads,
    )
    dataset = grain.MapDataset.source(batches).to_iter_dataset(reading)
    if self._num_workers:
      # Grain's workers read absl flags, which fails in a program (or a test)
      # that has not parsed its flags.
      if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
      dataset = dataset.mp_prefetch(
        grain.MultiprocessingOptions(
          num_workers=self._num_workers, per_worker_buffer_size=_BATCHES_AHEAD
        )
      )
    return iter(dataset)

  def get_state(self) -> dict[str, Any]:
    """Returns the state as JSON values, equal on all processes.

    Batches that were read ahead but not yet returned are not counted.
    """
    return {"next_batch": self._next_batch, **self._identity}

  def set_state(self, state: dict[str, Any]) -> None:
    """Continues after the last batch that was returned before `get_state`.

    Raises:
      UserError: The state is from other data, or from another batch size or
        order, so the same batches cannot follow.
    """
    for name, value in self._identity.items():
      if state.get(name) != value:
        raise errors.UserError(
          f"The checkpoint's data iterator has {name} {state.get(name)!r}, "
          f"but this run has {value!r}; resume with the data and the batch "
          "size it was started with, or start in a new workdir with "
          "config.init_from."
        )
    self.close()
    self._next_batch = state["next_batch"]

  def close(self) -> None:
    """Stops the reading threads and workers; iterating starts them again."""
    if self._iterator is not None:
      self._iterator.close()
      self._iterator = None


def make_iterator(
  source: Sequence[Any],
  batch_size: int,
  seed: int,
  *,
  shuffle: bool = True,
  repeat: bool = True,
  parts: Sequence[int] = (0,),
  num_parts: int = 1,
  num_workers: int = 0,
  num_threads: int = 1,
) -> BatchIterator:
  """Returns an iterator over stacked batches of `source`.

  Args:
    source: `WindowSource`, `TokenSource`, or any sequence of dictionaries of
      arrays.
    batch_size: Clips in a batch of all processes together; an incomplete
      last batch is dropped.
    seed: Determines the order, which differs between epochs.
    shuffle: False for the order of the source.
    repeat: False to stop after one epoch.
    parts: Numbers of the parts of a batch that this process reads, in order.
    num_parts: Number of equal parts into which a batch is split.
    num_workers: Number of reading processes; 0 is fastest unless decoding is
      slow.
    num_threads: Number of threads that read ahead; with 0, batches are read
      when they are requested.

  Returns:
    An iterator over {name: array [batch_size / num_parts * len(parts), ...]},
    one part after the other, with `get_state`, `set_state` and `close`.

  Raises:
    UserError: The batch cannot be split into the parts, or one epoch has less
      than a batch.
  """
  if batch_size < 1 or batch_size % num_parts:
    raise errors.UserError(
      f"config.data.batch_size {batch_size} cannot be split among "
      f"{num_parts} groups of devices; make it a multiple of {num_parts}."
    )
  if not all(0 <= part < num_parts for part in parts):
    raise errors.UserError(
      f"A batch of {num_parts} parts has no parts {tuple(parts)}; count from 0."
    )
  if not len(source) or (not repeat and len(source) < batch_size):
    raise errors.UserError(
      f"The data has {len(source)} clips, less than one batch of "
      f"{batch_size}; use a smaller config.data.batch_size or more data."
    )
  return BatchIterator(
    source,
    batch_size,
    seed,
    shuffle,
    repeat,
    parts,
    num_parts,
    num_workers,
    num_threads,
  )
