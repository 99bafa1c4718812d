"""Two-dimensional toy distributions: float32 (n, 2), mean zero, about unit scale.

Centre and scale are constants of the distribution, in closed form, never those of the sample: the distribution is
exactly the one written here, and so is its support. The draws are fixed by TOY_SEED, so a toy is a data set like any
other.
"""

from collections.abc import Callable

import numpy as np

from experiment.data.dataset import Dataset, Split, class_count
from sde_lib import GaussianMixture

TOY_SEED = 2011
TRAIN, TEST = 20_000, 2_000

MODES = 8
MIXTURE_STD = 0.1
NOISE = 0.05  # standard deviation of the noise on moons and roll, before scaling
EIGHT_NOISE = 0.02

Draw = tuple[np.ndarray, np.ndarray | None]  # points (n, 2), labels (n,) or None


def gaussian_axes() -> np.ndarray:
    """The matrix A with A Aᵀ the covariance of `gaussian`: variances 1.8 and 0.2 along axes at 30 degrees."""
    c, s = np.cos(np.pi / 6), np.sin(np.pi / 6)
    return np.array([[c, -s], [s, c]]) * np.sqrt([1.8, 0.2])


def gaussian_distribution() -> GaussianMixture:
    """The exact distribution of `gaussian`."""
    return GaussianMixture(np.ones(1), np.zeros((1, 2)), (gaussian_axes() @ gaussian_axes().T)[None])


def gaussian(rng: np.random.Generator, n: int) -> Draw:
    """Draw from one Gaussian, for which the distribution of every linear sampler's output is known exactly."""
    return rng.standard_normal((n, 2)) @ gaussian_axes().T, None


def mixture_distribution() -> GaussianMixture:
    """The exact distribution of `mixture`."""
    return GaussianMixture(*mixture_parameters())


def mixture_parameters() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The parameters of `mixture`, as `sde_lib.GaussianMixture` takes them.

    Eight equal Gaussians lie on a circle of radius R, R²/2 + s² = 1, which gives each coordinate variance 1.

    Returns:
        weights (8,), means (8, 2), covariances (8, 2, 2).
    """
    angle = 2 * np.pi * np.arange(MODES) / MODES
    radius = np.sqrt(2 * (1 - MIXTURE_STD**2))
    means = radius * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    return np.full(MODES, 1 / MODES), means, np.tile(MIXTURE_STD**2 * np.eye(2), (MODES, 1, 1))


def mixture(rng: np.random.Generator, n: int) -> Draw:
    """Draw from eight Gaussians on a circle; the label is the Gaussian that a point came from."""
    _, means, _ = mixture_parameters()
    labels = rng.integers(MODES, size=n)
    return means[labels] + MIXTURE_STD * rng.standard_normal((n, 2)), labels


def two_moons(rng: np.random.Generator, n: int) -> Draw:
    """Draw scikit-learn's two half circles with noise; the label is the moon.

    Before centring, scaling and noise E[x] = 1/2, Var[x] = 3/4, E[y] = 1/4, Var[y] = 1/2 - 4/π² + (2/π - 1/4)².
    """
    from sklearn.datasets import make_moons

    x, labels = map(np.asarray, make_moons(n, noise=NOISE, random_state=_legacy_seed(rng)))
    variance = (3 / 4 + 1 / 2 - 4 / np.pi**2 + (2 / np.pi - 1 / 4) ** 2) / 2 + NOISE**2
    return (x - np.array([0.5, 0.25])) / np.sqrt(variance), labels


def figure_eight(rng: np.random.Generator, n: int) -> Draw:
    """Draw Gerono's lemniscate a (sin t, sin t cos t), t uniform, with noise; a² (1/2 + 1/8) = 2 gives unit scale.

    Without noise y²a² = x²(a² - x²): a curve, on which no density exists; the noise gives it one.
    """
    t = rng.uniform(0, 2 * np.pi, n)
    curve = np.stack([np.sin(t), np.sin(t) * np.cos(t)], axis=1) * eight_scale()
    return curve + EIGHT_NOISE * rng.standard_normal((n, 2)), None


def eight_scale() -> float:
    """The factor a of `figure_eight`, half its width."""
    return float(np.sqrt(2 / (1 / 2 + 1 / 8)))


def swiss_roll(rng: np.random.Generator, n: int) -> Draw:
    """Draw scikit-learn's roll seen from its side: (t cos t, t sin t), t uniform in [3π/2, 9π/2], with noise.

    Before centring and scaling E[x] = 2, E[y] = 2/(3π), E[x² + y²] = 9.75 π², without the noise.
    """
    from sklearn.datasets import make_swiss_roll

    x, _ = make_swiss_roll(n, noise=NOISE, random_state=_legacy_seed(rng))
    mean = np.array([2.0, 2 / (3 * np.pi)])
    variance = (9.75 * np.pi**2 - np.sum(mean**2)) / 2 + NOISE**2
    return (x[:, [0, 2]] - mean) / np.sqrt(variance), None


def checkerboard(rng: np.random.Generator, n: int) -> Draw:
    """Draw uniformly on the 8 cells (i, j), i + j even, of a 4 x 4 board over [-√3, √3]².

    Each coordinate has variance 1.
    """
    column = rng.integers(4, size=n)
    row = 2 * rng.integers(2, size=n) + column % 2
    corner = np.stack([column, row], axis=1)
    return ((corner + rng.random((n, 2))) / 2 - 1) * np.sqrt(3.0), None


def _legacy_seed(rng: np.random.Generator) -> int:
    return int(rng.integers(2**31))  # scikit-learn takes no numpy Generator


TOYS: dict[str, Callable[[np.random.Generator, int], Draw]] = {
    "gaussian": gaussian,
    "mixture": mixture,
    "two_moons": two_moons,
    "figure_eight": figure_eight,
    "swiss_roll": swiss_roll,
    "checkerboard": checkerboard,
}

# The exact distributions of the toys whose density and score have a closed form.
DISTRIBUTIONS = {"gaussian": gaussian_distribution, "mixture": mixture_distribution}


def load_toy(name: str) -> Dataset:
    """Load the toy `name` of TOYS: 20,000 points to train on, 2,000 held out."""
    x, labels = TOYS[name](np.random.default_rng(TOY_SEED), TRAIN + TEST)
    x = x.astype(np.float32)
    labels = None if labels is None else labels.astype(np.int32)
    parts = slice(TRAIN), slice(TRAIN, None)
    train, test = (Split(x[part], None if labels is None else labels[part]) for part in parts)
    known = DISTRIBUTIONS[name]() if name in DISTRIBUTIONS else None
    return Dataset(name, train, test, levels=None, num_classes=class_count(train, test), distribution=known)
