"""FID and its kin: the library's numbers from closed forms on its own features, the record of what was compared, and
every mistake.

The Inception weights are random here, in the library's own file format: what is tested is not how well that network
sees. Tests of the numbers skip themselves without the extra `fid`; those of mistakes do not need it.
"""

import hashlib
import json
import pickle
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image
from sklearn.metrics.pairwise import euclidean_distances
from threadpoolctl import threadpool_limits

from experiment.common.errors import UserError
from experiment.config import whole_config
from experiment.data.dataset import Dataset, Split
from experiment.data.scaling import Scaling
from experiment.evaluation import fid as fid_module
from experiment.evaluation import inception, opening
from experiment.evaluation.fid import (
    FidSettings,
    Reference,
    fid,
    fid_lines,
    fid_of_run,
    reference_images,
)
from experiment.evaluation.images import Images
from experiment.evaluation.inception import FidMetrics, Weights, checked_weights, compare_images, library
from experiment.evaluation.metrics import frechet
from sde_lib import VP, EulerMaruyama, ExactScore
from sde_lib import sample as draw_samples
from tests.commands import ROOT, Command, Done, fresh, trained
from tests.oracles import random_mixture

Array = np.ndarray

LAW = random_mixture(seed=3, d=16, spread=0.5)


def pictures(n: int, seed: int = 0) -> Array:
    """(n, 4, 4, 1) levels 0..16."""
    return np.asarray(Scaling(17).to_data(LAW.sample(jax.random.key(seed), n))).reshape(-1, 4, 4, 1)


@pytest.fixture
def run(tmp_path: Path) -> Any:
    """A run on pictures of 4x4 with 17 levels, with their exact score."""
    k = pictures(60)
    return SimpleNamespace(
        config=whole_config({}),
        dataset=Dataset("pictures", Split(k[:40]), Split(k[40:]), 17),
        score_fn=ExactScore(LAW, VP()),
        scaling=Scaling(17),
        shape=(4, 4, 1),
        workdir=tmp_path / "run",
        step=200,
    )


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights of the library's network in a file, drawn so that its activations keep their size."""
    fidelity = pytest.importorskip("torch_fidelity")
    import torch

    class Untrained(fidelity.FeatureExtractorInceptionV3):  # type: ignore[misc, name-defined]
        def load_state_dict(self, *_: Any, **__: Any) -> None:
            """It has no weights to load."""

    folder = tmp_path_factory.mktemp("weights")
    torch.save({}, folder / "none.pth")
    torch.manual_seed(0)
    state = Untrained("inception-v3-compat", ["2048"], feature_extractor_weights_path=folder / "none.pth").state_dict()
    for name, values in state.items():
        if name.endswith("conv.weight"):
            torch.nn.init.kaiming_normal_(values)
    torch.save(state, folder / "weights.pth")
    return folder / "weights.pth"


@pytest.fixture(scope="module")
def sets() -> tuple[Array, Array]:
    """Samples, half of them examples of the reference and half of noise; the reference. 32 grey pictures each."""
    y = np.asarray(Images([pictures(32)], 17))
    noise = np.random.default_rng(0).integers(0, 256, (16, 4, 4, 1), dtype=np.uint8)
    return np.concatenate([y[:16], noise]), y


@pytest.fixture(scope="module")
def found(
    weights: Path, sets: tuple[Array, Array], tmp_path_factory: pytest.TempPathFactory
) -> tuple[FidMetrics, FidMetrics]:
    """The metrics of the samples, and of the reference itself, in one cache; nothing may be fetched meanwhile."""
    import torch

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("this would have been fetched")

    cache = tmp_path_factory.mktemp("cache")
    with (
        pytest.MonkeyPatch.context() as patch,
        threadpool_limits(1),
    ):  # threads make eigenvalues slower on a busy machine
        patch.setattr(torch.hub, "load_state_dict_from_url", refuse)
        patch.setattr("torch_fidelity.feature_extractor_inceptionv3.load_state_dict_from_url", refuse)
        patch.setattr("socket.socket.connect", refuse)
        x, y = sets
        of_x, of_y, reversed_y = (Images([z]) for z in (x, y, y[::-1].copy()))
        return compare_images(of_x, of_y, weights, cache), compare_images(reversed_y, of_y, weights, cache)


@pytest.fixture(scope="module")
def features(weights: Path, sets: tuple[Array, Array], found: Any) -> tuple[Array, Array]:
    """The library's features (n, 2048) of both sets, from its own extractor, the pictures made colour by numpy."""
    import torch
    import torch_fidelity

    extract = torch_fidelity.FeatureExtractorInceptionV3(
        "inception-v3-compat", ["2048"], feature_extractor_weights_path=weights
    )
    colour = [np.repeat(z, 3, axis=-1).transpose(0, 3, 1, 2) for z in sets]
    x, y = (extract(torch.from_numpy(z.copy()))[0].numpy().astype(np.float64) for z in colour)
    return x, y


@pytest.mark.slow
def test_fid_is_frechets_distance_of_the_features(found: Any, features: tuple[Array, Array]) -> None:
    with threadpool_limits(1):
        assert found[0].fid == pytest.approx(frechet(*features), rel=1e-3)
    assert abs(found[1].fid) < 1e-4 * found[0].fid  # the reference against itself, in another order


@pytest.mark.slow
def test_kid_is_the_unbiased_mmd_of_the_features(found: Any, features: tuple[Array, Array]) -> None:
    # Of 32 images the subsets are the whole sets, so that every one of them gives the same number.
    x, y = features

    def kernel(a: Array, b: Array) -> Array:
        return (a @ b.T / 2048 + 1) ** 3

    within = sum((kernel(z, z).sum() - np.trace(kernel(z, z))) / (32 * 31) for z in (x, y))
    assert found[0].kid == pytest.approx(within - 2 * kernel(x, y).mean(), rel=1e-3)
    assert found[0].kid_subset_size == 32 and found[0].kid_sd < 1e-3 * found[0].kid


@pytest.mark.slow
def test_precision_is_of_the_samples_and_recall_of_the_reference(found: Any, features: tuple[Array, Array]) -> None:
    def share_inside(points: Array, others: Array) -> float:
        radii = np.sort(euclidean_distances(others), axis=1)[:, 3]  # place 0 is the point itself
        return float((euclidean_distances(points, others) <= radii).any(axis=1).mean())

    x, y = features
    precision, recall = share_inside(x, y), share_inside(y, x)
    assert precision != recall
    assert (found[0].precision, found[0].recall) == pytest.approx(
        (precision, recall), abs=0.04
    )  # one picture may lie on an edge
    assert (found[1].precision, found[1].recall) == (1, 1)


@pytest.mark.slow
def test_the_command_on_a_trained_run(weights: Path, tmp_path: Path) -> None:
    workdir = tmp_path / "run"
    trained(workdir, data_name="digits", model_name="dit", model_heads=2, train_steps=2, sample_steps=5)
    reference = tmp_path / "reference.npz"
    np.savez(reference, np.random.default_rng(0).integers(0, 256, (11, 8, 8, 1), dtype=np.uint8))
    command = [
        str(ROOT / "evaluate.py"),
        f"--workdir={workdir}",
        "--fid",
        "--samplers=em",
        "--n=12",
        f"--fid_reference={reference}",
    ]
    home = tmp_path / "torch"
    done = Command(
        *command, f"--fid_weights={weights}", TORCH_HOME=str(home), OPENBLAS_NUM_THREADS="1", OMP_NUM_THREADS="1"
    ).wait()
    assert done.status == 0, done.err
    assert not home.exists()  # where the library keeps what it fetches
    (row,) = json.loads((workdir / "fid" / "fid.json").read_text())
    assert row["nfe"] == 6 and row["n"] == 12 and row["final_denoising"] and row["settings"]["steps"] == 5
    assert row["reference"] == {"name": "reference", "split": "all", "images": 11, "shape": [8, 8, 1]}
    assert row["network"] == {"workdir": str(workdir), "checkpoint_step": 2, "weights": "EMA", "ema": 0.999}
    assert row["inception_weights"]["sha256"] == hashlib.sha256(weights.read_bytes()).hexdigest()
    assert {"torch-fidelity", "torch", "torchvision", "jax"} <= set(row["versions"]) and row["git_commit"]
    assert row["kid_subset_size"] == 11 and row["fid"] > 0 and "299x299" in row["preprocessing"]
    notes = " ".join(row["notes"])
    assert (
        "depends on n" in notes
        and "of 12 samples" in notes
        and "subsets of 11" in notes
        and "not those of published" in notes
    )
    assert done.out.splitlines()[-1] == str(workdir / "fid" / "fid.json") and all(
        note in done.out for note in row["notes"]
    )


@pytest.fixture
def compared(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Array, Array]]:
    """Instead of Inception: the images that it would have been given."""
    given: list[tuple[Array, Array]] = []

    def record(x: Images, y: Images, *_: Any) -> FidMetrics:
        given.append((np.asarray(x), np.asarray(y)))
        return FidMetrics(0.5, 0.5, 0.5, 100, 1000, 0.5, 0.5, 3, 0.5, 0.5)

    monkeypatch.setattr(inception, "library", lambda: SimpleNamespace(__version__="0"))
    monkeypatch.setattr(inception, "compare_images", record)
    monkeypatch.setattr(inception, "checked_weights", lambda *_: (Path("w"), Weights("w", "", published=True)))
    monkeypatch.setattr(fid_module, "_origin", lambda: {"versions": {"jax": "1"}, "date": "today"})
    return given


def test_the_samples_of_the_seed_are_compared_as_grey_values(run: Any, compared: list[tuple[Array, Array]]) -> None:
    em = EulerMaruyama(steps=20, denoise=True)
    samplers = [("em", em), ("plain", EulerMaruyama(steps=8))]
    rows = list(fid(run, samplers, FidSettings(weights="w", n=30, seed=5)))
    by_hand = draw_samples(em, run.score_fn, jax.random.key(5), 30, run.shape).x
    x, y = compared[0]
    np.testing.assert_array_equal(x, Scaling(17).to_uint8(Scaling(17).to_data(by_hand)))
    np.testing.assert_array_equal(y, Scaling(17).to_uint8(run.dataset.train.x))
    assert x.dtype == y.dtype == np.uint8
    assert [row.nfe for row in rows] == [21, 8] and [row.final_denoising for row in rows] == [True, False]
    assert [row.seed for row in rows] == [5, 5] and rows[1].settings["class"] == "EulerMaruyama"
    saved = rows[0].to_json()
    assert (saved["fid"], saved["kid_subset_size"], saved["versions"], saved["date"]) == (
        0.5,
        1000,
        {"jax": "1"},
        "today",
    )
    assert saved["reference"] == {"name": "pictures", "split": "train", "images": 40, "shape": [4, 4, 1]}
    assert saved["inception_weights"] == {"file": "w", "sha256": "", "published": True}
    assert not {"metrics", "origin"} & set(saved)
    assert "30 samples each against 40 images of pictures (train)" in "\n".join(fid_lines(rows))


def test_no_note_about_fifty_thousand_samples_and_the_published_weights() -> None:
    assert fid_module._notes(50_000, 1000, True) == []


def test_rows_that_are_there_stay(run: Any, compared: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "load_run", lambda *_: run)
    given = {"weights": "w", "n": 10}
    fid_of_run("here", {**given, "samplers": ["em"], "nfe": ["4", "8"]})
    *lines, written = fid_of_run("here", {**given, "samplers": ["ddim", " ode"]})
    path = Path(written)
    rows = json.loads(path.read_text())
    assert [row["sampler"] for row in rows] == ["em", "em", "ddim", "ode"] and [row["nfe"] for row in rows[:3]] == [
        5,
        9,
        501,
    ]
    assert [line.split()[0] for line in lines[:3]] == ["sampler", "ddim", "ode"]
    fid_of_run(
        "here", {**given, "samplers": ["ddim"]}
    )  # as after a kill: this row is there already, and is not doubled
    fid_of_run("here", {**given, "samplers": ["ddim"], "seed": 1})
    rows = json.loads(path.read_text())
    assert [(row["sampler"], row["seed"]) for row in rows] == [
        ("em", 0),
        ("em", 0),
        ("ode", 0),
        ("ddim", 0),
        ("ddim", 1),
    ]
    path.write_text("[{")
    with pytest.raises(UserError, match="move it away"):
        fid_of_run("here", {**given, "samplers": ["em"]})
    assert path.read_text() == "[{"


def test_references(run: Any, tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (21, 4, 4, 1), dtype=np.uint8)
    (tmp_path / "folder").mkdir()
    for i, image in enumerate(images):
        Image.fromarray(image[..., 0]).save(tmp_path / "folder" / f"{i:02d}.png")
    np.savez(tmp_path / "adm.npz", images)
    assert reference_images(run, "train")[1] == Reference("pictures", "train", 40, [4, 4, 1])
    np.testing.assert_array_equal(
        np.asarray(reference_images(run, "test")[0]), Scaling(17).to_uint8(run.dataset.test.x)
    )
    for path in ("folder", "adm.npz"):  # no tenth of it is held out
        x, told = reference_images(run, str(tmp_path / path))
        assert sorted(z.tobytes() for z in np.asarray(x)) == sorted(z.tobytes() for z in images)
        assert told == Reference(Path(path).stem, "all", 21, [4, 4, 1])
    run.shape = (8, 8, 1)
    x, told = reference_images(run, "digits")
    assert (told.split, told.images, np.asarray(x).max()) == ("train", 1500, 255)


def test_references_that_will_not_do(run: Any, tmp_path: Path) -> None:
    np.savez(tmp_path / "colour.npz", np.zeros((20, 4, 4, 3), np.uint8))
    np.savez(tmp_path / "few.npz", np.zeros((9, 4, 4, 1), np.uint8))
    (tmp_path / "text.txt").write_text("")
    mistakes = {
        "digits": "images of 8x8x1, the run draws 4x4x1",
        str(tmp_path / "colour.npz"): "images of 4x4x3",
        str(tmp_path / "few.npz"): "9 image",
        str(tmp_path / "text.txt"): "neither a folder",
        str(tmp_path / "nowhere"): "neither train, test, a folder nor a file",
        "digist": "did you mean 'digits'",
        "two_moons": "holds vectors",
    }
    for reference, told in mistakes.items():
        with pytest.raises(UserError, match=told):
            reference_images(run, reference)


def test_runs_that_have_no_images_are_refused(run: Any, compared: Any) -> None:
    for levels, shape, told in ((None, (2,), "vectors"), (256, (4, 4, 2), "images of 2 channels")):
        run.scaling, run.shape = Scaling(levels), shape
        with pytest.raises(UserError, match=told):
            next(fid(run, [("em", EulerMaruyama(steps=8))], FidSettings(weights="w", n=30, seed=0)))


class Malicious:
    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_files_that_are_not_the_weights(tmp_path: Path) -> None:
    pytest.importorskip("torch_fidelity")
    import torch

    (tmp_path / "text").write_text("<html>not found</html>")
    (tmp_path / "pickle").write_bytes(pickle.dumps(Malicious(tmp_path / "run")))
    torch.save({"Conv2d_1a_3x3.conv.weight": Malicious(tmp_path / "run")}, tmp_path / "archive")
    torch.save({"Conv2d_1a_3x3.conv.weight": torch.zeros(3)}, tmp_path / "other")
    torch.save(torch.zeros(3), tmp_path / "tensor")
    mistakes = {
        "missing": "cannot read",
        "text": "no plain",
        "pickle": "no plain",
        "archive": "no plain",
        "other": "another network",
    }
    for name, told in {**mistakes, "tensor": "another network"}.items():
        with pytest.raises(UserError, match=told) as raised:
            checked_weights(tmp_path / name, tmp_path)
        assert "\n" not in str(raised.value) and "pt_inception-2015-12-05-6726825d.pth" in str(raised.value)
    assert not (tmp_path / "run").exists()


def test_mistakes_of_the_command(tmp_path: Path) -> None:
    def evaluate(*flags: str) -> Done:
        return Command(str(ROOT / "evaluate.py"), f"--workdir={tmp_path / 'none'}", *flags).wait()

    line = evaluate("--fid").mistake
    assert "pt_inception-2015-12-05-6726825d.pth" in line and "not downloaded for you" in line
    given = ("--fid", "--fid_weights=w")
    assert "--n is 9" in evaluate(*given, "--n=9").mistake
    assert "--seed is -1" in evaluate(*given, "--seed=-1").mistake
    assert "'foo'; it must be one of: em, pc" in evaluate(*given, "--samplers=foo").mistake
    assert "--likelihood does not go with --fid" in evaluate(*given, "--likelihood").mistake
    assert "--seeds does not go with --fid" in evaluate(*given, "--seeds=2").mistake
    assert "--fid_reference goes with --fid" in evaluate("--fid_reference=test").mistake


def test_without_the_extra_one_line_says_how_to_install_it() -> None:
    block = (
        "import sys; sys.modules['torch_fidelity'] = None; sys.argv = ['evaluate.py', '--fid', "
        "'--fid_weights=w']; import runpy; "
    )
    line = fresh("-c", block + f"runpy.run_path({str(ROOT / 'evaluate.py')!r}, run_name='__main__')").mistake
    assert "pip install -e '.[fid]'" in line


def test_torch_beside_another_torchvision_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "torch_fidelity.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "torch_fidelity", raising=False)
    with pytest.raises(UserError, match=r"torchvision::nms does not exist.*built for each other"):
        library()


def test_torch_is_imported_by_nothing_else() -> None:
    done = fresh("-c", "import sys, experiment.evaluation.fid, experiment.report.report; print('torch' in sys.modules)")
    assert (done.status, done.out) == (0, "False\n"), done.err
