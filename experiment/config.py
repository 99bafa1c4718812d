"""The configuration's schema: every key with its default, its type, its range and its meaning, here and nowhere else.

A config, from a file in configs/, from an importer or from a run's config.json, gives the values that differ. A
misspelt or impossible value fails before all else. A key that is added later takes as its default how runs before it
behaved.
"""

import dataclasses
import difflib
import json
import math
import os
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict, FrozenConfigDict, config_dict

from experiment.errors import UserError, one_line, quoted

MOST_BYTES = 2**24  # of a config.json
BESIDE = {"provenance": dict, "earlier_provenance": list, "reconstructed": dict}  # what readers take for these

SEEDS = 2**32  # NumPy's generators take no larger seed
MOST = 2**31 - 1  # of a count that has no limit of its own: the device counts in 32 bits
FLOAT32 = (1.2e-38, 3.4e38)  # the sizes that float32 holds
ENTRIES = 100  # of a tuple


def key(
    default: Any,
    meaning: str,
    *,
    low: float | None = None,
    above: float | None = None,
    high: float | None = None,
    below: float | None = None,
    choices: tuple[str, ...] = (),
) -> Any:
    """Declare one key: its default, what it means, and its range.

    The range is low <= value <= high, above < value < below; of a tuple, that of each entry.
    """
    ranges = {"at least": low, "above": above, "at most": high, "below": below}
    metadata = {"meaning": meaning, "ranges": ranges, "choices": choices}
    return dataclasses.field(default=default, metadata=metadata)


FOLLOWS = "None: as the data's size and amount want it"  # experiment/training/sizing.py, when a run begins


@dataclass(frozen=True, kw_only=True)
class SDESection:
    name: str = key("vp", "the forward process: vp | subvp | ve | cosine_vp | rectified_flow")
    beta_min: float = key(0.1, "of vp and subvp: beta at t = 0", above=0)
    beta_max: float = key(20.0, "of vp and subvp: beta at t = 1", above=0)
    sigma_min: float = key(0.01, "of ve: the noise at t = 0", above=0)
    sigma_max: float = key(50.0, "of ve: the noise at t = 1", above=0)
    t_min: float | None = key(None, "the smallest time; None: the process's own", above=0, below=1)


@dataclass(frozen=True, kw_only=True)
class ModelSection:
    name: str = key("dit", "the network: mlp | unet | dit | ncsnpp; each takes the keys that its constructor names")
    parameterization: str = key(
        "eps",
        "what it predicts: eps | x0 | edm | gaussian | v | velocity, or on the unscaled input: raw_eps | raw_score",
    )
    sigma_data: float | None = key(
        0.5, f"of edm and its weightings: the standard deviation of the scaled data; {FOLLOWS}", above=0
    )
    width: int | None = key(
        128, f"channels at full resolution; of mlp and dit, in every layer; {FOLLOWS}", low=1, high=2**16
    )
    depth: int = key(4, "of mlp and dit: hidden layers, or transformer blocks", low=1, high=256)
    heads: int = key(4, "of unet and dit: attention heads", low=1)
    patch_size: int = key(2, "of dit: pixels per side of a patch", low=1)
    channel_mults: tuple[int, ...] | None = key(
        (1, 2), f"of unet and ncsnpp: width factor of each resolution; {FOLLOWS}", low=1, high=1000
    )
    blocks: int = key(2, "of unet and ncsnpp: residual blocks for each resolution", low=1, high=64)
    attention: tuple[int, ...] | None = key(
        (), f"of unet and ncsnpp: resolutions with attention, in pixels of the first side; {FOLLOWS}", low=1
    )
    dropout: float = key(0.0, "the share of features left out in training", low=0, below=1)
    class_conditional: bool = key(False, "whether the network is told the class")
    dtype: str = key("auto", "of its products; auto: bfloat16 on accelerators", choices=("float32", "bfloat16", "auto"))
    remat: str = key(
        "none",
        "activations computed again in the backward pass: none, all (blocks), or all but products",
        choices=("none", "blocks", "products"),
    )
    noise_label: str = key(
        "log_snr", "what the network is told of the noise: log_snr | log_sigma | time | reversed_time | chain"
    )
    scale_by_sigma: bool = key(True, "of raw_score: the network's output divided by sigma")
    embedding: str = key("positional", "of ncsnpp: of the noise label", choices=("positional", "fourier"))
    fourier_scale: float = key(16.0, "of ncsnpp: the frequencies' standard deviation", above=0)
    resblock: str = key("biggan", "of ncsnpp: the residual block", choices=("biggan", "ddpm"))
    fir: bool = key(False, "of ncsnpp: resampling by StyleGAN2's filter")
    skip_rescale: bool = key(True, "of ncsnpp: residual sums divided by sqrt(2)")
    resample_with_conv: bool = key(True, "of ncsnpp: a convolution with each resampling")
    progressive: str = key("none", "of ncsnpp: outputs", choices=("none", "output_skip", "residual"))
    progressive_input: str = key("none", "of ncsnpp: inputs", choices=("none", "input_skip", "residual"))
    progressive_combine: str = key("sum", "of ncsnpp: how a progressive input is joined", choices=("sum", "cat"))
    attention_per_block: bool = key(False, "of ncsnpp: attention on the way up too, as in Ho et al.'s own code")
    norm_groups: int = key(0, "of ncsnpp: groups of a norm; 0: min(channels/4, 32)", low=0)
    init_scale: float = key(0.0, "of ncsnpp: of each block's last layer at the start", low=0)


@dataclass(frozen=True, kw_only=True)
class DataSection:
    name: str = key("digits", "a set of ours, or any prepared image set of tensorflow-datasets")
    path: str = key(
        "", "instead of a name: a folder or zip of images, or an .npz of images, vectors, series, fields, volumes"
    )
    dequantize: bool = key(True, "uniform noise of one level added in training")
    flip: bool = key(False, "images flipped left to right at random in training")
    cache: str = key("", 'where prepared data are kept; "": the user\'s cache folder')
    centered: bool = key(True, "images in [-1, 1); false: in [0, 1)")
    crop: int = key(0, "pixels per side of a central crop, before anything else; 0: none", low=0, high=2**16)
    size: int = key(0, "pixels per side that images are resized to; 0: as they are", low=0, high=2**16)
    skip_unreadable: bool = key(False, "leave damaged images out, counted, instead of stopping")


@dataclass(frozen=True, kw_only=True)
class TrainSection:
    steps: int | None = key(4000, f"updates of the weights; {FOLLOWS}", low=1)
    batch_size: int | None = key(128, f"examples for an update, on all devices together; {FOLLOWS}", low=1, high=2**24)
    lr: float = key(1e-3, "the learning rate after warming up", above=0)
    optimizer: str = key("adam", "adam | adamw")
    weight_decay: float = key(0.0, "of adamw", low=0)
    warmup: int = key(200, "updates over which the learning rate rises", low=0)
    schedule: str = key("cosine", "of the learning rate: cosine | constant")
    clip: float = key(1.0, "the largest norm of the gradient; 0: any", low=0)
    accumulate: int = key(1, "parts that a batch is computed in", low=1)
    ema: float = key(0.999, "decay of the average of the weights", low=0, below=1)
    weighting: str = key(
        "sigma2",
        "of the loss over the noise: sigma2 | likelihood | flow_matching | v | min_snr | soft_min_snr | edm; with times"
        " drawn by their own distribution, edm_log_normal | flow_matching_logit_normal",
    )
    times: str = key(
        "uniform_t",
        "the time distribution: uniform_t | uniform_log_snr | uniform_log_sigma | log_normal | logit_normal, or"
        " learned: loss_second_moment | learned_log_snr",
    )
    min_snr_gamma: float = key(5.0, "of min_snr", above=0)
    time_mean: float | None = key(None, "of log_normal and logit_normal; None: -1.2 and 0")
    time_std: float | None = key(None, "of log_normal and logit_normal; None: 1.2 and 1", above=0)
    uncertainty: bool = key(False, "each noise level's loss divided by its mean, learned: EDM2's weighting")
    power_ema: tuple[float, ...] = key(
        (),
        "relative widths of averages of the weights, such as (0.05, 0.1), from which any other is rebuilt",
        above=0,
        below=0.288,
    )
    snapshot_every: int = key(1000, "updates between the snapshots of power_ema", low=1)
    checkpoint_every: int = key(1000, "updates between checkpoints", low=1)
    keep: int = key(3, "checkpoints kept", low=1)
    log_every: int = key(50, "updates between rows of the log", low=1)
    preview_every: int = key(
        1000, "updates between held-out losses, with pictures of samples in TensorBoard; 0: none", low=0
    )
    start: str = key("", "a run whose averaged weights training starts from, with a fresh optimizer")
    fsdp: int = key(1, "devices that weights, averages and moments are split over", low=1)
    steps_per_call: int = key(1, "updates in one call of the device; on CPU always 1", low=1, high=10_000)


@dataclass(frozen=True, kw_only=True)
class SampleSection:
    steps: int = key(500, "of samplers with fixed steps", low=1, high=1_000_000)
    batch_size: int = key(64, "samples drawn at once", low=1, high=2**24)
    snr: float = key(0.16, "of the corrector: its signal-to-noise ratio; Song et al.'s for ve, for vp 0.01", above=0)
    corrector_steps: int = key(1, "of the corrector, after each step of the predictor", low=0, high=10_000)
    rtol: float = key(1e-5, "of adaptive solvers", above=0, below=1)
    atol: float = key(1e-5, "of adaptive solvers", above=0, below=1)
    denoise: bool = key(True, "a last step to the denoiser's value at t_min")


@dataclass(frozen=True, kw_only=True)
class EvalSection:
    samplers: tuple[str, ...] = key(("em", "pc", "ode"), "what evaluate.py compares")
    n: int | None = key(1024, f"samples for each sampler and seed; {FOLLOWS}", low=2, high=10**9)
    seeds: int = key(3, "how many seeds", low=1, high=10_000)
    likelihood_n: int = key(256, "held-out examples of the likelihood", low=2)
    probes: int = key(4, "Hutchinson's probes for each of them", low=1, high=100_000)
    rtol: float = key(1e-5, "of the likelihood's solve", above=0, below=1)
    atol: float = key(1e-5, "of the likelihood's solve", above=0, below=1)
    seed: int = key(0, "the first of the seeds", low=0, below=SEEDS)
    batch_size: int = key(128, "examples at once, of the likelihood", low=1, high=2**24)
    reference: str = key("train", "the split that samples are held against", choices=("train", "test"))


@dataclass(frozen=True, kw_only=True)
class Schema:
    seed: int = key(0, "of the weights, the batches and the noise", low=0, below=SEEDS)
    module: str = key("", "a Python file of your own that is imported first: it adds to the tables of names")
    sde: SDESection = dataclasses.field(default_factory=SDESection)
    model: ModelSection = dataclasses.field(default_factory=ModelSection)
    data: DataSection = dataclasses.field(default_factory=DataSection)
    train: TrainSection = dataclasses.field(default_factory=TrainSection)
    sample: SampleSection = dataclasses.field(default_factory=SampleSection)
    eval: EvalSection = dataclasses.field(default_factory=EvalSection)


# What may differ when a run goes on: how long, how often, how devices share the work, where data are kept, and what
# follows training.
FREE_ON_RESUME = (
    "module",
    "train.steps",
    "train.log_every",
    "train.checkpoint_every",
    "train.keep",
    "train.snapshot_every",
    "train.preview_every",
    "train.fsdp",
    "train.steps_per_call",
    "data.cache",
    "sample.",
    "eval.",
)


SECTIONS = tuple(field.name for field in dataclasses.fields(Schema) if dataclasses.is_dataclass(field.type))


def _leaves(section: type = Schema, prefix: str = "") -> dict[str, tuple[Any, dataclasses.Field[Any]]]:
    hints = typing.get_type_hints(section)
    found: dict[str, tuple[Any, dataclasses.Field[Any]]] = {}
    for field in dataclasses.fields(section):
        if dataclasses.is_dataclass(hints[field.name]):
            found |= _leaves(hints[field.name], f"{prefix}{field.name}.")
        else:
            found[prefix + field.name] = (hints[field.name], field)
    return found


KEYS = _leaves()
OWN_KEYS: set[str] = set()  # those of KEYS that a module of the user's brought

# Those that are settled by the data where they are None.
FOLLOWING = tuple(name for name, (_, field) in KEYS.items() if FOLLOWS in field.metadata["meaning"])


def nearest(name: str, names: Iterable[str]) -> str:
    """The closest of `names`, or "" when none is close."""
    close = difflib.get_close_matches(name[:100], list(names), n=1, cutoff=0.5)
    return close[0] if close else ""


def check_key(name: str) -> None:
    """Raises UserError, with the nearest valid key, for a dotted name that is not a key."""
    if name in KEYS:
        return
    head, _, tail = name.rpartition(".")
    siblings = [k for k in KEYS if k.startswith(head + ".")] if head else []
    namesake = [k for k in KEYS if k.rpartition(".")[2] == tail]
    guess = nearest(name, siblings) or (namesake[0] if namesake else "") or nearest(name, KEYS)
    if name in {k.partition(".")[0] for k in KEYS}:
        raise UserError(f"config.{name} is a section, not a key: set one of its keys, such as config.{guess}")
    remedy = f"did you mean config.{guess}?" if guess else f"the keys are: {', '.join(KEYS)}"
    raise UserError(f"unknown config key config.{name}: {remedy}")


def _kind(hint: Any) -> tuple[type, bool, bool]:
    """Return the type of an entry, whether the key is a tuple of them, and whether None will do."""
    optional = isinstance(hint, types.UnionType)
    if optional:
        hint = typing.get_args(hint)[0]
    many = typing.get_origin(hint) is tuple
    return (typing.get_args(hint)[0] if many else hint), many, optional


def describe(name: str) -> str:
    """Say in words what the key takes: "an int, at least 1"."""
    hint, field = KEYS[name]
    kind, many, optional = _kind(hint)
    article = {int: "an int", float: "a float", bool: "true or false", str: "a string"}[kind]
    words = f"a tuple, each entry {article}" if many else article
    if field.metadata["choices"]:
        words = "one of " + ", ".join(field.metadata["choices"])
    limits = field.metadata["ranges"].items()
    words += "".join(f", {word} {_number(limit)}" for word, limit in limits if limit is not None)
    return words + (", or None" if optional else "")


def _number(limit: float) -> str:
    return f"{limit:,}" if isinstance(limit, int) else f"{limit:g}"


def _entry(kind: type, value: Any) -> Any:
    """Return the value as `kind`. Raises ValueError when it is of another type; an int will do for a float.

    So will numpy's own kind of number, and a path for a string.
    """
    if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):
        value = value.item()
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if kind is str and isinstance(value, os.PathLike):
        value = os.fspath(value)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise ValueError
    return value


def _within(value: Any, field: dataclasses.Field[Any]) -> bool:
    if field.metadata["choices"]:
        return value in field.metadata["choices"]
    low, above, high, below = field.metadata["ranges"].values()
    return not isinstance(value, (int, float)) or (
        math.isfinite(value)
        and (low is None or value >= low)
        and (above is None or value > above)
        and (high is None or value <= high)
        and (below is None or value < below)
    )


def _check_size(name: str, value: Any) -> None:
    """Raises UserError for a number that is in its range, and that the device cannot hold."""
    ranges = KEYS[name][1].metadata["ranges"]
    if isinstance(value, int) and abs(value) > MOST and ranges["at most"] is None and ranges["below"] is None:
        raise UserError(f"config.{name} is {quoted(value)}: give a whole number of at most {MOST:,}")
    if isinstance(value, float) and value and not FLOAT32[0] <= abs(value) <= FLOAT32[1]:
        raise UserError(
            f"config.{name} is {value:g}: float32 holds sizes from {FLOAT32[0]:g} to {FLOAT32[1]:g}; give another"
        )


def check_value(name: str, value: Any) -> Any:
    """Return the value in its key's type. Raises UserError when its type or range is wrong."""
    hint, field = KEYS[name]
    kind, many, optional = _kind(hint)
    if value is None and optional:
        return None
    if many and kind is str and isinstance(value, (tuple, list)):
        # Names in one string, as "em, ode".
        parts = (part for entry in value for part in (entry.split(",") if isinstance(entry, str) else [entry]))
        value = [part.strip() if isinstance(part, str) else part for part in parts]
    listed = isinstance(value, (tuple, list))
    try:
        if listed != many:
            raise ValueError
        entries = [_entry(kind, entry) for entry in (value if listed else [value])]
        if len(entries) > ENTRIES or not all(_within(entry, field) for entry in entries):
            raise ValueError
    except (ValueError, OverflowError):
        most = f", {ENTRIES} entries at most" if many else ""
        raise UserError(f"config.{name} is {quoted(value)}; it takes {describe(name)}{most}") from None
    for entry in entries:
        _check_size(name, entry)
    return tuple(entries) if many else entries[0]


def check_flag(flag: str, value: int | None, key: str = "", *, least: int | None = None, most: int = MOST) -> None:
    """Check a flag's whole number: against the range of the key, narrowed by least and most. None is not given.

    Raises UserError for a number out of range.
    """
    if value is None:
        return
    low, above, high, below = KEYS[key][1].metadata["ranges"].values() if key else (None,) * 4
    least = max(int(limit) for limit in (0, low, None if above is None else above + 1, least) if limit is not None)
    most = min(int(limit) for limit in (most, high, None if below is None else below - 1) if limit is not None)
    if not least <= value <= most:
        told = f"at least {least}" if value < least else f"at most {most:,}"
        raise UserError(f"--{flag} is {_short(value)}: give {told}")


def check_seed(seed: int | None, seeds: int = 1) -> None:
    """Raises UserError for a seed, the first of so many, that leaves the one range of all seeds, NumPy's."""
    if seed is None:
        return
    if not 0 <= seed < SEEDS:
        raise UserError(f"--seed is {_short(seed)}: give an integer from 0 to 2^32 - 1")
    if seed + seeds > SEEDS:
        raise UserError(f"--seed is {seed}, and the last of --seeds={seeds} is beyond 2^32 - 1: give a smaller --seed")


def _short(value: int) -> str:
    return str(value) if abs(value) < 10**20 else f"a number of about {int(value.bit_length() * 0.30103)} digits"


def read_text(name: str, text: str) -> Any:
    """Read a key's value as the command line gives it: a number, true or false, None, or a tuple as 1,2 or (1, 2).

    What its key's type does not read stays text, for `check_value` to refuse.
    """
    kind, many, optional = _kind(KEYS[name][0])
    if optional and text.strip().lower() in ("none", "null"):
        return None
    if not many:
        return _read(kind, text)
    inner = text.strip()
    if inner[:1] + inner[-1:] in ("()", "[]"):
        inner = inner[1:-1]
    parts = [part.strip() for part in inner.split(",")]
    return tuple(_read(kind, part) for part in (parts if parts[-1] else parts[:-1]))


def _read(kind: type, text: str) -> Any:
    if kind is bool:
        return {"true": True, "1": True, "false": False, "0": False}.get(text.strip().lower(), text)
    if kind is str:
        marked = len(text) > 1 and text[0] == text[-1] and text[0] in "'\""
        return text[1:-1] if marked else text
    try:
        return kind(text)
    except ValueError:
        return text


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """Return a nested config as {"train.lr": 1e-3, ...}."""
    found: dict[str, Any] = {}
    for name, value in config.items():
        inside = isinstance(value, (Mapping, ConfigDict, FrozenConfigDict)) and (value or name in SECTIONS)
        found |= flatten(value, f"{prefix}{name}.") if inside else {f"{prefix}{name}": value}
    return found


def nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Return {"train.lr": 1e-3, ...} as a nested config."""
    found: dict[str, Any] = {}
    for name, value in flat.items():
        section, _, last = name.rpartition(".")
        (found.setdefault(section, {}) if section else found)[last] = value
    return found


def adopt(module: Any) -> str:
    """Import a module of the user's, whose constructors' arguments become keys: None unless they are given.

    Returns the file's absolute path. Raises UserError where there is no such file, or where it raises.
    """
    from experiment.build.own_module import load  # imports jax, which a config without one does not need

    path, arguments = load(check_value("module", module))
    for name, kind in arguments.items():
        if name not in KEYS:
            meaning = f"of {path}: None for its own default"
            KEYS[name] = (kind | None, key(None, meaning))
            OWN_KEYS.add(name)
    return path


def adopt_of_run(workdir: str | Path) -> None:
    """Import the module of the run that lies in workdir, if there is one. What else is wrong there is told later."""
    from experiment.files import read_regular  # imports NumPy, which --help does not need

    try:
        module = json.loads(read_regular(Path(workdir).expanduser() / "config.json", MOST_BYTES)).get("module")
    except (OSError, ValueError, RuntimeError, AttributeError, RecursionError):
        return
    if isinstance(module, str) and module:
        adopt(module)


def check_config(config: Any) -> Any:
    """Return the whole config that a given one stands for: its values, each in its type, over the defaults; locked.

    Raises UserError that names the key: unknown (with the nearest valid one), or of a wrong type or range.
    """
    given = flatten(config)
    if given.get("module"):
        given["module"] = adopt(given["module"])
    for name in given:
        check_key(name)
    values = nested(
        {
            name: check_value(name, given.get(name, field.default))
            for name, (_, field) in KEYS.items()
            if name not in OWN_KEYS or given.get(name) is not None
        }
    )
    for low, high in (("beta_min", "beta_max"), ("sigma_min", "sigma_max")):
        below, above = values["sde"][low], values["sde"][high]
        if below >= above:
            raise UserError(f"config.sde.{low} is {below:g}: it must be below config.sde.{high}, {above:g}")
    return ConfigDict(values).lock()


def filled(config: Any, values: Mapping[str, Any]) -> Any:
    """The checked config with these values, by dotted name, where it has None."""
    found = ConfigDict(config.to_dict())
    for name, value in values.items():
        section, _, last = name.rpartition(".")
        if found[section][last] is None:
            found[section][last] = value
    return check_config(found)


def whole_config(config: Any) -> Any:
    """Return the whole, checked config with every value open to be set."""
    checked = check_config(config).to_dict()
    for name, (hint, _) in KEYS.items():
        section, _, last = name.rpartition(".")
        if section and checked[section].get(last, 0) is None:
            kind, many, _ = _kind(hint)
            checked[section][last] = config_dict.placeholder(tuple if many else kind)
    return ConfigDict(checked)


def set_keys(config: Any) -> dict[str, Any]:
    """Return {key: value} of what differs from the defaults."""
    return {name: value for name, value in flatten(config).items() if value != KEYS[name][1].default}


def differences(old: Any, new: Any, free: tuple[str, ...] = ()) -> list[str]:
    """List the keys that differ, as ["train.lr 0.001 -> 0.002", ...], but for the `free` ones.

    "eval." frees a whole section.
    """
    before, after = flatten(old), flatten(new)
    return [
        f"{name} {before.get(name)!r} -> {after.get(name)!r}"
        for name in dict.fromkeys([*before, *after])
        if before.get(name) != after.get(name)
        and not any(name == f or (f.endswith(".") and name.startswith(f)) for f in free)
    ]


def save_config(path: Path, config: Any, **beside: Any) -> None:
    """Write config.json atomically: the config's sections, and beside them what else is to be remembered of the run."""
    from experiment.files import write_json  # imports NumPy, which --help does not need

    write_json(path, {**config.to_dict(), **beside})


def load_config(path: Path, remedy: str = "restore it, or train into another --workdir") -> tuple[Any, dict[str, Any]]:
    """Read config.json, or another file of its form. Raises UserError where it cannot be read as a config.

    Beside the config's sections, what training writes there itself is told by its data_shape or provenance; a file
    without them holds a config alone.

    Returns:
        The checked config, and what was saved beside it.
    """
    from experiment.files import read_regular  # imports NumPy, which --help does not need

    try:
        content = dict(json.loads(read_regular(path, MOST_BYTES)))
        ours = [field.name for field in dataclasses.fields(Schema)]
        sections = {name: content.pop(name) for name in ours if name in content}
        for name, kind in BESIDE.items():
            if not isinstance(content.get(name), kind | None):
                raise TypeError(f"its {name} is {quoted(content[name])}")
        if not {"data_shape", "provenance"} & content.keys():
            sections, content = {**sections, **content}, {}
    except (OSError, ValueError, RecursionError, AttributeError, TypeError, OverflowError) as error:
        raise UserError(f"{path} is damaged ({one_line(error)}): {remedy}") from None
    try:
        return check_config(sections), content
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except RecursionError:
        raise UserError(f"{path} is damaged (its sections are nested without end): {remedy}") from None
