"""A run in the page: its network computed by JavaScript against Flax, its densities, and what is refused."""

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from experiment.common.errors import UserError
from experiment.config import whole_config
from experiment.data.dataset import Dataset, Split, some_of
from experiment.data.scaling import Scaling
from experiment.data.toys import mixture_distribution
from experiment.data.units import StandardizedScore, Units
from experiment.devices.sharding import OverBatch, mesh_here
from experiment.report.explorer import learned
from experiment.report.explorer.learned import level_rows, run_data
from experiment.report.explorer.page import HERE, explorer_page
from experiment.report.explorer.write import write_explorer
from experiment.run.directory import DataShape
from experiment.run.load import load_run
from models import MLP, Vector, split
from sde_lib import (
    VE,
    VP,
    CosineVP,
    DenoiserPrediction,
    EDMPreconditioning,
    EpsilonPrediction,
    GaussianPreconditioning,
    NetworkScore,
    RectifiedFlow,
    SubVP,
    VelocityPrediction,
    VPrediction,
)
from tests.commands import trained
from tests.experiment.report.explorer.browser import CHROMIUM, Browser
from tests.experiment.report.explorer.test_compass import NODE

needs_node = pytest.mark.skipif(NODE is None, reason="the page's network is computed by node, which is not there")
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="the page is driven in Chromium, which is not there")

POINTS = np.random.default_rng(0).normal(size=(5, 2)) * 1.5
GAUSSIAN = GaussianPreconditioning(
    mean=jnp.asarray([0.3, -0.2]), basis=jnp.asarray([[0.8, -0.6], [0.6, 0.8]]), variances=jnp.asarray([1.5, 0.2])
)


def network(weights: float = 0.3, kind: Any = None, module: Any = MLP, **settings: Any) -> tuple[Any, Any]:
    """An MLP all of whose weights are drawn, the last layers' too."""
    found: list[Any] = []

    def built() -> Any:
        apply, params = split(module((2,), width=24, depth=2, kind=kind, rngs=nnx.Rngs(0), **settings))
        found.append(apply)
        return params

    rng = np.random.default_rng(1)
    shapes = jax.eval_shape(built)  # compiles nothing
    params = jax.tree.map(lambda leaf: jnp.asarray(weights * rng.normal(size=leaf.shape), jnp.float32), shapes)
    return OverBatch(found[0], mesh_here()), params


def run_of(score: Any, condition: str = "none", dropout: float = 0.0, **told: Any) -> Any:
    """What the page reads of a run, of an untrained score."""
    rng = np.random.default_rng(2)
    split_ = Split(rng.normal(size=(40, 2)).astype(np.float32), **told)
    classes = 3 if "labels" in told else 0
    units = Units(np.array([5.0, -3.0]), np.array([2.0, 0.1])) if "vectors" in told else None
    dataset = Dataset("points", split_, split_, None, classes, cond_units=units)
    return SimpleNamespace(
        config=whole_config({"model.condition": condition, "train.cond_dropout": dropout, "model.name": "mlp"}),
        dataset=dataset,
        data_shape=DataShape.of(dataset),
        scaling=Scaling(None),
        score_fn=score if units is None else StandardizedScore(score, None, units),
        shape=(2,),
        workdir=Path("runs/points"),
        step=7,
    )


def runs() -> dict[str, Any]:
    plain, labels = network(), np.arange(40) % 3
    vectors = np.random.default_rng(3).normal(size=(40, 2)) * [2.0, 0.1] + [5.0, -3.0]
    parts = {
        "vp, eps": (VP(), EpsilonPrediction()),
        "ve, edm": (VE(0.02, 20.0), EDMPreconditioning(sigma_data=0.7)),
        "sub vp, v": (SubVP(), VPrediction()),
        "flow, velocity": (RectifiedFlow(), VelocityPrediction()),
        "cosine, x0": (CosineVP(), DenoiserPrediction()),
        "vp, gaussian": (VP(0.1, 12.0), GAUSSIAN),
    }
    found = {name: run_of(NetworkScore(*plain, *part)) for name, part in parts.items()}
    classes = NetworkScore(*network(num_classes=3), VP(), EpsilonPrediction())
    found["classes"] = run_of(classes, "label", 0.1, labels=labels.astype(np.int32))
    told = NetworkScore(*network(kind=Vector(2)), VP(), EpsilonPrediction())
    found["vectors"] = run_of(told, "vector", 0.1, vectors=vectors.astype(np.float32))
    return found


@contextmanager
def no_densities() -> Iterator[None]:
    """Zeros in place of the densities, whose solves take most of the time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(learned, "log_prob", lambda score, x, **_: SimpleNamespace(nats=jnp.zeros(len(x))))
        yield


@pytest.fixture(scope="module")
def written() -> dict[str, tuple[Any, Any]]:
    """Each run with what the page holds of it, but for its densities."""
    with no_densities():
        return {name: (run, run_data(run)["data"]) for name, run in runs().items()}


@pytest.fixture(scope="module")
def computed(written: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    path = tmp_path_factory.mktemp("learned") / "given.json"
    given = {"runs": [data for _, data in written.values()], "points": POINTS.tolist()}
    path.write_text(json.dumps(given))
    script = Path(__file__).with_name("learn.mjs")
    done = subprocess.run([NODE, script, HERE / "network.mjs", path], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return dict(zip(written, json.loads(done.stdout), strict=True))


@needs_node
@pytest.mark.parametrize("name", runs())
def test_the_network_in_the_page_is_flaxs(name: str, written: Any, computed: Any) -> None:
    run, data = written[name]
    times = np.array([row[0] for row in data["levels"]])
    assert times[0] == run.score_fn.sde.t_max and times[-1] == run.score_fn.sde.t_min
    x = jnp.asarray(np.tile(POINTS, (len(times), 1)), jnp.float32)
    t = jnp.asarray(np.repeat(times, len(POINTS)), jnp.float32)
    told: list[Any] = [None] * len(data["choices"])
    if name == "classes":
        assert [choice["name"] for choice in data["choices"]] == ["anything", "class 0", "class 1", "class 2"]
        told = [np.full(len(x), label, np.int32) for label in (3, 0, 1, 2)]
    elif name == "vectors":
        vectors = [np.full(2, np.nan), *run.dataset.test.vectors[some_of(4, len(run.dataset.test))]]
        told = [np.tile(np.asarray(vector, np.float32), (len(x), 1)) for vector in vectors]
    score_of = jax.jit(lambda score, *given: score(*given))
    scores = [np.asarray(score_of(run.score_fn, x, t, cond)) for cond in told]
    if len(scores) > 1:
        assert np.abs(scores[0] - scores[1]).max() > 0.01  # the condition is heard at all
    for found, expected in zip(computed[name], scores, strict=True):
        apart = np.reshape(found["scores"], (len(times), -1)) - expected.reshape(len(times), -1)
        size = np.sqrt(np.mean(expected.reshape(len(times), -1) ** 2, axis=1))
        assert (np.sqrt(np.mean(apart**2, axis=1)) <= 1e-5 * size).all()


@needs_node
def test_densities_come_to_the_page_at_their_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The solve is `log_prob`'s, tested where it is; here it is a Gaussian's that is not round and not at 0."""
    mean, variances = np.array([0.5, -0.3]), np.array([0.6, 0.1])

    def log_density(x: np.ndarray, alpha: float, sigma: float) -> np.ndarray:
        total = alpha**2 * variances + sigma**2
        return -0.5 * np.sum((x - alpha * mean) ** 2 / total + np.log(2 * np.pi * total), axis=1)

    def solved(score: Any, x: Any, **_: Any) -> Any:
        t = score.sde.t_min
        return SimpleNamespace(nats=log_density(np.asarray(x, float), score.sde.alpha(t), score.sde.sigma(t)))

    monkeypatch.setattr(learned, "log_prob", solved)
    data = run_data(run_of(NetworkScore(*network(), VE(0.02, 20.0), EpsilonPrediction())))["data"]
    (tmp_path / "given.json").write_text(json.dumps({"runs": [data], "points": POINTS.tolist()}))
    script = Path(__file__).with_name("learn.mjs")
    done = subprocess.run(
        [NODE, script, HERE / "network.mjs", tmp_path / "given.json"], capture_output=True, text=True, timeout=60
    )
    below = np.reshape(json.loads(done.stdout)[0][0]["below"], (len(data["stops"]), -1))
    found = np.array(data["choices"][0]["largest"])[:, None] - below
    side = data["limit"] * (2 * (np.arange(data["cells"]) + 0.5) / data["cells"] - 1)
    places = np.array([[x, y] for y in side for x in side])  # as the page has them, row by row from the lower left
    for i, stop in enumerate(data["stops"]):
        _, alpha, sigma = data["levels"][stop][:3]
        expected = log_density(np.hypot(alpha, sigma) * places, alpha, sigma)
        seen = expected > expected.max() - 30
        bound = 0.2 if i == 0 else 2e-3  # the first is the prior's, which is only near
        np.testing.assert_allclose(found[i][seen], expected[seen], atol=bound)


def test_levels_are_even_in_log_snr() -> None:
    rows = level_rows(NetworkScore(*network(), CosineVP(), EpsilonPrediction()))
    log_snr = 2 * np.log(rows[:, 1] / rows[:, 2])
    np.testing.assert_allclose(np.diff(log_snr), (log_snr[-1] - log_snr[0]) / (len(rows) - 1), rtol=1e-6)


def test_other_runs_are_refused_in_a_line() -> None:
    run = run_of(NetworkScore(*network(), VP(), EpsilonPrediction()))
    run.shape, run.data_shape = (3,), DataShape((3,), None, 0)
    with pytest.raises(UserError, match=r"vectors of 3, .*draws a plane: give a run on vectors of 2"):
        run_data(run)

    class Other(MLP):
        """A network of the user's."""

    run = run_of(NetworkScore(*network(module=Other), VP(), EpsilonPrediction()))
    run.config.model.name = "unet"
    with pytest.raises(UserError, match=r"is unet, and the page computes the MLP alone: train one"):
        run_data(run)


def test_a_folder_is_no_page(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is a folder: give the page's file"):
        write_explorer(str(tmp_path))
    with pytest.raises(UserError, match=r"run directory .*nowhere does not exist"):
        write_explorer(str(tmp_path / "page.html"), str(tmp_path / "nowhere"))
    assert not (tmp_path / "page.html").exists()


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    browser = Browser()
    yield browser
    browser.close()


@needs_browser
def test_the_page_of_a_run_shows_it(chromium: Browser, tmp_path: Path) -> None:
    folder = tmp_path / "a <run>"
    trained(folder, train_steps=2, data_name="mixture")
    with no_densities():
        said = write_explorer(str(tmp_path / "page.html"), str(folder))
    assert said[-1] == str(tmp_path / "page.html")
    chromium.open(tmp_path / "page.html")
    chromium.wait("document.querySelector('#run [data-read=learned-log]').textContent")
    assert chromium.js("document.querySelector('#run h2').textContent") == "What a <run> learned"
    assert chromium.js("document.querySelectorAll('nav li').length") == 9
    assert chromium.js("document.querySelector('#run figcaption').textContent") == "Exact"
    run = load_run(folder)
    chromium.set("#run-stop", 6)
    chromium.drag("#run canvas", [(0.5, 0.5), (0.6, 0.4)])
    t = float(chromium.read("run", "time"))
    x = jnp.asarray([floats(chromium.read("run", "place"))], jnp.float32)
    for name, score in (("learned", run.score_fn(x, t)), ("exact", mixture_distribution().at(VP(), t).score(x))):
        np.testing.assert_allclose(floats(chromium.read("run", name)), np.asarray(score)[0], atol=0.05, err_msg=name)
    assert chromium.messages == [] and len(chromium.requests) == 1


def floats(text: str) -> list[float]:
    return [float(number) for number in text.strip("()").split(",")]


@needs_browser
def test_examples_stand_in_for_what_is_not_known(chromium: Browser, tmp_path: Path) -> None:
    run = run_of(NetworkScore(*network(), VP(), EpsilonPrediction()))
    with no_densities():
        found = run_data(run)
    assert found["data"]["exact"] is None
    np.testing.assert_allclose(found["data"]["choices"][0]["examples"], run.dataset.test.x, atol=6e-4)
    (tmp_path / "page.html").write_text(explorer_page("notebooks", found))
    chromium.open(tmp_path / "page.html")
    chromium.wait("document.querySelector('#run [data-read=learned-log]').textContent")
    assert chromium.js("document.querySelector('#run figcaption').textContent") == "Examples of the data, noised"
    assert [chromium.read("run", name) for name in ("exact", "exact-log", "apart")] == ["not known"] * 3
    assert chromium.messages == []
