import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from models import MLP, Vector, split


def test_a_vector_stands_beside_x_from_the_first_layer_on():
    # Modulation starts at zero, so that the output at first depends on the vector by the first layer alone.
    apply, params = split(MLP((2,), width=16, depth=1, kind=Vector(3), rngs=nnx.Rngs(0)))
    params["outer"]["kernel"] = jax.random.normal(jax.random.key(0), (16, 2))
    x, c_noise, cond = jnp.ones((4, 2)), jnp.zeros(4), jax.random.normal(jax.random.key(1), (4, 3))
    told = np.asarray(apply(params, x, c_noise, cond))
    assert np.ptp(told, axis=0).min() > 0.1
    mean = np.asarray(apply(params, x, c_noise, jnp.zeros((4, 3))))
    np.testing.assert_array_equal(np.asarray(apply(params, x, c_noise, jnp.full((4, 3), jnp.nan))), mean)


@pytest.mark.parametrize("size", [1, 2, 10, 300])
def test_few_numbers_reach_the_blocks_at_their_own_variance(size):
    network = MLP((size,), width=128, kind=Vector(size), rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(1), (2000, size))
    for layer in (network.inner, network.beside, network.condition.reader.inner):
        assert 0.7 < float(layer(x).var()) < 1.4
