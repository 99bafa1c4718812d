"""The schema: what passes, and what each mistake is told; the command line's flags in one line each."""

import importlib
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from absl import flags
from ml_collections import ConfigDict

from configs import base, cifar10, digits, toys
from experiment import cli
from experiment.build.samplers import make_sampler
from experiment.common.errors import UserError
from experiment.common.provenance import provenance
from experiment.config import (
    FREE_ON_RESUME,
    KEYS,
    check_config,
    check_key,
    check_value,
    differences,
    flatten,
    load_config,
    save_config,
    set_keys,
    whole_config,
)
from experiment.training.unused import unused_keys, unused_line
from tests.commands import ROOT


@pytest.mark.parametrize("module", [base, digits, toys, cifar10])
def test_our_configs_pass_and_come_back_from_json(module: Any, tmp_path: Path) -> None:
    config = check_config(module.get_config())
    assert set(flatten(config)) == set(KEYS)
    save_config(tmp_path / "config.json", config, provenance={"python": "3"})
    again, beside = load_config(tmp_path / "config.json")
    assert flatten(again) == flatten(config)  # tuples too, which JSON does not have
    assert beside == {"provenance": {"python": "3"}}
    assert [p.name for p in tmp_path.iterdir()] == ["config.json"]


MISTAKES = {
    ("train.stpes", 3): "config.train.stpes: did you mean config.train.steps?",
    ("trian.lr", 0.1): "config.trian.lr: did you mean config.train.lr?",
    ("steps", 3): "did you mean config.",
    ("train.steps", 0): "config.train.steps is 0; it takes an int, at least 1",
    ("train.steps", 2.5): "config.train.steps is 2.5; it takes an int",
    ("train.steps", True): "it takes an int",
    ("train.lr", "fast"): "config.train.lr is 'fast'; it takes a float, above 0",
    ("train.lr", float("nan")): "config.train.lr is nan",
    ("train.lr", float("inf")): "config.train.lr is inf",
    ("train.ema", 1.0): "config.train.ema is 1.0; it takes a float, at least 0, below 1",
    ("model.channel_mults", 2): "it takes a tuple, each entry an int, at least 1",
    ("model.channel_mults", (1, 0)): "it takes a tuple, each entry an int, at least 1",
    ("model.dtype", "float16"): "it takes one of float32, bfloat16, auto",
    ("data.flip", 1): "it takes true or false",
    ("sde.t_min", 2.0): "it takes a float, above 0, below 1, or None",
    ("sde.beta_max", 0.05): "config.sde.beta_min is 0.1: it must be below config.sde.beta_max",
}


@pytest.mark.parametrize("name, value", MISTAKES)
def test_a_mistake_in_a_config_is_told(name: str, value: Any) -> None:
    nested = whole_config({}).to_dict()
    section, _, last = name.rpartition(".")
    (nested.setdefault(section, {}) if section else nested)[last] = value
    with pytest.raises(UserError) as told:
        check_config(ConfigDict(nested))
    assert MISTAKES[name, value] in str(told.value) and "\n" not in str(told.value)


def test_a_section_is_no_key() -> None:
    with pytest.raises(UserError, match=r"config.train is a section"):
        check_key("train")


def test_what_is_not_given_is_at_its_default() -> None:
    assert set_keys(check_config({})) == {}
    assert set_keys(check_config({"train": {"lr": 3e-3}, "eval": {"samplers": ("em",)}, "seed": 4})) == {
        "seed": 4,
        "train.lr": 3e-3,
        "eval.samplers": ("em",),
    }


@pytest.mark.parametrize("name", KEYS)
def test_each_default_is_in_its_range_and_each_key_has_a_meaning(name: str) -> None:
    field = KEYS[name][1]
    assert check_value(name, field.default) == field.default
    assert len(field.metadata["meaning"]) > 3 and not field.metadata["meaning"].endswith(".")


# A run's config.json may be older than a key: what the key's default was then is what the run was trained with.
DEFAULTS = {
    "seed": 0,
    "sde.name": "vp",
    "sde.beta_min": 0.1,
    "sde.beta_max": 20.0,
    "sde.sigma_min": 0.01,
    "sde.sigma_max": 50.0,
    "sde.t_min": None,
    "model.name": "dit",
    "model.parameterization": "eps",
    "model.sigma_data": 0.5,
    "model.width": 128,
    "model.depth": 4,
    "model.heads": 4,
    "model.patch_size": 2,
    "model.channel_mults": (1, 2),
    "model.blocks": 2,
    "model.attention": (),
    "model.dropout": 0.0,
    "model.class_conditional": False,
    "model.condition": "none",
    "model.text_length": 64,
    "train.cond_dropout": 0.0,
    "model.dtype": "auto",
    "model.remat": "none",
    "model.noise_label": "log_snr",
    "model.scale_by_sigma": True,
    "model.embedding": "positional",
    "model.fourier_scale": 16.0,
    "model.resblock": "biggan",
    "model.fir": False,
    "model.skip_rescale": True,
    "model.resample_with_conv": True,
    "model.progressive": "none",
    "model.progressive_input": "none",
    "model.progressive_combine": "sum",
    "model.attention_per_block": False,
    "model.norm_groups": 0,
    "model.init_scale": 0.0,
    "data.name": "digits",
    "data.path": "",
    "data.dequantize": True,
    "data.flip": False,
    "data.augment": 0.0,
    "data.cache": "",
    "data.centered": True,
    "data.crop": 0,
    "data.size": 0,
    "data.skip_unreadable": False,
    "data.simulations": 0,
    "train.steps": 4000,
    "train.batch_size": 128,
    "train.lr": 0.001,
    "train.optimizer": "adam",
    "train.weight_decay": 0.0,
    "train.warmup": 200,
    "train.schedule": "cosine",
    "train.clip": 1.0,
    "train.accumulate": 1,
    "train.ema": 0.999,
    "train.weighting": "sigma2",
    "train.times": "uniform_t",
    "train.min_snr_gamma": 5.0,
    "train.time_mean": None,
    "train.time_std": None,
    "train.uncertainty": False,
    "train.power_ema": (),
    "train.snapshot_every": 1000,
    "train.preview_every": 1000,
    "train.start": "",
    "train.objective": "score",
    "train.flow_map_loss": None,
    "train.teacher": "",
    "train.log": "",
    "train.checkpoint_every": 1000,
    "train.keep": 3,
    "train.log_every": 50,
    "train.fsdp": 1,
    "train.steps_per_call": 1,
    "sample.steps": 500,
    "sample.batch_size": 64,
    "sample.snr": 0.16,
    "sample.corrector_steps": 1,
    "sample.rtol": 1e-05,
    "sample.atol": 1e-05,
    "sample.denoise": True,
    "eval.samplers": ("em", "pc", "ode"),
    "eval.n": 1024,
    "eval.seeds": 3,
    "eval.likelihood_n": 256,
    "eval.probes": 4,
    "eval.rtol": 1e-05,
    "eval.atol": 1e-05,
    "eval.seed": 0,
    "eval.batch_size": 128,
    "eval.reference": "train",
    "module": "",
}


def test_a_default_is_what_runs_without_the_key_were_made_with() -> None:
    defaults = {name: field.default for name, (_, field) in KEYS.items()}
    assert {name: defaults[name] for name in DEFAULTS} == DEFAULTS
    assert defaults.keys() == DEFAULTS.keys(), "a new key's default goes into the list"


def test_our_configs_set_only_what_differs_from_the_defaults_and_is_used() -> None:
    """No second home: a value that a config repeats, or sets for a class that it does not choose, would go stale."""
    for path in sorted((ROOT / "configs").glob("[!_]*.py")):
        config = importlib.import_module(f"configs.{path.stem}").get_config()
        assert unused_keys(check_config(config)) == [], path.name


UNUSED = {
    "model.depth": 8,
    "model.patch_size": 4,
    "model.fir": True,
    "model.scale_by_sigma": False,
    "sde.sigma_min": 0.5,
    "train.min_snr_gamma": 3.0,
    "train.time_std": 2.0,
    "train.snapshot_every": 7,
}


@pytest.mark.parametrize("name", UNUSED)
def test_a_key_that_the_chosen_class_does_not_take_is_told(name: str) -> None:
    config = whole_config(digits.get_config())
    config.update_from_flattened_dict({name: UNUSED[name]})
    checked = check_config(config)
    assert unused_keys(checked) == [name]
    assert f"config.{name}" in unused_line(checked, [name])
    with pytest.raises(UserError, match=f"config.{name} is set, and config.*=.* does not take it"):
        unused_keys(checked, given=[name])


def test_a_name_beside_a_path_is_told() -> None:
    """The path is used, and the name not; nothing is said where the command line does not set the name."""
    config = check_config({"data": {"name": "cifar10", "path": "images"}})
    assert unused_keys(config) == [] and unused_keys(config, ["data.path"]) == []
    unused = unused_keys(config, ["data.name", "data.path"])
    assert unused == ["data.name"]
    assert "config.data.name (not of config.data.path=images)" in unused_line(config, unused)


TAKEN = {
    ("model.name", "dit"): ("model.patch_size", 4),
    ("model.name", "ncsnpp"): ("model.fir", True),
    ("sde.name", "ve"): ("sde.sigma_min", 0.5),
    ("train.weighting", "min_snr"): ("train.min_snr_gamma", 3.0),
    ("train.times", "logit_normal"): ("train.time_std", 2.0),
    ("train.weighting", "soft_min_snr"): ("model.sigma_data", 0.3),
}


@pytest.mark.parametrize("choice", TAKEN)
def test_a_key_that_the_chosen_class_takes_is_not_told(choice: tuple[str, str]) -> None:
    name, value = TAKEN[choice]
    config = whole_config({})
    config.update_from_flattened_dict({choice[0]: choice[1], name: value})
    assert name not in unused_keys(check_config(config), given=[name])


def test_values_take_their_keys_types() -> None:
    config = whole_config({})
    config.train.lr = 1.0
    nested = config.to_dict()
    nested["train"]["lr"] = 1
    nested["model"]["attention"] = [8, 4]
    nested["eval"]["samplers"] = ("em, ode",)
    checked = check_config(nested)
    assert isinstance(checked.train.lr, float)
    assert checked.model.attention == (8, 4)
    assert checked.eval.samplers == ("em", "ode")


def test_differences_name_the_keys_that_matter() -> None:
    old, new = check_config(whole_config({})), whole_config({})
    new.train.lr, new.train.steps, new.sample.steps, new.eval.seeds, new.sde.t_min = 0.002, 7, 3, 1, 0.01
    new = check_config(new)
    assert differences(old, new, FREE_ON_RESUME) == ["sde.t_min None -> 0.01", "train.lr 0.001 -> 0.002"]
    assert len(differences(old, new)) == 5
    assert differences(old, old) == []


@pytest.mark.parametrize("name", KEYS)
def test_a_run_goes_on_under_another_length_rhythm_or_machine_and_nothing_else(name: str) -> None:
    train = "steps log log_every checkpoint_every keep snapshot_every preview_every fsdp steps_per_call".split()
    free = name in {f"train.{key}" for key in train} | {"data.cache", "module"} or name.startswith(("sample.", "eval."))
    assert (differences({name: 1}, {name: 2}, FREE_ON_RESUME) == []) == free


@pytest.fixture
def parse(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    def parsed(*arguments: str) -> Any:
        values, argv = flags.FlagValues(), [str(ROOT / "train.py"), *arguments]
        monkeypatch.setattr("sys.argv", argv)  # whose folder has the configs
        flags.DEFINE_string("workdir", "runs/digits", "The run directory.", flag_values=values)
        config, given = cli.parse_flags(argv, str(ROOT / "configs" / "digits.py"), values, about="Trains.")
        parsed.given = given  # type: ignore[attr-defined]
        return config

    return parsed


def test_overrides_reach_the_config(parse: Callable[..., Any]) -> None:
    config = parse(
        "--config.train.steps=7",
        "--config.train.lr=1",
        "--config.model.channel_mults=1,2,4",
        "--config.sde.t_min=0.01",
        "--config.data.flip=true",
        "--config.eval.samplers=em,ode",
    )
    checked = check_config(config)
    assert (checked.train.steps, checked.train.lr, checked.sde.t_min, checked.data.flip) == (7, 1.0, 0.01, True)
    assert checked.model.channel_mults == (1, 2, 4)
    assert checked.eval.samplers == ("em", "ode")
    assert len(parse.given) == 6 and next(iter(parse.given)) == "train.steps"  # type: ignore[attr-defined]


WRITTEN: dict[str, tuple[str, Any]] = {
    "--config.sde.t_min=None": ("sde.t_min", None),
    "--config.train.time_mean=None": ("train.time_mean", None),
    "--config.train.time_std=none": ("train.time_std", None),
    "--config.train.time_mean=-3e-1": ("train.time_mean", -0.3),
    "--config.train.lr 1e-2": ("train.lr", 0.01),
    "-config.train.lr=2": ("train.lr", 2.0),
    "--config.train.steps=1_000": ("train.steps", 1000),
    "--config.data.flip": ("data.flip", True),
    "--config.data.flip=True": ("data.flip", True),
    "--config.data.flip=0": ("data.flip", False),
    "--noconfig.data.dequantize": ("data.dequantize", False),
    "--config.model.channel_mults=(1,2,4)": ("model.channel_mults", (1, 2, 4)),
    "--config.model.channel_mults=[1, 2]": ("model.channel_mults", (1, 2)),
    "--config.model.channel_mults=3": ("model.channel_mults", (3,)),
    "--config.model.channel_mults=3,": ("model.channel_mults", (3,)),
    "--config.model.attention=()": ("model.attention", ()),
    "--config.model.attention=": ("model.attention", ()),
    "--config.train.power_ema=0.05,0.1": ("train.power_ema", (0.05, 0.1)),
    "--config.eval.samplers=('em', 'ode')": ("eval.samplers", ("em", "ode")),
    "--config.data.path=None": ("data.path", "None"),  # a name like any other
    "--config.data.path='my data'": ("data.path", "my data"),
    "--config.seed=4294967295": ("seed", 2**32 - 1),
}


@pytest.mark.parametrize("argument", WRITTEN)
def test_a_value_is_read_as_its_key_takes_it(parse: Callable[..., Any], argument: str) -> None:
    name, value = WRITTEN[argument]
    flag, space, rest = argument.partition(" ")
    found = flatten(parse(*([flag, rest] if space and "=" not in flag else [argument])))[name]
    assert found == value and type(found) is type(value)


OPEN = [name for name, (hint, field) in KEYS.items() if "None" in str(hint) and not field.metadata["choices"]]


@pytest.mark.parametrize("name", OPEN)
def test_every_key_that_may_be_none_takes_it_as_text(parse: Callable[..., Any], name: str, tmp_path: Path) -> None:
    section, _, last = name.partition(".")
    hint = str(KEYS[name][0])
    value: Any = 0.5 if "float" in hint else (2, 3) if "tuple" in hint else 2
    (tmp_path / "mine.py").write_text(f"def get_config():\n    return {{{section!r}: {{{last!r}: {value!r}}}}}")
    file = f"--config={tmp_path / 'mine.py'}"
    assert flatten(parse(file))[name] == value
    assert flatten(parse(file, f"--config.{name}=None"))[name] is None


COMMAND_LINES = {
    "--config.train.stpes=3": "did you mean config.train.steps?",
    "--config.trian.steps=3": "did you mean config.train.steps?",
    "--config.train.steps=three": "config.train.steps is 'three'; it takes an int, at least 1",
    "--config.train.steps=1.5": "config.train.steps is '1.5'; it takes an int",
    "--config.train.steps=-4": "config.train.steps is -4; it takes an int, at least 1",
    "--config.train=3": "config.train is a section",
    "--config.data.flip=maybe": "config.data.flip is 'maybe'; it takes true or false",
    "--config.train.lr.x=3": "unknown config key config.train.lr.x",
    "--config=configs/digit.py": "config file 'configs/digit.py' does not exist",
    "--wrokdir=runs/x": "unknown flag --wrokdir: did you mean --workdir?",
    "runs/x": "unexpected argument 'runs/x'",
    "--config.train.steps": "--config.train.steps has no value: write --config.train.steps=VALUE",
    "--config": "--config has no value",
    "--config=configs": "config file configs is a folder: give a file",
    "--config=/dev/null": "config file /dev/null is no ordinary file",
    "--config.train.steps=" + "9" * 5000: "it takes an int, at least 1",
    "--config.train.steps=1" + "0" * 30: "give a whole number of at most 2,147,483,647",
    "--config.model.width=100000": "config.model.width is 100000; it takes an int, at least 1, at most 65,536",
    "--config.train.batch_size=1000000000": "at most 16,777,216",
    "--config.sample.steps=1000000000000": "at most 1,000,000",
    "--config.train.lr=1e400": "config.train.lr is inf",
    "--config.train.lr=nan": "config.train.lr is nan",
    "--config.train.lr=1e39": "config.train.lr is 1e+39: float32 holds sizes from 1.2e-38 to 3.4e+38",
    "--config.train.lr=1e-50": "config.train.lr is 1e-50: float32 holds",
    "--config.train.steps=inf": "config.train.steps is 'inf'; it takes an int",
    "--config.seed=4294967296": "config.seed is 4294967296; it takes an int, at least 0, below 4,294,967,296",
    "--config.eval.seed=-1": "config.eval.seed is -1",
    "--config.model.channel_mults=" + "1," * 200: "100 entries at most",
    "--config.train.log_every=None": "config.train.log_every is 'None'; it takes an int",
    "--noconfig.train.steps": "config.train.steps is 'false'",
    "--only_check_args": "unknown flag --only_check_args",
    "--verbosity=1": "unknown flag --verbosity",
    "--undefok=x": "unknown flag --undefok",
    "--flagfile=x": "unknown flag --flagfile",
}


@pytest.mark.parametrize("argument", COMMAND_LINES)
def test_a_mistake_on_the_command_line_is_told(parse: Callable[..., Any], argument: str) -> None:
    with pytest.raises(UserError) as told:
        parse(argument)
    assert COMMAND_LINES[argument] in str(told.value) and len(str(told.value)) < 2100


FILES = {
    "x = 1": "has no get_config(): write one",
    "get_config = 3": "has no get_config()",
    "def get_config():\n    pass": "returns NoneType: give a ConfigDict",
    "def get_config():\n    return [1]": "returns list: give a ConfigDict",
    "def get_config():\n    return {'train': {'stpes': 3}}": "did you mean config.train.steps?",
    "def get_config():\n    return {'trian': {}}": "unknown config key config.trian",
    "def get_config():\n    return {'train': 3}": "config.train is a section",
    "def get_config():\n    return {'train': {'steps': 10**5000}}": "config.train.steps is a number of",
    "def get_config():\n    return {'train': {'lr': 10**400}}": "config.train.lr is",
    "def get_config():\n    return {3: 4}": "unknown config key config.3",
    "# Read me\n\nThis is *no* config.": "mine.py, line 3: SyntaxError",
    "def get_config(:": "mine.py, line 1: SyntaxError",
    "a = 1\n\0": "mine.py",
    "import os\n\ndef get_config():\n    return nobody": "mine.py, line 4: NameError: name 'nobody' is not defined",
    "import a_module_of_nobody": "mine.py, line 1: ModuleNotFoundError: No module named 'a_module_of_nobody'",
    "from configs import a_config_of_nobody": "mine.py, line 1: ImportError",
    "def get_config():\n\n    raise ValueError('a\\nb')": "mine.py, line 3: ValueError: a b: mend it",
    "import sys\nsys.exit(0)": "mine.py, line 2: SystemExit",
    "def get_config(x):\n    pass": "TypeError: get_config() missing",
    "def get_config():\n    return get_config()": "RecursionError",
}


@pytest.mark.parametrize("text", FILES)
def test_a_mistake_in_a_config_file_is_told(parse: Callable[..., Any], text: str, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(text)
    with pytest.raises(UserError) as told:
        parse(f"--config={tmp_path / 'mine.py'}")
    assert FILES[text] in str(told.value) and "\n" not in str(told.value)


JSON = {
    "": "is damaged",
    "[1]": "is damaged",
    "{": "is damaged",
    '{"train": {"lr": 1e400}}': "config.train.lr is inf",
    '{"train": {"lr": 1' + "0" * 400 + "}}": "config.train.lr is",
    '{"train": {"steps": ' + "9" * 5000 + "}}": "is damaged",
    '{"train": {"steps": Infinity}}': "config.train.steps is inf",
    '{"train": {"lr": NaN}}': "config.train.lr is nan",
    '{"trian": {"lr": 1}}': "unknown config key config.trian.lr",
    '{"data_shape": {}, "trian": {"lr": 1}, "train": {"lr": -1}}': "config.train.lr is -1",
    "[" * 10**5: "is damaged",
    '{"train": ' * 900 + "1" + "}" * 900: "unknown config key config.train.train",
}


@pytest.mark.parametrize("text", JSON, ids=range(len(JSON)))
def test_a_mistake_in_a_config_as_json_is_told(parse: Callable[..., Any], text: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError) as told:
        parse(f"--config={tmp_path / 'config.json'}")
    assert JSON[text] in str(told.value) and str(tmp_path / "config.json") in str(told.value)


def test_the_config_of_a_run_is_a_config_file(parse: Callable[..., Any], tmp_path: Path) -> None:
    """With what training keeps beside it, under the command line's keys, and as --print_config prints it."""
    config = parse("--config.model.attention=4,8", "--config.sde.t_min=0.25")
    save_config(tmp_path / "config.json", config, data_shape={}, provenance={}, anything={"else": 1})
    again = parse(f"--config={tmp_path / 'config.json'}", "--config.sde.t_min=None")
    assert differences(config, again) == ["sde.t_min 0.25 -> None"]
    with pytest.raises(UserError, match=r"unknown config key config\.anything"):
        save_config(tmp_path / "config.json", config, anything={"else": 1})
        parse(f"--config={tmp_path / 'config.json'}")


def test_print_config_prints_what_would_be_trained_and_stops(
    parse: Callable[..., Any], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with pytest.raises(SystemExit) as ended:
        parse("--config.train.steps=7", "--print_config", "--config.eval.samplers=em")
    assert not ended.value.code
    (tmp_path / "again.json").write_text(capsys.readouterr().out)
    again = parse(f"--config={tmp_path / 'again.json'}")
    changes = ["eval.samplers ('em', 'pc', 'ode') -> ('em',)", "train.steps 3000 -> 7"]
    assert sorted(differences(check_config(digits.get_config()), again)) == changes
    with pytest.raises(UserError, match="did you mean"):
        parse("--print_config", "--config.train.stpes=7")


def test_the_help_has_every_key_with_its_default_range_and_meaning(
    parse: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    for asked in ("--help", "-h"):
        with pytest.raises(SystemExit) as ended:
            parse(asked, "--config.train.stpes=7")
        assert not ended.value.code
        told = " ".join(capsys.readouterr().out.split())
        assert told.startswith("Trains.") and "--config=FILE" in told and "--workdir=TEXT The run directory." in told
        for name, (_, field) in KEYS.items():
            assert f" {name}=" in told and " ".join(field.metadata["meaning"].split()) in told
    assert "train.lr=0.001 the learning rate after warming up (a float, above 0)" in told
    assert "data.flip=false images flipped" in told and "eval.samplers=em,pc,ode what" in told


def test_a_config_file_may_be_a_plain_dictionary_of_what_differs(parse: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def get_config():\n    return {'train': {'steps': 3}, 'sde': {'name': 've'}}")
    config = parse("--config", str(tmp_path / "mine.py"), "--config.sde.t_min=0.01", "--config.train.batch_size=4")
    assert set_keys(config) == {"train.steps": 3, "sde.name": "ve", "sde.t_min": 0.01, "train.batch_size": 4}


def test_mistakes_become_one_line_and_bugs_keep_their_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended, cli.mistakes_in_one_line():
        raise UserError("first\n  second")
    assert ended.value.code == 2
    assert capsys.readouterr().err == "first second\n"
    with pytest.raises(SystemExit) as ended, cli.mistakes_in_one_line():
        raise KeyboardInterrupt
    assert ended.value.code == 130
    assert capsys.readouterr().err == ""
    with pytest.raises(ZeroDivisionError), cli.mistakes_in_one_line():
        _ = 1 // 0


def test_provenance_says_what_ran() -> None:
    import jax

    origin = provenance()
    assert origin["versions"]["jax"] == jax.__version__
    assert origin["device"].startswith("cpu")
    commit = origin["git_commit"].removesuffix("+changes")
    if commit != "unknown":  # outside a checkout
        git = ["git", "-C", str(ROOT)]
        assert commit == subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip()
        changed = subprocess.run([*git, "diff", "--quiet", "HEAD"]).returncode != 0
        assert origin["git_commit"].endswith("+changes") == changed


def test_each_sampler_takes_its_own_settings_from_the_sample_section() -> None:
    config = whole_config({})
    config.sample.update({"steps": 77, "rtol": 3e-4, "snr": 0.2})
    assert make_sampler("em", config).steps == 77
    assert (make_sampler("pc", config).steps, make_sampler("pc", config).snr) == (77, 0.2)
    ode = make_sampler("ode", config)
    assert ode.rtol == 3e-4 and ode.steps is None  # adaptive: `steps` would make it a fixed-step solve of 6 x 77 calls
