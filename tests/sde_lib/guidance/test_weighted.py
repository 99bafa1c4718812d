"""The weighted sampler: the tilted distribution and the product themselves, which no score's sampler draws."""

import jax
import numpy as np
import pytest

from sde_lib import VE, VP, ClassifierFree, ExactScore, GaussianMixture, Product, sample
from sde_lib.samplers import SDEDPMSolverPP2M, WeightedSDE
from tests.oracles import class_score, normal

N = 20_000
ONE = np.zeros(N, int)


def draw(score_fn, n=N, seed=1, **settings):
    return sample(WeightedSDE(steps=150, **settings), score_fn, jax.random.key(seed), n, (1,), cond=np.zeros(n, int))


@pytest.mark.parametrize(("g", "tolerance"), [(2.0, 0.006), (5.0, 0.04)])
def test_it_samples_the_tilted_distribution_where_the_sde_does_not(g, tolerance):
    guided = ClassifierFree(class_score(VP()), g, 2)
    precision = 4 * g + 1 - g
    tilted = (4 * g / precision, 1 / precision)
    populations = [draw(guided, seed=seed) for seed in range(4)]  # of which one has a standard error of 0.02 at g = 5
    found = populations[0]
    moments = np.mean([(np.mean(p.x), np.var(p.x)) for p in populations], axis=0)
    np.testing.assert_allclose(moments, tilted, atol=tolerance)
    assert found.ess.shape == (151,) and 0.2 * N < found.ess.min() < 0.95 * N
    plain = sample(SDEDPMSolverPP2M(steps=150), guided, jax.random.key(0), N, (1,), cond=ONE).x
    assert abs(np.mean(plain) - tilted[0]) > 2 * tolerance
    halves = np.mean(found.x.reshape(2, -1), axis=1)
    assert abs(halves[0] - halves[1]) < 4 * 2 * np.sqrt(tilted[1] / N) + tolerance  # in no order


def test_a_product_of_two_experts_has_less_noise():
    """N(1, 1/4)² N(-1/2, 1): W = 3, and no score of a diffused distribution is its sum."""
    sde = VP()
    other = ExactScore(GaussianMixture([1.0], [[-0.5]], [[[1.0]]]), sde)
    found = draw(Product((class_score(sde), other), (2.0, 1.0)))
    precision = 2 * 4 + 1
    np.testing.assert_allclose(np.mean(found.x), (8 - 0.5) / precision, atol=0.006)
    np.testing.assert_allclose(np.var(found.x), 1 / precision, atol=0.006)


def test_nfe_and_no_compilation_over_scales():
    score_fn = class_score(VP())
    from sde_lib.samplers.weighted import _run

    for g in (1.0, 2.0, 3.0):
        rows, found = score_fn.calls_of(lambda g=g: draw(ClassifierFree(score_fn, g, 2), n=64, denoise=True))
        assert found.nfe == rows / 64 == 302
        known = _run._cache_size() if g == 1.0 else known  # noqa: F821 - of the first pass
    assert _run._cache_size() == known


MISTAKES = {
    "no product": (ExactScore(normal(d=1), VP()), {}, "no product"),
    "an interval": (ClassifierFree(class_score(VP()), 2.0, 2, -1.0, 1.0), {}, "leave out low and high"),
    "scales of rows": (ClassifierFree(class_score(VP()), np.full(4, 2.0), 2), {}, "one scale"),
    "a guided part": (Product((ClassifierFree(class_score(VP()), 2.0, 2),), (1.0,)), {}, "guided itself"),
    "no density": (Product((class_score(VE()),) * 2, (1.0, -1.0)), {}, "positive sum"),
    "other conditions": (ClassifierFree(class_score(VP()), 2.0, 2), {"cond": np.arange(4) % 2}, "same cond"),
    "a batch": (ClassifierFree(class_score(VP()), 2.0, 2), {"batch_size": 2}, "batch_size"),
    "frames": (ClassifierFree(class_score(VP()), 2.0, 2), {"frames": 3}, "frames"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_what_it_cannot_sample_is_refused_in_a_line(mistake):
    score_fn, settings, words = MISTAKES[mistake]
    given = {"cond": np.zeros(4, int), **settings}
    with pytest.raises(ValueError, match=words) as error:
        sample(WeightedSDE(steps=10), score_fn, jax.random.key(0), 4, (1,), **given)
    assert "\n" not in str(error.value)
