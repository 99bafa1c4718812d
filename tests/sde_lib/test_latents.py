import jax
import numpy as np
import pytest
from scipy.stats import chi2

from sde_lib import latent_typicality


@pytest.mark.parametrize("d", [1, 3072, 10**6])
def test_the_p_value_is_that_of_chi_squared_in_any_number_of_dimensions(d):
    wanted = np.array([d + z * np.sqrt(2 * d) for z in (-4.0, -0.5, 0.0, 0.7, 3.0, 5.0) if d + z * np.sqrt(2 * d) > 0])
    latent = (np.sqrt(wanted / d)[:, None] * np.full((1, d), 2.0)).astype(np.float32)
    square = np.sum((latent.astype(float) / 2) ** 2, axis=1)
    found = latent_typicality(jax.numpy.asarray(latent), 2.0)
    expected = 2 * np.minimum(chi2.cdf(square, d), chi2.sf(square, d))
    np.testing.assert_allclose(found.p_value, expected, rtol=1e-6)
    np.testing.assert_allclose(found.z, (square - d) / np.sqrt(2 * d), rtol=1e-9, atol=1e-9)
