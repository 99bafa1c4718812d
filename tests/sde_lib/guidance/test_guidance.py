"""Guided scores against what they are made of: bits, network calls, compilations, and batches."""

from dataclasses import dataclass, replace
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sde_lib import (
    SDE,
    VE,
    VP,
    Autoguidance,
    ClassifierFree,
    ClassifierGuided,
    EulerMaruyama,
    ExactScore,
    FunctionScore,
    GaussianMixture,
    PredictorCorrector,
    ProbabilityFlow,
    Product,
    Projected,
    RectifiedFlow,
    SubVP,
    Told,
    denoiser,
    encode,
    log_prob,
    register_dataclass,
    reschedule,
    sample,
    vlb,
)
from sde_lib.composed import calls, whole
from sde_lib.samplers import AdaptiveSDE, DPMSolverPP2M, UniformLogSNR
from tests.oracles import ALL_SDE_IDS, ALL_SDES, class_score, random_mixture

KEY = jax.random.key(0)
LABELS = np.array([0, 1, 0, 0, 1])
INTERVAL = {"low": -2.0, "high": 3.0}
SAMPLERS = {
    "em": EulerMaruyama(steps=12, denoise=True),
    "dpmpp_2m": DPMSolverPP2M(steps=12),
    "pc": PredictorCorrector(steps=12, corrector_steps=2, denoise=True),
    "adaptive": AdaptiveSDE(steps=8, denoise=True),
    "ode": ProbabilityFlow(denoise=True),
    "ode, fixed": ProbabilityFlow(steps=9),
    "ode, each alone": ProbabilityFlow(per_sample=True),
}


def scores(sde):
    """Every kind of guided score, with the rows of calls that one call of it makes inside the interval, for each."""
    score_fn = class_score(sde)
    free = ClassifierFree(score_fn, 3.0, 2)
    return {
        "free": (free, 2),
        "free, two calls": (replace(free, null=None), 2),
        "free in an interval": (replace(free, **INTERVAL), 2),
        "free, g of each row": (replace(free, scale=np.array([1.0, 0.5, 2.0, 3.0, 1.0]), **INTERVAL), 2),
        "autoguidance": (Autoguidance(score_fn, class_score(sde), 2.0), 2),
        "autoguidance of free": (Autoguidance(replace(free, **INTERVAL), class_score(sde), 2.0), 3),
        "product": (Product((score_fn, free, score_fn), (0.5, 1.0, -0.5)), 4),
        "projected": (Projected(replace(free, **INTERVAL), radius=2.0), 2),
        "classifier": (ClassifierGuided(FunctionScore(score_fn, sde), log_class, 2.0), 1),
        "another SDE": (reschedule(replace(free, **INTERVAL), VE()), 2),
    }


def log_class(x, t, cond):
    return -0.5 * jnp.sum((x - jnp.asarray([[1.0], [-1.0]])[cond]) ** 2, axis=1)


@pytest.mark.parametrize(
    ("name", "kind"),
    [*[(name, "free, g of each row") for name in SAMPLERS], *[("dpmpp_2m", kind) for kind in scores(VP())]],
)
def test_nfe_is_what_a_counter_inside_the_network_counts(name, kind):
    score_fn, _ = scores(VP())[kind]
    rows, result = class_score(VP()).calls_of(lambda: sample(SAMPLERS[name], score_fn, KEY, 5, (1,), cond=LABELS))
    assert result.nfe == rows / (1 if name == "ode, each alone" else 5) > 0  # alone, each call has one row


@pytest.mark.parametrize("kind", scores(VP()))
def test_calls_are_the_most_that_a_call_makes(kind):
    score_fn, most = scores(VP())[kind]
    x = jax.random.normal(KEY, (5, 1))
    rows, _ = class_score(VP()).calls_of(lambda: score_fn(x, 0.4, LABELS))
    assert calls(score_fn) == most == rows / 5
    rows, _ = class_score(VP()).calls_of(lambda: whole(score_fn)(x, 0.01, LABELS))
    assert rows / 5 == most


def test_the_interval_saves_calls_and_so_does_a_scale_of_one():
    score_fn = class_score(VP())
    spent = {
        g: sample(DPMSolverPP2M(steps=40), ClassifierFree(score_fn, g, 2, low, high), KEY, 2, (1,), cond=LABELS[:2]).nfe
        for g, low, high in ((1.0, -1, 1), (2.0, -1.0, 1.0), (3.0, -np.inf, np.inf))
    }
    log_snr = VP().log_snr(UniformLogSNR()(VP(), 40)[:-1])
    inside = int(np.sum((log_snr >= -1) & (log_snr <= 1)))
    assert spent == {1.0: 40, 2.0: 40 + inside, 3.0: 80}


def test_the_interval_holds_its_ends_and_no_more():
    """At t = 1/2 the rectified flow's log SNR is 0, and rounding must not tell."""
    sde = RectifiedFlow()
    score_fn = class_score(sde)
    x, cond = jnp.ones((2, 1)), LABELS[:2]
    for low, high in ((0.0, 5.0), (-5.0, 0.0)):
        guided = ClassifierFree(score_fn, 3.0, 2, low, high)
        np.testing.assert_allclose(guided(x, 0.5, cond), replace(guided, low=-9.0, high=9.0)(x, 0.5, cond), rtol=1e-6)
        outside = 0.501 if low == 0 else 0.499
        np.testing.assert_array_equal(guided(x, outside, cond), score_fn(x, outside, cond))
        each = guided(x, jnp.array([0.5, outside]), cond)
        np.testing.assert_allclose(each, [guided(x, 0.5, cond)[0], score_fn(x, outside, cond)[1]], rtol=1e-6)


@pytest.mark.parametrize(
    ("likelihood", "kind"),
    [("log_prob", "free in an interval"), ("encode", "autoguidance of free"), ("vlb", "projected")],
)
def test_nfe_of_likelihoods_is_counted_too(likelihood, kind):
    score_fn, _ = scores(VP())[kind]
    x = jnp.linspace(-1, 1, 5)[:, None]
    run = {
        "log_prob": lambda: log_prob(score_fn, x, guided=True, cond=LABELS),
        "encode": lambda: encode(score_fn, x, cond=LABELS),
        "vlb": lambda: vlb(score_fn, x, KEY, times=6, guided=True, cond=LABELS),
    }[likelihood]
    rows, result = class_score(VP()).calls_of(run)
    assert result.nfe == rows / 5 > 0


@pytest.mark.parametrize("sde", ALL_SDES, ids=ALL_SDE_IDS)
@pytest.mark.parametrize("null", [2, None])
def test_a_scale_of_one_is_the_conditional_score_and_zero_that_of_nothing_bit_for_bit(sde, null):
    score_fn, x, t = class_score(sde), jax.random.normal(KEY, (5, 1)), 0.3
    for run in (lambda f, *given: f(*given), jax.jit(lambda f, *given: f(*given))):
        given, nothing = run(score_fn, x, t, LABELS), run(score_fn, x, t, np.full(5, 2))
        np.testing.assert_array_equal(run(ClassifierFree(score_fn, 1.0, null), x, t, LABELS), given)
        np.testing.assert_array_equal(run(ClassifierFree(score_fn, 0.0, null), x, t, LABELS), nothing)
        many, cond = jax.random.normal(KEY, (64, 1)), np.zeros(64, int)
        ones = ClassifierFree(score_fn, np.append(np.ones(63), 2.0), null)
        np.testing.assert_array_equal(run(ones, many, t, cond)[:63], run(score_fn, many, t, cond)[:63])
        each = run(ClassifierFree(score_fn, np.array([1.0, 0.0, 1.0, 0.0, 2.0]), null), x, t, LABELS)
        np.testing.assert_array_equal(each[:4], jnp.stack([given[0], nothing[1], given[2], nothing[3]]))
        np.testing.assert_allclose(each[4], 2 * given[4] - nothing[4], rtol=1e-5)


@pytest.mark.parametrize("name", SAMPLERS)
def test_samples_at_a_scale_of_one_are_those_without_guidance_at_their_cost(name):
    score_fn = class_score(VP())
    plain, guided = (
        sample(SAMPLERS[name], f, KEY, 5, (1,), cond=LABELS) for f in (score_fn, ClassifierFree(score_fn, 1.0, 2))
    )
    np.testing.assert_array_equal(guided.x, plain.x)
    assert guided.nfe == plain.nfe


@register_dataclass
@dataclass(frozen=True)
class TracedScore:
    """A score that counts how often it is traced: the exact one of N(weight cond, 1) on VP, 0 for "nothing"."""

    weight: float
    sde: SDE = VP()  # noqa: RUF009 - immutable
    traces: ClassVar[list[int]] = []

    def __call__(self, x, t, cond):
        self.traces.append(len(x))
        alpha, sigma = self.sde.alpha(t), self.sde.sigma(t)
        return -(x - alpha * self.weight * cond[:, None]) / (alpha**2 + sigma**2)


@pytest.mark.parametrize("name", ["dpmpp_2m", "ode"])
def test_nothing_compiles_again_over_scales_intervals_and_checkpoints(name):
    cond = np.ones(4)

    def run(weight, *settings):
        guided = ClassifierFree(TracedScore(weight), *settings)
        return sample(SAMPLERS[name], guided, KEY, 4, (2,), cond=cond).x

    drawn = [run(1.0, 2.0, 0.0), run(1.0, 2.0, 0.0, -3.0, 3.0)]
    known = len(TracedScore.traces)
    drawn += [run(1.0, g, 0.0) for g in (0, 1, 3, 4.5, np.float32(6.0))]
    drawn += [run(1.0, 2.0, 0.0, -7.0, 0.5), run(2.0, 2.0, 0.0)]
    assert len(TracedScore.traces) == known
    np.testing.assert_array_less(1e-5, np.diff(np.sort([float(x[0, 0]) for x in drawn])))


@pytest.mark.parametrize("name", ["dpmpp_2m", "em", "pc"])
def test_a_sample_is_the_same_in_batches_of_1_7_and_64(name):
    """Bit for bit. Scale 1 alone is another program, of half the calls, which rounds otherwise."""
    scale = np.linspace(0.0, 4.0, 64).astype(np.float32)
    scale[5] = 1.0
    cond = np.arange(64) % 2
    score_fn = class_score(VP(), 3)
    guided = Autoguidance(ClassifierFree(score_fn, scale, 2, -3.0, 4.0), score_fn, scale[::-1])
    together = sample(SAMPLERS[name], guided, KEY, 64, (3,), cond=cond).x
    sevens = sample(SAMPLERS[name], guided, KEY, 64, (3,), cond=cond, batch_size=7).x
    np.testing.assert_array_equal(sevens, together)
    for i, tolerance in ((0, 0), (17, 0), (63, 0), (5, 1e-6)):
        one = guided.take(np.array([i]))
        alone = sample(SAMPLERS[name], one, KEY, 1, (3,), cond=cond[i : i + 1], first=i).x
        np.testing.assert_allclose(alone[0], together[i], rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("sde", ALL_SDES, ids=ALL_SDE_IDS)
def test_an_exact_classifier_is_classifier_free_guidance(sde):
    mixture = random_mixture(3, 2)

    def component(k):
        leaves = (jnp.zeros(1), mixture.means[k][None], mixture.basis[k][None], mixture.variances[k][None])
        return GaussianMixture.tree_unflatten(None, leaves)

    def of_class(x, t, cond=None):
        if cond is None:
            return ExactScore(mixture, sde)(x, t)
        return jax.vmap(lambda x, k: ExactScore(component(k), sde)(x[None], t)[0])(x, cond)

    def log_responsibility(x, t, cond):
        parts = jax.vmap(lambda k, w: w + component(k).at(sde, t).log_prob(x))(jnp.arange(3), mixture.log_weights)
        return jax.nn.log_softmax(parts, axis=0)[cond, jnp.arange(x.shape[0])]

    @jax.jit
    def both(g, x, t):
        free = ClassifierFree(FunctionScore(of_class, sde), g)(x, t, cond)
        return free, ClassifierGuided(ExactScore(mixture, sde), log_responsibility, g)(x, t, cond)

    cond, (noise, x_0) = np.arange(48) % 3, jax.random.normal(KEY, (2, 48, 2))
    for t in (sde.t_min + 0.02, 0.3, 0.6, 0.95):
        for g in (0.0, 0.5, 1.0, 3.0):
            free, classified = both(g, sde.alpha(t) * x_0 + sde.sigma(t) * noise, t)
            assert np.linalg.norm(classified - free) < 1e-5 * np.linalg.norm(free)


def test_a_classifier_with_other_weights_compiles_nothing():
    traces = []

    def log_prob_fn(weights, x, t, cond):
        traces.append(1)
        return jnp.sum(x * weights, axis=1)

    score_fn = class_score(VP())
    for w in (1.0, 2.0):
        classifier = jax.tree_util.Partial(log_prob_fn, jnp.full((1, 1), w))
        guided = ClassifierGuided(FunctionScore(score_fn, VP()), classifier, 2.0)
        sample(SAMPLERS["dpmpp_2m"], guided, KEY, 5, (1,), cond=LABELS)
    assert len(traces) == 1


def test_projected_guidance_is_the_pairs_own_or_lies_across_the_denoised():
    sde, t = VP(), 0.3
    score_fn = class_score(sde, 4)
    x = jax.random.normal(KEY, (5, 4))
    free = ClassifierFree(score_fn, 3.0, 2)
    np.testing.assert_allclose(Projected(free, parallel=1.0)(x, t, LABELS), free(x, t, LABELS), rtol=2e-5, atol=1e-5)
    d1, d0 = (denoiser(score_fn, x, t, cond) for cond in (LABELS, np.full(5, 2)))
    pushed = denoiser(Projected(free), x, t, LABELS) - d1
    np.testing.assert_allclose(jnp.sum(pushed * d1, axis=1), 0, atol=1e-4)
    # What is left out lies along d1, and only there.
    left_out = 2 * (d1 - d0) - pushed
    cosine = jnp.sum(left_out * d1, axis=1) / jnp.linalg.norm(left_out, axis=1) / jnp.linalg.norm(d1, axis=1)
    np.testing.assert_allclose(jnp.abs(cosine), 1, atol=1e-4)
    short = denoiser(Projected(free, parallel=1.0, radius=0.1), x, t, LABELS) - d1
    np.testing.assert_allclose(jnp.linalg.norm(short, axis=1), 2 * 0.1, rtol=1e-3)
    one = replace(free, scale=1.0)
    np.testing.assert_array_equal(Projected(one)(x, t, LABELS), score_fn(x, t, LABELS))


def test_a_product_of_gaussians_scores_is_the_products_at_the_end():
    """Where no noise is left: N(1, 1/4)² N(-1, 1/9)^1 has the score of their product."""
    sde = VE(sigma_min=1e-4)
    both = Product((class_score(sde), FunctionScore(lambda x, t, cond: -(x + 1) * 9, sde)), (2.0, 1.0))
    x = jnp.linspace(-1, 1, 5)[:, None]
    precision, mean = 2 * 4 + 9, (2 * 4 - 9) / (2 * 4 + 9)
    np.testing.assert_allclose(both(x, sde.t_min, np.zeros(5, int)), -precision * (x - mean), rtol=1e-4)


def test_parts_of_a_product_are_told_their_own():
    """p(x | a) p(x | b)/p(x), each row with a and b of its own, at three network calls; guidance of it is a product."""
    score_fn, rows = class_score(VP()), {"a": LABELS, "b": 1 - LABELS, "": np.full(5, 2)}
    both = Product([Told(score_fn, name) for name in rows], (1.0, 1.0, -1.0))
    x = jax.random.normal(KEY, (5, 1))
    parts = [score_fn(x, 0.4, rows[name]) for name in rows]
    np.testing.assert_allclose(both(x, 0.4, rows), parts[0] + parts[1] - parts[2], rtol=1e-5)
    count, drawn = score_fn.calls_of(lambda: sample(DPMSolverPP2M(steps=6), both, KEY, 5, (1,), cond=rows))
    assert drawn.nfe == count / 5 == 18
    assert not Told(score_fn, "a").is_guided and Told(both, "a").is_guided
    both.check_product()


def test_an_ode_stops_at_the_interval_and_goes_on():
    """With steps that end at the jumps its result is that of tighter tolerances, at a fraction of their calls."""
    guided = ClassifierFree(class_score(VP()), 3.0, 2, **INTERVAL)
    loose, tight = (
        sample(ProbabilityFlow(rtol=tol, atol=tol), guided, KEY, 5, (1,), cond=LABELS, frames=7) for tol in (1e-4, 1e-7)
    )
    np.testing.assert_allclose(loose.path, tight.path, atol=2e-3)
    smooth = sample(ProbabilityFlow(1e-4, 1e-4), replace(guided, low=-np.inf, high=np.inf), KEY, 5, (1,), cond=LABELS)
    assert loose.nfe < 1.5 * smooth.nfe
    plain = sample(ProbabilityFlow(rtol=1e-4, atol=1e-4), guided, KEY, 5, (1,), cond=LABELS)
    np.testing.assert_allclose(plain.x, loose.x, atol=1e-3)
    np.testing.assert_array_equal(loose.path[-1], loose.x)
    back = encode(guided, plain.x, cond=LABELS, flow=ProbabilityFlow(1e-6, 1e-6))
    np.testing.assert_allclose(back.x, loose.path[0], rtol=0.02, atol=0.01)
    with pytest.raises(ValueError, match="steps must be at least 3"):
        sample(ProbabilityFlow(steps=2), guided, KEY, 5, (1,), cond=LABELS)


def test_a_guided_likelihood_is_refused_unless_asked_for_by_name():
    score_fn, x = class_score(VP()), jnp.zeros((2, 1))
    cond = LABELS[:2]
    for guided in (ClassifierFree(score_fn, 2.0, 2), reschedule(ClassifierFree(score_fn, 2.0, 2), VE())):
        for run in (lambda g: log_prob(g, x, cond=cond), lambda g: vlb(g, x, KEY, cond=cond)):
            with pytest.raises(ValueError, match="guided=True") as error:
                run(guided)
            assert "\n" not in str(error.value)
    plain = log_prob(score_fn, x, cond=cond)
    np.testing.assert_array_equal(log_prob(ClassifierFree(score_fn, 1.0, 2), x, cond=cond).nats, plain.nats)
    # The density of the collapsed ODE, N(1.38.., 1/16) for g = 2: far from the tilted N(8/7, 1/7).
    at = jnp.asarray([[1.38017], [1.38017 + 0.25]])
    nats = log_prob(ClassifierFree(score_fn, 2.0, 2), at, cond=np.zeros(2, int), guided=True).nats
    np.testing.assert_allclose(nats[0] - nats[1], 0.5, atol=0.02)
    np.testing.assert_allclose(nats[0], -0.5 * np.log(2 * np.pi / 16), atol=0.01)


SCORE = class_score(VP())
MISTAKES = {
    "no condition": (lambda x: ClassifierFree(SCORE, 2.0, 2)(x, 0.5), "give cond"),
    "a null of another shape": (lambda x: ClassifierFree(SCORE, 2.0, np.zeros(3, int))(x, 0.5, LABELS), "null must be"),
    "a null that is no integer": (lambda x: ClassifierFree(SCORE, 2.0, np.nan)(x, 0.5, LABELS), "null must be"),
    "a null of another structure": (lambda x: ClassifierFree(SCORE, 2.0, {"a": 2})(x, 0.5, LABELS), "null must be"),
    "too few rows of cond": (lambda x: ClassifierFree(SCORE, 2.0, 2)(x, 0.5, LABELS[:2]), "rows"),
    "scales of other rows": (lambda x: ClassifierFree(SCORE, np.ones(3) * 2, 2)(x, 0.5, LABELS), "one value"),
    "a scale that is none": (lambda x: ClassifierFree(SCORE, np.nan, 2), "scale must be"),
    "an infinite scale": (lambda x: ClassifierFree(SCORE, np.inf, 2), "finite"),
    "an interval upside down": (lambda x: ClassifierFree(SCORE, 2.0, 2, 1.0, -1.0), "low must be at most high"),
    "another SDE": (lambda x: Autoguidance(SCORE, class_score(SubVP()), 2.0), "reschedule"),
    "another constant": (lambda x: Product((SCORE, class_score(VP(beta_max=19.0))), (1.0, 1.0)), "reschedule"),
    "no score": (lambda x: ClassifierFree(lambda x, t: x, 2.0), "FunctionScore"),
    "weights of others": (lambda x: Product((SCORE, SCORE), (1.0,)), "a weight for each"),
    "no scores": (lambda x: Product((), ()), "at least one"),
    "a projected score": (lambda x: Projected(SCORE), "ClassifierFree"),
    "a part that nobody is told": (lambda x: Told(SCORE, "a")(x, 0.5, {"b": LABELS}), "with an entry 'a', not b"),
    "a part of no dictionary": (lambda x: Told(SCORE, "a")(x, 0.5, LABELS), "must be a dictionary"),
    "a classifier of one number": (
        lambda x: ClassifierGuided(SCORE, lambda x, t, cond: jnp.sum(x), 2.0)(x, 0.5, LABELS),
        "one number for each",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_told_in_a_line(mistake):
    run, words = MISTAKES[mistake]
    with pytest.raises(ValueError, match=words) as error:
        run(jnp.zeros((5, 1)))
    assert "\n" not in str(error.value)


def test_conditions_of_any_structure_go_through_one_call():
    """Vectors with a null of NaN, and embeddings with a mask: 2n rows, each beside its null."""
    seen = []

    def vectors(x, t, cond):
        seen.append(x.shape[0])
        return jnp.where(jnp.isnan(cond), 0.0, cond) - x

    def embeddings(x, t, cond):
        seen.append(x.shape[0])
        return jnp.sum(cond["embeddings"] * cond["mask"][..., None], axis=1) - x

    x = jax.random.normal(KEY, (3, 2))
    c = np.arange(6.0).reshape(3, 2)
    guided = ClassifierFree(FunctionScore(vectors, VP()), 3.0, np.full(2, np.nan))
    np.testing.assert_allclose(guided(x, 0.5, c), 3 * c - x, rtol=1e-5)
    null = {"embeddings": np.zeros((4, 2)), "mask": np.zeros(4, bool)}
    cond = {"embeddings": np.ones((3, 4, 2)), "mask": np.arange(4)[None] < np.array([[1], [2], [4]])}
    guided = ClassifierFree(FunctionScore(embeddings, VP()), 2.0, null)
    np.testing.assert_allclose(guided(x, 0.5, cond), 2 * np.array([[1.0], [2], [4]]) - x, rtol=1e-5)
    assert seen == [6, 6]
