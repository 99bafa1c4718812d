import jax
import numpy as np

from benchmarks.few_steps import kl_to_data
from benchmarks.flow_map import COVARIANCES, MEANS, SDE, WEIGHTS
from sde_lib import GaussianMixture


def test_the_divergence_of_two_of_the_clusters_is_the_logarithm_of_their_weight():
    """They are so far apart that little of one lies in another."""
    two = GaussianMixture(WEIGHTS[:2] / WEIGHTS[:2].sum(), MEANS[:2], COVARIANCES[:2])
    x = np.asarray(two.at(SDE, SDE.t_min).sample(jax.random.key(0), 8192))
    np.testing.assert_allclose(kl_to_data(x), -np.log(WEIGHTS[:2].sum()), atol=0.04)
