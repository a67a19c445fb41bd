"""Tests that several data sets are read as one, in the shares of a config."""

import dataclasses

import ml_collections
import numpy as np
import pytest

from genie_jax.core import config_fields, errors
from genie_jax.data import loader, manifest, mixtures, sources
from tests.fixtures import batches

FRAMES = 8
# Sets of different sizes, without a common source number.
LENGTHS = (
  {3: (40, 25, 5), 4: (16,)},
  {10: (33, 30)},
  {20: (64,), 21: (64,), 22: (50,)},
)
WEIGHTS = (0.5, 0.2, 0.3)


@pytest.fixture
def folders(make_clips):
  """Three clips folders."""
  return [
    make_clips(f"clips{number}", lengths).folder
    for number, lengths in enumerate(LENGTHS)
  ]


def windows_of(folder):
  return sources.WindowSource(folder, "train", FRAMES)


@pytest.fixture
def mixture(folders):
  return mixtures.Mixture(
    [
      (windows_of(folder), weight)
      for folder, weight in zip(folders, WEIGHTS, strict=True)
    ]
  )


def set_of(source):
  """Returns the number of the set with a source."""
  return next(i for i, lengths in enumerate(LENGTHS) if source in lengths)


def data_of(folders, weights=WEIGHTS, path=""):
  mixture = tuple(
    (str(folder), weight)
    for folder, weight in zip(folders, weights, strict=False)
  )
  return ml_collections.ConfigDict({"path": path, "mixture": mixture})


def test_elements_are_those_of_the_sets_one_after_the_other(folders, mixture):
  alone = [
    source[i] for source in map(windows_of, folders) for i in range(len(source))
  ]
  assert len(mixture) == len(alone)
  batches.assert_equal([mixture[i] for i in range(len(mixture))], alone)
  rows = [len(alone) - 1, 0, 70, 1, 0]
  found = mixture.gather(rows)
  batches.assert_equal(
    [{name: array[i] for name, array in found.items()} for i in range(5)],
    [alone[row] for row in rows],
  )
  with pytest.raises(IndexError):
    mixture.gather([len(mixture)])


@pytest.mark.parametrize(
  "weights", [(0.5, 0.2, 0.3), (1, 1, 1), (1, 1000, 1), (0.123457, 3, 7e-3)]
)
def test_each_set_gives_its_share_after_any_number_of_clips(folders, weights):
  mixed = mixtures.Mixture(
    [(windows_of(f), w) for f, w in zip(folders, weights, strict=True)]
  )
  made = batches.take(loader.make_iterator(mixed, 5, 0), 200)
  chosen = np.array([set_of(x) for batch in made for x in batch["source"]])
  total = np.arange(1, len(chosen) + 1)
  for number, weight in enumerate(weights):
    given = np.cumsum(chosen == number)
    wanted = weight / sum(weights) * total
    # Each other set may be a clip ahead or behind.
    assert np.abs(given - wanted).max() < len(weights) - 1


def test_a_set_is_read_as_alone_and_whole_in_each_of_its_epochs(
  folders, mixture
):
  made = batches.take(loader.make_iterator(mixture, 1, 7), 600)
  clips = [(int(b["source"][0]), int(b["start"][0])) for b in made]
  for number, folder in enumerate(folders):
    count = len(windows_of(folder))
    own = [clip for clip in clips if set_of(clip[0]) == number]
    assert len(own) > count
    assert len(set(own[:count])) == count
  # The first set is in the order that it has alone.
  alone = batches.take(loader.make_iterator(windows_of(folders[0]), 1, 7), 50)
  assert [clip for clip in clips if set_of(clip[0]) == 0][:50] == [
    (int(b["source"][0]), int(b["start"][0])) for b in alone
  ]


def test_sets_of_one_length_have_orders_of_their_own(make_clips):
  sets = [
    windows_of(make_clips(f"set{i}", {100 * i + 1: (60,)}).folder)
    for i in range(2)
  ]
  mixed = mixtures.Mixture([(source, 1.0) for source in sets])
  made = batches.take(loader.make_iterator(mixed, 1, 0), 100)
  starts = [[], []]
  for batch in made:
    starts[int(batch["source"][0] > 100)].append(int(batch["start"][0]))
  assert starts[0] != starts[1]


@pytest.mark.parametrize("hosts", [2, 4])
def test_clips_and_order_do_not_depend_on_the_number_of_hosts(mixture, hosts):
  alone = batches.take(loader.make_iterator(mixture, 8, 3), 12)
  shares = [
    batches.take(
      loader.make_iterator(mixture, 8, 3, parts=(index,), num_parts=hosts), 12
    )
    for index in range(hosts)
  ]
  batches.assert_equal(batches.joined(shares), alone)


def test_a_state_continues_with_other_hosts_workers_and_threads(mixture):
  straight = batches.take(loader.make_iterator(mixture, 8, 3), 12)
  begun = loader.make_iterator(mixture, 8, 3, num_workers=2)
  batches.assert_equal([next(begun) for _ in range(5)], straight[:5])
  state = begun.get_state()
  begun.close()
  halves = []
  for index in range(2):
    half = loader.make_iterator(
      mixture, 8, 3, parts=(index,), num_parts=2, num_threads=2
    )
    half.set_state(state)
    halves.append(batches.take(half, 7))
  batches.assert_equal(batches.joined(halves), straight[5:])


def test_a_state_of_other_weights_is_refused(folders):
  make = lambda weights: loader.make_iterator(
    mixtures.Mixture(
      [(windows_of(f), w) for f, w in zip(folders, weights, strict=True)]
    ),
    4,
    0,
  )
  state = make((1, 1, 2)).get_state()
  make((2, 2, 4)).set_state(state)
  with pytest.raises(errors.UserError, match="iterator has mixture"):
    make((1, 2, 1)).set_state(state)
  alone = loader.make_iterator(windows_of(folders[0]), 4, 0)
  assert "mixture" not in alone.get_state()


def test_one_epoch_of_a_mixture_ends_with_its_first_set(folders):
  mixed = mixtures.Mixture(
    [(windows_of(f), 1.0) for f in (folders[1], folders[2])]
  )
  made = list(loader.make_iterator(mixed, 2, 0, shuffle=False, repeat=False))
  count = len(windows_of(folders[1]))
  assert len(made) == count
  assert sum(set_of(x) == 1 for b in made for x in b["source"]) == count


def test_the_fingerprint_covers_sets_shares_and_order(folders):
  of = lambda numbers, weights: mixtures.fingerprint(
    data_of([folders[i] for i in numbers], weights)
  )
  one = of((0, 1), (1, 2))
  assert one == of((0, 1), (2, 4))
  assert (
    len({one, of((0, 1), (1, 1)), of((1, 0), (2, 1)), of((0, 2), (1, 2))}) == 4
  )
  opened = mixtures.open_all(data_of(folders), windows_of)
  assert opened.fingerprint == mixtures.fingerprint(data_of(folders))
  alone = {"path": str(folders[0])}
  assert mixtures.fingerprint(alone) == windows_of(folders[0]).fingerprint
  assert isinstance(mixtures.open_all(alone, windows_of), sources.WindowSource)


def rewritten(folder, **changes):
  """Writes a folder's manifest with other fields."""
  found = manifest.Manifest.read(folder)
  dataclasses.replace(found, **changes).write(folder)
  return folder


@pytest.mark.parametrize(
  ("changes", "words"),
  [
    ({"fps": 12}, "frames per second: 10 in .*clips0, 12 in .*clips1"),
    ({"num_actions": 16}, "number of actions: 15 in .*, 16 in"),
    ({"action_aliases": {}}, "aliases of actions"),
  ],
)
def test_sets_that_differ_are_refused_with_both_values(folders, changes, words):
  rewritten(folders[1], **changes)
  with pytest.raises(errors.UserError, match=words):
    mixtures.open_all(data_of(folders), windows_of)


def test_tokens_of_another_tokenizer_are_refused(make_tokens, tmp_path):
  one = make_tokens().folder
  one.rename(tmp_path / "one")
  two = make_tokens(count=9).folder
  rewritten(two, tokenizer_fingerprint="x" * 64)
  with pytest.raises(
    errors.UserError, match=r"tokenizer: 'b' in .*one, 'x{12}' in .*tokens;"
  ):
    mixtures.open_all(
      data_of((tmp_path / "one", two)),
      lambda folder: sources.TokenSource(folder, "train"),
    )


def test_clips_of_another_size_are_refused(folders):
  opened = [windows_of(folder) for folder in folders[:2]]
  opened[1].manifest = dataclasses.replace(
    opened[1].manifest, frame_shape=(12, 8, 3)
  )
  with pytest.raises(
    errors.UserError,
    match=r"width and channels: \(6, 8, 3\) in .* \(12, 8, 3\)",
  ):
    mixtures.Mixture([(source, 1.0) for source in opened])


def test_the_same_content_twice_is_refused(folders, make_clips):
  copy = make_clips("copy", LENGTHS[0]).folder
  with pytest.raises(errors.UserError, match="have the same content"):
    mixtures.open_all(data_of((folders[0], copy)), windows_of)
  with pytest.raises(errors.UserError, match="2 times"):
    mixtures.entries(data_of((folders[0], folders[0])))


@pytest.mark.parametrize(
  "value",
  [
    [["clips", 0]],
    [["clips", -1.0]],
    [["clips", float("nan")]],
    [["clips", "2"]],
    [["clips"]],
    ["clips"],
    "clips",
    [[3, 1.0]],
  ],
)
def test_a_mixture_of_another_form_is_refused_when_a_config_is_loaded(value):
  with pytest.raises(errors.UserError, match=r"^config\.data\.mixture"):
    config_fields.check({"data.mixture": value}, "config.py")


@pytest.mark.parametrize("weight", [0, -1, float("inf"), float("nan")])
def test_a_weight_that_is_not_positive_is_refused(folders, weight):
  with pytest.raises(errors.UserError, match="weights are numbers above zero"):
    mixtures.Mixture([(windows_of(folders[0]), weight)])


def test_a_path_and_a_mixture_exclude_each_other(folders):
  with pytest.raises(errors.UserError, match="give one of them"):
    mixtures.entries(data_of(folders, path="clips"))
  with pytest.raises(errors.UserError, match="path is empty"):
    mixtures.entries({"path": ""})
  assert mixtures.main_folder(data_of(folders)) == str(folders[0])
  assert mixtures.main_folder({"path": "clips"}) == "clips"
