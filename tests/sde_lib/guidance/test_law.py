"""The law of guidance on Gaussians, in closed form: what the ODE and the SDE sample, without Monte Carlo.

With p(x | c) = N(m1, v1), p(x) = N(m0, v0), u = (sigma/alpha)² and the scale g(u), from infinite noise,

    ODE:  mean = int ½ b A^(-½) du,  var = lim A(u)^(-1) u          SDE:  mean = int b/A du,  var = int A^(-2) du
    d log A/du = g/(v1 + u) + (1 - g)/(v0 + u),  A(0) = 1           b = g m1/(v1 + u) + (1 - g) m0/(v0 + u)
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sde_lib import (
    VE,
    VP,
    Autoguidance,
    ClassifierFree,
    CosineVP,
    ExactScore,
    FunctionScore,
    GaussianMixture,
    Projected,
    RectifiedFlow,
    SubVP,
    row_keys,
)
from sde_lib.samplers import DPMSolverPP2M, Heun, SDEDPMSolverPP2M, Times, UniPC, gaussian_law, table_of
from tests.oracles import class_score, two_peaks

# With ranges so wide that the noise is infinite at one end and none at the other, to 1e-4.
WIDE = [
    VP(beta_max=40.0, t_min=1e-5),
    SubVP(beta_max=40.0, t_min=1e-4),
    VE(1e-3, 1e4),
    CosineVP(t_min=1e-5, t_max=0.9999),
    RectifiedFlow(t_min=1e-4, t_max=1 - 1e-5),
]
ids = [type(sde).__name__ for sde in WIDE]
SAMPLERS = {"ode": DPMSolverPP2M(steps=1000), "sde": SDEDPMSolverPP2M(steps=1000)}
ONE = np.zeros(1, int)


def closed_form(kind, g, first, other, low=0.0, high=np.inf):
    """The mean and variance, by quadrature over log u; low and high are of sigma/alpha."""
    (m1, v1), (m0, v0) = first, other
    z, w = np.polynomial.legendre.leggauss(20)
    ends = np.sort([*np.linspace(-40, 60, 101), *[2 * np.log(e) for e in (low, high) if 0 < e < np.inf]])
    middle, half = 0.5 * (ends[1:] + ends[:-1]), 0.5 * np.diff(ends)
    u = np.exp(middle[:, None] + half[:, None] * z).ravel()
    du = u * (half[:, None] * w).ravel()

    def ratio(u):  # log of (1 + u/v1)/(1 + u/v0)
        return np.log1p(u / v1) - np.log1p(u / v0)

    def log_a(u):
        inside = ratio(np.clip(u, low**2, high**2)) - ratio(low**2)
        return np.log1p(u / v1) + (g - 1) * inside

    scale = np.where((u >= low**2) & (u <= high**2), g, 1.0)
    b = scale * m1 / (v1 + u) + (1 - scale) * m0 / (v0 + u)
    if kind == "ode":
        return np.sum(0.5 * b * np.exp(-0.5 * log_a(u)) * du), np.exp(np.log(1e24) - log_a(1e24))
    return np.sum(b * np.exp(-log_a(u)) * du), np.sum(np.exp(-2 * log_a(u)) * du)


def test_the_closed_form_is_that_of_the_theory():
    """Of no guidance, and where the integrals are known."""
    for kind in ("ode", "sde"):
        np.testing.assert_allclose(closed_form(kind, 1.0, (1, 0.25), (0, 1)), (1, 0.25), rtol=1e-9)
    assert closed_form("ode", 2.0, (1, 0.25), (0, 1))[1] == pytest.approx(1 / 16)  # v1^g v0^(1 - g)
    np.testing.assert_allclose(closed_form("sde", 2.0, (1, 0.25), (0, 1)), (1.25, 7 / 64), rtol=1e-9)
    assert closed_form("ode", 3.0, (1, 0.25), (0, 1), 0.3, 3.0)[1] == pytest.approx(
        0.25 * ((0.25 + 0.09) * (1 + 9) / ((0.25 + 9) * (1 + 0.09))) ** 2
    )


@pytest.mark.parametrize("kind", SAMPLERS)
@pytest.mark.parametrize("sde", WIDE, ids=ids)
@pytest.mark.parametrize("g", [0.5, 2.0, 8.0])
def test_the_ode_and_the_sde_of_guidance_have_their_laws_and_not_the_tilted_one(sde, kind, g):
    guided = ClassifierFree(class_score(sde), g, 2)
    mean, covariance = gaussian_law(SAMPLERS[kind], guided, [1.0], [[0.25]], cond=ONE)
    expected = closed_form(kind, g, (1, 0.25), (0, 1))
    np.testing.assert_allclose((mean[0], covariance[0, 0]), expected, atol=3e-4)
    precision = g / 0.25 + (1 - g)
    tilted = (g / 0.25 / precision, 1 / precision)
    assert np.abs(np.subtract(expected, tilted)).max() > 0.02


@pytest.mark.parametrize("kind", SAMPLERS)
@pytest.mark.parametrize("sde", WIDE, ids=ids)
@pytest.mark.parametrize("interval", [(0.3, 3.0), (1.0, 10.0)])
def test_an_interval_has_one_law_on_every_sde(sde, kind, interval):
    """In log SNR it does not move with the schedule."""
    expected = closed_form(kind, 3.0, (1, 0.25), (0, 1), *interval)
    np.testing.assert_allclose(law_in_interval(SAMPLERS[kind], sde, interval), expected, atol=3e-4)


def law_in_interval(sampler, sde, interval):
    """The mean and variance at a scale of 3, the interval being of sigma/alpha."""
    low, high = -2 * np.log(interval[::-1])
    guided = ClassifierFree(class_score(sde), 3.0, 2, low, high)
    mean, covariance = gaussian_law(sampler, guided, [1.0], [[0.25]], cond=ONE)
    return mean[0], covariance[0, 0]


@pytest.mark.parametrize("method", [DPMSolverPP2M, Heun, UniPC, SDEDPMSolverPP2M])
def test_the_ends_of_an_interval_leave_a_method_its_order(method):
    """Steps go over them in their middle: the error falls with the steps as without an interval, by the order 2."""
    fine, *coarse = (np.array(law_in_interval(method(steps=n), VP(), (0.97, 9.0))) for n in (1600, 100, 400))
    errors = [np.abs(law - fine).max() for law in coarse]
    assert errors[0] < 2e-3 and errors[1] < errors[0] / 10


def test_a_grid_has_jumps_in_the_middle_of_steps_and_no_more_times_between_them():
    sde, sampler, jumps = VP(), DPMSolverPP2M(steps=30), (-1.3, 2.0, np.inf)
    tables = [table_of(sampler, sde, at) for at in ((), jumps)]
    plain, moved = (sde.log_snr(np.append(table.t, table.t_next[-1])) for table in tables)
    for jump in jumps[:2]:
        before = np.flatnonzero(moved < jump)[-1]
        assert moved[before : before + 2].mean() == pytest.approx(jump, abs=0.02 * np.diff(moved).max())
        assert np.sum(plain < jump) == np.sum(moved < jump)
    assert np.all(np.diff(moved) > 0) and np.abs(moved - plain).max() < np.diff(plain).max()


@pytest.mark.parametrize("jumps", [(-99.0, 99.0), (np.linspace(-1, 1, 5),)], ids=["beyond it", "of each row"])
def test_a_grid_stays_where_no_jump_is_shared(jumps):
    """Or a sample would depend on the others of its batch."""
    np.testing.assert_array_equal(table_of(Heun(steps=9), VP(), jumps).t, table_of(Heun(steps=9), VP()).t)


def test_the_callers_own_times_stay():
    sampler = DPMSolverPP2M(steps=3, grid=Times((1.0, 0.6, 0.3, 0.1)))
    np.testing.assert_array_equal(table_of(sampler, VP(), (0.0,)).t, [1.0, 0.6, 0.3])


def test_autoguidance_repairs_a_smoothed_model_at_one_scale():
    """Good N(0, .30), bad N(0, .60), truth N(0, .25): the ODE's .30^g .60^(1 - g) is .25 at g = 1.263."""
    sde = VP(beta_max=40.0, t_min=1e-5)
    good, bad = (ExactScore(GaussianMixture([1.0], [[0.0]], [[[v]]]), sde) for v in (0.30, 0.60))
    g = np.log(0.25 / 0.60) / np.log(0.30 / 0.60)
    assert g == pytest.approx(1.263, abs=1e-3)
    _, ode = gaussian_law(SAMPLERS["ode"], Autoguidance(good, bad, g), [0.0], [[0.3]])
    _, sde_law = gaussian_law(SAMPLERS["sde"], Autoguidance(good, bad, g), [0.0], [[0.3]])
    np.testing.assert_allclose(ode, 0.25, atol=1e-4)
    np.testing.assert_allclose(sde_law[0, 0], closed_form("sde", g, (0, 0.3), (0, 0.6))[1], atol=1e-4)


@pytest.mark.parametrize(
    "sampler", [DPMSolverPP2M(steps=40), SDEDPMSolverPP2M(steps=40, denoise=True), Heun(steps=20), UniPC(steps=20)]
)
def test_the_law_read_from_a_score_is_that_of_the_exact_score(sampler):
    """In any directions, where no two matrices of the score share axes with the start."""
    mean, covariance = np.array([0.4, -0.3, 0.1]), np.array([[0.5, 0.2, 0.1], [0.2, 0.3, 0.0], [0.1, 0.0, 0.2]])
    score_fn = ExactScore(GaussianMixture([1.0], mean[None], covariance[None]), VP())
    for prior in (None, (0.0, 1.0)):
        read = gaussian_law(sampler, score_fn, mean, covariance, prior=prior)
        known = gaussian_law(sampler, VP(), mean, covariance, prior=prior)
        np.testing.assert_allclose(read[0], known[0], atol=2e-6)
        np.testing.assert_allclose(read[1], known[1], atol=2e-6)


def test_the_law_of_a_score_whose_matrix_is_not_symmetric_is_that_of_the_samplers_own_map():
    matrix, shift = np.array([[-1.0, 0.6], [-0.2, -0.8]]), np.array([0.3, -0.1])
    score_fn = FunctionScore(lambda x, t: x @ jnp.asarray(matrix.T, x.dtype) + jnp.asarray(shift, x.dtype)[None], VP())
    sampler, points = DPMSolverPP2M(steps=6, denoise=True), jnp.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    offset, *moved = np.asarray(sampler.run(score_fn, points, row_keys(jax.random.key(0), np.arange(3)), None, 0).x)
    gain = (np.array(moved) - offset).T
    mean, covariance = gaussian_law(sampler, score_fn, [0.0, 0.0], np.eye(2), prior=(0.5, 2.0))
    np.testing.assert_allclose(mean, gain @ [0.5, 0.5] + offset, rtol=1e-4)
    np.testing.assert_allclose(covariance, 4 * gain @ gain.T, rtol=1e-4)


def test_a_score_that_is_not_affine_has_no_gaussian_law():
    for score_fn, d in (
        (ExactScore(two_peaks(), VP()), 2),
        (Projected(ClassifierFree(class_score(VP(), 2), 3.0, 2)), 2),
    ):
        with pytest.raises(ValueError, match="not affine"):
            gaussian_law(DPMSolverPP2M(steps=10), score_fn, np.zeros(d), np.eye(d), cond=ONE)
    with pytest.raises(ValueError, match="SDE"):
        gaussian_law(DPMSolverPP2M(), class_score(VP()), [0.0], [[1.0]], error=lambda half: (1.0, 0.1), cond=ONE)
