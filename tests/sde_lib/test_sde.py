import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sde_lib import VE, VP, CosineVP, RectifiedFlow, SubVP
from tests.oracles import SDE_IDS, SDES

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
    ],
)
def test_constants_out_of_order_are_refused(make, word):
    with pytest.raises(ValueError, match=word):
        make()
