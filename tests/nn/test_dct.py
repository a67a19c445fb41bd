"""Tests of the cosine transform, the initialisation for short runs."""

import numpy as np
import pytest

from genie_jax.nn import dct


@pytest.mark.parametrize("patch, channels", [(4, 3), (8, 3), (3, 1)])
def test_the_basis_is_orthonormal(patch, channels):
  basis = dct.cosine_basis(patch, channels)
  assert basis.shape == (patch * patch * channels,) * 2
  np.testing.assert_allclose(basis.T @ basis, np.eye(len(basis)), atol=1e-5)


def test_the_first_vector_is_the_mean_and_few_represent_a_smooth_patch():
  basis = dct.cosine_basis(8, 3)
  np.testing.assert_allclose(basis[:, 0], basis[0, 0], rtol=1e-5)
  ramp = np.add.outer(np.arange(8), np.arange(8)) / 14
  patch = np.stack([ramp, 0.8 * ramp, 0.9 * ramp], -1).reshape(-1)
  parts = basis.T @ patch
  np.testing.assert_allclose(basis @ parts, patch, atol=1e-5)
  # A twelfth of the coefficients.
  coarse = basis[:, :16] @ parts[:16]
  assert np.square(coarse - patch).mean() < 0.05 * patch.var()
