"""Numbers in any units: standardised by the training split's own mean and standard deviation, there and back."""

import math
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from experiment.common.errors import UserError
from experiment.config import check_config
from experiment.data.dataset import Dataset, fixed_order
from experiment.data.load import load_dataset
from experiment.data.scaling import Scaling
from experiment.data.units import Units
from experiment.training.trainer import Trainer

rng = np.random.default_rng(0)

# Of every kind that an .npz may hold, each entry's mean and standard deviation being far from 0 and 1.
KINDS = {
    "vectors": rng.normal([1000.0, 0.003], [200.0, 0.001], (300, 2)),
    "times in seconds": rng.normal([1.7e9, 5.0], [3.0, 1.0], (300, 2)),
    "beyond float32": rng.normal(1e44, 1e43, (300, 2)),
    "whole numbers": rng.integers(-(10**6), 10**6, (300, 3)),
    "bytes": rng.integers(0, 9, (300, 3), np.uint8),
    "series": rng.normal([-50.0, 1e-6], [1.0, 1e-7], (60, 9, 2)).astype(np.float32),
    "half precision": rng.normal(3, 2, (60, 9, 2)).astype(np.float16),
    "field of seven channels": rng.normal(np.arange(7), 10.0 ** np.arange(-3, 4), (60, 5, 6, 7)),
    "uint16": rng.integers(900, 4000, (60, 5, 6), np.uint16),
    "int16": rng.integers(-1000, 3000, (60, 5, 6, 1), np.int16),
    "volume": rng.gamma(2.0, 300.0, (60, 4, 3, 5, 1)),
}
SHAPES = {"series": (9, 2), "uint16": (5, 6, 1), "volume": (4, 3, 5, 1), "vectors": (2,)}


def of(x: np.ndarray, folder: Path) -> Dataset:
    np.savez(folder / "x.npz", x=x)
    return load_dataset("", str(folder / "x.npz"))


@pytest.mark.parametrize("kind", KINDS)
def test_the_training_split_becomes_standard_and_comes_back(kind: str, tmp_path: Path) -> None:
    dataset = of(KINDS[kind], tmp_path)
    assert dataset.levels is None and dataset.shape == SHAPES.get(kind, dataset.shape)
    scaling = Scaling(None, units=dataset.units)
    z = np.asarray(scaling.to_model(dataset.train.x))
    rows = z.reshape(-1, z.shape[-1]).astype(float)
    assert z.dtype == np.float32
    np.testing.assert_allclose(rows.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(rows.std(axis=0), 1, rtol=1e-5)
    # Of the file's own numbers, in exact sums, and not of what a float32 leaves of them.
    x = np.asarray(KINDS[kind], float).reshape(len(KINDS[kind]), *dataset.shape)
    trained = x[fixed_order(len(x), "")[0]]
    assert dataset.units is not None
    for i, (mean, std) in enumerate(zip(dataset.units.mean, dataset.units.std, strict=True)):
        values = trained[..., i].ravel()
        exact = math.fsum(values) / len(values)
        variance = math.fsum((values - exact) ** 2) / len(values)
        assert abs(mean - exact) < 1e-6 * std and abs(std / math.sqrt(variance) - 1) < 1e-6
    back = np.asarray(scaling.to_data(z), float)
    assert np.all(np.abs(back - trained) < 1e-3 * dataset.units.std)


def test_the_change_of_units_changes_the_density_by_its_determinant() -> None:
    units = Units(np.array([1000.0, 0.003]), np.array([200.0, 0.001]))
    x = rng.normal(units.mean, units.std, (20, 6, 5, 2))
    exact = stats.norm.logpdf(x, units.mean, units.std).sum(axis=(1, 2, 3))
    of_z = stats.norm.logpdf(units.to_model(x).astype(float)).sum(axis=(1, 2, 3))
    np.testing.assert_allclose(of_z - units.log_det((6, 5, 2)), exact, rtol=1e-5)
    assert Scaling(17).log_det((8, 8, 1)) == 0


def test_a_picture_shows_three_standard_deviations_on_either_side() -> None:
    scaling = Scaling(None, units=Units(np.array([10.0]), np.array([2.0])))
    np.testing.assert_array_equal(
        scaling.to_uint8(np.array([[3.9], [10.0], [16.1], [12.0]])).ravel(), [0, 128, 255, 170]
    )


@pytest.mark.parametrize(
    ("x", "told"),
    [
        (np.where(np.arange(7) == 4, 0.1, rng.normal(size=(40, 7))), "column 4 of x is 0.1 in all training examples"),
        (np.where(np.arange(6) > 3, 5, rng.normal(size=(40, 8, 6))), "channel 4 of x is 5 .* leave it out, and 1 more"),
        (np.full((40, 4, 4, 1), 1e9), "channel 0 of x is 1e.09 in all training examples, so it has no density"),
    ],
)
def test_what_never_changes_is_refused_before_training(x: np.ndarray, told: str, tmp_path: Path) -> None:
    name = "mlp" if x.ndim == 2 else "unet"
    with pytest.raises(UserError, match=told):
        Trainer(check_config({"model": {"name": name}}), of(x, tmp_path))


@pytest.mark.parametrize(
    "mean, std, dtype",
    [(1e3, 200, "float32"), (1e3, 1.5, "float32"), (1e3, 0.5, "float64"), (0, 1e38, "float64"), (5, 0, "float32")],
)
def test_numbers_are_float64_where_a_float32_would_be_off_by_a_ten_thousandth(
    mean: float, std: float, dtype: str
) -> None:
    assert np.dtype(Units(np.array([0.0, mean]), np.array([1.0, std])).dtype) == dtype


def test_units_are_near_to_a_thousandth_of_a_standard_deviation() -> None:
    of = Units(np.array([1e3, 0.0]), np.array([200.0, 1.0]))
    assert of.near(Units(of.mean, of.std * 1.0005))
    assert of.near(Units(of.mean + 5e-4 * of.std, of.std))
    assert not of.near(Units(of.mean + 2e-3 * of.std, of.std)) and not of.near(Units(of.mean, of.std * 1.002))
