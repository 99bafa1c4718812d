"""The classifier that follows from log p(x | c): on a mixture whose scores are exact it is Bayes'."""

from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiment.config import whole_config
from experiment.data.dataset import Dataset, Split, some_of
from experiment.data.scaling import Scaling
from experiment.data.units import Units
from experiment.evaluation.bayes_classifier import BayesClassifier, bayes_classifier, classified
from sde_lib import VP, ExactScore, GaussianMixture

MEANS = np.array([[0.9, 0.0], [-0.4, 0.7], [-0.5, -0.8]])
COVARIANCES = np.array([[[0.3, 0.1], [0.1, 0.2]], [[0.2, 0.0], [0.0, 0.5]], [[0.4, -0.1], [-0.1, 0.3]]])
SHARES = np.array([0.5, 0.3, 0.2])
SDE = VP(t_min=1e-4)
CLASSES = [GaussianMixture([1.0], MEANS[c : c + 1], COVARIANCES[c : c + 1]) for c in range(3)]
STD = np.array([3.0, 0.2])


class ClassScore:
    """The exact score of the class that each row is told."""

    sde = SDE

    def __call__(self, x: jax.Array, t: Any, cond: Any) -> jax.Array:
        scores = jnp.stack([ExactScore(law, SDE)(x, t) for law in CLASSES])
        return scores[cond, jnp.arange(len(x))]


jax.tree_util.register_pytree_node(ClassScore, lambda s: ((), None), lambda *_: ClassScore())


@pytest.fixture(scope="module")
def found() -> tuple[BayesClassifier, np.ndarray, np.ndarray]:
    """The classifier of 60 examples in the user's units, their exact log p(x | c), and those of Bayes' classifier."""
    rng = np.random.default_rng(3)
    labels = rng.choice(3, size=460, p=SHARES).astype(np.int32)
    z = np.stack([rng.multivariate_normal(MEANS[c], COVARIANCES[c]) for c in labels])
    units = Units(np.array([10.0, -1.0]), STD)
    x = units.to_data(z)
    data = Dataset("classes", Split(x[75:], labels[75:]), Split(x[:75], labels[:75]), None, 3, units=units)
    config = whole_config({"model": {"condition": "label"}})
    run = SimpleNamespace(
        config=config, dataset=data, score_fn=ClassScore(), scaling=Scaling(None, units=units), shape=(2,), step=1
    )
    settings = SimpleNamespace(batch_size=25, rtol=1e-5, atol=1e-5, seed=0)
    chosen = some_of(60, 75)
    exact = np.stack([np.asarray(law.log_prob(jnp.asarray(z[chosen], jnp.float32))) for law in CLASSES], axis=1)
    return bayes_classifier(run, 60, settings), exact - np.log(STD).sum(), labels[chosen]


def test_log_densities_are_exact_by_every_class_in_the_user_s_units(found: Any) -> None:
    classifier, exact, labels = found
    # The ODE starts from N(0, I), and each class has a mean of up to 0.006 there: it shows far out.
    near = exact > exact.max() - 25
    np.testing.assert_allclose(classifier.nats[near], exact[near], atol=0.05)
    np.testing.assert_array_equal(classifier.labels, labels)


def test_its_errors_are_bayes_errors(found: Any) -> None:
    classifier, exact, labels = found
    counts = np.round(classifier.shares * 385)
    assert counts.sum() == 385 and abs(classifier.shares - SHARES).max() < 0.1
    bayes = (exact + np.log(classifier.shares)).argmax(axis=1)
    np.testing.assert_array_equal(classifier.predicted, bayes)
    assert classifier.accuracy == np.mean(bayes == labels) and 0.6 < classifier.accuracy < 1
    without = exact.argmax(axis=1)
    assert np.mean(without != bayes) > 0  # p(c) matters here
    posterior = exact + np.log(classifier.shares)
    posterior -= np.logaddexp.reduce(posterior, axis=1, keepdims=True)
    assert abs(classifier.log_loss + np.mean(posterior[np.arange(60), labels])) < 0.01


def test_the_table_tells_each_class(found: Any) -> None:
    classifier, exact, labels = found
    first, *rows = classifier.lines(lambda nats: nats, "nats")
    assert f"{classifier.accuracy:.1%}" in first and "60 held-out" in first and len(rows) == 3
    for c, row in enumerate(rows):
        mean = exact[labels == c, c].mean()
        assert f"{np.sum(labels == c)} examples" in row and abs(float(row.split("c) ")[1].split()[0]) - mean) < 0.01
    nobody = BayesClassifier(np.zeros((2, 2)), np.zeros(2, int), np.array([1.0, 0.0]))
    assert nobody.accuracy == 1 and "none held out" in nobody.lines(lambda nats: nats, "nats")[2]


def test_of_many_classes_fewer_examples_are_put_to_each() -> None:
    counts = [classified(SimpleNamespace(dataset=SimpleNamespace(num_classes=k)), 256) for k in (3, 10, 1000, 10**6)]
    assert counts == [256, 256, 10, 2]
