"""The configuration's schema: every key, its type, its range. A misspelt or impossible value fails before all else.

`configs/` holds the values. A key that is added here later takes a default, which is how runs before it behaved; a key
without one must be given.
"""

import dataclasses
import difflib
import json
import math
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict, FrozenConfigDict

from experiment.errors import UserError
from experiment.files import write_json


def key(
    low: float | None = None,
    above: float | None = None,
    high: float | None = None,
    below: float | None = None,
    choices: tuple[str, ...] = (),
    default: Any = dataclasses.MISSING,
) -> Any:
    """One key's range: low <= value <= high, above < value < below; for a tuple, each entry."""
    ranges = {"at least": low, "above": above, "at most": high, "below": below}
    return dataclasses.field(default=default, metadata={"ranges": ranges, "choices": choices})


@dataclass(frozen=True, kw_only=True)
class SDESection:
    name: str = key()
    beta_min: float = key(above=0)
    beta_max: float = key(above=0)
    sigma_min: float = key(above=0)
    sigma_max: float = key(above=0)
    t_min: float | None = key(above=0, below=1)


@dataclass(frozen=True, kw_only=True)
class ModelSection:
    name: str = key()
    parameterization: str = key()
    sigma_data: float = key(above=0)
    width: int = key(low=1)
    depth: int = key(low=1)
    heads: int = key(low=1)
    patch_size: int = key(low=1)
    channel_mults: tuple[int, ...] = key(low=1)
    blocks: int = key(low=1)
    attention: tuple[int, ...] = key(low=1)
    dropout: float = key(low=0, below=1)
    class_conditional: bool = key()
    dtype: str = key(choices=("float32", "bfloat16", "auto"))
    remat: str = key(choices=("none", "blocks", "products"), default="none")
    noise_label: str = key(default="log_snr")
    scale_by_sigma: bool = key(default=True)
    embedding: str = key(choices=("positional", "fourier"), default="positional")
    fourier_scale: float = key(above=0, default=16.0)
    resblock: str = key(choices=("biggan", "ddpm"), default="biggan")
    fir: bool = key(default=False)
    skip_rescale: bool = key(default=True)
    resample_with_conv: bool = key(default=True)
    progressive: str = key(choices=("none", "output_skip", "residual"), default="none")
    progressive_input: str = key(choices=("none", "input_skip", "residual"), default="none")
    progressive_combine: str = key(choices=("sum", "cat"), default="sum")
    attention_per_block: bool = key(default=False)
    norm_groups: int = key(low=0, default=0)
    init_scale: float = key(low=0, default=0.0)


@dataclass(frozen=True, kw_only=True)
class DataSection:
    name: str = key()
    path: str = key()
    dequantize: bool = key()
    flip: bool = key()
    cache: str = key()
    centered: bool = key(default=True)
    crop: int = key(low=0, default=0)
    size: int = key(low=0, default=0)
    skip_unreadable: bool = key(default=False)


@dataclass(frozen=True, kw_only=True)
class TrainSection:
    steps: int = key(low=1)
    batch_size: int = key(low=1)
    lr: float = key(above=0)
    optimizer: str = key()
    weight_decay: float = key(low=0)
    warmup: int = key(low=0)
    schedule: str = key()
    clip: float = key(low=0)
    accumulate: int = key(low=1)
    ema: float = key(low=0, below=1)
    weighting: str = key()
    times: str = key()
    min_snr_gamma: float = key(above=0, default=5.0)
    time_mean: float | None = key(default=None)
    time_std: float | None = key(above=0, default=None)
    uncertainty: bool = key(default=False)
    power_ema: tuple[float, ...] = key(above=0, below=0.288, default=())
    snapshot_every: int = key(low=1, default=1000)
    checkpoint_every: int = key(low=1)
    keep: int = key(low=1)
    log_every: int = key(low=1)
    fsdp: int = key(low=1)
    steps_per_call: int = key(low=1, default=1)


@dataclass(frozen=True, kw_only=True)
class SampleSection:
    steps: int = key(low=1)
    batch_size: int = key(low=1)
    snr: float = key(above=0)
    corrector_steps: int = key(low=0)
    rtol: float = key(above=0, below=1)
    atol: float = key(above=0, below=1)
    denoise: bool = key()


@dataclass(frozen=True, kw_only=True)
class EvalSection:
    samplers: tuple[str, ...] = key()
    n: int = key(low=2)
    seeds: int = key(low=1)
    likelihood_n: int = key(low=2)
    probes: int = key(low=1)
    rtol: float = key(above=0, below=1)
    atol: float = key(above=0, below=1)
    seed: int = key(low=0, below=2**32)
    batch_size: int = key(low=1)
    reference: str = key(choices=("train", "test"))


@dataclass(frozen=True, kw_only=True)
class Schema:
    seed: int = key(low=0, below=2**32)
    sde: SDESection = key()
    model: ModelSection = key()
    data: DataSection = key()
    train: TrainSection = key()
    sample: SampleSection = key()
    eval: EvalSection = key()


# What may differ when a run goes on: how long, how often, how devices share the work, where data are kept, and what
# follows training.
FREE_ON_RESUME = (
    "train.steps",
    "train.log_every",
    "train.checkpoint_every",
    "train.keep",
    "train.snapshot_every",
    "train.fsdp",
    "train.steps_per_call",
    "data.cache",
    "sample.",
    "eval.",
)


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


def nearest(name: str, names: Iterable[str]) -> str:
    """The closest of `names`, or "" when none is close."""
    close = difflib.get_close_matches(name, list(names), n=1, cutoff=0.5)
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
    """(type of an entry, whether a tuple of them, whether None will do)."""
    optional = isinstance(hint, types.UnionType)
    if optional:
        hint = typing.get_args(hint)[0]
    many = typing.get_origin(hint) is tuple
    return (typing.get_args(hint)[0] if many else hint), many, optional


def describe(name: str) -> str:
    """In words, what the key takes: "an int, at least 1"."""
    hint, field = KEYS[name]
    kind, many, optional = _kind(hint)
    article = {int: "an int", float: "a float", bool: "true or false", str: "a string"}[kind]
    words = f"a tuple, each entry {article}" if many else article
    if field.metadata["choices"]:
        words = "one of " + ", ".join(field.metadata["choices"])
    words += "".join(f", {word} {limit:g}" for word, limit in field.metadata["ranges"].items() if limit is not None)
    return words + (", or None" if optional else "")


def _entry(kind: type, value: Any) -> Any:
    """The value as `kind`. Raises ValueError when it is of another type; an int will do for a float."""
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
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


def check_value(name: str, value: Any) -> Any:
    """The value in its key's type. Raises UserError when its type or range is wrong."""
    hint, field = KEYS[name]
    kind, many, optional = _kind(hint)
    if value is None and optional:
        return None
    if many and kind is str and isinstance(value, (tuple, list)):
        # --config.eval.samplers=em,ode arrives as one string
        value = [part.strip() for entry in value for part in (entry.split(",") if isinstance(entry, str) else [entry])]
    listed = isinstance(value, (tuple, list))
    try:
        if listed != many:
            raise ValueError
        entries = [_entry(kind, entry) for entry in (value if listed else [value])]
        if not all(_within(entry, field) for entry in entries):
            raise ValueError
    except ValueError:
        raise UserError(f"config.{name} is {value!r}; it takes {describe(name)}") from None
    return tuple(entries) if many else entries[0]


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """A nested config as {"train.lr": 1e-3, ...}."""
    found: dict[str, Any] = {}
    for name, value in config.items():
        nested = isinstance(value, (Mapping, ConfigDict, FrozenConfigDict))
        found |= flatten(value, f"{prefix}{name}.") if nested else {f"{prefix}{name}": value}
    return found


def check_config(config: Any) -> Any:
    """A checked copy of the config, a ConfigDict, each value in its type, locked.

    Raises UserError that names the key: unknown (with the nearest valid one), missing, or of a wrong type or range.
    """
    given = flatten(config)
    for name in given:
        check_key(name)
    values: dict[str, Any] = {}
    for name, (_, field) in KEYS.items():
        value = given.get(name, field.default)
        if value is dataclasses.MISSING:
            raise UserError(
                f"config.{name} is missing: give it a value, or start from configs/base.py as configs/digits.py does"
            )
        section, _, last = name.rpartition(".")
        (values.setdefault(section, {}) if section else values)[last] = check_value(name, value)
    for low, high in (("beta_min", "beta_max"), ("sigma_min", "sigma_max")):
        below, above = values["sde"][low], values["sde"][high]
        if below >= above:
            raise UserError(f"config.sde.{low} is {below:g}: it must be below config.sde.{high}, {above:g}")
    return ConfigDict(values).lock()


def differences(old: Any, new: Any, free: tuple[str, ...] = ()) -> list[str]:
    """["train.lr 0.001 -> 0.002", ...]: the keys that differ, but for the `free` ones; "eval." frees a section."""
    before, after = flatten(old), flatten(new)
    return [
        f"{name} {before.get(name)!r} -> {after.get(name)!r}"
        for name in dict.fromkeys([*before, *after])
        if before.get(name) != after.get(name)
        and not any(name == f or (f.endswith(".") and name.startswith(f)) for f in free)
    ]


def save_config(path: Path, config: Any, **beside: Any) -> None:
    """Write config.json atomically: the config's sections, and beside them what else is to be remembered of the run."""
    write_json(path, {**config.to_dict(), **beside})


def load_config(path: Path) -> tuple[Any, dict[str, Any]]:
    """(the checked config, what was saved beside it). Raises UserError when the file cannot be read as a config."""
    try:
        content = json.loads(path.read_text())
        sections = {name: content.pop(name) for name in [f.name for f in dataclasses.fields(Schema)] if name in content}
    except (json.JSONDecodeError, UnicodeDecodeError, AttributeError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error}): restore it, or train into another --workdir") from None
    return check_config(sections), content
