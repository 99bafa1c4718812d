"""Augmentations do to an image what their labels say, so that a network that reads them knows all that was done."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.linalg import expm

from experiment.data.augmentation import LABELS, augment, transformed

H, W = 31, 25
PLAIN = np.zeros(LABELS, np.float32)


def smooth(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """A picture as a function of places in pixels about its middle, two channels, (.., 2)."""
    return np.stack([0.3 * x - 0.1 * y, np.cos(0.08 * x + 0.05 * y)], axis=-1)


def places() -> tuple[np.ndarray, np.ndarray]:
    y, x = np.mgrid[:H, :W].astype(float)
    return x - (W - 1) / 2, y - (H - 1) / 2


def rotation(w: float) -> np.ndarray:
    return expm(w * np.array([[0.0, -1.0], [1.0, 0.0]]))


CASES = {
    "mirrored": {"labels": {0: 1.0}, "forward": np.diag([-1.0, 1.0])},
    "upside down": {"labels": {1: 1.0}, "forward": np.diag([1.0, -1.0])},
    "larger": {"labels": {2: 1.5}, "forward": 2**0.3 * np.eye(2)},
    "turned": {"labels": {3: np.cos(0.7) - 1, 4: np.sin(0.7)}, "forward": rotation(0.7)},
    "stretched along x": {"labels": {5: 2.0}, "forward": np.diag([2**0.4, 2**-0.4])},
    "stretched along 30 degrees, b < 0": {
        "labels": {5: -1.2 * np.cos(np.pi / 3), 6: -1.2 * np.sin(np.pi / 3)},
        "forward": rotation(np.pi / 6) @ np.diag([2**-0.24, 2**0.24]) @ rotation(-np.pi / 6),
    },
    "all of them": {
        "labels": {0: 1.0, 2: -0.8, 3: np.cos(2.0) - 1, 4: np.sin(2.0), 5: 0.0, 6: 0.9, 7: 0.4, 8: -0.3},
        "forward": rotation(np.pi / 4)
        @ np.diag([2**0.18, 2**-0.18])
        @ rotation(-np.pi / 4)
        @ rotation(2.0)
        @ (2**-0.16 * np.diag([-1.0, 1.0])),
        "shift": (0.4 * 0.125 * W, -0.3 * 0.125 * H),
    },
}


@pytest.mark.parametrize("name", CASES)
def test_the_image_is_what_the_labels_say(name: str) -> None:
    """Of a smooth picture p -> f(p) the result is f(A^-1 (p - shift)), wherever that lies inside the picture."""
    case, (x, y) = CASES[name], places()
    labels = PLAIN.copy()
    for i, value in case["labels"].items():
        labels[i] = value
    found = jax.jit(transformed)(smooth(x, y).astype(np.float32), labels)
    right, down = case.get("shift", (0.0, 0.0))
    back = np.linalg.inv(case["forward"])
    x0, y0 = (back[i, 0] * (x - right) + back[i, 1] * (y - down) for i in range(2))
    inside = (np.abs(x0) < (W - 1) / 2) & (np.abs(y0) < (H - 1) / 2)
    assert inside.mean() > 0.5
    np.testing.assert_allclose(found[inside], smooth(x0, y0)[inside], atol=3e-3)


def test_an_image_that_is_left_alone_or_only_mirrored_keeps_its_values() -> None:
    x = np.random.default_rng(0).normal(size=(8, 8, 3)).astype(np.float32)
    np.testing.assert_array_equal(transformed(x, PLAIN), x)
    for label, axis in ((0, 1), (1, 0)):
        np.testing.assert_array_equal(transformed(x, PLAIN + np.eye(LABELS, dtype=np.float32)[label]), np.flip(x, axis))


@pytest.mark.parametrize("probability", [0.12, 0.5])
def test_each_transform_happens_as_often_as_it_should(probability: float) -> None:
    n = 20_000
    _, labels = jax.jit(augment, static_argnums=2)(jnp.zeros((n, 1, 1, 1)), jax.random.key(3), probability)
    happened = [labels[:, 0], labels[:, 1], *(jnp.abs(labels[:, i]) for i in (2, 4, 7)), jnp.hypot(*labels[:, 5:7].T)]
    wanted = [0.5, probability / 2, *[probability] * 4]
    for values, p in zip(happened, wanted, strict=True):
        assert abs(float(jnp.mean(values != 0)) - p) < 4 * np.sqrt(p * (1 - p) / n)
    for values in (labels[:, 2], labels[:, 7], labels[:, 8]):
        some = values[values != 0]
        assert abs(float(some.std()) - 1) < 4 / np.sqrt(2 * len(some))
    stretch = labels[labels[:, 5] != 0, 5:7]
    assert abs(float(jnp.mean(stretch[:, 1] == 0)) - 0.5) < 4 * 0.5 / np.sqrt(len(stretch))  # along an axis
    slanted = stretch[stretch[:, 1] != 0]
    both = (slanted[:, 0] * slanted[:, 1]) ** 2  # b^4 cos^2 sin^2 of an angle that is uniform
    assert abs(float(both.mean()) - 3 / 8) < 4 * float(both.std()) / np.sqrt(len(both)) < 0.2
    first, second = labels[:, 2] != 0, labels[:, 4] != 0
    assert abs(float(jnp.mean(first & second)) - probability**2) < 4 * probability / np.sqrt(n)  # each by itself
