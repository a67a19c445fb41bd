"""The discrete cosine transform of patches, as a place to start from.

Shapes:
  P  values in one patch, patch * patch * C, in the order of `patches`
"""

import numpy as np

# Chroma varies less than luma at the same frequency; this orders the basis
# roughly by variance, as the quantisation tables of JPEG do.
_CHROMA_LATER = (0.0, 2.5, 4.0)


def cosine_basis(patch: int, channels: int) -> np.ndarray:
  """Returns an orthonormal basis of patches, coarse to fine.

  The principal components of natural patches are close to it (Ahmed et al.,
  1974), and it needs no data.

  Args:
    patch: Side of a patch in pixels.
    channels: C; for 3, the channels are turned to one luma and two chroma.

  Returns:
    float32 [P, P], one basis vector a column.
  """
  k = np.arange(patch)
  cosine = np.cos(np.pi * (k[None] + 0.5) * k[:, None] / patch)
  cosine *= np.sqrt(2 / patch)
  cosine[0] /= np.sqrt(2)  # [frequency, pixel]
  colour = np.eye(channels)
  later = np.zeros(channels)
  if channels == 3:
    colour = np.array([[1, 1, 1], [1, 0, -1], [1, -2, 1]], float)
    colour /= np.linalg.norm(colour, axis=1, keepdims=True)
    later = np.array(_CHROMA_LATER)
  basis = np.einsum("ui,vj,kc->uvkijc", cosine, cosine, colour)
  order = np.hypot(k[:, None, None], k[None, :, None]) + later
  columns = np.argsort(order.reshape(-1), kind="stable")
  size = patch * patch * channels
  return basis.reshape(size, size)[columns].T.astype(np.float32)
