"""The family of linear samplers: law and order of each on exact scores, and what known methods have in common.

The laws on Gaussians are exact (float64, no samples); the orders on a mixture are those of the compiled code in
float64.
"""

import re
from dataclasses import replace

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import quad

from sde_lib import (
    VE,
    VP,
    CosineVP,
    ExactScore,
    GaussianMixture,
    PredictorCorrector,
    ProbabilityFlow,
    reschedule,
    sample,
)
from sde_lib.samplers import (
    DDIM,
    DEIS,
    IPNDM,
    AdaptiveSDE,
    Ancestral,
    AnnealedLangevin,
    DPMSolverPP2M,
    DPMSolverPP3M,
    EulerMaruyama,
    FewToMany,
    FlowTime,
    Heun,
    Karras,
    Quadratic,
    SASolver,
    SDEDPMSolverPP1,
    SDEDPMSolverPP2M,
    SDEDPMSolverPP2MHeun,
    Times,
    UniformLogSNR,
    UniformT,
    UniPC,
    gaussian_kl,
    gaussian_law,
    in_log_snr,
    weak_error,
)
from sde_lib.samplers.linear import run_linear, table_of
from tests.oracles import ALL_SDE_IDS, ALL_SDES, SDE_IDS, SDES, calls_of, normal, random_mixture
from tests.sde_lib.samplers.family import FAMILY, padded

each_method = pytest.mark.parametrize("name", FAMILY)
each_sde = pytest.mark.parametrize("sde", ALL_SDES, ids=ALL_SDE_IDS)

_FACTOR = np.random.default_rng(0).normal(size=(3, 3))
MEAN, COVARIANCE = np.array([0.4, -0.3, 0.8]), 0.1 * np.eye(3) + 0.3 * _FACTOR @ _FACTOR.T


def slope(steps, errors):
    return -np.polyfit(np.log(steps), np.log(errors), 1)[0]


TABLES = {type(method.sampler): method.sampler for method in reversed(FAMILY.values())}
TABLES |= {AnnealedLangevin: AnnealedLangevin(step_size=0.1), Heun: Heun(), DDIM: DDIM(eta=1.0)}


@pytest.mark.parametrize("cls", TABLES, ids=lambda cls: cls.__name__)
def test_the_steps_that_a_docstring_calls_enough_are(cls):
    # Narrow and wide data along four axes. The law is exact, from the prior that `sample` starts from.
    widths, mean = np.array([0.01, 0.1, 1.0, 2.0]), np.full(4, 0.5)
    steps, others = re.search(r"Enough steps: ([\d,]+)(?:, or ([\d,]+) on `UniformLogSNR`)?", cls.__doc__).groups()
    sampler = replace(TABLES[cls], steps=int(steps.replace(",", "")))
    cases = [(sampler, sde) for sde in ALL_SDES]
    if others:  # 16,000 rows take a second: they are tried once
        evenly = replace(sampler, grid=UniformLogSNR(), steps=int(others.replace(",", "")))
        cases = [(evenly, sde) for sde in ALL_SDES[::2]] + ([(sampler, VP())] if cls is EulerMaruyama else [])
    for sampler, sde in cases[:1] if cls is AnnealedLangevin else cases:
        found, covariance = gaussian_law(sampler, sde, mean, np.diag(widths**2), prior=(0.0, sde.sigma(sde.t_max)))
        alpha, std = sde.alpha(sde.t_min), np.hypot(sde.alpha(sde.t_min) * widths, sde.sigma(sde.t_min))
        np.testing.assert_allclose(np.diag(covariance) ** 0.5, std, rtol=0.015)
        assert (np.abs(found - alpha * mean) < 0.015 * std).all()


FEW = {
    "a table": DDIM(steps=4),
    "two calls a step": Heun(steps=3),
    "the last x denoised": replace(Heun(steps=3), denoise=True),
    "a corrector": PredictorCorrector(steps=4),
    "annealed": AnnealedLangevin(steps=3, langevin_steps=2),
    "adaptive": AdaptiveSDE(steps=8),
}


@pytest.mark.parametrize("name", FEW)
def test_more_frames_than_steps_repeat_those_that_there_are(name):
    sampler, sde, frames = FEW[name], VP(), 23
    score_fn = ExactScore(normal(), sde)
    many = sample(sampler, score_fn, jax.random.key(0), 3, (2,), frames=frames)
    assert np.abs(many.path).min(axis=(1, 2)).all() and many.path.shape[0] == len(many.times) == frames
    np.testing.assert_array_equal(many.path[-1], many.x)
    np.testing.assert_allclose(many.times[np.array([0, -1])], [sde.t_max, sde.t_min], rtol=1e-6)
    assert (np.diff(many.times) <= 0).all()
    # Frames of one time are one frame; with a frame for each step there are no others.
    same = np.diff(many.times) == 0
    assert same.any() and (np.diff(many.path, axis=0)[same] == 0).all() and np.diff(many.path, axis=0)[~same].all()
    once = sample(sampler, score_fn, jax.random.key(0), 3, (2,), frames=sampler.steps + 1)
    of = np.round(np.arange(frames) * sampler.steps / (frames - 1)).astype(int)
    np.testing.assert_allclose(many.path, np.asarray(once.path)[of], rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(many.times, np.asarray(once.times)[of])


GRIDS = [UniformT(), UniformLogSNR(), Karras(), Quadratic(), FlowTime()]
NOISELESS = {"sde_dpmpp_1, eta 0": SDEDPMSolverPP1(eta=0.0), "sa_solver, eta 0": SASolver(eta=0.0)}
CASES = {
    **{name: (method.sampler, VP()) for name, method in FAMILY.items()},
    **{name: (sampler, VP()) for name, sampler in NOISELESS.items()},
    **{
        f"{type(g).__name__}, {i}": (DPMSolverPP3M(grid=g), s)
        for g in GRIDS
        for i, s in zip(ALL_SDE_IDS, ALL_SDES, strict=True)
    },
    "annealed": (AnnealedLangevin(langevin_steps=2), VP()),
}


@pytest.mark.parametrize("name", CASES)
def test_a_table_s_derivatives_in_the_sde_s_constants_are_those_of_finite_differences(name):
    sampler, sde = CASES[name]
    sampler = replace(sampler, steps=4)
    leaves, structure = jax.tree.flatten(jax.tree.map(float, sde))
    at = np.array(leaves)
    along = at * np.random.default_rng(0).uniform(0.5, 1.5, len(at))

    def table(values):
        found = table_of(sampler, jax.tree.unflatten(structure, list(values)))
        return [leaf for leaf in jax.tree.leaves(found) if np.size(leaf)]

    with jax.enable_x64(True):
        values, tangents = jax.jvp(table, (jnp.asarray(at),), (jnp.asarray(along),))
    step = 1e-6
    after, before, here = (table(at + shift * along) for shift in (step, -step, 0.0))
    for value, tangent, *difference, host in zip(values, tangents, after, before, here, strict=True):
        np.testing.assert_allclose(value, host, rtol=1e-9, atol=1e-9 * np.abs(host).max())
        expected = (difference[0] - difference[1]) / (2 * step)
        np.testing.assert_allclose(tangent, expected, rtol=1e-4, atol=1e-5 * np.abs(host).max())


@each_method
@each_sde
def test_the_law_on_a_gaussian_converges_with_the_method_s_order(name, sde):
    method = FAMILY[name]
    # To where signal and noise are equal. Over all of log SNR the leading errors of some methods on a Gaussian cancel:
    # they do better there than their order (`dpmpp_3m` 4, `sa_solver` 3), or their first-order error is too small to be
    # seen (`em` on VE).
    half = replace(sde, t_min=float(sde.time_of_log_snr(0.0)))
    # The first steps of a multistep method are of lower order: after some hundred steps, at errors of 1e-7, theirs is
    # what is left.
    steps = [method.settled, 2 * method.settled]
    errors = [gaussian_kl(replace(method.sampler, steps=n), half, MEAN, COVARIANCE) ** 0.5 for n in steps]
    assert slope(steps, errors) == pytest.approx(method.order, abs=0.2), errors
    assert gaussian_kl(replace(method.sampler, steps=method.settled), sde, MEAN, COVARIANCE) < 0.25  # and whole


@pytest.mark.parametrize("name", ["ddim", "dpmpp_2m"])
def test_a_sample_s_derivative_in_a_constant_is_that_of_a_finite_difference(name):
    def end(beta_max):
        score_fn = ExactScore(normal(), VP(beta_max=beta_max))
        return jnp.sum(sample(replace(FAMILY[name].sampler, steps=6), score_fn, jax.random.key(0), 3, (2,)).x ** 2)

    value = jax.jit(end)
    np.testing.assert_allclose(jax.jit(jax.grad(end))(15.0), (value(15.2) - value(14.8)) / 0.4, rtol=2e-2)


@each_sde
def test_heun_draws_no_noise_where_there_is_no_churn_also_under_jit(sde):
    assert not jax.jit(lambda sde: table_of(Heun(steps=6), sde))(sde).c.any()
    partly = Heun(steps=40, churn=5.0, churn_min=0.5, churn_max=5.0)
    on_device = jax.jit(lambda sde: table_of(partly, sde))(sde)
    churned = table_of(partly, sde).c
    assert 0 < (churned > 0).sum() < len(churned) / 2
    np.testing.assert_array_equal(on_device.c == 0, churned == 0)  # fused products round, and a root of that is noise
    np.testing.assert_allclose(on_device.c, churned, rtol=1e-3)


@pytest.mark.parametrize("sde", ALL_SDES, ids=ALL_SDE_IDS)
def test_the_order_on_a_mixture_is_the_theory_s(sde):
    # In float64 and from the same latents, against a far finer solution by another method.
    with jax.enable_x64(True):
        data = random_mixture(3, 2)
        score_fn, keys = ExactScore(data, sde), jax.random.split(jax.random.key(0), 16)
        x = data.at(sde, sde.t_max).sample(jax.random.key(1), 16)
        reference = {}
        for fine in (Heun(steps=4000, grid=UniformLogSNR()), UniPC(steps=1000)):
            reference[type(fine)] = run_linear(fine, score_fn, x, keys, None, 0)[0]
        assert jnp.abs(reference[Heun] - reference[UniPC]).max() < 1e-5
        steps, wrong = [80, 160, 320], {}
        for name, method in FAMILY.items():
            if not method.noisy:
                tables = [padded(replace(method.sampler, steps=n), 2 * steps[-1]) for n in steps]
                found = [run_linear(table, score_fn, x, keys, None, 0)[0] for table in tables]
                errors = [float(jnp.sqrt(jnp.mean((y - reference[UniPC]) ** 2))) for y in found]
                if abs(slope(steps, errors) - method.order) > 0.2:
                    wrong[name] = (slope(steps, errors), errors)
    assert not wrong


LINE = ([0.35, 0.65], [-0.8, 0.9], [0.35, 0.5])


def observable(x):
    return x**2 - np.tanh(2 * x)


@pytest.mark.parametrize("name", [n for n, m in FAMILY.items() if m.noisy and not n.startswith("sa_solver")])
def test_the_weak_order_on_a_mixture_is_the_theory_s(name):
    # Exactly, by quadrature: E[x² - tanh 2x] of the sampler's result against the data's.
    method = FAMILY[name]
    steps = [40, 80]
    errors = [abs(weak_error(replace(method.sampler, steps=n), VP(), *LINE, observable)) for n in steps]
    assert abs(slope(steps, errors) - method.order) < 0.2, errors
    assert method.sampler.convergence == method.order


@pytest.mark.parametrize("predictor", [2, 3])
def test_sa_solver_s_weak_order_on_a_mixture_is_the_theory_s(predictor):
    # To where signal and noise are equal, and late: over the whole range, and in long steps, its second-order error
    # nearly cancels.
    sde = replace(VE(), t_min=float(VE().time_of_log_snr(0.0)))
    steps = [160, 320]
    errors = [weak_error(SASolver(steps=n, predictor=predictor), sde, *LINE, observable, nodes=4) for n in steps]
    assert abs(slope(steps, np.abs(errors)) - 2) < 0.2, errors


PAIRS = {
    "2M and 1": (SDEDPMSolverPP2M(), SDEDPMSolverPP1(grid=FlowTime())),
    "SA-Solver and 2M Heun": (SASolver(predictor=3, grid=UniformLogSNR()), SDEDPMSolverPP2MHeun(grid=UniformLogSNR())),
}


@pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS)
def test_the_weak_error_is_that_of_compiled_paths(pair):
    # The difference of two samplers, from the same latents and noise: the paths stay together, and few of them tell it.
    n, samplers = 40_000, [replace(sampler, steps=40) for sampler in pair]
    sde = replace(VP(), t_min=float(VP().time_of_log_snr(0.0)))
    data = GaussianMixture(LINE[0], [[m] for m in LINE[1]], [[[s**2]] for s in LINE[2]])
    x = data.at(sde, sde.t_max).sample(jax.random.key(0), n)
    keys = jax.random.split(jax.random.key(1), n)
    one, other = (
        observable(np.asarray(s.run(ExactScore(data, sde), x, keys, None, 0).x[:, 0], float)) for s in samplers
    )
    exact = weak_error(samplers[0], sde, *LINE, observable) - weak_error(samplers[1], sde, *LINE, observable)
    error = (one - other).std() / np.sqrt(n)
    assert abs((one - other).mean() - exact) < 4 * error < 0.2 * abs(exact)


@each_method
def test_the_compiled_scan_draws_the_exact_law(name):
    # At few steps the law is far from the data's, so agreement is agreement of the code with its table.
    sampler = replace(FAMILY[name].sampler, steps=8)
    sde, n = VP(), 20_000
    score_fn = ExactScore(GaussianMixture(np.ones(1), MEAN[None], COVARIANCE[None]), sde)
    prior = (0.0, sde.sigma(sde.t_max))
    mean, covariance = gaussian_law(sampler, sde, MEAN, COVARIANCE, prior=prior)
    x = np.asarray(sample(sampler, score_fn, jax.random.key(4), n, (3,)).x, float)
    scale = np.sqrt(np.diag(covariance))
    np.testing.assert_allclose((x.mean(0) - mean) / scale, 0, atol=5 / np.sqrt(n))
    correlation_error = (np.cov(x.T) - covariance) / np.outer(scale, scale)
    np.testing.assert_allclose(correlation_error, 0, atol=5 * np.sqrt(2 / n))


class Wrong(ExactScore):
    """The exact score with its noise e = -sigma s scaled by 0.9 and, early on, biased by 0.4 in every direction of
    `basis`.
    """

    def __call__(self, x, t, cond=None, *, key=None):
        late = 0.5 * self.sde.log_snr(t) > 0
        bias = jnp.where(late, 0.0, 0.4) * jnp.asarray(BASIS.sum(1), x.dtype)
        return 0.9 * super().__call__(x, t) - bias[None] / self.sde.sigma(t)


BASIS = np.linalg.eigh(COVARIANCE)[1]
jax.tree_util.register_pytree_node(Wrong, lambda s: ((s.distribution, s.sde), None), lambda _, leaves: Wrong(*leaves))


@pytest.mark.parametrize(
    "sampler", [DPMSolverPP2M(steps=10), IPNDM(steps=10), SDEDPMSolverPP1(steps=10)], ids=lambda s: type(s).__name__
)
def test_the_law_of_a_score_in_error_is_drawn_too(sampler):
    sde, n = VP(), 20_000
    mean, covariance = gaussian_law(
        sampler,
        sde,
        MEAN,
        COVARIANCE,
        prior=(0.0, sde.sigma(sde.t_max)),
        error=lambda half_log_snr: (0.9, 0.4 * (half_log_snr <= 0)),
    )
    unperturbed, _ = gaussian_law(sampler, sde, MEAN, COVARIANCE)
    assert np.abs(mean - unperturbed).max() > 0.1
    x = np.asarray(
        sample(
            sampler, Wrong(GaussianMixture(np.ones(1), MEAN[None], COVARIANCE[None]), sde), jax.random.key(4), n, (3,)
        ).x,
        float,
    )
    scale = np.sqrt(np.diag(covariance))
    np.testing.assert_allclose((x.mean(0) - mean) / scale, 0, atol=5 / np.sqrt(n))
    np.testing.assert_allclose((np.cov(x.T) - covariance) / np.outer(scale, scale), 0, atol=5 * np.sqrt(2 / n))


TWINS = {
    "ddim of eta 1 is ancestral": (DDIM(eta=1.0), Ancestral()),
    "sde-dpm-solver++ 1 is ancestral": (SDEDPMSolverPP1(), Ancestral()),
    "sde-dpm-solver++ 1 of eta 0 is ddim": (SDEDPMSolverPP1(eta=0.0), DDIM()),
    "sde-dpm-solver++ 2m of eta 0 is dpm-solver++ 2m": (SDEDPMSolverPP2M(eta=0.0), DPMSolverPP2M()),
    "sa-solver's first predictor is sde-dpm-solver++ 1": (
        SASolver(predictor=1, corrector=0, eta=0.7),
        SDEDPMSolverPP1(eta=0.7),
    ),
    "sa-solver's second is sde-dpm-solver++ 2m in heun's form": (
        SASolver(predictor=2, corrector=0),
        SDEDPMSolverPP2MHeun(),
    ),
    "sa-solver's third of eta 0 is dpm-solver++ 3m": (SASolver(corrector=0, eta=0.0), DPMSolverPP3M()),
    "unip 1 is ddim": (UniPC(order=1, corrector=False), DDIM()),
    "unip 2 is dpm-solver++ 2m": (UniPC(order=2, corrector=False), DPMSolverPP2M()),
    "unip 3 is dpm-solver++ 3m": (UniPC(order=3, corrector=False), DPMSolverPP3M()),
    "ipndm 1 is ddim": (IPNDM(order=1), DDIM()),
    "deis 1 is ddim": (DEIS(order=1), DDIM()),
    "deis in log snr is in t where log snr is linear in t": (DEIS(), DEIS(variable=in_log_snr)),
    "a corrector of no steps leaves its predictor": (
        PredictorCorrector(corrector_steps=0, predictor=UniPC()),
        UniPC(),
    ),
}


@pytest.mark.parametrize("name", TWINS)
def test_known_twins_draw_the_same(name):
    one, other = (
        replace(sampler, steps=12, grid=UniformLogSNR()) for sampler in TWINS[name]
    )  # whatever their own grids are
    sde = VE() if "linear in t" in name else VP()
    score_fn, key = ExactScore(random_mixture(1, 2), sde), jax.random.key(0)
    a, b = (sample(sampler, score_fn, key, 64, (2,)).x for sampler in (one, other))
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-5)
    elsewhere = sample(replace(one, steps=13), score_fn, key, 64, (2,)).x
    assert np.abs(elsewhere - a).max() > 1e-3


def test_unipc_1_is_ddim_and_its_corrector_step_by_step():
    # Algorithm 2 of Zhao et al. 2023 for p = 1 and bh2: predict by DDIM, call there, and correct with half the
    # difference in D.
    sde, steps = VP(), 12
    with jax.enable_x64(True):
        score_fn = ExactScore(random_mixture(1, 2), sde)
        t = UniformLogSNR()(sde, steps)
        start = x = np.asarray(jax.random.normal(jax.random.key(0), (32, 2)))
        result, *_ = run_linear(
            UniPC(order=1, steps=steps, grid=UniformLogSNR()),
            score_fn,
            jnp.asarray(x),
            jax.random.split(jax.random.key(0), 32),
            None,
            0,
        )
        call = lambda x, t: np.asarray((x + sde.sigma(t) ** 2 * score_fn(jnp.asarray(x), t)) / sde.alpha(t))  # noqa: E731
        d = call(x, t[0])
        for k in range(steps):
            gain = -sde.alpha(t[k + 1]) * np.expm1(0.5 * (sde.log_snr(t[k]) - sde.log_snr(t[k + 1])))
            predicted = sde.sigma(t[k + 1]) / sde.sigma(t[k]) * x + gain * d
            if k == steps - 1:
                break
            d_s = call(predicted, t[k + 1])
            x, d = predicted + gain * 0.5 * (d_s - d), d_s
    np.testing.assert_allclose(result, predicted, rtol=1e-9, atol=1e-9)
    assert np.abs(predicted - start).max() > 0.1


@pytest.mark.parametrize("predictor, corrector, eta", [(1, 2, 1.0), (2, 2, 0.6), (3, 2, 1.0), (3, 4, 1.3), (2, 3, 0.0)])
def test_sa_solver_predicts_and_corrects_step_by_step(predictor, corrector, eta):
    # Xue et al. 2023, algorithm 1, with polynomials fitted through the calls, integrals by an adaptive rule, and a
    # denoiser of our own.
    sde, steps, denoise = CosineVP(), 7, np.tanh
    sampler = SASolver(steps=steps, grid=UniformLogSNR(), predictor=predictor, corrector=corrector, eta=eta)
    table = table_of(sampler, sde)
    z, q = np.random.default_rng(0).normal(size=steps), 1 + eta**2
    t = UniformLogSNR()(sde, steps)
    place = 0.5 * sde.log_snr(t)

    def step(k, x, calls):
        polynomial = np.polynomial.Polynomial.fit([p for p, _ in calls], [d for _, d in calls], len(calls) - 1)
        integral, _ = quad(
            lambda u: np.exp(-q * (place[k + 1] - u)) * polynomial(u), place[k], place[k + 1], epsabs=1e-13
        )
        h = place[k + 1] - place[k]
        noise = sde.sigma(t[k + 1]) * np.sqrt(-np.expm1(-2 * eta**2 * h)) * z[k]
        return (
            sde.sigma(t[k + 1]) / sde.sigma(t[k]) * np.exp(-(eta**2) * h) * x
            + sde.alpha(t[k + 1]) * q * integral
            + noise
        )

    x, e, calls, known, by_table = 0.7, 0.7, [], [0.0] * 4, 0.7
    for k in range(steps):
        d = denoise(e)
        if k:
            x = step(k - 1, x, [(place[k], d), *calls[: corrector - 1]])
        calls.insert(0, (place[k], d))
        e = step(k, x, calls[:predictor])
        known = [denoise(by_table), *known]
        by_table = table.a[k] * by_table + table.b[k] @ known[: table.b.shape[1]] + table.c[k] * z[k]
        assert by_table == pytest.approx(e, rel=1e-9)


def test_multistep_methods_lead_at_eight_calls():
    data, sde, key = random_mixture(5, 2), VP(), jax.random.key(0)
    score_fn = ExactScore(data, sde)
    kinds = {"heun": Heun(), "ddim": DDIM(), "dpmpp_2m": DPMSolverPP2M(), "ipndm": IPNDM(), "unipc": UniPC()}
    fine = sample(UniPC(steps=400), score_fn, key, 2000, (2,)).x
    error = {}
    for name, sampler in kinds.items():
        result = sample(sampler.at_nfe(8), score_fn, key, 2000, (2,))
        assert result.nfe == 8
        error[name] = float(jnp.mean(jnp.linalg.norm(result.x - fine, axis=1)))
    for name in ("dpmpp_2m", "ipndm", "unipc"):
        assert error[name] < error["heun"] / 5 and error[name] < error["ddim"] / 2, error


NAMED = [UniformT(), UniformLogSNR(), Karras(), Quadratic(), FlowTime()]  # those of --grid


@pytest.mark.parametrize("seed", [5, 6])
def test_at_eight_calls_no_grid_with_a_name_beats_the_method_s_own(seed):
    data, sde = random_mixture(seed, 2), VP()
    score_fn, key = ExactScore(data, sde), jax.random.key(0)
    fine = sample(UniPC(steps=400), score_fn, key, 2000, (2,)).x
    found = {}
    for method in (DDIM(), DPMSolverPP2M(), DEIS(), IPNDM(), UniPC()):
        error = {}
        for grid in (method.grid, *NAMED):
            drawn = sample(padded(replace(method, steps=8, grid=grid), 8), score_fn, key, 2000, (2,)).x
            error[grid] = float(jnp.sqrt(jnp.mean(jnp.sum((drawn - fine) ** 2, axis=1))))
        found[type(method).__name__, getattr(method, "order", 0)] = error.pop(method.grid) / min(error.values())
    assert max(found.values()) < 1.25 and found["UniPC", 3] < 1.0, found


@each_sde
@pytest.mark.parametrize("sampler", [SASolver(), SDEDPMSolverPP1()], ids=lambda s: type(s).__name__)
def test_with_noise_no_grid_with_a_name_beats_the_method_s_own_by_much(sampler, sde):
    """By the exact law, on widths from 1.5 to 0.03 at once; geometric means over few calls and many."""
    widths = np.array([1.5, 0.5, 0.2, 0.07, 0.03])

    def error(grid):
        kl = [
            gaussian_kl(replace(sampler, steps=n, grid=grid), sde, 0 * widths, np.diag(widths**2)) for n in (6, 12, 48)
        ]
        return np.exp(np.mean(np.log(kl)) / 2)

    assert error(sampler.grid) < 1.2 * min(map(error, NAMED))


def test_the_published_3m_loses_its_third_order_to_one_factor():
    steps = [320, 640, 1280]
    for name, least, most in (("dpmpp_3m", 2.8, 5.0), ("dpmpp_3m_published", 1.9, 2.1)):
        errors = [
            gaussian_kl(replace(FAMILY[name].sampler, steps=n), VP(t_min=0.05), MEAN, COVARIANCE) ** 0.5 for n in steps
        ]
        assert (
            least < slope(steps[:2] if name == "dpmpp_3m" else steps, errors[: 2 if name == "dpmpp_3m" else 3]) < most
        )


@pytest.mark.parametrize(
    "grid",
    [
        UniformT(),
        UniformLogSNR(),
        Karras(),
        Karras(rho=3.0),
        Quadratic(),
        FlowTime(),
        FlowTime(1.0, 3.0),
        FlowTime(4.0, 2.0, 0.5),
    ],
    ids=str,
)
@each_sde
def test_grids_are_even_in_what_they_are_named_after(grid, sde):
    t = grid(sde, 20)
    assert (t[0], t[-1]) == (pytest.approx(sde.t_max, rel=1e-12), pytest.approx(sde.t_min, rel=1e-12)) and len(t) == 21
    even = {
        UniformT: lambda: t,
        UniformLogSNR: lambda: sde.log_snr(t),
        Karras: lambda: (sde.sigma(t) / sde.alpha(t)) ** (1 / grid.rho),
        Quadratic: lambda: t**0.5,
        FlowTime: lambda: (
            (1 + (grid.shift * sde.alpha(t) / sde.sigma(t)) ** grid.decay) ** (-1 / (grid.decay * grid.power))
        ),
    }[type(grid)]()
    np.testing.assert_allclose(np.diff(even), (even[-1] - even[0]) / 20, rtol=1e-6)


def test_edm_s_published_noise_levels():
    # Karras et al. 2022, eq. 5 with their defaults, written out.
    sde = VE(sigma_min=0.002, sigma_max=80.0, t_min=1e-9)
    i = np.arange(18)
    levels = (80 ** (1 / 7) + i / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    np.testing.assert_allclose(sde.sigma(Karras()(sde, 17)), levels, rtol=1e-6)


def test_churn_is_edm_s_stochastic_sampler():
    # Algorithm 2 of Karras et al. 2022, step by step, its noise taken from the table's own streams by running it
    # without data.
    sde, steps, churn = VE(sigma_min=0.02, sigma_max=20.0), 6, 1.2
    table = table_of(Heun(steps=steps, churn=churn, churn_noise=1.007), sde)
    sigma = sde.sigma(Karras()(sde, steps))
    gamma = min(churn / steps, np.sqrt(2) - 1)
    x, z = 0.7, np.random.default_rng(0).normal(size=steps)
    by_table = x
    for i in range(steps):
        hat = sigma[i] * (1 + gamma) if i else sigma[0]
        x = x + np.sqrt(hat**2 - sigma[i] ** 2) * 1.007 * z[i]
        d = (x - np.tanh(x)) / hat  # a denoiser of our own
        y = x + (sigma[i + 1] - hat) * d
        x = x + (sigma[i + 1] - hat) * 0.5 * (d + (y - np.tanh(y)) / sigma[i + 1])
    known = 0.0
    for i in range(2 * steps):
        e = table.point.p[i] * by_table + table.point.q[i, 0] * known
        m = np.tanh(e)
        by_table = (
            table.a[i] * by_table
            + table.b[i] @ [m, known]
            + table.c[i] * (z[i // 2 + 1] if i % 2 and i // 2 + 1 < steps else 0.0)
        )
        known = m
    np.testing.assert_allclose(by_table, x, rtol=1e-10)
    np.testing.assert_allclose(sde.sigma(table.t[2::2]), sigma[1:-1] * (1 + gamma), rtol=1e-10)


@pytest.mark.parametrize("target", ALL_SDES, ids=ALL_SDE_IDS)
def test_a_rescheduled_score_gives_the_same_samples(target):
    data, source = random_mixture(2, 2), VP()
    score_fn = ExactScore(data, source)
    other = reschedule(score_fn, target)
    # A score under the target SDE, exactly; then the ODE from matched latents to matched samples.
    x, t = data.at(other.sde, 0.4).sample(jax.random.key(1), 16), 0.4
    np.testing.assert_allclose(other(x, t), ExactScore(data, other.sde)(x, t), rtol=2e-3, atol=2e-3)
    back = reschedule(other, source)
    start = data.at(other.sde, other.sde.t_max).sample(jax.random.key(0), 64)
    r = source.sigma(back.sde.t_max) / other.sde.sigma(other.sde.t_max)
    keys = jax.random.split(jax.random.key(0), 64)
    fine = UniPC(steps=200)
    there = run_linear(fine, other, start, keys, None, 0)[0] / other.sde.alpha(other.sde.t_min)
    here = run_linear(fine, ExactScore(data, back.sde), r * start, keys, None, 0)[0] / source.alpha(back.sde.t_min)
    np.testing.assert_allclose(there, here, atol=1e-3)


def test_settings_and_grids_do_not_compile_again():
    traces = []

    class Traced(ExactScore):
        def __call__(self, x, t, cond=None, *, key=None):
            traces.append(1)
            return super().__call__(x, t)

    jax.tree_util.register_pytree_node(
        Traced, lambda s: ((s.distribution, s.sde), None), lambda _, leaves: Traced(*leaves)
    )
    counts = []
    for i, (eta, grid) in enumerate(
        [(0.0, UniformLogSNR()), (0.3, Karras()), (1.0, Times(tuple(np.linspace(1, 1e-3, 7))))]
    ):
        sample(DDIM(steps=6, eta=eta, grid=grid), Traced(random_mixture(i, 2), VP()), jax.random.key(i), 4, (2,))
        counts.append(len(traces))
    sample(
        SDEDPMSolverPP1(steps=6), Traced(random_mixture(0, 2), VP()), jax.random.key(0), 4, (2,)
    )  # the same kind of table
    assert counts[0] > 0 and [*counts, len(traces)] == [counts[0]] * 4


@each_sde
@pytest.mark.parametrize("axes", [1, 3])
@pytest.mark.parametrize(
    "sampler",
    [
        SDEDPMSolverPP2M(),
        SDEDPMSolverPP2M(eta=0.5, grid=FlowTime(shift=0.7)),
        SDEDPMSolverPP2MHeun(),
        SDEDPMSolverPP2MHeun(eta=0.5, grid=FlowTime(shift=0.7)),
        SASolver(),
        SASolver(eta=0.5),
        Heun(churn=5.0, grid=FlowTime(1.5, 1.0)),
    ],
    ids=str,
)
def test_second_order_methods_with_noise_reach_a_micronat_by_128_steps(sampler, axes, sde):
    assert gaussian_kl(replace(sampler, steps=128), sde, MEAN[:axes], COVARIANCE[:axes, :axes]) < 1e-6


def test_steps_even_in_log_snr_cost_every_axis_the_same():
    # Another variance is a shift in log SNR: 9e-7 nats an axis, more than a micronat for three.
    even = SDEDPMSolverPP2M(steps=128, grid=UniformLogSNR())
    one, three = gaussian_kl(even, VP(), [0.4], [[0.25]]), gaussian_kl(even, VP(), MEAN, COVARIANCE)
    assert one == pytest.approx(8.7e-7, rel=0.02) and three == pytest.approx(3 * one, rel=0.02)


@pytest.mark.parametrize(
    "call, word",
    [
        (lambda: Heun().at_nfe(9), "cannot spend 9"),
        (lambda: DPMSolverPP3M().at_nfe(2), "at least 3 steps"),
        (lambda: PredictorCorrector().at_nfe(7), "cannot spend 7"),
        (
            lambda: ProbabilityFlow(solver=diffrax.Midpoint(), steps=9).at_nfe(7),
            "Midpoint cannot spend 7 score calls: it makes 2 a step",
        ),
        (
            lambda: ProbabilityFlow(solver=diffrax.Bosh3(), steps=9).at_nfe(9),
            "Bosh3 .* makes 3 a step and 1 beside",
        ),
        (lambda: table_of(DPMSolverPP3M(steps=2), VP()), "at least 3"),
        (lambda: table_of(IPNDM(steps=3), VP()), "at least 4"),
        (lambda: EulerMaruyama(eta=-0.1), "eta"),
        (lambda: DDIM(eta=-1.0), "eta"),
        (lambda: DDIM(eta=1.1), "at most 1"),
        (lambda: SDEDPMSolverPP2M(eta=-1.0), "eta"),
        (lambda: Heun(churn=-1.0), "churn"),
        (lambda: DEIS(order=5), "order"),
        (lambda: UniPC(order=0), "order"),
        (lambda: SASolver(predictor=5), "predictor"),
        (lambda: SASolver(corrector=1), "corrector"),
        (lambda: Karras(rho=0.0), "rho"),
        (lambda: FlowTime(power=0.0), "power"),
        (lambda: FlowTime(shift=-1.0), "shift"),
        (lambda: FlowTime(decay=0.0), "decay"),
        (lambda: table_of(DDIM(steps=2, grid=Times((1.0, 0.5))), VP()), "2 steps need 3 times"),
        (lambda: table_of(DDIM(steps=2, grid=Times((0.5, 1.0, 0.1))), VP()), "decrease"),
        (lambda: table_of(DDIM(steps=2, grid=Times((1.0, 0.5, 1e-4))), VP()), "stay within"),
        (lambda: table_of(DDIM(steps=2, grid=Times((1.2, 0.5, 1e-3))), VP()), "stay within"),
        (lambda: PredictorCorrector(predictor=Heun()), "one call a step"),
    ],
)
def test_what_a_method_cannot_do_is_refused(call, word):
    with pytest.raises(ValueError, match=word):
        call()


@pytest.mark.parametrize("name", ["dpmpp_3m", "unipc", "heun, churn 5", "deis_t", "sde_dpmpp_2m"])
def test_nfe_is_the_number_of_calls(name):
    for denoise in (False, True):
        sampler = replace(FAMILY[name].sampler, steps=5, denoise=denoise)
        calls, nfe = calls_of(lambda score_fn, sampler=sampler: sample(sampler, score_fn, jax.random.key(0), 3, (2,)))
        assert nfe == calls > 0


@pytest.mark.parametrize(
    "solver", [diffrax.Euler(), diffrax.Midpoint(), diffrax.Bosh3(), diffrax.Tsit5()], ids=lambda s: type(s).__name__
)
@pytest.mark.parametrize("denoise", [False, True])
def test_runge_kutta_spends_the_budget_that_it_is_given(solver, denoise):
    flow, per_step = (
        ProbabilityFlow(solver=solver, steps=100, denoise=denoise),
        {"Euler": 1, "Midpoint": 2, "Bosh3": 3, "Tsit5": 6},
    )
    first_same_as_last = type(solver).__name__ in ("Bosh3", "Tsit5")
    budget = 5 * per_step[type(solver).__name__] + first_same_as_last + denoise
    calls, nfe = calls_of(lambda score_fn: sample(flow.at_nfe(budget), score_fn, jax.random.key(0), 3, (2,)))
    assert nfe == calls == budget and flow.at_nfe(budget).steps == 5


@pytest.mark.parametrize("sde", SDES, ids=SDE_IDS)
def test_under_jit_the_tables_are_traced_and_agree(sde):
    score_fn, key = ExactScore(random_mixture(1, 2), sde), jax.random.key(0)
    samplers = (UniPC(steps=6), Heun(steps=4, churn=1.0), DPMSolverPP3M(steps=6), DEIS(steps=4, variable=in_log_snr))

    def draw(score_fn):
        return [sample(sampler, score_fn, key, 4, (2,)).x for sampler in samplers]

    for plain, jitted in zip(draw(score_fn), jax.jit(draw)(score_fn), strict=True):
        np.testing.assert_allclose(plain, jitted, rtol=2e-2, atol=2e-2)


def test_ddim_s_noise_is_the_paper_s():
    # Song et al. 2021, arXiv:2010.02502, eq. 16 in their alpha-bar = alpha², for each eta; and eq. 12 for x.
    sde, t = VP(), np.array([0.9, 0.5, 0.2])
    bar, bar_next = sde.alpha(t[:-1]) ** 2, sde.alpha(t[1:]) ** 2
    for eta in (0.0, 0.3, 1.0):
        noise = eta * np.sqrt((1 - bar_next) / (1 - bar)) * np.sqrt(1 - bar / bar_next)
        table = DDIM(eta=eta).update(sde, t)
        np.testing.assert_allclose(table.c, noise, rtol=1e-9, atol=1e-12)
        direction = np.sqrt(
            1 - bar_next - noise**2
        )  # x' = sqrt(bar') D + direction e + noise z, e = (x - sqrt(bar) D)/sqrt(1 - bar)
        np.testing.assert_allclose(table.a, direction / np.sqrt(1 - bar), rtol=1e-9)
        np.testing.assert_allclose(table.b[:, 0], np.sqrt(bar_next) - direction * np.sqrt(bar / (1 - bar)), rtol=1e-9)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_ipndm_s_weights_integrate_polynomials(order):
    # Adams-Bashforth: sum_j w_j (-j)^m = int_0^1 u^m du = 1/(m + 1) for as many m as there are calls to go by.
    b = table_of(IPNDM(order=order, steps=8), VP()).b
    for i, weights in enumerate(b / b.sum(axis=1, keepdims=True)):
        for m in range(min(order, i + 1)):
            np.testing.assert_allclose(weights @ (-np.arange(order, dtype=float)) ** m, 1 / (m + 1), rtol=1e-12)


@pytest.mark.parametrize("sde", SDES, ids=SDE_IDS)
def test_a_grid_goes_from_one_at_few_steps_to_another_at_many(sde):
    few, many = Quadratic(), Karras()
    grid = FewToMany(few, many)
    for steps, alone in ((4, few), (16, few), (64, many), (100, many)):
        np.testing.assert_array_equal(grid(sde, steps), alone(sde, steps))
    at = {g: sde.log_snr(g(sde, 28)) for g in (grid, few, many)}
    np.testing.assert_allclose(at[grid], 0.75 * at[few] + 0.25 * at[many], rtol=1e-6)


@pytest.mark.parametrize("sde", [VP(), VE()], ids=["VP", "VE"])
@pytest.mark.parametrize("widths", [(0.6, 0.35, 0.5), (1.5, 0.5, 0.2, 0.07, 0.03)], ids=["unit scale", "many scales"])
def test_at_256_steps_sa_solver_loses_nothing_by_its_own_grid(sde, widths):
    law = (sde, np.full(len(widths), 0.4), np.diag(np.square(widths)))
    own, even = (gaussian_kl(s, *law) for s in (SASolver(steps=256), SASolver(steps=256, grid=UniformLogSNR())))
    assert own < even
