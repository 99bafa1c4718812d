"""Latents: paths along great circles, typicality, and python -m experiment.latents, against closed forms."""

import json
import math
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import experiment.run.load
from experiment.common.errors import UserError
from experiment.config import whole_config
from experiment.data.dataset import Dataset, Split, some_of
from experiment.data.scaling import Scaling
from experiment.evaluation.latents import latents_of_run, read_examples
from experiment.plots import likelihood as plots
from sde_lib import VE, VP, DiagonalGaussian, ExactScore, latent_typicality, spherical_interpolation, typicality
from tests.commands import ROOT, Command, trained

MEAN, STD, D = np.array([0.4, -0.2, 0.0, 0.1]), 0.5, 4
ON_VP, ON_VE = VP(t_min=0.01), VE(t_min=0.01)


def great_circle(a: np.ndarray, b: np.ndarray, w: np.ndarray) -> np.ndarray:
    """Points (k, d) at the angles w theta from a towards b, by Gram and Schmidt, in float64; the squared norm is linear
    in w.
    """
    u, v = a / np.linalg.norm(a), b / np.linalg.norm(b)
    theta, across = math.acos(u @ v), v - (u @ v) * u
    across /= np.linalg.norm(across)
    radius = np.sqrt((1 - w) * (a @ a) + w * (b @ b))
    return radius[:, None] * (np.cos(w * theta)[:, None] * u + np.sin(w * theta)[:, None] * across)


def encoded(sde: Any, x: np.ndarray, mean: np.ndarray = MEAN) -> np.ndarray:
    """The latents of N(mean, STD² I): the flow keeps every standardised coordinate."""
    start, end = scale_at(sde, sde.t_min), scale_at(sde, sde.t_max)
    return sde.alpha(sde.t_max) * mean + end / start * (
        np.asarray(x, float).reshape(-1, D) - sde.alpha(sde.t_min) * mean
    )


def decoded(sde: Any, z: np.ndarray) -> np.ndarray:
    start, end = scale_at(sde, sde.t_max), scale_at(sde, sde.t_min)
    return sde.alpha(sde.t_min) * MEAN + end / start * (
        np.asarray(z, float).reshape(-1, D) - sde.alpha(sde.t_max) * MEAN
    )


def scale_at(sde: Any, t: float) -> float:
    return math.hypot(sde.alpha(t) * STD, sde.sigma(t))


class OfClasses:
    """The score of N(k, STD² I) for class k, under VP."""

    sde = VP(t_min=0.01)

    def __call__(self, x: jax.Array, t: Any, cond: Any = None) -> jax.Array:
        alpha, sigma = self.sde.alpha(t), self.sde.sigma(t)
        return -(x - alpha * jnp.asarray(cond, x.dtype)[:, None]) / ((alpha * STD) ** 2 + sigma**2)


jax.tree_util.register_pytree_node(OfClasses, lambda score: ((), None), lambda *_: OfClasses())


@pytest.mark.parametrize("scale", [1e-4, 1.0, 300.0])
def test_the_angle_and_the_squared_norm_are_proportional_to_the_weight(scale: float) -> None:
    rng, w = np.random.default_rng(0), np.linspace(0, 1, 9)
    for d in (2, 3, 200):
        a, b = scale * rng.normal(size=(2, d))
        b *= 3.0  # of another norm
        z = spherical_interpolation(a[None].astype(np.float32), b[None].astype(np.float32), w)
        np.testing.assert_allclose(z, great_circle(a, b, w), atol=3e-5 * np.linalg.norm(b) / d**0.5)
        np.testing.assert_allclose(z[jnp.array([0, -1])], [a, b], rtol=2e-6, atol=2e-6 * scale)


def test_rows_have_a_weight_each_and_the_ends_may_change_places() -> None:
    a, b = np.random.default_rng(1).normal(size=(2, 5, 2, 2, 1)).astype(np.float32)
    w = np.linspace(0, 1, 5)
    z = spherical_interpolation(a, b, w)
    assert z.shape == a.shape
    for i in range(5):
        np.testing.assert_allclose(
            z[i].ravel(),
            great_circle(a[i].ravel().astype(float), b[i].ravel().astype(float), w[i : i + 1])[0],
            atol=1e-5,
        )
    np.testing.assert_allclose(spherical_interpolation(b, a, 1 - w), z, atol=1e-5)
    np.testing.assert_allclose(
        spherical_interpolation(a, b, 0.25)[0], spherical_interpolation(a[:1], b[:1], 0.25)[0], atol=1e-6
    )


def test_without_a_great_circle_it_is_the_straight_line() -> None:
    w, a = np.linspace(0, 1, 5), np.array([[3.0, -4.0, 0.0]], np.float32)
    np.testing.assert_allclose(spherical_interpolation(a, -a, w), (1 - 2 * w)[:, None] * a, atol=1e-6)
    ray = np.sqrt(1 + 3 * w)[:, None] * a  # from |a|² to 4 |a|²
    np.testing.assert_allclose(spherical_interpolation(a, 2 * a, w), ray, rtol=1e-6, atol=1e-6)
    for nearly in (1e-3, 1e-5, 1e-7):  # nothing happens on the way to parallel
        b = 2 * a + np.array([[0.0, 0.0, nearly]], np.float32)
        np.testing.assert_allclose(spherical_interpolation(a, b, w), ray, rtol=1e-6, atol=2 * nearly)
    np.testing.assert_allclose(
        spherical_interpolation(np.ones((1, 1)), -np.ones((1, 1)), w)[:, 0], 1 - 2 * w, atol=1e-6
    )


def test_independent_normals_stay_of_the_prior_s_mean_and_covariance() -> None:
    # Exactly, without Monte Carlo: directions at every multiple of 2 pi/K are in their first two moments uniform, and
    # of the norms only the mean of the squares, 2 here, enters. K is odd and one set is turned, so that no two are
    # parallel.
    turns = 2 * np.pi * np.arange(9) / 9
    radii = np.sqrt([0.5, 3.5])
    points = np.array([(r * np.cos(t), r * np.sin(t)) for r, t in product(radii, turns)], np.float32)
    turned = np.array([(r * np.cos(t + 0.1), r * np.sin(t + 0.1)) for r, t in product(radii, turns)], np.float32)
    a, b = (np.stack(x) for x in zip(*product(points, turned), strict=True))
    for w in (0.0, 0.25, 0.5, 0.9, 1.0):
        z = np.asarray(spherical_interpolation(a, b, w), float)
        np.testing.assert_allclose(z.mean(axis=0), 0, atol=1e-6)
        np.testing.assert_allclose(z.T @ z / len(z), np.eye(2), atol=1e-5)
    straight = 0.5 * (a + b).astype(float)
    np.testing.assert_allclose(straight.T @ straight / len(a), 0.5 * np.eye(2), atol=1e-5)


@pytest.mark.parametrize(
    ("a", "b", "weight", "word"),
    [
        ((2, 3), (2, 4), 0.5, r"n, \*shape"),
        ((3,), (3,), 0.5, r"n, \*shape"),
        ((1, 3), (1, 3), 1.1, r"\[0, 1\]"),
        ((1, 3), (1, 3), math.nan, r"\[0, 1\]"),
    ],
)
def test_latents_that_do_not_fit_are_told(a: Any, b: Any, weight: float, word: str) -> None:
    with pytest.raises(ValueError, match=word):
        spherical_interpolation(np.ones(a), np.ones(b), weight)


@pytest.mark.parametrize("m", [5, 6])
def test_p_values_are_exactly_uniform_under_exchangeability(m: int) -> None:
    # Exchangeable: each of m + 1 values is as likely as any other to be the tested one.
    values = np.array([-7.0, -1.0, 0.0, 0.5, 2.0, 2.1, 30.0])[: m + 1]
    p = np.array([typicality(values[i : i + 1], np.delete(values, i)).p_value[0] for i in range(m + 1)])
    for k in range(1, (m + 1) // 2 + 1):
        assert np.mean(p <= 2 * k / (m + 1) + 1e-12) == pytest.approx(2 * k / (m + 1))
    assert p.max() == 1.0 and p.min() == 2 / (m + 1)


def test_p_values_are_valid_with_ties_too() -> None:
    for values in product([0.0, 1.0, 2.0], repeat=5):
        if len({*values}) > 1:
            tested = [i for i in range(5) if len({*np.delete(values, i)}) > 1]  # a reference of equal values is refused
            p = np.array([typicality([values[i]], np.delete(values, i)).p_value[0] for i in tested])
            assert all(np.sum(p <= q + 1e-12) <= q * 5 + 1e-9 for q in (0.2, 0.4, 0.6, 0.8, 1.0)), (values, p)


@pytest.mark.parametrize("d", [4, 64])
def test_an_outlier_of_known_density_has_the_z_of_the_closed_form(d: int) -> None:
    # Under N(0, I) log p is -½ (chi² + d log 2 pi): mean -½ d (1 + log 2 pi), standard deviation sqrt(d/2).
    def nats(square: np.ndarray) -> np.ndarray:
        return -0.5 * (square + d * math.log(2 * math.pi))

    m = 20_000
    reference = nats(stats.chi2.ppf((np.arange(m) + 0.5) / m, d))
    square = np.array([0.0, d, 3.0 * d])  # the mode, a typical point, a far one
    found = typicality(nats(square), reference)
    np.testing.assert_allclose(found.z, (d - square) / math.sqrt(2 * d), rtol=5e-3, atol=5e-3)
    F = stats.chi2.cdf(square, d)
    np.testing.assert_allclose(found.p_value, 2 * np.minimum(F, 1 - F), atol=3 / m)
    assert found.z[0] > 0 > found.z[2] and found.p_value[0] == 2 / (m + 1)  # the most likely point of all is atypical


@pytest.mark.parametrize(("d", "std"), [(2, 1.0), (64, 50.0), (3072, 1.0)])
def test_the_norm_of_a_latent_has_the_law_of_chi_squared(d: int, std: float) -> None:
    square = stats.chi2.ppf([1e-3, 0.2, 0.5, 0.9, 0.999], d)
    direction = np.random.default_rng(0).normal(size=(5, d))
    latent = std * np.sqrt(square)[:, None] * direction / np.linalg.norm(direction, axis=1, keepdims=True)
    found = latent_typicality(latent.astype(np.float32), std)
    np.testing.assert_allclose(found.p_value, [2e-3, 0.4, 1.0, 0.2, 2e-3], rtol=2e-2, atol=1e-4)
    np.testing.assert_allclose(found.z, (square - d) / math.sqrt(2 * d), atol=2e-3)


@pytest.mark.parametrize(
    ("nats", "reference", "word"),
    [
        ([0.0], [1.0], "m >= 2"),
        ([[0.0]], [1.0, 2.0], "nats"),
        ([math.nan], [1.0, 2.0], "not finite"),
        ([0.0], [1.0, 1.0], "equal"),
    ],
)
def test_scores_that_say_nothing_are_told(nats: Any, reference: Any, word: str) -> None:
    with pytest.raises(ValueError, match=word):
        typicality(nats, reference)


def run_of(sde: Any, workdir: Path, levels: int | None = None, n: int = 12) -> Any:
    """A run whose score is that of N(MEAN, STD² I), exactly: as vectors, or as 2 x 2 images."""
    shape = (D,) if levels is None else (2, 2, 1)
    law = DiagonalGaussian(jnp.asarray(MEAN, jnp.float32).reshape(shape), jnp.full(shape, STD))
    x = np.asarray(Scaling(levels).to_data(law.sample(jax.random.key(0), 2 * n)))
    labels = (np.arange(2 * n) % 3).astype(np.int32)
    config = whole_config({})
    config.eval.batch_size, config.eval.probes = 2, 1  # every solve of one shape, which is compiled once
    return SimpleNamespace(
        workdir=workdir,
        config=config,
        dataset=Dataset("ours", Split(x[:n], labels[:n]), Split(x[n:], labels[n:]), levels, 3),
        score_fn=ExactScore(law, sde),
        scaling=Scaling(levels),
        shape=shape,
        levels=levels,
        num_classes=3,
        step=7,
    )


@pytest.fixture
def latents(monkeypatch: pytest.MonkeyPatch) -> Any:
    """latents(run, **flags): the command on a run that lies nowhere."""

    def command(run: Any, out: Path | None = None, **given: Any) -> str:
        monkeypatch.setattr(experiment.run.load, "load_run", lambda *_: run)
        return latents_of_run("nowhere", given, str(out) if out else None)

    return command


def test_a_path_on_a_gaussian_is_the_closed_form_s(latents: Any, tmp_path: Path) -> None:
    run = run_of(ON_VE, tmp_path)
    line = latents(run, interpolate=["3", "7"], points=6)
    assert "6 points from example 3 to 7" in line and (tmp_path / "latents" / "path.png").stat().st_size > 1000
    saved = np.load(tmp_path / "latents" / "path.npz")
    ends = encoded(ON_VE, run.dataset.test.x[[3, 7]])
    between = great_circle(*ends, saved["weight"])
    np.testing.assert_allclose(saved["latents"], between, atol=2e-4 * ON_VE.sigma(1.0))
    np.testing.assert_allclose(saved["arr_0"], decoded(ON_VE, between), atol=1e-3)
    np.testing.assert_allclose(saved["arr_0"][[0, -1]], run.dataset.test.x[[3, 7]], atol=1e-3)


def test_images_come_back_from_their_latents_at_the_level(latents: Any, tmp_path: Path) -> None:
    run = run_of(ON_VP, tmp_path, levels=17)
    latents(run, encode=True)
    saved = np.load(tmp_path / "latents" / "latents.npz")
    assert saved["latents"].shape == run.dataset.test.x.shape and saved["index"].tolist() == list(range(12))
    # Somewhere in the bin of the level, and not all at its centre.
    u = (decoded(run.score_fn.sde, saved["latents"].reshape(-1, D)) + 1) * 17 / 2 - run.dataset.test.x.reshape(-1, D)
    inside = (run.dataset.test.x.reshape(-1, D) > 0) & (run.dataset.test.x.reshape(-1, D) < 16)
    assert np.all((u > -2e-3) & (u < 1 + 2e-3)) and abs(u[inside].std() - 12**-0.5) < 0.08
    latents(run, decode=str(tmp_path / "latents" / "latents.npz"), out=tmp_path / "back")
    back = np.load(tmp_path / "back" / "samples.npz")["arr_0"]
    np.testing.assert_array_equal(back, run.scaling.to_uint8(run.dataset.test.x))
    assert (tmp_path / "back" / "grid.png").exists()
    latents(run, interpolate=["4", "9"], points=4, out=tmp_path / "path")
    path = np.load(tmp_path / "path" / "path.npz")
    ends = saved["latents"][[4, 9]].reshape(2, D).astype(float)  # the same draws in every mode and batch
    between = great_circle(*ends, np.linspace(0, 1, 4))
    np.testing.assert_allclose(path["latents"].reshape(4, D), between, atol=1e-3)
    levels = run.scaling.to_data(decoded(ON_VP, between).reshape(4, 2, 2, 1))
    np.testing.assert_array_equal(path["arr_0"], run.scaling.to_uint8(levels))
    np.testing.assert_array_equal(path["arr_0"][[0, -1]], run.scaling.to_uint8(run.dataset.test.x[[4, 9]]))
    for flags in ({"n": 5}, {"seed": 1}):
        latents(run, encode=True, out=tmp_path, **flags)
        again = np.load(tmp_path / "latents.npz")
        moved = np.abs(again["latents"] - saved["latents"][again["index"]]).max() > 0.05
        assert ("seed" in flags) == moved and len(again["index"]) == flags.get("n", 12)


def test_typicality_of_held_out_vectors_is_the_closed_form_s(latents: Any, tmp_path: Path) -> None:
    sde, run = ON_VP, run_of(ON_VP, tmp_path)
    line = latents(run, typicality=True, n=10)
    assert "10 held-out examples against 10 training examples" in line
    report = json.loads((tmp_path / "latents" / "typicality.json").read_text())
    nats = {}
    for part, split in (("reference", run.dataset.train), ("tested", run.dataset.test)):
        index = report[part]["index"]
        assert index == sorted({*index}) and len(index) == 10
        square = np.sum(encoded(sde, split.x[index]) ** 2, axis=1) / sde.sigma(1.0) ** 2
        stretch = scale_at(sde, sde.t_max) / scale_at(sde, sde.t_min)
        # The prior's density at the latent, by the flow's stretch. One Rademacher probe is exact where the Jacobian is
        # isotropic.
        nats[part] = -0.5 * square + D * math.log(stretch / (sde.sigma(1.0) * math.sqrt(2 * math.pi)))
        np.testing.assert_allclose(report[part]["nats"], nats[part], atol=1e-3)
        np.testing.assert_allclose(report[part]["latent_z"], (square - D) / math.sqrt(2 * D), atol=2e-3)
    expected = typicality(nats["tested"], nats["reference"])
    np.testing.assert_allclose(report["tested"]["z"], expected.z, atol=2e-3)
    np.testing.assert_allclose(
        report["tested"]["p_value"], expected.p_value, atol=2.1 / 11
    )  # two may have changed places
    assert "p_value" not in report["reference"]
    assert (tmp_path / "latents" / "typicality.png").stat().st_size > 1000


def test_an_outlier_in_a_file_is_told_by_its_row(latents: Any, tmp_path: Path) -> None:
    run = run_of(ON_VP, tmp_path)
    x = np.repeat(run.dataset.train.x[:1], 6, axis=0)
    x[4] = MEAN + 5 * STD
    np.savez(tmp_path / "others.npz", x)
    assert "6 others.npz against 12 held-out examples" in latents(run, typicality=True, of=str(tmp_path / "others.npz"))
    tested = json.loads((tmp_path / "latents" / "typicality.json").read_text())["tested"]
    assert tested["index"] == list(range(6)) and np.argmin(tested["z"]) == 4
    assert tested["p_value"][4] == pytest.approx(2 / 13) and tested["latent_p_value"][4] < 1e-6


def test_images_of_a_file_are_read_as_levels(tmp_path: Path) -> None:
    run = run_of(ON_VP, tmp_path, levels=17)
    x = run.dataset.test.x
    np.savez(tmp_path / "levels.npz", x=x[..., 0], levels=17)
    np.savez(tmp_path / "grey.npz", run.scaling.to_uint8(x))  # as sample.py writes them
    for file in ("levels.npz", "grey.npz"):
        np.testing.assert_array_equal(read_examples(run, tmp_path / file).x, x)


def test_the_picture_of_images_shows_the_most_and_the_least_typical(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[Any] = []
    monkeypatch.setattr(plots, "show_example", lambda axes, image, limits: shown.append(int(image.max())))
    z = np.array([0.5, -40.0, 0.1, -2.0, 1.0])
    part = {"name": "ours", "z": z, "latent_z": z}
    picture = plots.typicality(
        part, part, 64, np.arange(5, dtype=np.uint8)[:, None, None, None] * np.ones((1, 8, 8, 1), np.uint8), 2
    )
    assert picture.startswith(b"\x89PNG") and shown == [2, 0, 1, 3]


def test_a_class_conditional_network_is_given_the_classes(latents: Any, tmp_path: Path) -> None:
    run = run_of(ON_VP, tmp_path)
    run.config.model.condition, run.score_fn = "label", OfClasses()
    latents(run, encode=True, n=5)
    saved = dict(np.load(tmp_path / "latents" / "latents.npz"))
    np.testing.assert_array_equal(saved["index"], some_of(5, len(run.dataset.test)))
    np.testing.assert_array_equal(saved["labels"], run.dataset.test.labels[saved["index"]])
    x = run.dataset.test.x[saved["index"]]
    np.testing.assert_allclose(saved["latents"], encoded(ON_VP, x, saved["labels"][:, None]), atol=1e-3)
    latents(run, decode=str(tmp_path / "latents" / "latents.npz"))
    np.testing.assert_allclose(np.load(tmp_path / "latents" / "samples.npz")["arr_0"], x, atol=1e-3)
    latents(run, interpolate=["1", "4"], points=3)
    ends = np.load(tmp_path / "latents" / "path.npz")["arr_0"][[0, -1]]
    np.testing.assert_allclose(ends, run.dataset.test.x[[1, 4]], atol=1e-3)
    with pytest.raises(UserError, match="classes 0 and 1"):
        latents(run, interpolate=["0", "1"])
    for labels in (np.array([0, 1, 2, 3, 0]), np.array([0, 1]), np.zeros(5)):
        np.savez(tmp_path / "bad.npz", latents=saved["latents"], labels=labels)
        with pytest.raises(UserError, match=r"a class 0\.\.2 for each row|labels must be 5 integers"):
            latents(run, decode=str(tmp_path / "bad.npz"))


FILES: dict[str, dict[str, np.ndarray]] = {
    "shape": {"latents": np.zeros((3, 5), np.float32), "x": np.zeros((3, 5), np.float32)},
    "kind": {"latents": np.zeros((3, 4), np.uint8), "x": np.zeros((3, 4), np.uint8)},
    "infinite": {"latents": np.full((3, 4), np.inf), "x": np.full((3, 4), np.inf)},
    "empty": {"latents": np.zeros((0, 4), np.float32), "x": np.zeros((0, 4), np.float32)},
    "other": {"weights": np.zeros((3, 4), np.float32)},
}
MISTAKES: list[tuple[dict[str, Any], str]] = [
    ({}, "choose one of --encode"),
    ({"encode": True, "typicality": True}, "not --encode and --typicality"),
    ({"encode": True, "points": 5}, "--points is not for --encode: leave it out"),
    ({"encode": True, "n": 0}, "--n is 0: give at least 1"),
    ({"typicality": True, "n": 1}, "--n is 1: give at least 2"),
    ({"typicality": True, "probes": 0}, "--probes is 0"),
    ({"encode": True, "seed": -1}, "--seed is -1"),
    ({"typicality": True, "seed": 2**32}, "--seed is 4294967296"),
    ({"interpolate": ["3", "17"], "points": 1}, "--points is 1: give at least 2"),
    ({"interpolate": ["3", "12"]}, "no held-out example 12; the indices are 0 to 11"),
    ({"interpolate": ["-1", "3"]}, "no held-out example -1"),
    ({"interpolate": ["3"]}, "--interpolate=3: give two held-out examples by index"),
    ({"interpolate": ["3", "x"]}, "give two held-out examples by index"),
    ({"interpolate": ["3", "3"]}, "two different examples"),
    ({"decode": "missing.npz"}, "missing.npz: there is no such file"),
    ({"decode": "damaged.npz"}, "damaged"),
    ({"decode": "shape.npz"}, r"floats \(n, 4\), named latents, and the file holds float32 of shape \(3, 5\)"),
    ({"decode": "kind.npz"}, "holds uint8"),
    ({"decode": "infinite.npz"}, "not finite"),
    ({"decode": "empty.npz"}, r"shape \(0, 4\)"),
    ({"decode": "other.npz"}, "the file holds weights"),
    ({"typicality": True, "of": "missing.npz"}, "no such file"),
    (
        {"typicality": True, "of": "shape.npz"},
        r"named x or images or data or arr_0, and the file holds float32 of shape \(3, 5\)",
    ),
    ({"typicality": True, "of": "infinite.npz"}, "not finite"),
]


@pytest.mark.parametrize(("given", "word"), MISTAKES, ids=[word for _, word in MISTAKES])
def test_mistakes_are_told_with_the_remedy(given: Any, word: str, latents: Any, tmp_path: Path) -> None:
    for name, arrays in FILES.items():
        np.savez(tmp_path / f"{name}.npz", **arrays)
    (tmp_path / "damaged.npz").write_bytes(b"PK\x03\x04 no more")
    given = {key: str(tmp_path / value) if key in ("decode", "of") else value for key, value in given.items()}
    with pytest.raises(UserError, match=word):
        latents(run_of(ON_VP, tmp_path / "run"), **given)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("levels", [17, 300, 1.5, [17, 17]])
def test_levels_of_a_file_that_cannot_be_are_told(levels: Any, latents: Any, tmp_path: Path) -> None:
    np.savez(tmp_path / "of.npz", x=np.full((3, 2, 2, 1), 20, np.uint8), levels=levels)
    with pytest.raises(UserError, match="values to 20 take `levels`, one integer, from 21 to 256"):
        latents(run_of(ON_VP, tmp_path, levels=17), typicality=True, of=str(tmp_path / "of.npz"))


def test_the_command_on_a_trained_run(tmp_path: Path) -> None:
    workdir = tmp_path / "run"
    trained(workdir, train_steps=2)
    command = [str(ROOT / "experiment" / "latents.py"), f"--workdir={workdir}"]
    done = Command(*command, "--encode", "--n=20").wait()
    assert done.status == 0, done.err
    first, *_, last = done.out.splitlines()  # on a busy machine there are lines on the way
    assert first == f"encode: {workdir} at step 2"
    assert "20 held-out examples" in last and str(workdir / "latents" / "latents.npz") in last
    assert np.load(workdir / "latents" / "latents.npz")["latents"].shape == (20, 2)
    assert "there is no such file" in Command(*command, "--decode=nothing.npz").wait().mistake
    assert "did you mean --interpolate?" in Command(*command, "--interpolte=3,17").wait().mistake
