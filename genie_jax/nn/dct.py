"""The discrete cosine transform of patches, as an initialisation.

Shapes:
  P  values in one patch, patch * patch * C, in the order of `patches`
"""

import numpy as np

# Added to the frequencies of luma and the two chroma channels when the basis
# is sorted. Chroma varies less than luma at the same frequency, so this sorts
# the basis roughly by variance, as the quantisation tables of JPEG do.
_CHANNEL_OFFSETS = (0.0, 2.5, 4.0)


def cosine_basis(patch: int, channels: int) -> np.ndarray:
  """Returns an orthonormal basis of patches, from coarse to fine.

  It is close to the principal components of natural patches (Ahmed et al.,
  1974), and computing it needs no data.

  Args:
    patch: Side of a patch in pixels.
    channels: C; 3 channels are rotated to one luma and two chroma channels.

  Returns:
    float32 [P, P]; each column is a basis vector.
  """
  k = np.arange(patch)
  cosine = np.cos(np.pi * (k[None] + 0.5) * k[:, None] / patch)
  cosine *= np.sqrt(2 / patch)
  cosine[0] /= np.sqrt(2)  # [frequency, pixel]
  colour = np.eye(channels)
  offsets = np.zeros(channels)
  if channels == 3:
    colour = np.array([[1, 1, 1], [1, 0, -1], [1, -2, 1]], float)
    colour /= np.linalg.norm(colour, axis=1, keepdims=True)
    offsets = np.array(_CHANNEL_OFFSETS)
  basis = np.einsum("ui,vj,kc->uvkijc", cosine, cosine, colour)
  order = np.hypot(k[:, None, None], k[None, :, None]) + offsets
  columns = np.argsort(order.reshape(-1), kind="stable")
  size = patch * patch * channels
  return basis.reshape(size, size)[columns].T.astype(np.float32)
