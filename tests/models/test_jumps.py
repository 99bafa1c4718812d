"""Networks with a second label: a score network is a valid start, and the diagonal is one whatever was learned."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from models import MLP, DiT, NCSNpp, UNet, split
from sde_lib import VP, EDMPreconditioning, NetworkFlowMap, NetworkScore
from sde_lib.flow_map import jump, straight_velocity

NETWORKS = {
    "mlp": (MLP, {"shape": (3,), "width": 8, "depth": 1}),
    "unet": (UNet, {"shape": (4, 4, 1), "width": 8, "channel_mults": (1,), "blocks": 1, "num_classes": 2}),
    "dit": (DiT, {"shape": (4, 4, 1), "width": 8, "depth": 1, "heads": 2}),
    "ncsnpp": (NCSNpp, {"shape": (4, 4, 1), "width": 8, "channel_mults": (1,), "blocks": 1, "attention": ()}),
}


def made(name, jumps):
    cls, given = NETWORKS[name]
    return split(cls(**given, jumps=jumps, rngs=nnx.Rngs(0)))


def filled(params):
    """The weights with none at zero, but for those of jumps: as of a score run."""

    def leaf(path, value):
        seed = sum(map(ord, jax.tree_util.keystr(path)))
        noise = 0.3 * jax.random.normal(jax.random.key(seed), value.shape)
        return value if "jump" in jax.tree_util.keystr(path) else value + noise

    return jax.tree.map_with_path(leaf, params)


def jumping(params):
    """The weights with those of jumps drawn too."""
    return jax.tree.map_with_path(
        lambda path, v: jnp.ones_like(v) if "jump" in jax.tree_util.keystr(path) else v, params
    )


@pytest.mark.parametrize("name", NETWORKS)
def test_a_score_network_is_a_valid_start_and_the_diagonal_stays_one(name):
    (plain, weights), (apply, params) = made(name, False), made(name, True)
    jax.tree.map(np.testing.assert_array_equal, weights, _without_jump(params))  # it draws as without jumps
    params, sde = filled(params), VP()
    x = jax.random.normal(jax.random.key(1), (2, *NETWORKS[name][1]["shape"]))
    t, s = jnp.array([0.9, 0.5]), jnp.array([0.2, 0.4])
    score_fn = NetworkScore(plain, _without_jump(params), sde, EDMPreconditioning())
    flow_map = NetworkFlowMap(apply, params, sde, EDMPreconditioning())
    score = score_fn(x, t)
    assert float(jnp.abs(score).max()) > 0.1
    euler = jump(sde, straight_velocity(sde, score, x, t), x, t, s)
    np.testing.assert_array_equal(flow_map(x, t, s), euler)  # at the start: one Euler step in tau, bit for bit
    learned = NetworkFlowMap(apply, jumping(params), sde, EDMPreconditioning())
    assert float(jnp.abs(learned(x, t, s) - euler).max()) > 1e-3
    np.testing.assert_array_equal(learned.score(x, t), score)
    np.testing.assert_array_equal(learned(x, t, t), x)
    np.testing.assert_array_equal(learned.velocity(x, t, t), straight_velocity(sde, score, x, t))
    with pytest.raises(ValueError, match="told one time: build it with jumps=True"):
        plain(weights, x, jnp.ones((2, 2)))


def _without_jump(params):
    if not isinstance(params, dict):
        return params
    return {key: _without_jump(value) for key, value in params.items() if key != "jump"}
