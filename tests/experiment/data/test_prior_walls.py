from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiment.data.prior_walls import PriorWalls, prior_walls
from experiment.data.simulators import SIMULATORS, simulations
from experiment.data.whitening import fit_whitening

FAR = 1e4


def score_of(walls, y, rho, c):
    """The score at x_t = alpha y of N(0, I) cut by the walls, as that of y."""
    alpha = 0.7
    x = jnp.asarray(alpha * y, jnp.float32)
    known = -x / (alpha**2 * (1 + rho**2))
    c = jnp.broadcast_to(jnp.asarray(c, jnp.float32), (len(y), len(c)))
    return alpha * np.asarray(known + walls.score(x, jnp.asarray(alpha), jnp.asarray(alpha * rho), c))


def by_quadrature(y, rho, high=np.inf):
    """E[z - y | y]/rho² for z of N(0, 1) below high, y = z + rho eps: of numbers y."""
    centre, spread = y / (1 + rho**2), rho / np.sqrt(1 + rho**2)
    top = np.minimum(high, centre + 8 * spread)
    z = top - (np.arange(20_000)[:, None] + 0.5) / 20_000 * (14 * spread + np.abs(top - centre))
    weight = np.exp(-0.5 * ((z - centre) ** 2 - (top - centre).clip(None, 0) ** 2) / spread**2)
    return (weight * (z - y)).sum(0) / weight.sum(0) / rho**2


@pytest.mark.parametrize("rho", [0.05, 0.6, 3.0])
@pytest.mark.parametrize("angle", [0.0, 0.7], ids=["a wall along an axis", "an oblique wall"])
def test_the_gaussian_cut_by_a_wall_that_moves_with_c(angle, rho):
    normal = np.array([[np.cos(angle), np.sin(angle)]])
    walls = PriorWalls(*(jnp.asarray(a, jnp.float32) for a in (normal, [[0.5], [-0.25]], [0.2])))
    for c in ([1.0, 2.0], [-1.0, 1.0], [3.0, 0.0]):
        b = 0.2 + 0.5 * c[0] - 0.25 * c[1]
        across, along = b + rho * np.array([-3.0, -0.5, 0.0, 1.5]), np.array([0.4, -1.0, 0.0, 2.0])
        tangent = np.array([-normal[0, 1], normal[0, 0]])
        y = across[:, None] * normal + along[:, None] * tangent
        expected = by_quadrature(across, rho, b)[:, None] * normal + by_quadrature(along, rho)[:, None] * tangent
        np.testing.assert_allclose(score_of(walls, y, rho, c), expected, rtol=1e-3, atol=1e-3 / rho)


def test_walls_at_right_angles():
    walls = PriorWalls(jnp.eye(2), jnp.zeros((2, 2)), jnp.asarray([0.1, -0.2]))
    y = np.array([[0.0, 0.0], [0.5, -1.0], [0.4, 0.6], [-2.0, 0.3]])
    expected = np.stack([by_quadrature(y[:, j], 0.4, b) for j, b in enumerate((0.1, -0.2))], axis=1)
    np.testing.assert_allclose(score_of(walls, y, 0.4, [0.0, 0.0]), expected, rtol=1e-3, atol=1e-3)


def test_the_walls_of_a_prior_are_where_its_support_ends():
    simulator = SIMULATORS["gaussian_mixture"]
    low, high = -simulator.support[1], simulator.support[1] + [0.0, 5.0]
    theta, x = simulations("gaussian_mixture", 200)
    whitening = replace(fit_whitening(theta, x), root=np.array([[0.8, 0.0], [0.5, 0.6]]))
    walls = prior_walls(whitening, (low, high))
    distances = np.asarray(walls.distances(jnp.asarray(whitening.cond(x))))
    np.testing.assert_allclose(np.linalg.norm(walls.normals, axis=1), 1, rtol=1e-6)
    # From z = 0 the nearest point of each wall is b along its normal: theta is there the support's end.
    ends = [*zip((0, 1), high, strict=True), *zip((0, 1), low, strict=True)]
    for j, (coordinate, end) in enumerate(ends):
        z = distances[:, j, None] * np.asarray(walls.normals)[j]
        np.testing.assert_allclose(whitening.to_parameters(z, x)[:, coordinate], end, rtol=1e-4)
        outward = whitening.to_parameters(z + np.asarray(walls.normals)[j], x)[:, coordinate] - end
        assert (outward * np.sign(end) > 0.1).all()


def test_far_walls_say_and_push_nothing_and_far_beyond_is_finite():
    walls = PriorWalls(jnp.eye(2), jnp.zeros((1, 2)), jnp.asarray([FAR, 0.0]))
    c = jnp.asarray([[0.3]])
    np.testing.assert_allclose(walls.told(c), [[0.3, 1.0, -1.0]], atol=1e-6)
    push = walls.score(jnp.asarray([[1.0, 1e3]]), jnp.asarray(1.0), jnp.asarray(1e-3), c)
    assert push[0, 0] == 0 and push[0, 1] < -1e3 and np.isfinite(push).all()
    slope = jax.jacfwd(lambda x: walls.score(x, jnp.asarray(1.0), jnp.asarray(1e-3), c))(jnp.asarray([[1.0, 1e3]]))
    assert np.isfinite(slope).all()
