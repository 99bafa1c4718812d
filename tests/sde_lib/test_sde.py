from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sde_lib import SDE, VE, VP, CosineVP, RectifiedFlow, SubVP
from sde_lib.samplers.linear import table_of
from tests.oracles import ALL_SDE_IDS, ALL_SDES, SDE_IDS, SDES
from tests.sde_lib.samplers.family import FAMILY

TIMES = np.array([1e-5, 1e-3, 0.02, 0.3, 0.7, 1.0])


def published(sde, t):
    """(alpha, sigma, f, g²) as score_sde writes them, in float64: Song et al. 2021, eq. 29 to 32 and appendix C."""
    if isinstance(sde, VE):
        sigma = sde.sigma_min * (sde.sigma_max / sde.sigma_min) ** t
        return np.ones_like(t), sigma, 0 * t, sigma**2 * 2 * np.log(sde.sigma_max / sde.sigma_min)
    beta = sde.beta_min + t * (sde.beta_max - sde.beta_min)
    log_alpha = -0.25 * t**2 * (sde.beta_max - sde.beta_min) - 0.5 * t * sde.beta_min
    if isinstance(sde, VP):
        return np.exp(log_alpha), np.sqrt(-np.expm1(2 * log_alpha)), -0.5 * beta, beta
    return np.exp(log_alpha), -np.expm1(2 * log_alpha), -0.5 * beta, beta * -np.expm1(4 * log_alpha)


@pytest.mark.parametrize("s", [0.008, 0.1])
def test_the_cosine_schedule_is_nichol_and_dhariwal_s(s):
    # Their alpha-bar is alpha², eq. 17; beta = -d log(alpha-bar)/dt, and a variance-preserving SDE has f = -beta/2, g²
    # = beta.
    sde = CosineVP(s=s)
    t = np.array([1e-5, 1e-3, 0.1, 0.5, 0.9, sde.t_max])
    angle = (t + s) / (1 + s) * np.pi / 2
    alpha_bar = np.cos(angle) ** 2 / np.cos(s / (1 + s) * np.pi / 2) ** 2
    beta = np.pi / (1 + s) * np.tan(angle)
    np.testing.assert_allclose(sde.alpha(t) ** 2, alpha_bar, rtol=1e-12)
    np.testing.assert_allclose(sde.sigma(t)[1:] ** 2, 1 - alpha_bar[1:], rtol=1e-9)
    np.testing.assert_allclose(sde.f(t), -beta / 2, rtol=1e-9)
    np.testing.assert_allclose(sde.g2(t), beta, rtol=1e-9)
    on_device = jax.jit(lambda sde, t: sde.sigma(t))(sde, jnp.asarray(t, jnp.float32))
    np.testing.assert_allclose(
        on_device, sde.sigma(t), rtol=2e-5
    )  # 1 - alpha² in float32 would lose all digits at 1e-5


def test_the_rectified_flow_is_the_straight_path():
    sde, t = RectifiedFlow(), np.array([1e-5, 0.1, 0.5, 0.999])
    np.testing.assert_allclose(sde.alpha(t) + sde.sigma(t), 1.0, rtol=1e-15)
    np.testing.assert_allclose(sde.f(t), -1 / (1 - t), rtol=1e-12)
    np.testing.assert_allclose(sde.g2(t), 2 * t / (1 - t), rtol=1e-12)


def test_constants_that_are_not_given_are_the_published_ones():
    """Song et al. 2021, appendix C, with the sampling cut-offs of their code; Nichol & Dhariwal 2021, section 3.2."""
    assert VP() == VP(beta_min=0.1, beta_max=20.0, t_min=1e-3, t_max=1.0)
    assert SubVP() == SubVP(beta_min=0.1, beta_max=20.0, t_min=1e-3, t_max=1.0)
    assert VE() == VE(sigma_min=0.01, sigma_max=50.0, t_min=1e-5, t_max=1.0)
    assert CosineVP() == CosineVP(s=0.008, t_min=1e-3, t_max=0.9946)  # t_max as in DPM-Solver, appendix D.4
    assert RectifiedFlow() == RectifiedFlow(t_min=1e-3, t_max=0.999)


OTHERS = [VP(beta_min=0.3, beta_max=8.0), SubVP(beta_min=0.02, beta_max=12.0), VE(sigma_min=0.05, sigma_max=380.0)]


@pytest.mark.parametrize("sde", SDES + OTHERS, ids=str)
def test_the_derived_forms_are_the_published_ones(sde):
    alpha, sigma, f, g2 = published(sde, TIMES)
    np.testing.assert_allclose(sde.alpha(TIMES), alpha, rtol=1e-12)
    np.testing.assert_allclose(sde.sigma(TIMES), sigma, rtol=1e-9)  # the published VP std loses digits near 0
    np.testing.assert_allclose(sde.f(TIMES), f, rtol=1e-9)
    np.testing.assert_allclose(sde.g2(TIMES), g2, rtol=1e-9)


@pytest.mark.parametrize("sde", SDES + OTHERS, ids=str)
def test_float32_on_the_device_agrees_with_float64_on_the_host(sde):
    device = jax.jit(lambda sde, t: (sde.alpha(t), sde.sigma(t), sde.f(t), sde.g2(t)))(
        sde, jnp.asarray(TIMES, jnp.float32)
    )
    host = (sde.alpha(TIMES), sde.sigma(TIMES), sde.f(TIMES), sde.g2(TIMES))
    for on_device, on_host in zip(device, host, strict=True):
        assert on_device.dtype == jnp.float32
        np.testing.assert_allclose(on_device, on_host, rtol=2e-5)


def test_sub_vp_sigma_near_zero_keeps_its_digits_in_float32():
    # B(1e-5) = 1.00099e-6: 1 - exp(-B) in float32 would be off by percents.
    t = jnp.float32(1e-5)
    np.testing.assert_allclose(SubVP().sigma(t), 1.0009945e-6, rtol=1e-5)
    np.testing.assert_allclose(VP().sigma(t), np.sqrt(1.0009945e-6), rtol=1e-5)


@pytest.mark.parametrize(
    "sde, std",
    [(VP(), 0.9999784), (SubVP(), 0.9999568), (VE(), 50.0), (VE(sigma_max=7.0), 7.0), (VP(t_max=0.5), 0.9596542)],
    ids=str,
)
def test_the_prior_has_the_sde_s_last_sigma(sde, std):
    x = sde.prior((3, 2)).sample(jax.random.key(0), 40_000)
    np.testing.assert_allclose(jnp.std(x), std, rtol=5 / np.sqrt(2 * x.size))
    np.testing.assert_allclose(sde.prior((1,)).std, std, rtol=1e-6)
    zeros = jnp.zeros((1, 3, 2))
    np.testing.assert_allclose(sde.prior((3, 2)).log_prob(zeros), -6 * np.log(std * np.sqrt(2 * np.pi)), rtol=1e-5)


@pytest.mark.parametrize("sde", [*SDES, *OTHERS, CosineVP(), RectifiedFlow()], ids=str)
def test_time_of_log_snr_inverts_log_snr(sde):
    t = np.linspace(sde.t_min, sde.t_max, 50)
    np.testing.assert_allclose(sde.time_of_log_snr(sde.log_snr(t)), t, rtol=1e-10)
    on_device = jax.jit(lambda sde, t: sde.log_snr(sde.time_of_log_snr(sde.log_snr(t))))(
        sde, jnp.asarray(t, jnp.float32)
    )
    np.testing.assert_allclose(on_device, sde.log_snr(t), atol=2e-4)


def test_kept_times_are_those_of_the_values_and_constants_that_are_asked_for():
    sde, levels = VP(), np.array([-2.0, 0.3])
    times = sde.time_of_log_snr(levels)
    first = times.copy()
    times[:] = 7.0
    np.testing.assert_array_equal(sde.time_of_log_snr(levels), first)
    np.testing.assert_array_equal(sde.time_of_log_snr(levels[:, None])[:, 0], first)
    assert sde.time_of_log_snr(0.3) == first[1]
    for other in (VP(beta_max=15.0), VP(beta_max=np.array(15.0))):
        np.testing.assert_allclose(other.log_snr(other.time_of_log_snr(levels)), levels, atol=1e-12)


@pytest.mark.parametrize("sde", SDES, ids=SDE_IDS)
def test_log_snr_s_rate_is_g2_over_sigma2(sde):
    t, step = np.linspace(0.05, 0.95, 10), 1e-5
    rate = (sde.log_snr(t + step) - sde.log_snr(t - step)) / (2 * step)
    np.testing.assert_allclose(sde.g2(t), -(sde.sigma(t) ** 2) * rate, rtol=1e-6)


def test_tree_structures_of_two_sdes_differ():
    # jax's own registration calls these equal, and a trace cached for one then runs for the other.
    structures = [jax.tree.structure(sde) for sde in SDES]
    assert structures[0] != structures[1] and structures[0] != structures[2] and structures[1] != structures[2]
    assert (
        jax.tree.leaves(VE()) == [1e-5, 1.0, 0.01, 50.0]
        and jax.tree.unflatten(structures[2], [1e-5, 1.0, 0.01, 50.0]) == VE()
    )


@pytest.mark.parametrize(
    "make, word",
    [
        (lambda: VP(beta_min=3.0, beta_max=2.0), "beta_min"),
        (lambda: VE(sigma_min=-1.0), "sigma_min"),
        (lambda: VE(sigma_min=2.0, sigma_max=1.0), "sigma_max"),
        (lambda: VP(t_min=1.0), "t_min"),
        (lambda: CosineVP(t_max=1.0), "t_max must be less than 1"),
        (lambda: RectifiedFlow(t_max=1.5), "t_max must be less than 1"),
        (lambda: SubVP(beta_max=float("nan")), "beta_max"),
        (lambda: VP(beta_min=np.float32(-1.0)), "beta_min must be positive"),
        (lambda: VP(t_min=0.0), "t_min must be positive"),
        (lambda: CosineVP(s=jnp.float32(0.0)), "s must be positive"),
        (lambda: VDM(gamma_min=6.0), "must fall"),
        (lambda: VDM(gamma_max=2000.0), "positive and finite"),
    ],
)
def test_constants_out_of_order_are_refused(make, word):
    with pytest.raises(ValueError, match=word):
        make()


class VDM(SDE):
    """Kingma et al. 2021's linear log SNR: -(gamma_min + t (gamma_max - gamma_min)), its constants of either sign."""

    gamma_min: float = -13.3
    gamma_max: float = 5.0

    def _gamma(self, t):
        return self.gamma_min + t * (self.gamma_max - self.gamma_min)

    def alpha(self, t):
        xp = self.namespace(t)
        return 1 / xp.sqrt(1 + xp.exp(self._gamma(t)))

    def sigma(self, t):
        xp = self.namespace(t)
        return 1 / xp.sqrt(1 + xp.exp(-self._gamma(t)))


def test_a_constant_of_an_sde_may_be_negative_where_the_sde_does_not_say_otherwise():
    sde = VDM()
    np.testing.assert_allclose(sde.log_snr(TIMES), 13.3 - 18.3 * TIMES, rtol=1e-12)
    np.testing.assert_allclose(sde.g2(TIMES), 18.3 * sde.sigma(TIMES) ** 2, rtol=1e-10)


NODES = np.linspace(0.0, 1.0, 30)
TABLE = 1 - 0.9 * NODES**2


class OfNumpyTable(SDE):
    def alpha(self, t):
        return self.namespace(t).interp(t, NODES, TABLE)

    def sigma(self, t):
        return t


class OfJaxTable(OfNumpyTable):
    def alpha(self, t):
        return jnp.interp(t, NODES, TABLE)


class OfAbsoluteValue(OfNumpyTable):
    def alpha(self, t):
        return 1 - 0.9 * abs(t)


class Clipped(OfNumpyTable):
    def alpha(self, t):
        return self.namespace(t).maximum(1 - abs(t) ** 2, 0.1)


@pytest.mark.parametrize("cls", [OfNumpyTable, OfJaxTable, OfAbsoluteValue, Clipped])
def test_a_formula_that_a_complex_step_cannot_differentiate_is_refused(cls):
    with pytest.raises(ValueError, match="define alpha_and_derivative"):
        cls()


class WithItsDerivative(OfNumpyTable):
    def alpha_and_derivative(self, t):
        xp = self.namespace(t)
        slopes = xp.asarray(np.diff(TABLE) / np.diff(NODES))
        return self.alpha(t), slopes[xp.clip(xp.searchsorted(xp.asarray(NODES), t) - 1, 0, len(slopes) - 1)]


def test_a_table_with_its_own_derivative_is_a_process_on_the_host_and_on_the_device():
    sde, t = WithItsDerivative(), np.array([0.31, 0.5, 0.83])
    step = 1e-6
    f = (np.log(sde.alpha(t + step)) - np.log(sde.alpha(t - step))) / (2 * step)
    g2 = 2 * t - 2 * f * t**2  # sigma = t
    np.testing.assert_allclose(sde.g2(t), g2, rtol=1e-6)
    np.testing.assert_allclose(sde.g2(jnp.asarray(t)), g2, rtol=1e-4)


class ConstantAlpha(SDE):
    """The VE process sigma = t of EDM, its alpha written as a number."""

    t_max: float = 80.0

    def alpha(self, t):
        return 1.0

    def sigma(self, t):
        return t


def test_a_formula_may_be_a_constant_for_every_sampler_and_on_the_device():
    sde, t = ConstantAlpha(), np.array([0.1, 2.0])
    for times in (t, jnp.asarray(t)):
        np.testing.assert_allclose(sde.alpha(times), [1.0, 1.0])
        np.testing.assert_allclose(sde.f(times), [0.0, 0.0])
        np.testing.assert_allclose(sde.g2(times), 2 * t, rtol=1e-6)
    for method in FAMILY.values():
        table = table_of(replace(method.sampler, steps=8), sde)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(table))
        assert len(table.a) == len(table.t)


@pytest.mark.parametrize("sde", [*ALL_SDES, VDM()], ids=[*ALL_SDE_IDS, "VDM"])
def test_derivatives_of_the_inverse_of_log_snr_are_those_of_finite_differences(sde):
    # In log SNR and in every constant: by the implicit function theorem, not through the bisection. The differences
    # are the host's.
    leaves, structure = jax.tree.flatten(jax.tree.map(float, sde))
    at = np.array([sde.log_snr(0.4 * sde.t_min + 0.6 * sde.t_max), *leaves])

    def time(values):
        return jax.tree.unflatten(structure, list(values[1:])).time_of_log_snr(values[0])

    with jax.enable_x64(True):
        gradient = np.asarray(jax.jit(jax.grad(time))(jnp.asarray(at)))
        assert np.abs(gradient[0]) > 0
        for i, e in enumerate(1e-5 * np.maximum(np.abs(at), 1e-2)[:, None] * np.eye(len(at))):
            np.testing.assert_allclose(gradient[i], (time(at + e) - time(at - e)) / (2 * e[i]), rtol=1e-5, atol=1e-8)


def test_the_inverse_of_log_snr_can_be_differentiated_twice():
    # log SNR = gamma_0 - (gamma_1 - gamma_0) t' is linear, so t(log SNR; gamma_1) has a closed second derivative.
    def time(values):
        return VDM(gamma_max=values[1]).time_of_log_snr(values[0])

    log_snr, gamma_max = 2.0, 5.0
    range_, up = gamma_max + 13.3, 13.3 - log_snr  # t = up/range_
    expected = [[0.0, 1 / range_**2], [1 / range_**2, 2 * up / range_**3]]
    np.testing.assert_allclose(
        jax.jit(jax.hessian(time))(jnp.array([log_snr, gamma_max])), expected, rtol=1e-4, atol=1e-7
    )


def test_beyond_its_range_the_inverse_of_log_snr_moves_with_the_end():
    gradient = jax.jit(jax.grad(lambda sde, log_snr: sde.time_of_log_snr(log_snr)))
    for log_snr, end in ((1e3, "t_min"), (-1e3, "t_max")):
        moved = gradient(VP(), log_snr)
        assert {name: float(value) for name, value in vars(moved).items()} == {
            name: float(name == end) for name in ("t_min", "t_max", "beta_min", "beta_max")
        }
