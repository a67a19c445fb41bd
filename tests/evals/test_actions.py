import numpy as np
import pytest
from sklearn import metrics

from genie_jax.evals import actions

ALIASES = dict.fromkeys(range(9, 15), 4)


@pytest.fixture
def played():
  rng = np.random.default_rng(0)
  return rng.integers(0, 15, 3000), np.arange(3000) // 50


def test_codes_that_are_the_actions_agree_perfectly(played):
  true, levels = played
  latent = actions.merge(true, ALIASES)[:, None].ravel()
  found = actions.agreement(
    8 - latent, true, levels, 9, aliases=ALIASES, seed=0
  )
  assert found.nmi.value == pytest.approx(1.0)
  assert found.nmi.low == pytest.approx(1.0)
  assert found.purity.value == 1.0
  assert found.true_actions == tuple(range(9))


def test_shuffling_brings_agreement_down_to_chance(played):
  true, levels = played
  found = actions.agreement(
    actions.merge(true, ALIASES), true, levels, 9, aliases=ALIASES, seed=0
  )
  assert found.shuffled_nmi.high < 0.05
  assert found.shuffled_nmi.low <= found.shuffled_nmi.value


def test_random_codes_do_no_better_than_shuffled_ones(played):
  true, levels = played
  latent = np.random.default_rng(1).integers(0, 6, len(true))
  found = actions.agreement(latent, true, levels, 6, aliases=ALIASES, seed=0)
  assert found.nmi.low < found.shuffled_nmi.high
  assert found.purity.value == pytest.approx(found.majority, abs=0.02)


def test_codes_that_only_know_the_level_are_not_credited():
  # Each level has one action, and the code identifies the level. The shuffle
  # is within levels, so chance explains all of the agreement.
  levels = np.arange(60).repeat(30)
  true, latent = levels % 5, levels % 5
  found = actions.agreement(latent, true, levels, 5, aliases={}, seed=0)
  assert found.nmi.value == pytest.approx(1.0)
  assert found.shuffled_nmi.value == pytest.approx(1.0)


def test_nmi_equals_scikit_learn(played):
  true, levels = played
  latent = (true * 3 + np.random.default_rng(2).integers(0, 4, 3000)) % 6
  table = actions.tables(latent, true, levels, 6, 15)
  assert table.shape == (60, 6, 15)
  assert actions.nmi(table.sum(0)) == pytest.approx(
    metrics.normalized_mutual_info_score(true, latent), abs=1e-12
  )
  one = table[7]
  where = levels == 7
  assert actions.nmi(table)[7] == pytest.approx(
    metrics.normalized_mutual_info_score(true[where], latent[where])
  )
  assert one.sum() == where.sum()


def test_a_single_code_has_no_agreement_and_majority_purity(played):
  true, levels = played
  found = actions.agreement(
    np.zeros_like(true), true, levels, 6, aliases=ALIASES, seed=0
  )
  assert found.nmi.value == pytest.approx(0.0, abs=1e-12)
  assert found.purity.value == pytest.approx(found.majority)
  assert found.majority == pytest.approx(7 / 15, abs=0.03)
