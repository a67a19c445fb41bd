"""Statistics of how a codebook is used."""

from typing import Any

import numpy as np


def counts(codes: np.ndarray, num_codes: int) -> np.ndarray:
  """Returns how often each code occurs in int `codes`, int64 [num_codes]."""
  return np.bincount(np.asarray(codes).ravel(), minlength=num_codes)


def entropy(occurrences: np.ndarray) -> float:
  """Returns the entropy in bits of the codes' frequencies [num_codes]."""
  share = occurrences[occurrences > 0] / occurrences.sum()
  return float(-(share * np.log2(share)).sum())


def summary(occurrences: np.ndarray) -> dict[str, Any]:
  """Describes the use of a codebook.

  Args:
    occurrences: How often each code occurs, [num_codes].

  Returns:
    `num_codes`; `usage`, the share of codes that occur; `perplexity`, the
    number of equally frequent codes with the same entropy; `min_share`, the
    rarest code's share of all occurrences; `num_seen`, their number.
  """
  return {
    "num_codes": len(occurrences),
    "usage": float((occurrences > 0).mean()),
    "perplexity": float(2 ** entropy(occurrences)),
    "min_share": float(occurrences.min() / occurrences.sum()),
    "num_seen": int(occurrences.sum()),
  }
