"""Published weights into runs: the published networks' own numbers, what is inferred of them, and what a mistake
gets.
"""

import dataclasses
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from experiment import load_run, load_score
from experiment.common.errors import UserError
from experiment.config import load_config
from experiment.published.score_sde import import_checkpoint, parts_of
from experiment.published.score_sde_layout import options_of, published_names
from experiment.published.to_run import abstract
from experiment.run.directory import RunDirectory
from experiment.training.loop import train
from experiment.training.trainer import Trainer
from models import NCSNpp, split
from tests.commands import ROOT, Command
from tests.experiment.published.torch_writer import name, text, write_legacy_pth, write_pth, write_safetensors

GOLDEN = ROOT.parent / "shared" / "golden"
needs_golden = pytest.mark.skipif(not GOLDEN.is_dir(), reason="needs ../shared/golden")
FLAGS = (
    "sde",
    "beta_min",
    "beta_max",
    "sigma_min",
    "sigma_max",
    "image_size",
    "fir",
    "skip_rescale",
    "centered",
    "noise_label",
)

DDPM = {"resblock": "ddpm", "skip_rescale": False, "norm_groups": 32, "blocks": 2, "width": 32}
NETWORKS: dict[str, dict[str, Any]] = {
    "ddpm++": {},
    "ddpm++ deep": {"blocks": 8},
    "ddpm": DDPM,
    "ddpm++ with ddpm's blocks": {"resblock": "ddpm", "blocks": 1},
    "without convolutions between levels": {"resblock": "ddpm", "resample_with_conv": False, "blocks": 1},
    "ncsn++": {"embedding": "fourier", "fir": True, "progressive_input": "residual", "blocks": 1},
    "ncsn++ of 256 pixels": {
        "shape": (256, 256, 3),
        "channel_mults": (1, 1, 2, 2, 2, 2, 2),
        "blocks": 2,
        "embedding": "fourier",
        "fir": True,
        "progressive": "output_skip",
        "progressive_input": "input_skip",
    },
    "cat": {"fir": True, "progressive_input": "input_skip", "progressive_combine": "cat", "blocks": 1},
    "residual in, without convolutions": {
        "resblock": "ddpm",
        "resample_with_conv": False,
        "fir": True,
        "progressive_input": "residual",
        "blocks": 1,
    },
    "residual both ways": {"fir": True, "progressive": "residual", "progressive_input": "residual", "blocks": 1},
    "residual out, ddpm's blocks": {
        "resblock": "ddpm",
        "fir": True,
        "progressive": "residual",
        "progressive_input": "residual",
        "blocks": 1,
    },
    "two levels, output skips": {"channel_mults": (1, 2), "fir": True, "progressive": "output_skip", "blocks": 1},
    "two levels, a pyramid of features": {"channel_mults": (1, 2), "fir": True, "progressive": "residual", "blocks": 1},
    "one level": {"channel_mults": (1,), "attention": (), "blocks": 2},
    "attention at two levels": {"attention": (8, 16), "blocks": 2, "shape": (16, 16, 1)},
    "wide, then narrow": {"channel_mults": (4, 2, 1), "blocks": 1},
}


def options(**changed: Any) -> dict[str, Any]:
    """All options that a checkpoint shows, by their names."""
    published = {
        "shape": (32, 32, 3),
        "width": 8,
        "channel_mults": (1, 2, 2, 2),
        "blocks": 4,
        "attention": (16,),
        "embedding": "positional",
        "resblock": "biggan",
        "resample_with_conv": True,
        "fir": False,
        "skip_rescale": True,
        "norm_groups": 0,
        "progressive": "none",
        "progressive_input": "none",
        "progressive_combine": "sum",
    }
    return {**published, **changed}


def published(network: NCSNpp, given: Mapping[str, Any], params: Any) -> dict[str, np.ndarray]:
    """Our weights by their published names and in PyTorch's layout."""
    numbered = {f"all_modules.{k}.x": np.zeros(1) for k in range(1000)}
    names = published_names(network, numbered, given)
    found = {}
    for path, leaf in jax.tree.leaves_with_path(params):
        key = names[jax.tree_util.keystr(path, simple=True, separator="/")]
        array = (
            np.asarray(leaf)
            if isinstance(leaf, np.ndarray | jax.Array)
            else np.broadcast_to(np.zeros((), "f4"), leaf.shape)
        )
        if array.ndim == 4:
            array = array.transpose(3, 2, 0, 1)
        elif array.ndim == 2 and not key.endswith(".W"):
            array = array.T
            one_by_one = key.endswith("Conv_2.weight") or key.endswith("Conv_0.weight")
            array = array[:, :, None, None] if one_by_one else array
        found[key] = array
    # In the order of the list, as a state dict is.
    return dict(sorted(found.items(), key=lambda item: int(item[0].split(".")[1])))


def random_weights(
    given: Mapping[str, Any], seed: int = 0, centered: bool = True
) -> tuple[dict[str, np.ndarray], Any, Any]:
    """(published, ours, apply) of a network with random weights, none of them zero."""
    network = NCSNpp(**given, centered=centered, rngs=nnx.Rngs(seed))
    apply, shapes = split(network)
    rng = np.random.default_rng(seed)
    params = jax.tree.map(lambda leaf: (0.1 * rng.normal(size=leaf.shape)).astype("f4"), shapes)
    return published(network, given, params), params, apply


def import_with(path: Path, out: Path, **given: Any) -> str:
    return import_checkpoint(path, out, {**dict.fromkeys(FLAGS), "data_name": "cifar10", "data_path": "", **given})


def refusal(path: Path, out: Path, **given: Any) -> str:
    """The line that a mistake gets, and that it leaves no run."""
    with pytest.raises(UserError) as caught:
        import_with(path, out, **given)
    assert not (out / "config.json").exists() and "\n" not in str(caught.value)
    return str(caught.value)


# --- the published networks' numbers --------------------------------------------------------------

GOLDENS: dict[str, dict[str, Any]] = {
    "ddpmpp_nf16": {},
    "ncsnpp_nf16": {},
    "ncsnpp_output_skip_input_skip_cat_16px_nf16": {"image_size": 16},
}


def golden_weights(golden: str) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """(the state dict, the other arrays)."""
    with np.load(GOLDEN / f"{golden}.npz") as file:
        content = dict(file)
    weights = {key.removeprefix("sd/"): content.pop(key) for key in list(content) if key.startswith("sd/")}
    return weights, content


@needs_golden
@pytest.mark.parametrize("golden", GOLDENS)
def test_a_run_of_published_weights_gives_the_published_score(golden: str, tmp_path: Path) -> None:
    weights, content = golden_weights(golden)
    parallel = {f"module.{key}": value for key, value in weights.items()}
    import_with(write_pth(tmp_path / "c.pth", whole(parallel)), tmp_path / "run", **GOLDENS[golden])
    score_fn = load_score(tmp_path / "run")
    x, t = content["x_nchw"].transpose(0, 2, 3, 1), jnp.asarray(content["t"])
    score = score_fn(jnp.asarray(x), t)
    per_image = (slice(None), None, None, None)
    drift = score_fn.sde.f(t)[per_image] * x - 0.5 * score_fn.sde.g2(t)[per_image] * score
    for found, key in ((score, "score_nchw"), (drift, "pf_drift_nchw")):
        expected = content[key].transpose(0, 2, 3, 1)
        error = np.abs(found - expected).max() / np.abs(expected).max()
        assert error < 1e-5, (key, error)


@needs_golden
def test_every_form_of_a_file_gives_the_same_run(tmp_path: Path) -> None:
    golden = "ncsnpp_output_skip_input_skip_cat_16px_nf16"
    weights, _ = golden_weights(golden)
    files = [
        write_pth(tmp_path / "a.pth", whole(weights)),
        write_legacy_pth(tmp_path / "b.pth", whole(weights)),
        write_pth(tmp_path / "weights.pth", weights),
        write_safetensors(tmp_path / "c.safetensors", dict(sorted(weights.items()))),
        GOLDEN / f"{golden}.npz",  # as it is: the weights lie under sd/, beside other arrays
    ]
    runs = []
    for number, file in enumerate(files):
        import_with(file, tmp_path / f"run{number}", image_size=16)
        runs.append(load_run(tmp_path / f"run{number}"))
    for run in runs[1:]:
        jax.tree.map(np.testing.assert_array_equal, run.score_fn.params, runs[0].score_fn.params)
        assert run.config.model == runs[0].config.model and run.config.sde == runs[0].config.sde


def whole(weights: dict[str, np.ndarray], step: int = 70, moments: bool = False) -> dict[str, Any]:
    """score_sde's checkpoint: the average holds the weights, the network's own are off by 1."""
    trained = [
        key
        for key, array in weights.items()
        if not key.endswith("sigmas") and not (key.endswith(".W") and array.ndim == 1)
    ]
    model = {key: array + 1 if key in trained else array for key, array in weights.items()}
    parameters = [key for key in weights if not key.endswith("sigmas")]
    state = {
        k: {"step": step, "exp_avg": weights[key] + 2, "exp_avg_sq": weights[key] ** 2}
        for k, key in enumerate(parameters)
        if key in trained
    }
    return {
        "optimizer": {
            "state": state if moments else {},
            "param_groups": [{"lr": 2e-4, "params": list(range(len(parameters)))}],
        },
        "model": model,
        "ema": {"decay": 0.99, "num_updates": step, "shadow_params": [weights[key] for key in trained]},
        "step": step,
    }


@needs_golden
@pytest.mark.parametrize("network", ["ddpmpp", "ncsnpp"])
def test_the_names_and_shapes_of_the_full_networks(network: str) -> None:
    """state_dict keys and shapes of the CIFAR-10 networks, as the published code has them."""
    rows = [line.split("\t") for line in (GOLDEN / f"{network}_keys.txt").read_text().splitlines() if "\t(" in line]
    shapes = {row[0]: tuple(int(n) for n in re.findall(r"\d+", row[1])) for row in rows}
    weights = {key: np.broadcast_to(np.zeros((), "f4"), shape) for key, shape in shapes.items()}
    del weights["sigmas"]
    shown = options_of(weights, has_sigmas=True)
    ncsnpp = {"embedding": "fourier", "fir": True, "progressive_input": "residual"} if network == "ncsnpp" else {}
    assert shown == options(width=128, **ncsnpp)
    assert set(published_names(abstract(shown), weights, shown).values()) == set(weights)


# --- what weights show ----------------------------------------------------------------------------


@pytest.mark.parametrize("case", NETWORKS)
def test_the_network_is_known_by_its_weights(case: str) -> None:
    given = options(**NETWORKS[case])
    network = abstract(given)
    weights = published(network, given, split(network)[1])
    has_sigmas = "norm_groups" not in NETWORKS[case]
    size = 0 if 16 in given["attention"] and len(given["attention"]) == 1 else given["shape"][0]
    assert options_of(weights, has_sigmas=has_sigmas, image_size=size) == given


def test_the_average_and_the_moments_go_to_their_weights(tmp_path: Path) -> None:
    """Where shapes agree, only the order tells: each weight is different."""
    given = options(embedding="fourier", fir=True, progressive_input="residual", blocks=1)
    weights, params, _ = random_weights(given, centered=False)
    sigmas = np.geomspace(90.0, 0.01, 1000)
    path = write_pth(tmp_path / "c.pth", whole({"sigmas": sigmas, **weights}, moments=True))
    line = import_with(path, tmp_path / "run")
    assert "their average applied, step 70; ve, images 32x32, fir True, skip_rescale True" in line
    run = load_run(tmp_path / "run")
    jax.tree.map(np.testing.assert_array_equal, run.score_fn.params, params)
    assert run.config.sde.sigma_max == 90 and run.config.sde.sigma_min == 0.01
    assert (run.config.train.ema, run.step, run.config.data.centered) == (0.99, 70, False)

    dataset = dataclasses.make_dataclass("Data", ["shape", "levels", "num_classes", "units"])((32, 32, 3), 256, 0, None)
    restored = RunDirectory(tmp_path / "run").checkpoints.restore(Trainer(run.config, dataset).like, print)
    assert restored is not None
    state, _ = restored
    adam = next(
        part for part in jax.tree.leaves(state["opt_state"], is_leaf=lambda x: hasattr(x, "mu")) if hasattr(part, "mu")
    )
    frozen = {"embedding"}
    for key, ours in params.items():
        off = 0 if key in frozen else 1
        jax.tree.map(lambda found, own: np.testing.assert_array_equal(found, own + off), state["params"][key], ours)  # noqa: B023
        mu = jax.tree.map(lambda own: own + 2 if off else 0 * own, ours)  # noqa: B023
        nu = jax.tree.map(lambda own: own**2 * off, ours)  # noqa: B023
        jax.tree.map(np.testing.assert_array_equal, adam.mu[key], mu)
        jax.tree.map(np.testing.assert_array_equal, adam.nu[key], nu)
    assert adam.count == 70


def test_an_imported_run_trains_on(tmp_path: Path) -> None:
    weights, _, _ = random_weights(options(shape=(4, 4, 3), channel_mults=(1,), blocks=1, attention=()))
    np.savez(tmp_path / "data.npz", np.random.default_rng(0).integers(0, 256, (32, 4, 4, 3), dtype=np.uint8))
    path = write_pth(tmp_path / "c.pth", whole({"sigmas": np.geomspace(50, 0.01, 10), **weights}, moments=True))
    import_with(path, tmp_path / "run", image_size=4, data_path=str(tmp_path / "data.npz"))
    before = load_run(tmp_path / "run")
    config, _ = load_config(tmp_path / "run" / "config.json")
    with config.unlocked():
        config.train.steps = 72
    assert train(config, tmp_path / "run") == 0
    after = load_run(tmp_path / "run")
    assert (before.step, after.step) == (70, 72)
    moved = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), before.score_fn.params, after.score_fn.params)
    assert 0 < max(jax.tree.leaves(moved))


FLAGGED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "vp": (
        {},
        {
            "sde.name": "vp",
            "model.parameterization": "raw_eps",
            "model.noise_label": "time",
            "data.centered": True,
            "train.ema": 0.9999,
            "sample.snr": 0.01,
            "train.lr": 2e-4,
        },
    ),
    "subvp": (
        {"sde": "subvp", "beta_max": 10.0},
        {"sde.name": "subvp", "sde.beta_max": 10.0, "model.noise_label": "time", "sample.snr": 0.01},
    ),
    "discrete ve": (
        {"sde": "ve", "sigma_max": 90.0},
        {
            "model.parameterization": "raw_score",
            "model.noise_label": "reversed_time",
            "data.centered": False,
            "sde.sigma_max": 90.0,
            "sample.snr": 0.16,
        },
    ),
    "by hand": (
        {"fir": True, "skip_rescale": False, "noise_label": "chain", "centered": False},
        {"model.fir": True, "model.skip_rescale": False, "model.noise_label": "chain", "data.centered": False},
    ),
}


@pytest.mark.parametrize("case", FLAGGED)
def test_flags_say_what_weights_cannot(case: str, tmp_path: Path) -> None:
    given, expected = FLAGGED[case]
    weights, _, _ = random_weights(options(channel_mults=(1, 1), blocks=1))
    np.savez(tmp_path / "c.npz", **weights, sigmas=np.geomspace(50, 0.01, 10))
    import_with(tmp_path / "c.npz", tmp_path / "run", **given)
    config = load_run(tmp_path / "run").config
    for key, value in expected.items():
        section, _, last = key.partition(".")
        assert config[section][last] == value, key


@pytest.fixture(scope="module")
def small() -> dict[str, np.ndarray]:
    return random_weights(options(channel_mults=(1, 2), blocks=1))[0]


# --- what wrappers and training codes make of a file ----------------------------------------------


def before(*wrappers: str) -> Any:
    return lambda key: ".".join((*wrappers, key))


WRAPPED: dict[str, Any] = {
    "compiled": before("_orig_mod"),
    "parallel": before("module"),
    "compiled, then parallel": before("module", "_orig_mod"),
    "parallel, then compiled": before("_orig_mod", "module"),
    "twice": before("module", "module", "_orig_mod", "_orig_mod"),
    "Fabric": before("_forward_module", "_orig_mod"),
    "FSDP, each module": lambda key: re.sub(r"(all_modules\.\d+)\.", r"\1._fsdp_wrapped_module.", f"module.{key}"),
    "each module compiled": lambda key: re.sub(r"(all_modules\.\d+)\.", r"\1._orig_mod.", key),
    "checkpointed": lambda key: key.replace("all_modules.3.", "all_modules.3._checkpoint_wrapped_module."),
}


def renamed(weights: Mapping[str, Any], how: str) -> dict[str, Any]:
    return {WRAPPED[how](key): array for key, array in weights.items()}


def same(found: Mapping[str, Any], expected: Mapping[str, Any]) -> bool:
    return found.keys() == expected.keys() and all(found[key] is expected[key] for key in expected)


@pytest.mark.parametrize("how", WRAPPED)
def test_the_names_of_wrappers_are_taken_out(how: str, small: dict[str, np.ndarray]) -> None:
    for content in (renamed(small, how), {"model": renamed(small, how)}, {"module": {"model": renamed(small, how)}}):
        assert same(parts_of(content).weights, small)
    average = {key: array + 1 for key, array in small.items()}
    parts = parts_of({"model": renamed(small, how), "ema": renamed(average, how)})
    assert same(parts.weights, small) and same(parts.ema, average)
    with pytest.raises(UserError, match="twice, with and without a wrapper's name"):
        parts_of({**renamed(small, how), **{key: array + 1 for key, array in small.items()}})


def flat(**networks: Mapping[str, Any]) -> dict[str, Any]:
    return {f"{name}.{key}": array for name, weights in networks.items() for key, array in weights.items()}


# (weights, average, the average in the network's order) -> a checkpoint
AVERAGED: dict[str, Any] = {
    "a plain state dict": lambda w, a, o: {"model": w, "ema": a},
    "ema_model": lambda w, a, o: {"model": w, "ema_model": a},
    "model_ema": lambda w, a, o: {"model": w, "model_ema": a},
    "EMA": lambda w, a, o: {"net": w, "EMA": a},
    "state dicts": lambda w, a, o: {"state_dict": w, "ema_state_dict": a, "epoch": 3},
    "a decay in the name": lambda w, a, o: {"model": w, "ema_0.9999": a},
    "within the average's own dict": lambda w, a, o: {"model": w, "ema": {"decay": 0.99, "state_dict": a}},
    "within its module": lambda w, a, o: {"model": w, "ema": {"decay": 0.99, "module": a}},
    "ema-pytorch": lambda w, a, o: {**flat(online_model=w, ema_model=a), "initted": np.ones(1), "step": 4},
    "ema-pytorch beside the network": lambda w, a, o: {"model": w, "ema": flat(online_model=w, ema_model=a)},
    "PyTorch's AveragedModel": lambda w, a, o: {"model": w, "swa": {"n_averaged": np.array(7), **flat(module=a)}},
    "in the network's order": lambda w, a, o: {"model": w, "ema": {"decay": 0.99, "shadow_params": o}},
    "in order, elsewhere": lambda w, a, o: {"model": w, "averaged": {"decay": 0.99, "shadow_params": tuple(o)}},
    "the average first": lambda w, a, o: {"ema": a, "model": w},
}


@pytest.mark.parametrize("how", AVERAGED)
def test_an_average_is_read_wherever_it_is(how: str, small: dict[str, np.ndarray]) -> None:
    average = {key: array + 1 for key, array in small.items()}
    parts = parts_of(AVERAGED[how](small, average, list(average.values())))
    assert same(parts.weights, small) and same(parts.ema, average)
    assert parts.unused == (["initted"] if how == "ema-pytorch" else [])


def test_the_average_s_decay_is_kept(small: dict[str, np.ndarray]) -> None:
    for inner in ({"state_dict": small}, {"shadow_params": list(small.values())}):
        assert parts_of({"model": small, "ema": {"decay": 0.99, **inner}}).decay == 0.99
    assert parts_of({"model": small, "ema": small}).decay is None


def test_a_file_of_an_average_alone_is_a_network(small: dict[str, np.ndarray]) -> None:
    for content in ({"ema": small}, {"n_averaged": np.array(7), **flat(module=small)}, flat(ema_model=small)):
        parts = parts_of(content)
        assert same(parts.weights, small) and parts.ema is parts.weights


def test_what_is_not_read_is_said(small: dict[str, np.ndarray], tmp_path: Path) -> None:
    content = {
        "model": small,
        "ema_of_others": {"foo": np.ones(3)},
        "scheduler": {"base_lrs": [0.1]},
        "extra": np.ones(2),
    }
    assert parts_of(content).unused == ["ema_of_others", "extra"]
    line = import_with(write_pth(tmp_path / "c.pth", content), tmp_path / "run", image_size=8)
    assert line.endswith("; not read: ema_of_others, extra")


DOUBTFUL: dict[str, tuple[Any, str]] = {
    "two networks": (lambda w: {"cinema": w, "schema": w}, "has several networks, cinema, schema: keep one"),
    "two averages": (lambda w: {"model": w, "ema_1": w, "ema_2": w}, "has several averages, ema_1, ema_2: keep one"),
    "an average without a weight": (
        lambda w: {"model": w, "ema": dict(list(w.items())[1:])},
        "average has none for all_modules.",
    ),
    "a ragged average": (
        lambda w: {"model": w, "ema": {"shadow_params": [np.ones(n) for n, _ in enumerate(w)]}},
        "average has one of shape (0,)",
    ),
    "an average of nothing": (lambda w: {"model": w, "ema": {"shadow_params": [None] * len(w)}}, "average has none"),
    "an average of lists": (lambda w: {"model": w, "ema": {"shadow_params": [[1, [2]]] * len(w)}}, "average has none"),
    "too long an average": (lambda w: {"model": w, "ema": {"shadow_params": [np.ones(1)] * 999}}, "has 999 weights"),
    "a step that is text": (lambda w: {"model": w, "step": "x" * 10**6}, "step is 'xxx"),
    "a step beyond counting": (lambda w: {"model": w, "step": 10**5000}, "step is "),
    "strings as weights": (lambda w: {**w, "all_modules.0.weight": np.array(["a"])}, ""),
    "records as weights": (lambda w: {**w, "all_modules.0.weight": np.zeros(3, "f4,i4")}, ""),
    "complex weights": (lambda w: {k: a.astype("c8") for k, a in w.items()}, "are no real numbers"),
    "module 10^12": (lambda w: {**w, "all_modules.1000000000000.weight": np.ones(3)}, "has besides all_modules.10000"),
    "module of 5,000 digits": (lambda w: {**w, f"all_modules.{'9' * 5000}.weight": np.ones(3)}, "has besides all_mod"),
    "module 99999": (lambda w: {**w, "all_modules.99999.weight": np.ones(3)}, ""),
    "a key of 10 MB": (lambda w: {**w, "x" * 10**7: np.ones(3)}, "has besides xxx"),
    "a wild key": (lambda w: {**w, "a\x1b[2J": np.ones(3)}, r"has besides a\x1b[2J"),
}


@pytest.mark.parametrize("case", DOUBTFUL)
def test_what_is_in_doubt_is_one_line(
    case: str, small: dict[str, np.ndarray], tmp_path: Path, monkeypatch: Any
) -> None:
    make, said = DOUBTFUL[case]
    monkeypatch.setattr("experiment.published.score_sde.read_state_dict", lambda _: make(small))
    start = time.perf_counter()
    line = refusal(tmp_path / "c.pth", tmp_path / "run")
    assert time.perf_counter() - start < 5
    assert said in line and line.isprintable() and len(line) < 1000, line


# --- mistakes -------------------------------------------------------------------------------------


def test_weights_that_are_missing_left_over_or_of_another_shape(small: dict[str, np.ndarray], tmp_path: Path) -> None:
    def told(weights: dict[str, np.ndarray]) -> str:
        return refusal(write_pth(tmp_path / "c.pth", {"sigmas": np.ones(3), **weights}), tmp_path / "run")

    lacking = {key: value for key, value in small.items() if not key.endswith(".Dense_0.bias")}
    assert (
        "lacks all_modules.3.Dense_0.bias, all_modules.4.Dense_0.bias, all_modules.5.Dense_0.bias and 7 more"
        in told(lacking)
    )
    assert "has besides all_modules.0.scale, head.bias" in told(
        {**small, "head.bias": np.ones(3), "all_modules.0.scale": np.ones(3)}
    )
    key = "all_modules.3.Conv_1.weight"
    assert f"{key} (8, 9, 3, 3) are of other shapes" in told({**small, key: np.zeros((8, 9, 3, 3), "f4")})
    for number in range(len({key.split(".")[1] for key in small})):  # whichever is missing, it is a line
        told({key: value for key, value in small.items() if not key.startswith(f"all_modules.{number}.")})
    for key in list(small)[::7]:
        told({other: value for other, value in small.items() if other != key})


def test_an_average_of_another_network(small: dict[str, np.ndarray], tmp_path: Path) -> None:
    content = whole(small)
    content["ema"]["shadow_params"] = content["ema"]["shadow_params"][::-1]
    assert "the checkpoint's average has" in refusal(write_pth(tmp_path / "c.pth", content), tmp_path / "run")
    content["ema"]["shadow_params"] = []
    assert "the checkpoint's average has 0 weights" in refusal(write_pth(tmp_path / "c.pth", content), tmp_path / "run")


def test_what_is_no_checkpoint_of_these_networks(small: dict[str, np.ndarray], tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert "holds a list" in refusal(write_pth(tmp_path / "c.pth", [1, 2]), out)
    assert "holds no arrays" in refusal(write_pth(tmp_path / "c.pth", {"step": 3}), out)
    assert "has no all_modules.* but conv1.weight" in refusal(
        write_pth(tmp_path / "c.pth", {"conv1.weight": np.ones(3, "f4")}), out
    )
    assert "import_diffusers" in refusal(tmp_path, out)
    path = write_pth(tmp_path / "c.pth", small)
    assert "--sde is 'vpp'; it must be one of: vp, subvp, ve" in refusal(path, out, sde="vpp")
    assert "divisible by 2" in refusal(path, out, image_size=17)
    assert "config.sde.beta_min is 30" in refusal(path, out, beta_min=30.0)
    assert "config.model.noise_label is 'log'" in refusal(path, out, noise_label="log")
    fourier = random_weights(options(embedding="fourier", channel_mults=(1,), attention=(), blocks=1), centered=False)[
        0
    ]
    assert "leave out --sde=vp" in refusal(write_pth(tmp_path / "f.pth", fourier), out, sde="vp", image_size=8)


def test_a_run_that_is_there_stays(small: dict[str, np.ndarray], tmp_path: Path) -> None:
    path = write_pth(tmp_path / "c.pth", small)
    import_with(path, tmp_path / "run")
    before = {file: file.read_bytes() for file in (tmp_path / "run").rglob("*") if file.is_file()}
    with pytest.raises(UserError, match="has checkpoints already: give another RUN"):
        import_with(path, tmp_path / "run")
    assert {file: file.read_bytes() for file in (tmp_path / "run").rglob("*") if file.is_file()} == before


def test_the_command(small: dict[str, np.ndarray], tmp_path: Path) -> None:
    def command(*arguments: object) -> Any:
        return Command(ROOT / "experiment" / "import_score_sde.py", *map(str, arguments)).wait()

    path = write_pth(tmp_path / "c.pth", {"sigmas": np.ones(2), **small})
    done = command(path, tmp_path / "run", "--image_size=8", "--sde=subvp")
    assert done.status == 0, done.err
    assert "subvp, images 8x8" in done.out
    assert command("--sde=vp").mistake.startswith("CHECKPOINT is missing: give CHECKPOINT RUN")
    assert command(path).mistake.startswith("RUN is missing")
    assert "unexpected argument 'more'" in command(path, tmp_path / "b", "more").mistake
    assert "did you mean --image_size?" in command(path, tmp_path / "b", "--imagesize=3").mistake
    assert "No such file" in command(tmp_path / "absent.pth", tmp_path / "b").mistake
    evil = name("os", "system") + b"(" + text(f"touch {tmp_path / 'ran'}") + b"tR"
    assert "os.system" in command(write_pth(tmp_path / "evil.pth", {"model": evil}), tmp_path / "b").mistake
    assert not (tmp_path / "ran").exists() and not (tmp_path / "b").exists()


def test_parts_without_an_average_or_an_optimizer(small: dict[str, np.ndarray]) -> None:
    parts = parts_of({"model": small, "step": 3})
    assert parts.ema is parts.weights and parts.moments is None
    assert parts_of(whole(small)).moments is None  # before the first update Adam has none
