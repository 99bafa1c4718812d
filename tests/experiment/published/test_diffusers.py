"""diffusers' UNet2DModel of DDPM's and NCSN++'s architecture into a run, against what diffusers computes.

data/diffusers_ddpm.json and diffusers_ncsnpp.json hold the names and shapes of a small network's weights, and
what diffusers 0.42.1 with torch 2.13 computes on CPU with the weights and images that `weights` and `images` draw;
`computed` makes them, where both are installed.
"""

import json
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiment import load_score
from experiment.common.errors import UserError
from experiment.published.diffusers import import_folder, weights_in
from experiment.published.diffusers_layout import diffusers_names, options_of
from experiment.published.to_run import abstract
from models import split
from sde_lib.chain import Chain
from tests.commands import ROOT, Command
from tests.experiment.published.torch_writer import write_pth, write_safetensors

DATA = Path(__file__).parent / "data"
CONFIG: dict[str, Any] = {
    "sample_size": 8,
    "in_channels": 3,
    "out_channels": 3,
    "time_embedding_type": "positional",
    "freq_shift": 1,
    "flip_sin_to_cos": False,
    "block_out_channels": [8, 16, 16],
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
    "layers_per_block": 2,
    "downsample_padding": 0,
    "attention_head_dim": None,
    "norm_num_groups": 4,
    "norm_eps": 1e-6,
}
CIFAR10 = {
    **CONFIG,
    "sample_size": 32,
    "block_out_channels": [128, 256, 256, 256],
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
    "norm_num_groups": 32,
}
# As google/ncsnpp-church-256, but for the sizes. Narrower ones diffusers builds with other group norms than Song et al.
NCSNPP: dict[str, Any] = {
    "sample_size": 8,
    "in_channels": 3,
    "out_channels": 3,
    "center_input_sample": True,
    "time_embedding_type": "fourier",
    "block_out_channels": [64, 128, 128],
    "down_block_types": ["SkipDownBlock2D", "AttnSkipDownBlock2D", "SkipDownBlock2D"],
    "up_block_types": ["SkipUpBlock2D", "AttnSkipUpBlock2D", "SkipUpBlock2D"],
    "layers_per_block": 1,
    "mid_block_scale_factor": 2**0.5,
    "attention_head_dim": None,
    "norm_num_groups": None,
    "norm_eps": 1e-6,
}
COMMAND = str(ROOT / "experiment" / "import_diffusers.py")
STEPS = [1, 300, 990]  # within what VP reaches from t_min to 1
SIGMAS = [0.02, 1.3, 45.0]
CHAIN = Chain(np.linspace(1e-4, 0.02, 1000))


def weights(shapes: dict[str, list[int]], scale: float = 0.2) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {name: (scale * rng.normal(size=shapes[name])).astype("f4") for name in sorted(shapes)}


def images() -> np.ndarray:
    return np.random.default_rng(1).normal(size=(len(STEPS), 3, 8, 8)).astype("f4")


def computed(config: dict[str, Any] = CONFIG, labels: list[Any] = STEPS, scale: float = 0.2) -> dict[str, Any]:
    """What a file of DATA holds, by diffusers itself."""
    torch, diffusers = pytest.importorskip("torch"), pytest.importorskip("diffusers")
    network = diffusers.UNet2DModel(**config)
    shapes = {name: list(value.shape) for name, value in network.state_dict().items()}
    network.load_state_dict({name: torch.from_numpy(value) for name, value in weights(shapes, scale).items()})
    with torch.no_grad():
        y = network(torch.from_numpy(images()), torch.tensor(labels)).sample
    return {"shapes": shapes, "y": [float(f"{v:.9g}") for v in y.numpy().ravel()]}


@pytest.fixture(scope="module")
def expected() -> dict[str, Any]:
    return json.loads((DATA / "diffusers_ddpm.json").read_text())


@pytest.fixture(scope="module")
def expected_ncsnpp() -> dict[str, Any]:
    return json.loads((DATA / "diffusers_ncsnpp.json").read_text())


def folder(path: Path, arrays: dict[str, np.ndarray], config: dict[str, Any] = CONFIG) -> Path:
    path.mkdir(parents=True)
    (path / "config.json").write_text(json.dumps({"_class_name": "UNet2DModel", **config}))
    write_safetensors(path / "diffusion_pytorch_model.safetensors", arrays)
    return path


def check_run(run: Path, y: np.ndarray) -> None:
    """The network's output at the chain's steps, and the score at the times where VP has the chain's log SNR."""
    score_fn, x = load_score(run), jnp.asarray(images().transpose(0, 2, 3, 1))
    y = np.reshape(y, images().shape).transpose(0, 2, 3, 1)
    raw = jax.jit(score_fn.apply)(score_fn.params, x, jnp.asarray(STEPS, jnp.float32))
    assert np.abs(raw - y).max() < 1e-5 * np.abs(y).max()
    t = np.asarray(score_fn.sde.time_of_log_snr(2 * np.log(CHAIN.alpha / CHAIN.sigma)[STEPS]), "f4")
    score = -y / np.asarray(score_fn.sde.sigma(t.astype(float)))[:, None, None, None]
    found = score_fn(x, jnp.asarray(t))
    for k in range(len(STEPS)):
        assert np.abs(found[k] - score[k]).max() < 1e-5 * np.abs(score[k]).max()


def test_the_run_computes_what_diffusers_computes(expected: dict[str, Any], tmp_path: Path) -> None:
    path = folder(tmp_path / "model", weights(expected["shapes"]))
    line = import_folder(path, tmp_path / "run")
    assert "vp, beta 0.1 to 20, images 8x8" in line
    check_run(tmp_path / "run", expected["y"])
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (config["sample"]["snr"], config["sample"]["steps"]) == (0.01, 1000)  # the corrector's step for VP


def test_ncsnpp_s_score_is_what_diffusers_computes(expected_ncsnpp: dict[str, Any], tmp_path: Path) -> None:
    path = folder(tmp_path / "model", weights(expected_ncsnpp["shapes"], 0.05), NCSNPP)
    assert "ve, sigma 0.01 to 1348, images 8x8 in [0, 1]" in import_folder(path, tmp_path / "run")
    score_fn = load_score(tmp_path / "run")
    t = score_fn.sde.time_of_log_snr(-2 * np.log(SIGMAS))
    found = jax.jit(lambda s, x, t: s(x, t))(
        score_fn, jnp.asarray(images().transpose(0, 2, 3, 1)), jnp.asarray(t, jnp.float32)
    )
    score = np.reshape(expected_ncsnpp["y"], images().shape).transpose(0, 2, 3, 1)
    for k in range(len(SIGMAS)):
        assert np.abs(found[k] - score[k]).max() < 1e-5 * np.abs(score[k]).max()


def test_ncsnpp_s_noise_levels_are_the_scheduler_s(expected_ncsnpp: dict[str, Any], tmp_path: Path) -> None:
    path = folder(tmp_path / "model", weights(expected_ncsnpp["shapes"], 0.05), NCSNPP)
    scheduler = {"sigma_min": 0.02, "sigma_max": 380.0, "snr": 0.075, "num_train_timesteps": 1000, "sampling_eps": 1e-4}
    (path / "scheduler_config.json").write_text(json.dumps(scheduler))
    assert "sigma 0.02 to 380" in import_folder(path, tmp_path / "run")
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (config["sample"]["snr"], config["sample"]["steps"]) == (0.075, 1000)
    assert [config["sde"][key] for key in ("sigma_min", "sigma_max", "t_min")] == [0.02, 380.0, 1e-4]
    assert config["data"]["centered"] is False  # images in [0, 1], of which the network takes 2 x - 1
    as_they_are = folder(
        tmp_path / "centred", weights(expected_ncsnpp["shapes"], 0.05), {**NCSNPP, "center_input_sample": False}
    )
    assert "images 8x8 in [-1, 1]" in import_folder(as_they_are, tmp_path / "centred_run")
    (path / "scheduler_config.json").write_text(json.dumps({"sigma_max": "1348"}))
    assert "sigma_max is '1348', and must be a positive number" in refusal(path, tmp_path / "other")


def test_the_size_of_the_church_network() -> None:
    """65.6 million, as score_sde's of 256 pixels; every weight has a name of its own."""
    levels = ["SkipDownBlock2D"] * 4 + ["AttnSkipDownBlock2D"] + ["SkipDownBlock2D"] * 2
    config = {
        **NCSNPP,
        "sample_size": 256,
        "layers_per_block": 2,
        "block_out_channels": [128, 128, 256, 256, 256, 256, 256],
        "down_block_types": levels,
        "up_block_types": [name.replace("Down", "Up") for name in reversed(levels)],
    }
    network = abstract(options_of(config))
    names, leaves = diffusers_names(network), jax.tree.leaves(split(network)[1])
    assert sum(int(np.prod(leaf.shape)) for leaf in leaves) == 65_574_421 + 128
    assert len(names) == len(set(names.values())) == len(leaves)


def test_older_names_a_pickle_and_a_pipeline_folder(expected: dict[str, Any], tmp_path: Path) -> None:
    old = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}
    arrays = weights(expected["shapes"])
    for new, name in old.items():
        arrays = {key.replace(new, name): value for key, value in arrays.items()}
    path = folder(tmp_path / "model" / "unet", arrays)
    (path / "diffusion_pytorch_model.safetensors").unlink()
    write_pth(path / "diffusion_pytorch_model.bin", arrays)
    scheduler = tmp_path / "model" / "scheduler" / "scheduler_config.json"
    scheduler.parent.mkdir()
    scheduler.write_text(
        json.dumps({"beta_schedule": "linear", "beta_start": 0.0002, "beta_end": 0.03, "num_train_timesteps": 1000})
    )
    assert "beta 0.2 to 30" in import_folder(tmp_path / "model", tmp_path / "run")
    score_fn = load_score(tmp_path / "run")
    raw = jax.jit(score_fn.apply)(
        score_fn.params, jnp.asarray(images().transpose(0, 2, 3, 1)), jnp.asarray(STEPS, jnp.float32)
    )
    y = np.reshape(expected["y"], images().shape).transpose(0, 2, 3, 1)
    assert np.abs(raw - y).max() < 1e-5 * np.abs(y).max()
    scheduler.write_text(json.dumps({"beta_schedule": "squaredcos_cap_v2"}))
    assert "beta_schedule is 'squaredcos_cap_v2'" in refusal(tmp_path / "model", tmp_path / "other")


def test_diffusers_itself(expected: dict[str, Any], expected_ncsnpp: dict[str, Any], tmp_path: Path) -> None:
    """Where diffusers is installed: the stored vectors again, and a folder that save_pretrained wrote."""
    again = computed()
    assert again["shapes"] == expected["shapes"]
    np.testing.assert_allclose(again["y"], expected["y"], atol=1e-4)
    ncsnpp = computed(NCSNPP, SIGMAS, 0.05)
    assert ncsnpp["shapes"] == expected_ncsnpp["shapes"]
    np.testing.assert_allclose(ncsnpp["y"], expected_ncsnpp["y"], rtol=1e-4, atol=1e-4)
    torch, diffusers = pytest.importorskip("torch"), pytest.importorskip("diffusers")
    network = diffusers.UNet2DModel(**CONFIG)
    network.load_state_dict({name: torch.from_numpy(value) for name, value in weights(expected["shapes"]).items()})
    network.save_pretrained(tmp_path / "model")
    import_folder(tmp_path / "model", tmp_path / "run")
    check_run(tmp_path / "run", again["y"])


def test_the_size_of_the_cifar10_network() -> None:
    """35.7 million weights, as Ho et al. 2020 say in appendix B; score_sde's DDPM has attention less often, and
    35.2.
    """
    given = options_of(CIFAR10)
    network = abstract(given)
    names = diffusers_names(network)
    shapes = split(network)[1]
    assert sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(shapes)) == 35_746_307
    assert len(names) == len(set(names.values())) == len(jax.tree.leaves(shapes))


def refusal(path: Path, out: Path) -> str:
    with pytest.raises(UserError) as caught:
        import_folder(path, out)
    assert not (out / "config.json").exists() and "\n" not in str(caught.value)
    return str(caught.value)


OTHERS: dict[str, tuple[dict[str, Any], str]] = {
    "half of ncsnpp": ({"time_embedding_type": "fourier"}, "mid_block_scale_factor is 1, and NCSN++'s is 1.41"),
    "learned embedding": (
        {"time_embedding_type": "learned"},
        "time_embedding_type is 'learned', and DDPM's is 'positional'",
    ),
    "diffusers' own defaults": ({"downsample_padding": 1}, "downsample_padding is 1"),
    "heads": ({"attention_head_dim": 8}, "attention_head_dim is 8"),
    "skips": ({"down_block_types": ["SkipDownBlock2D"] * 3}, "SkipDownBlock2D"),
    "one way": ({"up_block_types": ["UpBlock2D"] * 3}, "levels differ"),
    "channels": ({"block_out_channels": [8, 12, 16]}, "no whole multiple"),
    "of no size": ({"sample_size": None}, "config.json is not that of DDPM"),
    "indivisible": ({"sample_size": 10}, "divisible by 4"),
}


@pytest.mark.parametrize("case", OTHERS)
def test_other_networks_are_refused(case: str, expected: dict[str, Any], tmp_path: Path) -> None:
    changed, said = OTHERS[case]
    path = folder(tmp_path / "model", weights(expected["shapes"]), {**CONFIG, **changed})
    assert said in refusal(path, tmp_path / "run")


def test_an_absent_key_means_what_diffusers_means(expected: dict[str, Any], tmp_path: Path) -> None:
    config = {key: value for key, value in CONFIG.items() if key != "norm_eps"}
    assert "norm_eps is 1e-05" in refusal(
        folder(tmp_path / "model", weights(expected["shapes"]), config), tmp_path / "run"
    )


def test_mistakes(expected: dict[str, Any], tmp_path: Path) -> None:
    arrays = weights(expected["shapes"])
    assert "cannot read" in refusal(tmp_path / "absent", tmp_path / "run")
    path = folder(tmp_path / "model", {key: value for key, value in arrays.items() if key != "conv_out.bias"})
    assert "lacks conv_out.bias" in refusal(path, tmp_path / "run")
    (path / "diffusion_pytorch_model.safetensors").unlink()
    assert "has no weights" in refusal(path, tmp_path / "run")
    (path / "config.json").write_text("{")
    assert "is damaged" in refusal(path, tmp_path / "run")
    (path / "config.json").write_text("[]")
    assert "holds no object" in refusal(path, tmp_path / "run")
    done = Command(COMMAND, str(folder(tmp_path / "whole", arrays)), str(tmp_path / "run")).wait()
    assert done.status == 0 and "images 8x8" in done.out, done.err
    assert "has checkpoints already" in Command(COMMAND, str(path), str(tmp_path / "run")).wait().mistake


STEM = "diffusion_pytorch_model"
ARRAYS = {"conv_in.weight": np.arange(6.0, dtype="f4"), "mid_block.attentions.0.to_q.bias": np.ones(2, "f4")}
HALVES = [dict([item]) for item in ARRAYS.items()]
PARTS = ("00001-of-00002", "00002-of-00002")


def listed(path: Path, files: list[str], kind: str = "safetensors", variant: str = "") -> None:
    """Write the index of these files, each with one of the weights."""
    index = {"metadata": {"total_size": 32}, "weight_map": dict(zip(ARRAYS, files, strict=True))}
    (path / f"{STEM}{variant}.{kind}.index.json").write_text(json.dumps(index))


def half_precision(path: Path) -> None:
    write_safetensors(path / f"{STEM}.fp16.safetensors", {k: a.astype("f2") for k, a in ARRAYS.items()})


def sharded(path: Path, *, variant: str = "", late: str = "") -> None:
    files = [f"{STEM}{variant}-{part}{late}.safetensors" for part in PARTS]
    for file, arrays in zip(files, HALVES, strict=True):
        write_safetensors(path / file, arrays)
    listed(path, files, variant=variant or late)


def sharded_pickles(path: Path) -> None:
    files = [f"{STEM}-{part}.bin" for part in PARTS]
    for file, arrays in zip(files, HALVES, strict=True):
        write_pth(path / file, arrays)
    listed(path, files, "bin")


def compiled(path: Path) -> None:
    write_safetensors(path / f"{STEM}.safetensors", {f"_orig_mod.{k}": a for k, a in ARRAYS.items()})


def several(path: Path) -> None:
    write_safetensors(path / f"{STEM}.safetensors", ARRAYS)
    write_safetensors(path / f"{STEM}.fp16.safetensors", {"other": np.ones(1, "f4")})
    write_pth(path / f"{STEM}.bin", {"other": np.ones(1, "f4")})


KINDS: dict[str, tuple[Any, str]] = {
    "half precision": (half_precision, "fp16"),
    "another variant": (lambda p: write_safetensors(p / f"{STEM}.non_ema.safetensors", ARRAYS), "non_ema"),
    "a variant's pickle": (lambda p: write_pth(p / f"{STEM}.fp16.bin", ARRAYS), "fp16"),
    "sharded": (sharded, ""),
    "a variant, sharded": (lambda p: sharded(p, variant=".fp16"), "fp16"),
    "a variant, sharded and named late": (lambda p: sharded(p, late=".bf16"), "bf16"),
    "sharded pickles": (sharded_pickles, ""),
    "compiled": (compiled, ""),
    "beside variants the weights themselves": (several, ""),
}


@pytest.mark.parametrize("kind", KINDS)
def test_weights_of_a_variant_or_in_several_files(kind: str, tmp_path: Path) -> None:
    make, variant = KINDS[kind]
    make(tmp_path)
    found, told = weights_in(tmp_path)
    assert told == variant and found.keys() == ARRAYS.keys()
    for key, array in ARRAYS.items():
        np.testing.assert_array_equal(found[key], array)


def shards_without_a_list(path: Path) -> None:
    sharded(path)
    (path / f"{STEM}.safetensors.index.json").unlink()


def a_shard_missing(path: Path) -> None:
    sharded(path)
    (path / f"{STEM}-{PARTS[1]}.safetensors").unlink()


ODD: dict[str, tuple[Any, str]] = {
    "nothing": (lambda p: None, "has no weights but no other file: it needs diffusion_pytorch_model.safetensors"),
    "Flax's": (lambda p: (p / "diffusion_flax_model.msgpack").touch(), "no weights but diffusion_flax_model.msgpack"),
    "ONNX's": (lambda p: (p / "model.onnx").touch(), "has no weights but model.onnx"),
    "two variants": (
        lambda p: [write_safetensors(p / f"{STEM}.{v}.safetensors", ARRAYS) for v in ("fp16", "bf16")],
        "has the variants bf16, fp16 of its weights: keep one of them",
    ),
    "shards without a list": (shards_without_a_list, "has parts of its weights and no"),
    "a shard missing": (a_shard_missing, "No such file"),
    "shards elsewhere": (lambda p: listed(p, ["../secret.safetensors"] * 2), "lists ../secret.safetensors as weights"),
    "shards of no name": (lambda p: listed(p, [[]] * 2), "lists [] as weights"),  # type: ignore[list-item]
    "a list of nothing": (lambda p: (p / f"{STEM}.safetensors.index.json").write_text("{}"), "lists no files"),
    "a list that is none": (lambda p: (p / f"{STEM}.safetensors.index.json").write_text("[1"), "is damaged"),
}


@pytest.mark.parametrize("kind", ODD)
def test_weights_that_are_not_there_are_named(kind: str, tmp_path: Path) -> None:
    make, said = ODD[kind]
    make(tmp_path)
    with pytest.raises(UserError) as caught:
        weights_in(tmp_path)
    assert said in str(caught.value) and str(tmp_path) in str(caught.value)


def test_the_average_beside_a_network_is_its_own(expected: dict[str, Any], tmp_path: Path) -> None:
    own = weights(expected["shapes"])
    folder(tmp_path / "model" / "unet_ema", own)
    folder(tmp_path / "model" / "unet", {name: array + 1 for name, array in own.items()})
    assert "their average applied; vp" in import_folder(tmp_path / "model", tmp_path / "run")
    check_run(tmp_path / "run", expected["y"])


WILD: dict[str, Any] = {
    "10^12 blocks": {"layers_per_block": 10**12},
    "10^9 pixels": {"sample_size": 10**9 * 8},
    "endless levels": {"block_out_channels": [8] * 10**5, "down_block_types": ["DownBlock2D"] * 10**5},
    "infinite": {"sample_size": float("inf")},
    "10^400": {"layers_per_block": 10**400},
    "nested": {"norm_eps": [[[[[["x" * 10**6]]]]]]},
    "a wild value": {"act_fn": "a\x1b[2J" * 1000},
    "text for numbers": {"block_out_channels": "888"},
    "lists for names": {"down_block_types": [[]] * 3},
    "no numbers": {"norm_num_groups": {}},
}


@pytest.mark.parametrize("case", WILD)
def test_a_wild_config_is_one_line(case: str, expected: dict[str, Any], tmp_path: Path) -> None:
    path = folder(tmp_path / "model", weights(expected["shapes"]), {**CONFIG, **WILD[case]})
    start = time.perf_counter()
    line = refusal(path, tmp_path / "run")
    assert time.perf_counter() - start < 5 and line.isprintable() and len(line) < 1000
    scheduler = tmp_path / "model" / "scheduler_config.json"
    for beta in (10**400, float("inf"), float("nan"), "x", [[]]):
        scheduler.write_text(json.dumps({"beta_start": beta}))
        (path / "config.json").write_text(json.dumps(CONFIG))
        assert "beta_start is" in refusal(path, tmp_path / "run")
