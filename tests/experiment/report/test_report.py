"""The report's files: complete, valid, self-contained, and safe from what its data are called."""

import base64
import dataclasses
import io
import json
import os
import re
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest
from matplotlib import figure as matplotlib_figure
from PIL import Image

from experiment import plots
from experiment.common.files import write_text
from experiment.config import whole_config
from experiment.data.dataset import Dataset, Split
from experiment.data.load import load_dataset
from experiment.data.scaling import Scaling
from experiment.evaluation.evaluate import evaluate
from experiment.evaluation.settings import Settings
from experiment.plots import evaluation as report_plots
from experiment.plots.strips import denoising_strip
from experiment.report.document import Figure, document_of
from experiment.report.page import html_page
from experiment.report.report import draw_figures, write_report
from experiment.report.tables import number, outside, plus_minus, text_table
from sde_lib import VP, EulerMaruyama, ExactScore
from tests.oracles import random_mixture

NAME = "<b>&$x^$sets</b>"
LAW = random_mixture(seed=3, d=16, spread=0.5)


class Page(HTMLParser):
    """What a page loads, runs and says."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[str] = []
        self.loads: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append(tag)
        self.loads += [value for name, value in attrs if name in ("src", "href", "srcset", "data", "action", "poster")]

    def handle_data(self, data: str) -> None:
        self.text += data


def pictures() -> tuple[np.ndarray, np.ndarray]:
    """600 pictures of 4x4, and the class of each."""
    k = np.asarray(Scaling(17).to_data(LAW.sample(jax.random.key(0), 600))).reshape(-1, 4, 4, 1)
    return k, (k.reshape(len(k), -1).astype(float) @ np.linspace(-1, 1, 16) > 0).astype(np.int32)


def run_of(workdir: Path) -> Any:
    """A run whose score is the exact one of its pictures."""
    k, labels = pictures()
    return SimpleNamespace(
        config=whole_config({}),
        dataset=Dataset(NAME, Split(k[:500], labels[:500]), Split(k[500:], labels[500:]), 17, 2),
        score_fn=ExactScore(LAW, VP()),
        scaling=Scaling(17),
        shape=(4, 4, 1),
        workdir=workdir,
        step=200,
    )


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A report on pictures of 4x4 with 17 levels, from their exact score; one seed."""
    workdir = tmp_path_factory.mktemp("run")
    rows = [{"step": s, "loss": 1 / s} for s in range(10, 200, 10)] + [{"step": 200, "loss": float("nan")}]
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = run_of(workdir)
    em = EulerMaruyama(steps=50, denoise=True)
    few = {"n": 300, "seeds": 1, "batch_size": 128, "likelihood_n": 20, "rtol": 1e-3, "atol": 1e-3}
    evaluation = evaluate(run, {"em": em, "twin": em}, Settings.from_config(run.config, **few))
    path, aside = write_report(run, evaluation, workdir / "report")
    assert aside == []
    return path, evaluation


@pytest.fixture(scope="module")
def figures(written: tuple[Path, Any]) -> list[Figure]:
    return draw_figures(run_of(written[0].parent.parent), written[1])


@pytest.fixture(scope="module")
def report(written: tuple[Path, Any]) -> Any:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    return json.loads((written[0].parent / "report.json").read_text(), parse_constant=refuse)


def test_report_json_has_every_number_with_its_floor(report: Any) -> None:
    assert set(report["samplers"]) == {"em", "twin"}
    names = {"sliced_w2", "energy", "auc", "auc_mlp", f"fd_{NAME}", "nn_ratio", "nn_close"}
    assert set(report["metrics"]) == set(report["floors"]) == names
    for sampler in report["samplers"].values():
        assert set(sampler["metrics"]) == names
        assert {"nfe", "seconds", "compile_seconds", "settings"} <= set(sampler)
        for value in sampler["metrics"].values():
            assert len(value["values"]) == 1 and value["sd"] is None and np.isfinite(value["mean"])
    assert all(floor["sd"] > 0 and len(floor["values"]) >= 10 for floor in report["floors"].values())
    assert {"mean", "se_images", "se_probes", "unit", "nfe", "n", "probes", "caveat"} <= set(report["likelihood"])


def test_report_json_has_the_keys_that_its_readers_know(report: Any) -> None:
    # A reader of old reports reads new ones: every key is written down here, and none by the code under test.
    assert set(report) == set(
        "title date command workdir seed versions git_commit python platform device devices trained_with dataset "
        "checkpoint_step score protocol notes metrics left_out floors samplers curves exact likelihood figures "
        "config".split()
    )
    assert set(report["protocol"]) == set(
        "n seeds seed reference likelihood_n probes batch_size rtol atol compared splits folds".split()
    )
    assert report["dataset"] == {
        "name": NAME, "shape": [4, 4, 1], "levels": 17, "num_classes": 2, "train": 500, "test": 100
    }  # fmt: skip
    assert set(report["metrics"]["auc"]) == {"kind", "label", "meaning", "origin"}
    assert set(report["metrics"]["nn_close"]) == {"kind", "label", "meaning"}
    assert set(report["floors"]["auc"]) == {"mean", "sd", "values", "size"}
    assert set(report["samplers"]["em"]) == {"settings", "nfe", "seconds", "compile_seconds", "metrics"}
    assert set(report["samplers"]["em"]["metrics"]["auc"]) == {"mean", "sd", "values", "excess"}
    assert report["curves"] == report["exact"] == report["left_out"] == {}
    assert set(report["likelihood"]) == set(
        "unit mean se_images se_probes se_dequantization tolerance_change prior_mismatch n probes k dequantization nfe "
        "seconds_per_example compiled_too caveat".split()
    )


def test_the_feature_classifier_s_accuracy_is_told(report: Any) -> None:
    assert "The classifier labels 9" in report["metrics"][f"fd_{NAME}"]["meaning"]
    assert "% of held-out examples correctly." in report["metrics"][f"fd_{NAME}"]["meaning"]


def test_samplers_are_paired(report: Any) -> None:
    # The same sampler under two names: the same x_T and noise, held against the same examples.
    em, twin = (report["samplers"][name]["metrics"] for name in ("em", "twin"))
    assert em == twin


def test_report_json_says_where_its_numbers_come_from(report: Any) -> None:
    assert report["seed"] == 0 and report["config"]["sde"]["name"] == "vp"
    assert {"jax", "flax", "diffrax", "numpy", "scikit-learn"} <= set(report["versions"])
    assert report["device"] and report["git_commit"] and report["date"].startswith("20")
    assert report["protocol"]["compared"] == 250 and report["checkpoint_step"] == 200


def test_a_reduced_report_says_so_in_both_files(written: tuple[Path, Any], report: Any) -> None:
    text = Page(written[0].read_text()).text
    for words in ("Fewer samples", "One sample seed", "250 are compared", "20 of the 100 held-out"):
        assert words in " ".join(report["notes"])
        assert words in text


def test_bits_per_dim_of_the_exact_score(report: Any) -> None:
    # -log2 p(x) per dimension, and log2(17/2) for the bins of width 2/17, of the dequantised pictures.
    likelihood = report["likelihood"]
    draws = [Scaling(17).to_model(pictures()[0][500:520], jax.random.key(i)) for i in range(200)]
    nats = np.array([float(LAW.at(VP(), VP().t_min).log_prob(x).mean()) for x in draws])
    exact = -nats.mean() / (16 * np.log(2)) + np.log2(17 / 2)
    assert likelihood["unit"] == "bits/dim" and likelihood["n"] == 20
    assert likelihood["se_probes"] < 0.05
    spread = float(nats.std()) / (16 * np.log(2))  # of one draw of the dequantisation
    assert abs(likelihood["mean"] - exact) < 4 * np.hypot(likelihood["se_probes"], spread) + 2e-3


def test_every_picture_of_the_report_is_a_file_and_in_the_page(written: tuple[Path, Any], report: Any) -> None:
    embedded = {
        base64.b64decode(src.removeprefix("data:image/png;base64,")) for src in Page(written[0].read_text()).loads
    }
    files = [figure["file"] for figure in report["figures"]]
    assert {"quality.png", "samples_em.png", "strip_twin.png", "likelihood.png", "loss.png"} <= set(files)
    for name in files:
        content = (written[0].parent / name).read_bytes()
        assert content in embedded
        picture = np.asarray(Image.open(io.BytesIO(content)).convert("L"))
        assert min(picture.shape) > 90 and len(np.unique(picture)) > 10  # not an empty frame


def test_the_page_loads_nothing(written: tuple[Path, Any]) -> None:
    text = written[0].read_text()
    page = Page(text)
    assert page.loads and all(load.startswith("data:image/png;base64,") for load in page.loads)
    assert not {"link", "iframe", "object", "base"} & set(page.tags) and page.tags.count("script") == 1
    assert not any(
        word in text for word in ("@import", "url(", "fetch", "XMLHttpRequest", "WebSocket", "http:", "https:")
    )
    assert "prefers-color-scheme: dark" in text


def test_the_script_adds_to_a_page_that_is_whole_without_it(written: tuple[Path, Any], figures: list[Figure]) -> None:
    text, run = written[0].read_text(), run_of(written[0].parent.parent)
    document = document_of(run, written[1].report, [dataclasses.replace(figure, places=None) for figure in figures])
    script = re.compile(r"<script>.*</script>", re.DOTALL)
    without = script.sub("", re.sub(r' data-(?:bars|frames)="[^"]*"', "", text))
    date = re.compile(r"20\d\d-\d\d-\d\dT[\d:+]*")
    assert date.sub("", without) == date.sub("", script.sub("", html_page(document)))
    assert len(text) < len(without) + 12_000 and len(text) < 1.05 * len(without)


def test_each_bar_is_told_with_its_numbers_in_the_order_of_its_places(figures: list[Figure], report: Any) -> None:
    places = next(figure.places for figure in figures if figure.section == "quality")
    assert places is not None and places.kind == "bars"
    quality = [key for key, metric in report["metrics"].items() if metric["kind"] == "quality"]
    keys = [(key, name) for key in quality for name in report["samplers"]]
    for text, (key, name) in zip(places.texts, keys, strict=True):
        mean, floor = report["samplers"][name]["metrics"][key]["mean"], report["floors"][key]
        assert text.startswith(f"{name}, 51 NFE: {report['metrics'][key]['label']} {number(mean)}; ")
        assert text.endswith(f"floor {plus_minus(floor['mean'], floor['sd'])}")
    assert len(places.wide) == len(places.narrow) == len(keys)


@pytest.mark.parametrize("narrow", [False, True])
def test_bars_are_at_their_places(narrow: bool) -> None:
    means = {"m": {"em": 0.2, "ode": 0.4}, "k": {"em": 0.5, "ode": 0.1}}
    metrics = {key: SimpleNamespace(label=key, origin=0.0) for key in means}
    none = SimpleNamespace(mean=None, sd=None, values=[])
    samplers = {
        name: SimpleNamespace(
            nfe=10.0, metrics={key: SimpleNamespace(mean=means[key][name], sd=None, values=[]) for key in means}
        )
        for name in ("em", "ode")
    }
    picture = report_plots.quality_bars(samplers, metrics, dict.fromkeys(metrics, none), narrow=narrow)
    shown = np.asarray(Image.open(io.BytesIO(picture)).convert("RGB")).astype(int)
    bluer = shown[..., 2] - shown[..., 0]
    heights = []
    for ((left, top, width, height),), sign in zip(picture.places, (1, -1, 1, -1), strict=True):  # blue, then orange
        part = sign * bluer[top : top + height, left + 2 : left + width - 2]
        heights.append((part > 60).sum(axis=0).mean())
        assert (sign * bluer[top : top + height, left - 3] < 60).all()
    np.testing.assert_allclose(heights[0] / heights[1], 0.5, atol=0.02)
    np.testing.assert_allclose(heights[3] / heights[2], 0.2, atol=0.02)


@pytest.mark.parametrize("narrow", [False, True])
def test_each_frame_of_a_strip_is_at_its_place(narrow: bool) -> None:
    frames = np.random.default_rng(0).uniform(-1, 1, (9, 5, 4, 6, 1))
    grey = (frames + 1) * 127.5
    picture = denoising_strip(frames, [(1.0, 1.0)] * 9, narrow=narrow)
    shown = np.asarray(Image.open(io.BytesIO(picture)).convert("L")).astype(int)
    for boxes, images in zip(picture.places, grey, strict=True):
        for (left, top, width, height), image in zip(boxes, images[..., 0], strict=True):
            rows, columns = (np.arange(4) + 0.5) * height / 4, (np.arange(6) + 0.5) * width / 6
            seen = shown[top + rows.astype(int)][:, left + columns.astype(int)]
            np.testing.assert_allclose(seen, image, atol=2.5)


def test_each_cloud_and_each_series_of_a_strip_is_at_its_place() -> None:
    corner = np.array([[0.9, 0.9], [-0.9, 0.9], [-0.9, -0.9], [0.9, -0.9]])
    picture = denoising_strip(corner[:, None], [(1.0, 1.0)] * 4)
    shown = np.asarray(Image.open(io.BytesIO(picture)).convert("RGB")).astype(int)
    for ((left, top, width, height),), (x, y) in zip(picture.places, corner, strict=True):
        part = shown[top : top + height, left : left + width]
        row, column = np.argwhere(part[..., 2] - part[..., 0] > 60).mean(axis=0)
        assert (column > width / 2) == (x > 0) and (row < height / 2) == (y > 0)
    low_and_high = np.repeat([-1.0, 1.0, 1.0, -1.0], 8).reshape(2, 2, 8, 1)
    picture = denoising_strip(low_and_high, [(1.0, 1.0)] * 2)
    shown = np.asarray(Image.open(io.BytesIO(picture)).convert("RGB")).astype(int)
    for boxes, level in zip(picture.places, low_and_high[:, :, 0, 0], strict=True):
        for (left, top, width, height), value in zip(boxes, level, strict=True):
            part = shown[top : top + height, left : left + width]
            row = np.argwhere(part[..., 2] - part[..., 0] > 60)[:, 0].mean()
            assert (row < height / 2) == (value > 0)


def test_names_are_escaped(written: tuple[Path, Any]) -> None:
    page = Page(written[0].read_text())
    assert "b" not in page.tags
    assert NAME in page.text and f"fd_{NAME}" in page.text


def test_the_page_says_what_the_likelihood_is_not(written: tuple[Path, Any]) -> None:
    assert "never read it as the likelihood" in Page(written[0].read_text()).text


def test_text_table_has_each_sampler_and_the_floor_and_fits_a_terminal(written: tuple[Path, Any]) -> None:
    text = text_table(written[1].report)
    assert max(map(len, text.splitlines())) <= 100
    header, nfe = text.splitlines()[:2]  # too wide, so turned on its side
    assert header.split() == ["sampler", "em", "twin", "noise", "floor"] and nfe.split() == ["NFE", "51", "51"]
    assert "bits/dim" in text


@pytest.mark.parametrize(
    ("mean", "sd", "text"),
    [
        (0.61234, 0.0123, "0.612 ± 0.012"),
        (123.4, 5.6, "123.4 ± 5.6"),
        (0.5, None, "0.500"),
        (None, None, "–"),
        (-0.00003, 0.002, "0.0000 ± 0.0020"),
    ],
)
def test_means_have_the_digits_of_their_spread(mean: Any, sd: Any, text: str) -> None:
    assert plus_minus(mean, sd) == text


@pytest.mark.parametrize(
    ("value", "text"), [(501.0, "501"), (122.4, "122"), (1.0, "1.00"), (0.01234, "0.0123"), (0.0, "0.00")]
)
def test_numbers_have_three_digits(value: float, text: str) -> None:
    assert number(value) == text


def test_outside_is_above_for_quality_and_either_way_for_memorisation() -> None:
    assert outside(2.1, "quality") and not outside(-9.0, "quality")
    assert outside(-9.0, "memorisation") and not outside(None, "quality")


def test_tiles_are_in_reading_order() -> None:
    images = np.arange(5, dtype=np.uint8).reshape(5, 1, 1, 1).repeat(2, axis=1).repeat(2, axis=2)
    board = plots.tile(images, columns=3, gap=1, ground=99)[..., 0]
    assert board.shape == (7, 10)
    np.testing.assert_array_equal(board[1, [1, 4, 7]], [0, 1, 2])
    np.testing.assert_array_equal(board[4, [1, 4, 7]], [3, 4, 99])
    assert (board[3] == 99).all()


@pytest.mark.parametrize("channels", [1, 3])
def test_grid_shows_the_pixels_that_it_is_given(channels: int) -> None:
    images = np.random.default_rng(0).integers(0, 256, (4, 5, 5, channels), np.uint8)
    picture = np.asarray(Image.open(io.BytesIO(plots.image_grid(images))))[..., :3]
    scale = picture.shape[0] // 13  # two rows of five pixels and three gaps
    np.testing.assert_array_equal(picture[scale::scale, scale::scale][:5, :5], np.broadcast_to(images[0], (5, 5, 3)))


def test_another_evaluation_keeps_the_report_and_the_same_one_replaces_it(written: tuple[Path, Any]) -> None:
    path, evaluation = written
    run, folder = run_of(path.parent.parent), path.parent
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    assert write_report(run, evaluation, folder)[1] == []  # the same settings
    protocol = dataclasses.replace(evaluation.report.protocol, n=64)
    other = dataclasses.replace(evaluation, report=dataclasses.replace(evaluation.report, protocol=protocol))
    (line,) = write_report(run, other, folder)[1]
    kept = folder.with_name("report_n300_seeds1_seed0_step200")
    assert line == f"{folder / 'report.json'} was of other settings: it is kept as {kept / 'report.json'}"
    assert {file.name for file in kept.iterdir()} == set(before)
    assert json.loads((kept / "report.json").read_text())["protocol"]["n"] == 300
    assert json.loads((folder / "report.json").read_text())["protocol"]["n"] == 64
    (folder / "report.json").write_text("{")  # damaged: nobody knows what it was
    (line,) = write_report(run, evaluation, folder)[1]
    assert line.endswith(str(folder.with_name("report_earlier") / "report.json"))


@pytest.mark.parametrize("name", ["$x$ and $y", r"$\frac", "a$b", "<i>&\"'"])
def test_a_name_with_marks_of_mathematics_is_drawn_as_it_is(name: str) -> None:
    metrics = {"m": SimpleNamespace(label=f"fd_{name}", origin=0.0)}
    value = SimpleNamespace(mean=0.5, sd=0.1, values=[0.4, 0.6])
    sampler = SimpleNamespace(nfe=10.0, metrics={"m": value})
    assert report_plots.quality_bars({"em": sampler}, metrics, {"m": value})


def test_a_set_whose_path_is_no_text_has_a_name_that_is(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"set\xff.npz")
    np.savez(path, x=np.arange(8.0).reshape(4, 2))
    assert load_dataset("", str(path)).name == r"set\udcff"
    write_text(tmp_path / "page.html", f"<p>{path}</p>")
    assert r"set\udcff.npz" in (tmp_path / "page.html").read_text()


@pytest.mark.parametrize("narrow", [False, True])
def test_no_picture_is_cut_at_its_edges(narrow: bool) -> None:
    rng = np.random.default_rng(0)
    metrics = {f"m{i}": SimpleNamespace(label="a long name of a metric", origin=0.0) for i in range(5)}
    floor = SimpleNamespace(mean=0.1, sd=0.01, values=[0.1])

    def point(nfe: float, mean: float) -> Any:
        return SimpleNamespace(
            nfe=nfe, metrics=dict.fromkeys(metrics, SimpleNamespace(mean=mean, sd=0.02, values=[mean]))
        )

    curves = {"em": SimpleNamespace(points=[point(11.0, 0.61), point(21.0, 0.58)])}
    guided = [SimpleNamespace(scale=g, distance=floor, obeyed=0.9 + 0.01 * g) for g in (1.0, 5.0)]
    by_kind = SimpleNamespace(points={"SDE": guided, "ODE": guided}, floor=floor, recognised=0.97)
    times = [(1 - 0.12 * i, 50 * 0.3**i) for i in range(9)]
    pictures = [
        denoising_strip(rng.uniform(-1, 1, (9, 5, 8, 8, 1)), times, narrow=narrow),
        denoising_strip(rng.normal(size=(9, 50, 2)), times, narrow=narrow),
        report_plots.quality_curves(curves, metrics, dict.fromkeys(metrics, floor), narrow=narrow),
        report_plots.guidance_curves(by_kind, narrow=narrow),
        report_plots.quality_bars({"em": point(11.0, 0.3)}, metrics, dict.fromkeys(metrics, floor), narrow=narrow),
    ]
    for png in pictures:
        shown = np.asarray(Image.open(io.BytesIO(png)).convert("L"))
        edges = np.concatenate([shown[:3].ravel(), shown[-3:].ravel(), shown[:, :2].ravel(), shown[:, -2:].ravel()])
        assert edges.min() > 200
        assert shown.shape[1] <= (810 if narrow else 1420)


def test_the_budgets_are_whole_numbers_that_do_not_touch() -> None:
    axes = matplotlib_figure.Figure().subplots()
    report_plots._calls_axis(axes, [11.0, 21.0, 22.0, 110.0, 1001.0])
    assert [label.get_text() for label in axes.get_xticklabels()] == ["1,001", "110", "22", "11"]
    axes = matplotlib_figure.Figure().subplots()
    axes.plot([1, 2], [0.58, 0.61])
    report_plots._log_axis(axes)
    axes.figure.savefig(io.BytesIO())
    texts = [label.get_text() for label in axes.get_yticklabels()]
    assert 3 <= len(texts) <= 7 and all("10^" not in text and float(text) for text in texts)


def test_what_a_run_and_its_command_are_called_is_text(written: tuple[Path, Any]) -> None:
    path, evaluation = written
    marked = "<i onload='x'>&\"</i>"
    report = dataclasses.replace(evaluation.report, samplers={marked: evaluation.report.samplers["em"]}, notes=[marked])
    document = dataclasses.replace(
        document_of(run_of(path.parent.parent), report, [Figure("a.png", "quality", marked, b"", narrow=b"x")]),
        title=marked,
        command=marked,
        workdir=marked,
        config={"seed": marked, "data": {"path": marked}},
    )
    page = Page(html_page(document))
    assert "i" not in page.tags and page.text.count(marked) > 6
