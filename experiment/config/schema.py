"""The schema: every key of a config with its default, its type, its range and its meaning, here and nowhere else.

A config, from a file in configs/, from an importer or from a run's config.json, gives the values that differ. A key
that is added later takes as its default how runs before it behaved.
"""

import dataclasses
import typing
from dataclasses import dataclass
from typing import Any

SEEDS = 2**32  # NumPy's generators take no larger seed
MOST = 2**31 - 1  # of a count that has no limit of its own: the device counts in 32 bits
FLOAT32 = (1.2e-38, 3.4e38)  # the sizes that float32 holds


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
    condition: str = key(
        "none",
        "what the network is told beside the noise: nothing, the class, a vector, or a text",
        choices=("none", "label", "vector", "text"),
    )
    class_conditional: bool = key(False, "the older name of condition=label")
    text_length: int = key(64, "of condition=text: the most bytes of a caption", low=1, high=4096)
    dtype: str = key("auto", "of its products; auto: bfloat16 on accelerators", choices=("float32", "bfloat16", "auto"))
    remat: str = key(
        "none",
        "activations computed again in the backward pass: none, all (blocks), or all but products",
        choices=("none", "blocks", "products"),
    )
    noise_label: str = key(
        "log_snr",
        "what the network is told of the noise: log_snr | flow_time | log_sigma | time | reversed_time | chain",
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
    augment: float = key(
        0.0,
        "the probability of each geometric augmentation of images in training, which the network is told; 0: none",
        low=0,
        high=1,
    )
    cache: str = key("", 'where prepared data are kept; "": the user\'s cache folder')
    centered: bool = key(True, "images in [-1, 1); false: in [0, 1)")
    crop: int = key(0, "pixels per side of a central crop, before anything else; 0: none", low=0, high=2**16)
    size: int = key(0, "pixels per side that images are resized to; 0: as they are", low=0, high=2**16)
    skip_unreadable: bool = key(False, "leave damaged images out, counted, instead of stopping")
    simulations: int = key(
        0, "pairs of parameters and observations that the simulator `name` draws; 0: no simulator", low=0, high=10**8
    )


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
    cond_dropout: float = key(
        0.0,
        "the share of examples whose condition is left out in training, which guidance and samples without one need",
        low=0,
        below=1,
    )
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
    objective: str = key(
        "score",
        "what is learned: the score, or a flow map, which jumps between any two times and whose diagonal is the score",
        choices=("score", "flow_map"),
    )
    flow_map_loss: str | None = key(
        None, "of flow_map: the loss of its jumps; None: lagrangian", choices=("lagrangian", "semigroup")
    )
    teacher: str = key("", "of flow_map: a run whose flow is learned, and whose weights training starts from")
    log: str = key("", "beside the run's own log, one at wandb or mlflow", choices=("", "wandb", "mlflow"))
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
    "train.log",
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
