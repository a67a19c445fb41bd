"""K-means on raw patches, the baseline of the tokenizer.

With as many centres as the tokenizer has codes, and patches of the same size,
both need the same number of bits per frame. The difference in PSNR is the gain
from learning.

Shapes:
  n  patches     m  distinct patches     P  values in one patch     V  centres
"""

import dataclasses

import numpy as np
import scipy.sparse

_ROWS = 8192  # Rows of one matrix product, so that its result stays in cache.


@dataclasses.dataclass(frozen=True)
class KMeans:
  """A fitted set of centres.

  Attributes:
    centres: float32 [V, P], in the units of the patches.
    inertia: Mean over patches of the squared distance to the nearest centre.
    iterations: Lloyd iterations that were run.
    converged: Whether the last iteration lowered the inertia by less than the
      tolerance.
  """

  centres: np.ndarray
  inertia: float
  iterations: int
  converged: bool


def to_patches(frames: np.ndarray, patch: int) -> np.ndarray:
  """Cuts frames into flattened squares.

  Args:
    frames: uint8 [N, H, W, C]; sides that are not a multiple of the patch are
      padded by repeating the edge.
    patch: Side of a square in pixels.

  Returns:
    float32 [N * h * w, patch * patch * C] in [0, 1].
  """
  n, height, width, channels = frames.shape
  frames = np.pad(
    frames,
    ((0, 0), (0, -height % patch), (0, -width % patch), (0, 0)),
    mode="edge",
  )
  h, w = frames.shape[1] // patch, frames.shape[2] // patch
  cut = frames.reshape(n, h, patch, w, patch, channels)
  cut = cut.transpose(0, 1, 3, 2, 4, 5).reshape(n * h * w, -1)
  return cut.astype(np.float32) / 255


def from_patches(
  patches: np.ndarray, patch: int, shape: tuple[int, int, int]
) -> np.ndarray:
  """Arranges patches [N * h * w, P] as frames [N, H, W, C], without padding."""
  height, width, channels = shape
  h, w = -(-height // patch), -(-width // patch)
  frames = patches.reshape(-1, h, w, patch, patch, channels)
  frames = frames.transpose(0, 1, 3, 2, 4, 5)
  frames = frames.reshape(-1, h * patch, w * patch, channels)
  return frames[:, :height, :width]


def assign(
  patches: np.ndarray, centres: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Finds each patch's nearest centre.

  Args:
    patches: float32 [n, P].
    centres: float32 [V, P].

  Returns:
    The nearest centre, int32 [n]; the squared distance to it, float32 [n];
    and the squared distance to the second nearest, float32 [n].
  """
  codes = np.empty(len(patches), np.int32)
  nearest = np.empty(len(patches), np.float32)
  second = np.empty(len(patches), np.float32)
  half_norms = 0.5 * np.einsum("vp,vp->v", centres, centres)
  transposed = np.ascontiguousarray(centres.T)
  for start in range(0, len(patches), _ROWS):
    rows = slice(start, start + _ROWS)
    block = patches[rows]
    # Half the squared distance, without the patch's own norm.
    scores = half_norms - block @ transposed
    best = scores.argmin(1)
    codes[rows] = best
    index = np.arange(len(block))
    norms = np.einsum("np,np->n", block, block)
    nearest[rows] = 2 * scores[index, best] + norms
    scores[index, best] = np.inf
    second[rows] = 2 * scores.min(1) + norms
  return codes, nearest.clip(0), second.clip(0)


def plus_plus(
  patches: np.ndarray,
  weights: np.ndarray,
  num_centres: int,
  rng: np.random.Generator,
) -> np.ndarray:
  """Picks initial centres by k-means++ (Arthur and Vassilvitskii, 2007).

  Each next centre is a patch drawn with probability proportional to its
  squared distance from the nearest centre so far. A new centre c can be the
  nearest only to patches x whose current centre a satisfies |c - a| <
  2 |x - a| (the triangle inequality). All other patches are skipped, which
  gives the same result and reads much less memory.

  Args:
    patches: float32 [m, P].
    weights: How often each patch occurs, [m].
    num_centres: Number of centres.
    rng: Random generator of the draws.

  Returns:
    float32 [V, P]; fewer than `num_centres` rows if there are fewer distinct
    patches.
  """
  centres = np.empty((num_centres, patches.shape[1]), np.float32)
  centres[0] = patches[_draw(weights, rng)]
  distances = ((patches - centres[0]) ** 2).sum(1)  # [m]
  owners = np.zeros(len(patches), np.int32)  # [m]
  for count in range(1, num_centres):
    if not distances.any():
      return centres[:count]
    centre = patches[_draw(distances * weights, rng)]
    gaps = ((centres[:count] - centre) ** 2).sum(1)  # [count]
    candidates = np.flatnonzero(distances > 0.25 * gaps[owners])
    found = ((patches[candidates] - centre) ** 2).sum(1)
    wins = found < distances[candidates]
    distances[candidates[wins]] = found[wins]
    owners[candidates[wins]] = count
    centres[count] = centre
  return centres


def _draw(chances: np.ndarray, rng: np.random.Generator) -> int:
  """Draws an index with probability proportional to `chances`."""
  cumulative = np.cumsum(chances, dtype=np.float64)
  drawn = np.searchsorted(
    cumulative, rng.random() * cumulative[-1], side="right"
  )
  return min(int(drawn), len(chances) - 1)


def distinct(patches: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Returns the distinct patches [m, P] and how often each occurs [m]."""
  rows = np.ascontiguousarray(patches)
  as_bytes = rows.view(f"V{rows.itemsize * rows.shape[1]}")[:, 0]
  _, index, counts = np.unique(as_bytes, return_index=True, return_counts=True)
  # In order of first occurrence; sorting by bytes has no meaning.
  order = np.argsort(index)
  return rows[index[order]], counts[order]


def fit(
  patches: np.ndarray,
  num_centres: int,
  seed: int,
  *,
  tolerance: float = 1e-5,
  max_iterations: int = 300,
) -> KMeans:
  """Fits centres by k-means++ and Lloyd's iterations, to convergence.

  Lloyd's exact algorithm in float32, with two optimisations that do not change
  the result: equal patches (half of CoinRun's) are one patch with a weight, and
  each iteration recomputes only the patches whose nearest centre may have
  changed (Hamerly's bounds, 2010). A centre without patches moves to the patch
  that is farthest from its own centre.

  Args:
    patches: float32 [n, P].
    num_centres: V, the number of centres.
    seed: Seed of the initial centres.
    tolerance: Iterations have converged when one of them lowers the inertia by
      less than this fraction.
    max_iterations: Largest number of iterations.

  Returns:
    The centres, and how the iterations ended.
  """
  patches, weights = distinct(patches)
  mean = lambda distances: float(np.average(distances, weights=weights))
  centres = plus_plus(
    patches, weights, num_centres, np.random.default_rng(seed)
  )
  codes, nearest, second = assign(patches, centres)
  if len(centres) < 2 or len(centres) == len(patches):
    return KMeans(centres, mean(nearest), 0, True)
  lower = np.sqrt(second)  # [m], at most the distance to any other centre
  inertia, converged, iteration = mean(nearest), False, 0
  while iteration < max_iterations and not converged:
    iteration += 1
    moved, repaired = _means(patches, weights, codes, nearest, centres)
    shifts = np.sqrt(((moved - centres) ** 2).sum(1))  # [V]
    centres = moved
    # Another centre may be nearer by at most the largest shift of the others.
    order = np.argsort(shifts)
    largest = np.full(len(centres), shifts[order[-1]], np.float32)
    largest[order[-1]] = shifts[order[-2]]
    lower -= largest[codes]
    nearest = _own_distances(patches, centres, codes)
    # The margin keeps float32 rounding from hiding a nearer centre.
    unsure = np.flatnonzero(np.sqrt(nearest) >= lower - 1e-3)
    found, near, far = assign(patches[unsure], centres)
    codes[unsure], nearest[unsure] = found, near
    lower[unsure] = np.sqrt(far)
    previous, inertia = inertia, mean(nearest)
    converged = not repaired and previous - inertia <= tolerance * inertia
  return KMeans(centres, inertia, iteration, converged)


def _own_distances(
  patches: np.ndarray, centres: np.ndarray, codes: np.ndarray
) -> np.ndarray:
  """Returns each patch's squared distance to its own centre, float32 [n]."""
  distances = np.empty(len(patches), np.float32)
  for start in range(0, len(patches), _ROWS):
    rows = slice(start, start + _ROWS)
    gap = patches[rows] - centres[codes[rows]]
    distances[rows] = np.einsum("np,np->n", gap, gap)
  return distances


def _means(
  patches: np.ndarray,
  weights: np.ndarray,
  codes: np.ndarray,
  nearest: np.ndarray,
  centres: np.ndarray,
) -> tuple[np.ndarray, bool]:
  """Returns each centre's mean patch, and whether any centre was empty."""
  member = scipy.sparse.csr_array(
    (weights.astype(np.float32), (codes, np.arange(len(codes)))),
    shape=(len(centres), len(patches)),
  )
  totals = np.bincount(codes, weights, minlength=len(centres))  # [V]
  moved = (member @ patches) / totals.clip(1)[:, None].astype(np.float32)
  empty = np.flatnonzero(totals == 0)
  if len(empty):
    moved[empty] = patches[np.argsort(nearest)[-len(empty) :]]
  return moved, bool(len(empty))


def reconstruct(
  frames: np.ndarray, patch: int, centres: np.ndarray
) -> np.ndarray:
  """Replaces each patch of uint8 frames [N, H, W, C] by its nearest centre."""
  codes, _, _ = assign(to_patches(frames, patch), centres)
  drawn = from_patches(centres[codes], patch, frames.shape[1:])
  return np.round(drawn.clip(0, 1) * 255).astype(np.uint8)
