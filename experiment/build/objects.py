"""The objects that a config names, by explicit tables. A new SDE, network or optimizer is a class and a line here."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from experiment.build.conditions import condition_kind
from experiment.build.objective import TIMES, WEIGHTINGS
from experiment.build.samplers import check_sampler
from experiment.common.errors import UserError, choose
from models import MLP, AlwaysTold, DiT, Label, NCSNpp, OneKey, UNet, split
from sde_lib import (
    VE,
    VP,
    Chain,
    ChainLabel,
    CosineVP,
    DenoiserPrediction,
    EDMPreconditioning,
    EpsilonPrediction,
    FlowTimeLabel,
    GaussianPreconditioning,
    LogSigmaLabel,
    LogSNRLabel,
    NetworkScore,
    NoiseLabel,
    RawEpsilonPrediction,
    RawScorePrediction,
    RectifiedFlow,
    ReversedTimeLabel,
    SubVP,
    TimeLabel,
    VelocityPrediction,
    VPrediction,
)

SDES = {"vp": VP, "subvp": SubVP, "ve": VE, "cosine_vp": CosineVP, "rectified_flow": RectifiedFlow}
MODELS = {"mlp": MLP, "unet": UNet, "dit": DiT, "ncsnpp": NCSNpp}
PARAMETERIZATIONS = {
    "eps": EpsilonPrediction,
    "x0": DenoiserPrediction,
    "edm": EDMPreconditioning,
    "gaussian": GaussianPreconditioning,
    "v": VPrediction,
    "velocity": VelocityPrediction,
    "raw_eps": RawEpsilonPrediction,
    "raw_score": RawScorePrediction,
}

CHAIN_STEPS = 1000  # of the published discrete chains


def _chain_label(config: Any) -> ChainLabel:
    """The label of the VP chain of Ho et al. 2020: betas even from beta_min/1000 to beta_max/1000."""
    chain = Chain(np.linspace(config.sde.beta_min, config.sde.beta_max, CHAIN_STEPS) / CHAIN_STEPS)
    return ChainLabel(2 * np.log(chain.alpha / chain.sigma))


NOISE_LABELS: dict[str, Callable[[Any], NoiseLabel]] = {
    "log_snr": lambda config: LogSNRLabel(),
    "flow_time": lambda config: FlowTimeLabel(),
    "log_sigma": lambda config: LogSigmaLabel(),
    "time": lambda config: TimeLabel(),
    "reversed_time": lambda config: ReversedTimeLabel(),
    "chain": _chain_label,
}


def cosine(lr: float, steps: int) -> optax.Schedule:
    """The schedule lr (1 + cos(pi k/steps))/2 at update k."""
    return optax.cosine_decay_schedule(lr, steps)


def constant(lr: float, steps: int) -> optax.Schedule:
    """The schedule that is lr at every update."""
    return optax.constant_schedule(lr)


def _adam(schedule: optax.Schedule, weight_decay: float) -> optax.GradientTransformation:
    if weight_decay:
        raise UserError(
            f"config.train.weight_decay is {weight_decay:g}, which adam does not use: set config.train.optimizer=adamw"
        )
    return optax.adam(schedule)


def _adamw(schedule: optax.Schedule, weight_decay: float) -> optax.GradientTransformation:
    # Only matrices and kernels decay: neither biases and norms, nor the frequencies of a Fourier embedding, which are
    # never trained.
    def decays(params: Any) -> Any:
        return jax.tree.map(lambda leaf: leaf.ndim > 1, params)

    return optax.adamw(schedule, weight_decay=weight_decay, mask=decays)


SCHEDULES = {"cosine": cosine, "constant": constant}
OPTIMIZERS: dict[str, Callable[[optax.Schedule, float], optax.GradientTransformation]] = {
    "adam": _adam,
    "adamw": _adamw,
}

NAMES: dict[str, Mapping[str, Any]] = {
    "sde.name": SDES,
    "model.name": MODELS,
    "model.parameterization": PARAMETERIZATIONS,
    "model.noise_label": NOISE_LABELS,
    "train.optimizer": OPTIMIZERS,
    "train.schedule": SCHEDULES,
    "train.weighting": WEIGHTINGS,
    "train.times": TIMES,
}


def check_names(config: Any) -> None:
    """Look up every name in the config. Raises UserError for one that its table does not hold."""
    for key, table in NAMES.items():
        section, _, last = key.partition(".")
        try:
            choose(table, config[section][last], f"config.{key}")
        except UserError as error:
            if config.module:
                raise
            raise UserError(f"{error}; for one of your own, set config.module to the file that adds it") from None
    for name in config.eval.samplers:
        check_sampler(name, "a sampler of config.eval.samplers")


# What every network and parameterisation is given beside the keys of its section, as far as it takes them.
GIVEN = ("shape", "num_classes", "kind", "jumps", "dtype", "centered", "augmented", "rngs", "noise_label")


def parameters(cls: type) -> list[str]:
    """The names that the class's constructor takes."""
    signature = inspect.signature(cls.__init__)  # type: ignore[misc]  # of a flax class itself, it is its metaclass's
    return list(signature.parameters)


def _required(cls: type) -> list[str]:
    """Those of them that have no default."""
    named = list(inspect.signature(cls.__init__).parameters.values())[1:]  # type: ignore[misc]
    return [p.name for p in named if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]


def construct(cls: type, section: Any, what: str, **given: Any) -> Any:
    """Construct cls from `given` and those keys of the config's section that it takes; None is left out.

    Raises UserError where the constructor raises ValueError, or wants an argument that no key gives.
    """
    named = parameters(cls)
    options = {name: section[name] for name in named if name in section}
    options |= {name: value for name, value in given.items() if name in named}
    options = {name: value for name, value in options.items() if value is not None}
    if missing := [name for name in _required(cls) if name not in options]:
        raise UserError(f"{what}: {cls.__name__} needs {missing[0]}: set {what}.{missing[0]}, or give it a default")
    try:
        return cls(**options)
    except ValueError as error:
        raise UserError(f"{what}: {error}") from error


def build_sde(config: Any) -> Any:
    """Build the forward process that the `sde` section describes."""
    return construct(choose(SDES, config.sde.name, "config.sde.name"), config.sde, "config.sde")


def takes_gaussian(config: Any) -> bool:
    """Tell whether the parameterisation starts from the Gaussian of the data."""
    return "basis" in parameters(
        choose(PARAMETERIZATIONS, config.model.parameterization, "config.model.parameterization")
    )


def build_parameterization(config: Any, gaussian: Mapping[str, Any] | None = None) -> Any:
    """Build the map from the network's output to a score that `model.parameterization` names.

    gaussian: mean, basis and variances of the data, for the one that takes them.
    """
    cls = choose(PARAMETERIZATIONS, config.model.parameterization, "config.model.parameterization")
    label = choose(NOISE_LABELS, config.model.noise_label, "config.model.noise_label")(config)
    known = {name: jnp.asarray(array) for name, array in (gaussian or {}).items()}
    return construct(cls, config.model, "config.model", noise_label=label, **known)


def compute_dtype(name: str) -> jax.typing.DTypeLike:
    """The network's compute dtype; "auto" is bfloat16 on accelerators, float32 on CPU, where bfloat16 is slower."""
    if name == "auto":
        name = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    return jnp.dtype(name)


def build_network(config: Any, dataset: Any, rngs: Any = None) -> tuple[Callable[..., jax.Array], dict[str, Any]]:
    """Build the network for the dataset's `shape`, and for what config.model.condition tells it of an example.

    Returns:
        apply: the network as a function of its weights; one that is trained without cond_dropout refuses cond=None.
        params: its weights, drawn from `rngs`, by default from config.seed.
    """
    kind = condition_kind(config, dataset)
    labelled = isinstance(kind, Label)
    given: dict[str, Any] = {
        "shape": tuple(dataset.shape),
        "num_classes": kind.num_classes if isinstance(kind, Label) else 0,
        "kind": None if labelled else kind,
        "jumps": config.train.objective == "flow_map",
        "dtype": compute_dtype(config.model.dtype),
        "centered": config.data.centered,
        "augmented": bool(config.data.augment),
        "rngs": rngs or nnx.Rngs(config.seed),
    }
    cls = choose(MODELS, config.model.name, "config.model.name")
    if config.data.augment and "augmented" not in parameters(cls):
        raise UserError(
            f"config.data.augment: {cls.__name__} takes no augmented: set it to 0, or choose unet, dit or ncsnpp as "
            "config.model.name"
        )
    needed = "num_classes" if labelled else "kind"
    if kind is not None and needed not in parameters(cls):
        raise UserError(
            f"config.model.condition is {config.model.condition}, and {cls.__name__} takes no {needed}: set "
            "it to none, or choose another config.model.name"
        )
    if given["jumps"] and "jumps" not in parameters(cls):
        raise UserError(
            f"config.train.objective is flow_map, and {cls.__name__} takes no jumps: set it to score, or choose "
            "another config.model.name"
        )
    apply, params = split(construct(cls, config.model, "config.model", **given))
    return (apply if kind is None or config.train.cond_dropout else AlwaysTold(apply, kind)), params


def abstract_network(config: Any, dataset: Any) -> tuple[Callable[..., jax.Array], dict[str, Any]]:
    """Trace the network of `build_network` without drawing weights.

    Returns:
        apply: the network as a function of its weights.
        shapes: the weights' shapes and dtypes.
    """
    found: list[Callable[..., jax.Array]] = []

    def weights() -> dict[str, Any]:
        apply, params = build_network(config, dataset, OneKey())
        found.append(apply)
        return params

    shapes = jax.eval_shape(weights)
    return found[0], shapes


def build_score(
    config: Any, apply: Callable[..., jax.Array], params: Any, gaussian: Mapping[str, Any] | None = None
) -> NetworkScore:
    """Build the score of the network `apply` with the weights `params`, under the config's SDE.

    gaussian: as for `build_parameterization`.
    """
    return NetworkScore(apply, params, build_sde(config), build_parameterization(config, gaussian))


def build_schedule(config: Any) -> optax.Schedule:
    """Build the learning rate at update k: the schedule's, times min(1, (k + 1)/warmup) while warming up."""
    train = config.train
    after = choose(SCHEDULES, train.schedule, "config.train.schedule")(train.lr, train.steps)
    return lambda k: after(k) * jnp.minimum(1.0, (k + 1) / max(train.warmup, 1))


def build_optimizer(config: Any) -> optax.GradientTransformation:
    """Build the optimizer under its schedule, after a clip of the gradient's global norm where clip > 0."""
    train = config.train
    make = choose(OPTIMIZERS, train.optimizer, "config.train.optimizer")
    optimizer = make(build_schedule(config), train.weight_decay)
    return optax.chain(optax.clip_by_global_norm(train.clip), optimizer) if train.clip else optimizer
