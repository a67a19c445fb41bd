import numpy as np
import pytest
from sklearn import cluster

from genie_jax.evals import kmeans


@pytest.fixture(scope="module")
def blobs():
  rng = np.random.default_rng(0)
  centres = rng.uniform(0, 1, (12, 27)).astype(np.float32)
  points = centres.repeat(200, 0) + rng.normal(0, 0.01, (2400, 27))
  return centres, points.astype(np.float32)


def test_planted_clusters_are_recovered(blobs):
  centres, points = blobs
  found = kmeans.fit(points, 12, seed=0)
  assert found.converged
  gaps = ((found.centres[:, None] - centres) ** 2).sum(-1)
  # 200 points of deviation 0.01: a mean is within 0.01 in 27 dimensions.
  assert np.sqrt(gaps.min(0)).max() < 0.01


def test_inertia_is_no_worse_than_scikit_learns_by_one_percent():
  rng = np.random.default_rng(1)
  points = rng.normal(size=(6000, 12)).astype(np.float32)
  ours = kmeans.fit(points, 64, seed=0)
  theirs = cluster.KMeans(64, n_init=1, random_state=0, tol=1e-6).fit(points)
  assert ours.inertia <= 1.01 * theirs.inertia_ / len(points)


def test_skipping_by_bounds_equals_plain_lloyd():
  rng = np.random.default_rng(2)
  points = rng.normal(size=(1500, 6)).astype(np.float32)
  found = kmeans.fit(points, 20, seed=3)
  patches, weights = kmeans.distinct(points)
  centres = kmeans.plus_plus(
    patches, weights, 20, np.random.default_rng(3)
  ).astype(np.float64)
  for _ in range(found.iterations):
    gaps = ((points[:, None] - centres) ** 2).sum(-1)
    codes = gaps.argmin(1)
    centres = np.stack([points[codes == code].mean(0) for code in range(20)])
  inertia = ((points[:, None] - centres) ** 2).sum(-1).min(1).mean()
  # Float32 against float64: ties may be resolved differently.
  assert found.inertia == pytest.approx(inertia, rel=1e-3)


def test_equal_patches_weigh_as_often_as_they_occur():
  points = np.array([[0.0], [0.0], [0.0], [0.4], [5.0]], np.float32)
  found = kmeans.fit(points, 2, seed=0)
  np.testing.assert_allclose(
    np.sort(found.centres.ravel()), [0.1, 5.0], atol=1e-6
  )
  assert found.inertia == pytest.approx(0.12 / 5, rel=1e-5)


def test_plus_plus_skips_nothing_that_matters(blobs):
  _, points = blobs
  weights = np.ones(len(points))
  fast = kmeans.plus_plus(points, weights, 12, np.random.default_rng(5))
  rng = np.random.default_rng(5)
  draw = lambda chances: int(
    np.searchsorted(
      np.cumsum(chances, dtype=np.float64),
      rng.random() * np.cumsum(chances, dtype=np.float64)[-1],
      side="right",
    )
  )
  slow = [points[draw(weights)]]
  for _ in range(11):
    gaps = np.stack([((points - centre) ** 2).sum(1) for centre in slow])
    slow.append(points[draw(gaps.min(0) * weights)])
  np.testing.assert_array_equal(fast, np.stack(slow))


def test_fewer_distinct_patches_than_codes_are_kept_exactly():
  points = np.eye(3, dtype=np.float32).repeat(4, 0)
  found = kmeans.fit(points, 8, seed=0)
  assert len(found.centres) == 3
  assert found.inertia == pytest.approx(0.0, abs=1e-6)


def test_patches_that_do_not_fit_are_padded_and_cut_again():
  frames = np.random.default_rng(0).integers(
    0, 256, (3, 10, 13, 3), dtype=np.uint8
  )
  patches = kmeans.to_patches(frames, 4)
  assert patches.shape == (3 * 3 * 4, 48)
  back = kmeans.from_patches(patches, 4, (10, 13, 3))
  np.testing.assert_allclose(back * 255, frames, atol=1e-4)


def test_as_many_codes_as_patches_reconstruct_exactly():
  frames = np.random.default_rng(0).integers(
    0, 256, (2, 8, 8, 3), dtype=np.uint8
  )
  centres = kmeans.to_patches(frames, 4)
  np.testing.assert_array_equal(kmeans.reconstruct(frames, 4, centres), frames)
