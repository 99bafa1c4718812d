"""The evaluation, through the door that networks take, on exact scores: what is right is within its floor, what is
wrong is not.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from experiment.build.samplers import make_sampler
from experiment.common.errors import UserError
from experiment.config import whole_config
from experiment.data.dataset import Dataset, Split, some_of
from experiment.data.scaling import Scaling
from experiment.devices.hosts import Place
from experiment.evaluation import likelihood as likelihood_module
from experiment.evaluation.curves import nfe_inside
from experiment.evaluation.drawing import Kept
from experiment.evaluation.evaluate import Asked, Evaluation, evaluate
from experiment.evaluation.fid import FidSettings
from experiment.evaluation.likelihood import LikelihoodSettings, likelihood, likelihood_unit, se_probes
from experiment.evaluation.points import Point, points_at, read_budgets
from experiment.evaluation.results import CurvePoint, Floor, MetricDescription, Report, Value, plain
from experiment.evaluation.settings import Settings
from experiment.plots import evaluation as report_plots
from experiment.report.tables import text_table
from experiment.run import samples as run_samples
from experiment.run.load import load_run
from experiment.run.samples import draw_to_files, write_samples
from experiment.run.sampling import draw, draw_rows, padded
from sde_lib import VP, EulerMaruyama, ExactScore, ProbabilityFlow
from sde_lib import sample as draw_samples
from sde_lib.samplers import DDIM, DPMSolverPP3M, Heun, UniPC
from tests.commands import ROOT, Command, trained
from tests.oracles import two_peaks

EM = EulerMaruyama(steps=150, denoise=True)
CONFIG = whole_config({})
LAW = two_peaks(distance=0.5)  # peaks that overlap: the chance in their weights would hide a wrong width
QUALITY = ("sliced_w2", "energy", "auc", "auc_mlp", "nll_gap", "mode_weights")


@dataclass(frozen=True)
class Stretched:
    """Another sampler's samples, stretched: their standard deviation is off by the factor."""

    inner: Any
    factor: float

    def run(self, *arguments: Any) -> Any:
        samples = self.inner.run(*arguments)
        return samples._replace(x=self.factor * samples.x)


@dataclass(frozen=True)
class Copier:
    """Draws training examples, as a network that has memorised them does."""

    train: Any

    def run(self, score_fn: Any, x: Any, keys: Any, cond: Any, frames: int) -> Any:
        samples = EulerMaruyama(steps=8).run(score_fn, x, keys, cond, frames)
        index = jax.vmap(lambda key: jax.random.randint(key, (), 0, len(self.train)))(keys)
        return samples._replace(x=self.train[index])


@pytest.fixture(scope="module")
def mixture() -> Any:
    """A run whose score is the exact one of its data."""
    x = np.asarray(LAW.sample(jax.random.key(9), 3300))
    return SimpleNamespace(
        config=whole_config({}),
        dataset=Dataset("mixture", Split(x[:3000]), Split(x[3000:]), None, distribution=LAW),
        score_fn=ExactScore(LAW, VP()),
        scaling=Scaling(None),
        shape=(2,),
        workdir=Path("unused"),
        step=7,
    )


@pytest.fixture(scope="module")
def report(mixture: Any) -> Report:
    samplers = {
        "em": EM,
        "ode": ProbabilityFlow(denoise=True),
        "stretched": Stretched(EM, 1.1),
        "copier": Copier(jnp.asarray(mixture.dataset.train.x)),
    }
    settings = Settings.from_config(CONFIG, n=600, seeds=2, batch_size=400, likelihood_n=60, probes=2)
    return evaluate(mixture, samplers, settings).report


@pytest.mark.parametrize("sampler", ["em", "ode"])
@pytest.mark.parametrize("metric", QUALITY)
def test_exact_scores_are_within_every_floor(report: Report, sampler: str, metric: str) -> None:
    assert report.samplers[sampler].metrics[metric].excess < 2


def test_a_standard_deviation_off_by_a_tenth_is_outside_its_floor(report: Report) -> None:
    # Not outside that of the energy distance, which sees means far better than widths.
    assert report.samplers["stretched"].metrics["sliced_w2"].excess > 3


def test_memorised_samples_are_flagged_and_others_are_not(report: Report) -> None:
    copies = report.samplers["copier"].metrics
    assert copies["nn_ratio"].mean == 0 and copies["nn_ratio"].excess < -5
    assert copies["nn_close"].mean == 1
    assert copies["auc"].excess < 2  # the quality metrics cannot know
    assert abs(report.samplers["em"].metrics["nn_ratio"].excess) < 2


def test_seeds_differ(report: Report) -> None:
    assert len(set(report.samplers["em"].metrics["sliced_w2"].values)) == 2


def test_costs_are_those_of_the_samplers(report: Report, mixture: Any) -> None:
    assert report.samplers["em"].nfe == 151
    assert 50 < report.samplers["ode"].nfe < 1000
    assert all(d.seconds > 0 and d.compile_seconds >= 0 for d in report.samplers.values())
    settings = {"class": "EulerMaruyama", "steps": 150, "grid": "UniformT", "denoise": True, "eta": 1.0}
    assert report.samplers["em"].settings == settings


def test_floors_say_their_size_and_notes_what_is_missing(report: Report) -> None:
    assert report.protocol.compared == report.floors["auc"].size == 600
    assert report.floors["nn_ratio"].size == 150
    notes = " ".join(report.notes)
    assert "2 sample seeds" in notes and "60 of the 300" in notes
    assert "Fewer samples" in notes and "are compared" not in notes
    assert "vectors" in report.left_out["fd_mixture"]


def test_likelihood_of_vectors_is_the_exact_one(report: Report, mixture: Any) -> None:
    # Along the axis on which the peaks lie the Jacobian is diagonal, so that Rademacher probes are exact.
    x = mixture.dataset.test.x[some_of(60, 300)]
    exact = LAW.at(VP(), VP().t_min).log_prob(jnp.asarray(x))
    assert report.likelihood.unit == "nats"
    assert report.likelihood.mean == pytest.approx(float(exact.mean()), abs=3e-3)
    assert report.likelihood.se_images == pytest.approx(float(exact.std(ddof=1)) / 60**0.5, rel=1e-2)
    assert report.likelihood.se_probes < 1e-4


@pytest.fixture(scope="module")
def curves(mixture: Any) -> Evaluation:
    samplers = {"ddim": DDIM(denoise=True), "unipc": UniPC(denoise=True), "ode": ProbabilityFlow(denoise=True)}
    return evaluate(
        mixture,
        samplers,
        Settings.from_config(CONFIG, n=600, seeds=2, batch_size=600, likelihood_n=10, probes=1),
        budgets=(32, 4),
    )


def test_curves_say_from_which_nfe_a_sampler_is_inside_its_floor(curves: Evaluation) -> None:
    found = curves.report.curves
    assert [point.nfe for point in found["ddim"].points] == [5, 33]  # the final denoising counts
    assert [point.budget for point in found["ddim"].points] == [4, 32]
    assert len(found["ode"].points) == 1 and found["ode"].points[0].budget is None
    # Four steps of DDIM are far too wide; UniPC's thirty-two are not to be told from the distribution.
    assert found["ddim"].points[0].metrics["sliced_w2"].excess > 5
    assert found["unipc"].points[1].metrics["sliced_w2"].excess < 2
    assert found["unipc"].inside["sliced_w2"] in (5, 33) and found["ddim"].inside["sliced_w2"] in (33, None)
    assert all(set(curve.inside) == set(QUALITY) for curve in found.values())
    assert list(curves.report.samplers) == ["ddim", "unipc", "ode"]


def test_the_report_is_of_each_sampler_at_its_largest_budget(curves: Evaluation) -> None:
    for name, sampler in curves.report.samplers.items():
        last = curves.report.curves[name].points[-1]
        assert (sampler.nfe, sampler.metrics) == (last.nfe, last.metrics)
    assert curves.report.samplers["unipc"].nfe == 33 and curves.report.samplers["unipc"].settings["steps"] == 32
    one, many = curves.report.curves["ddim"].points
    assert one.metrics["sliced_w2"].mean > many.metrics["sliced_w2"].mean


def test_a_single_budget_is_told_too(mixture: Any) -> None:
    few = Settings.from_config(CONFIG, n=20, seeds=1, likelihood_n=2, probes=1, rtol=1e-2, atol=1e-2)
    (point,) = evaluate(mixture, {"ddim": DDIM(denoise=True)}, few, budgets=(4,)).report.curves["ddim"].points
    assert (point.budget, point.nfe) == (4, 5)


@pytest.mark.parametrize(
    ("excesses", "inside"),
    [
        ([9.0, 1.9, -3.0], 20),
        ([1.0, 2.1, 0.5], 40),  # outside again at a larger budget
        ([1.0, 0.0, 2.1], None),
        ([2.0, 2.0, 2.0], 10),  # the edge is inside
        ([0.0, None, 0.0], 40),  # not known to be inside
        ([0.0, 0.0, None], None),
    ],
)
def test_inside_is_from_the_nfe_after_which_the_excess_stays_within_two(excesses: Any, inside: float | None) -> None:
    values = [Value(None, None, [], excess) for excess in excesses]
    points = [CurvePoint(nfe, float(nfe), {"m": value}) for nfe, value in zip((10, 20, 40), values, strict=True)]
    assert nfe_inside(points, "m") == inside


def test_points_are_one_list_with_the_budgets_of_a_name_rising() -> None:
    ddim, ode = DDIM(denoise=True), ProbabilityFlow()
    found = points_at({"ddim": ddim, "ode": ode}, (32, 4, 32))
    assert found == [
        Point("ddim", 4, DDIM(steps=4, denoise=True)),
        Point("ddim", 32, DDIM(steps=32, denoise=True)),
        Point("ode", None, ode),
    ]
    assert [str(point) for point in found] == ["ddim at 4", "ddim at 32", "ode"]
    assert points_at({"ddim": ddim}, ()) == [Point("ddim", None, ddim)]


def test_curves_hold_each_budget_against_the_fine_solution_of_the_first_seed(curves: Evaluation) -> None:
    exact = curves.report.exact
    assert [row.nfe for row in exact.samplers["ddim"]] == [5, 33] and exact.score_error < 1e-5
    for row in exact.samplers["ddim"]:  # the score is the exact one, and the latents are the same
        assert row.total == pytest.approx(row.discretisation, rel=1e-3) and row.total > 1e-3


def test_curves_are_told_and_drawn(curves: Evaluation, tmp_path: Path) -> None:
    text = text_table(curves.report)
    assert "ddim, NFE from which it is within the floor's mean + 2 sd: sliced Wasserstein-2" in text
    metrics = {name: m for name, m in curves.report.metrics.items() if m.kind == "quality"}
    (tmp_path / "curves.png").write_bytes(
        report_plots.quality_curves(curves.report.curves, metrics, curves.report.floors)
    )
    assert np.std(Image.open(tmp_path / "curves.png").convert("L")) > 10


def test_budgets_that_cannot_be_spent_are_refused_before_anything_is_drawn(mixture: Any) -> None:
    with pytest.raises(UserError, match="--nfe=9: Heun cannot spend 10"):
        evaluate(mixture, {"heun": Heun(denoise=True)}, budgets=(9,))
    with pytest.raises(UserError, match="--nfe=2: DPMSolverPP3M cannot spend"):
        evaluate(mixture, {"3m": DPMSolverPP3M()}, budgets=(2,))
    with pytest.raises(UserError, match="--nfe is 0: give at least 1"):
        evaluate(mixture, {"ddim": DDIM()}, budgets=(0, 4))
    with pytest.raises(UserError, match="--nfe: ode choose their own steps: leave it out"):
        points_at({"ode": ProbabilityFlow()}, (4,))
    with pytest.raises(UserError, match="--nfe=4,x: give whole numbers"):
        read_budgets(["4", "x"])


def test_every_example_is_counted_once_whatever_the_batch(mixture: Any) -> None:
    settings = LikelihoodSettings.from_config(
        CONFIG, n=60, probes=1, batch_size=25
    )  # 25, 25, 10: the last batch is padded
    summary, values, _ = likelihood(mixture, settings, budget=False)
    exact = LAW.at(VP(), VP().t_min).log_prob(jnp.asarray(mixture.dataset.test.x[some_of(60, 300)]))
    np.testing.assert_allclose(values, exact, atol=3e-2)
    assert summary.n == len(values) == 60
    assert summary.se_probes is None


def test_draws_do_not_depend_on_the_batch(mixture: Any) -> None:
    key = jax.random.key(3)
    together = draw(mixture, EM, key, 50, 50, "")
    apart = draw(mixture, EM, key, 50, 16, "")
    np.testing.assert_allclose(apart.x, together.x, atol=1e-5)
    assert apart.nfe == together.nfe == 151
    assert len(apart.batch_seconds) == 4


def test_padding_repeats_the_last_row() -> None:
    np.testing.assert_array_equal(padded(np.array([4, 5]), 4), [4, 5, 5, 5])


@pytest.mark.parametrize(("levels", "bits"), [(2, 1.0), (256, 8.0), (17, np.log2(17))])
def test_bits_per_dim_of_uniform_noise(levels: int, bits: float) -> None:
    # The uniform density on [-1, 1]^d is 2^-d, and a fair L-sided die costs log2 L bits.
    unit, convert = likelihood_unit(6, Scaling(levels).bin_width)
    assert unit == "bits/dim"
    log_q = -6 * np.log(Scaling(levels).bin_width)
    assert convert(np.array(-6 * np.log(2)) - log_q) == pytest.approx(bits)


@pytest.mark.parametrize("probes", [2, 4])
def test_the_standard_error_over_probes_is_that_of_repeated_probes(probes: int) -> None:
    rng = np.random.default_rng(0)
    means, within = 2.0 * rng.standard_normal((200, 1)), 0.5
    repeated = [np.mean(means + within * rng.standard_normal((200, probes))) for _ in range(300)]
    found = se_probes(means + within * rng.standard_normal((200, probes)))
    assert found == pytest.approx(np.std(repeated), rel=0.2)
    assert se_probes(means) is None


def test_a_solver_that_gives_up_is_told_with_its_remedy(mixture: Any) -> None:
    with pytest.raises(UserError, match=r"max_steps=3.*config\.sample\.rtol"):
        draw(mixture, ProbabilityFlow(max_steps=3), jax.random.key(0), 20, 20, "")


def test_samples_that_are_not_finite_are_told(mixture: Any) -> None:
    with pytest.raises(UserError, match="not finite"):
        evaluate(mixture, {"em": Stretched(EM, np.inf)}, Settings.from_config(CONFIG, n=50, seeds=1, batch_size=50))


@pytest.mark.parametrize("setting", ["n", "seeds", "likelihood_n", "probes"])
def test_settings_out_of_range_are_named(setting: str) -> None:
    with pytest.raises(UserError, match=f"--{setting} is 0"):
        Settings.from_config(CONFIG, **{setting: 0})
    with pytest.raises(UserError, match=f"--{setting} is 0"):
        Settings.check({setting: 0})  # as it is told before a run is loaded


def test_too_little_data_to_compare_with(mixture: Any) -> None:
    small = Dataset("tiny", Split(mixture.dataset.train.x[:15]), mixture.dataset.test, None)
    run = SimpleNamespace(**{**vars(mixture), "dataset": small})
    undrawn: Any = SimpleNamespace()  # has no run(): said before anything is drawn
    with pytest.raises(UserError, match="15 examples"):
        evaluate(run, {"em": undrawn}, Settings.from_config(CONFIG, n=20, seeds=1, batch_size=20))
    run.dataset = Dataset("tiny", mixture.dataset.train, Split(mixture.dataset.test.x[:1]), None)
    with pytest.raises(UserError, match=r"1 example\(s\)"):
        evaluate(run, {"em": undrawn}, Settings.from_config(CONFIG, n=20, seeds=1, batch_size=20))


def test_settings_are_the_config_s_but_for_those_that_are_given() -> None:
    config = whole_config({"eval": {"n": 77, "seed": 5, "rtol": 0.5, "probes": 9}})
    found = Settings.from_config(config, seeds=2, seed=None)
    assert (found.n, found.seeds, found.seed, found.rtol, found.atol) == (77, 2, 5, 0.5, CONFIG.eval.atol)
    of_likelihood = LikelihoodSettings.from_config(config, k=3)
    assert (of_likelihood.n, of_likelihood.probes, of_likelihood.k) == (None, 9, 3)  # eval.n counts samples


@pytest.mark.parametrize("kind", [Settings, LikelihoodSettings, FidSettings])
@pytest.mark.parametrize("seed", [-1, 2**32, 10**30])
def test_seeds_have_one_range(kind: Any, seed: int) -> None:
    with pytest.raises(UserError, match=r"--seed is .*: give an integer from 0 to 2\^32 - 1"):
        kind.from_config(CONFIG, seed=seed, **({"weights": "w"} if kind is FidSettings else {}))


def test_the_last_of_the_seeds_is_in_their_range_too() -> None:
    Settings.from_config(CONFIG, seed=2**32 - 3, seeds=3)
    with pytest.raises(UserError, match=r"--seeds=3 is beyond 2\^32 - 1: give a smaller --seed"):
        Settings.from_config(CONFIG, seed=2**32 - 2, seeds=3)


@pytest.mark.parametrize(
    "kind, name",
    [(Settings, name) for name in ("n", "seeds", "likelihood_n", "probes")]
    + [(LikelihoodSettings, name) for name in ("n", "probes", "k", "chain")]
    + [(FidSettings, "n")],
)
def test_numbers_that_no_machine_can_hold_are_told(kind: Any, name: str) -> None:
    beside = {"weights": "w"} if kind is FidSettings else {}
    for value in (10**12, 10**30, 10**4000):
        with pytest.raises(UserError, match=rf"--{name} is .*: give at most ") as error:
            kind.from_config(CONFIG, **{name: value}, **beside)
        assert len(str(error.value)) < 200


def test_plain_values_are_what_json_knows() -> None:
    given = {"a": np.float32(1.5), "b": (np.int64(2), float("nan")), "c": np.array([np.inf, 1.0]), 3: None}
    assert plain(given) == {"a": 1.5, "b": [2, None], "c": [None, 1.0], "3": None}
    assert plain(MetricDescription("quality", "a", "b")) == {"kind": "quality", "label": "a", "meaning": "b"}
    assert plain({"f": Floor(None, np.float64(2), [], 3)}) == {"f": {"mean": None, "sd": 2.0, "values": [], "size": 3}}


def test_files_of_images_are_grey_values(tmp_path: Path) -> None:
    run = SimpleNamespace(scaling=Scaling(17))
    levels = np.arange(3 * 16).reshape(3, 4, 4, 1) % 17
    write_samples(run, np.asarray(Scaling(17).to_model(levels)), tmp_path / "new" / "folder")
    with np.load(tmp_path / "new" / "folder" / "samples.npz") as saved:
        x = saved["arr_0"]
    assert x.dtype == np.uint8
    np.testing.assert_array_equal(x, np.rint(levels * 255 / 16))
    picture = np.asarray(Image.open(tmp_path / "new" / "folder" / "grid.png").convert("L"))
    assert set(np.unique(picture)) == {*np.unique(x), 96}  # the levels and the ground between, unblurred
    assert not list((tmp_path / "new" / "folder").glob(".*"))


def test_files_of_vectors_are_the_vectors(tmp_path: Path) -> None:
    x = np.random.default_rng(0).standard_normal((20, 2)).astype(np.float32)
    write_samples(SimpleNamespace(scaling=Scaling(None)), x, tmp_path)
    with np.load(tmp_path / "samples.npz") as saved:
        np.testing.assert_array_equal(saved["arr_0"], x)


def test_mistakes_in_sampling(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--n is 0"):
        draw_to_files("nowhere", "em", 0)
    with pytest.raises(UserError, match="--steps is -1"):
        make_sampler("em", whole_config({}), steps=-1)
    with pytest.raises(UserError, match=r"'foo'.*em, pc, ode"):
        make_sampler("foo", whole_config({}))
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        write_samples(SimpleNamespace(scaling=Scaling(None)), np.ones((3, 2), np.float32), tmp_path / "file" / "folder")


def test_steps_given_are_the_steps_taken() -> None:
    assert make_sampler("em", whole_config({})).steps == 500
    assert make_sampler("em", whole_config({}), steps=20).steps == 20


def test_the_commands_on_a_trained_run(tmp_path: Path) -> None:
    workdir = tmp_path / "run"
    trained(workdir, train_steps=20, sample_steps=5, sample_batch_size=32)
    sample = [str(ROOT / "sample.py"), f"--workdir={workdir}", "--sampler=em"]
    done = Command(*sample, "--n=50", "--gif").wait()
    assert done.status == 0, done.err
    first, *_, last, gif = done.out.splitlines()  # on a busy machine there are lines on the way
    assert f"em: 50 samples of {workdir} at step 20" in first and "50 samples, 6 NFE" in last
    assert gif.startswith(f"{workdir / 'samples' / 'em' / 'path.gif'}: 6 frames of 50 samples, ")
    with np.load(workdir / "samples" / "em" / "samples.npz") as saved:
        drawn = saved["arr_0"]
    run = load_run(str(workdir))
    by_hand = draw_samples(EulerMaruyama(steps=5, denoise=True), run.score_fn, jax.random.key(0), 50, (2,)).x
    np.testing.assert_allclose(drawn, run.scaling.to_data(by_hand), atol=1e-5)
    assert "em, pc, ode" in Command(*sample, "--sampler=x").wait().mistake
    evaluate_py = [str(ROOT / "evaluate.py"), f"--workdir={workdir}", "--samplers=em"]
    assert "--n is 3" in Command(*evaluate_py, "--n=3").wait().mistake
    done = Command(*evaluate_py, "--n=30", "--seeds=1", "--likelihood_n=10").wait()
    assert done.status == 0, done.err
    assert done.out.splitlines()[-1] == str(workdir / "report" / "report.html")
    report = json.loads((workdir / "report" / "report.json").read_text())
    assert report["protocol"]["n"] == 30 and report["protocol"]["reference"] == "train"
    assert report["checkpoint_step"] == 20 and report["trained_with"]["versions"] == report["versions"]
    assert report["samplers"]["em"]["settings"]["steps"] == 5


def test_what_is_drawn_is_kept_for_a_killed_evaluation_and_by_another_process(
    mixture: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings.from_config(
        CONFIG, n=50, seeds=2, batch_size=20, likelihood_n=24, probes=1, rtol=1e-2, atol=1e-2
    )
    asked = Asked(mixture, {"ddim": DDIM(steps=4)}, settings, (), ())
    whole = evaluate(mixture, asked.samplers, settings)
    firsts: list[int] = []

    def killed(*given: Any, **settings: Any) -> Any:
        if len(firsts) == 4:
            raise KeyboardInterrupt
        firsts.append(given[3])
        return draw_rows(*given, **settings)

    with monkeypatch.context() as patch:
        patch.setattr(run_samples, "draw_rows", killed)
        with pytest.raises(KeyboardInterrupt):
            evaluate(mixture, asked.samplers, settings, kept=Kept(tmp_path, Place()))
    assert firsts == [0, 20, 40, 0]  # three batches of the first seed, and one of the second
    asked.share(Kept(tmp_path, Place(1, 2, "job")))  # the other process is gone: this one does all that is missing
    for module, name in ((run_samples, "draw_rows"), (likelihood_module, "solve_batch")):
        monkeypatch.setattr(module, name, None)  # nothing is left to compute
    found = evaluate(mixture, asked.samplers, settings, kept=Kept(tmp_path, Place(0, 2, "job")))
    assert found.report.samplers["ddim"].metrics == whole.report.samplers["ddim"].metrics
    assert found.report.samplers["ddim"].nfe == whole.report.samplers["ddim"].nfe
    np.testing.assert_array_equal(found.arrays.likelihood, whole.arrays.likelihood)
    np.testing.assert_array_equal(found.arrays.samples["ddim"], whole.arrays.samples["ddim"])
