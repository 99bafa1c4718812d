"""The way from a run's directory to the mathematics: `load_score`, and `load_run` for all that is known of the run."""

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiment.build.objective import flow_map_of
from experiment.build.objects import abstract_network, build_score, check_names, compute_dtype
from experiment.build.samplers import FLOW_MAP
from experiment.common.errors import UserError
from experiment.common.files import user_path
from experiment.config import check_flag, check_seed, load_config
from experiment.data.dataset import Dataset
from experiment.data.scaling import Scaling
from experiment.data.units import StandardizedFlowMap, StandardizedScore
from experiment.devices.hosts import one_host_only, say
from experiment.devices.sharding import OverBatch, mesh_here, weight_shardings
from experiment.run.conditions import Asked, conditions
from experiment.run.directory import DataShape, RunDirectory, data_shape_of
from experiment.run.fitted import sampler_of
from experiment.run.guidance import Guidance, guided
from experiment.run.log import last_rate
from experiment.run.observations import together
from experiment.run.sampling import Draws, as_data, check_samples_fit, draw
from sde_lib import ExactFlowMap, ExactScore, NetworkFlowMap, NetworkScore

_CALLS_OF_AN_UPDATE = 3  # forward, and backward, which takes about twice as long


@dataclass(frozen=True, repr=False)
class Run:
    """A trained run: its config, and the score with the EMA weights of step `step`.

    `shape`, `levels`, `num_classes` and `units` are those of its data.
    """

    workdir: Path
    config: Any
    score_fn: NetworkScore | StandardizedScore
    step: int
    data_shape: DataShape

    def __repr__(self) -> str:
        network = getattr(self.score_fn, "score_fn", self.score_fn)
        weights = sum(leaf.size for leaf in jax.tree.leaves(getattr(network, "params", ())))
        model = f"{self.config.model.name} of {weights:,} weights, {self.score_fn.sde!r}"
        return f"Run({str(self.workdir)!r}, step {self.step:,}: {model}, {self.data_shape.words()})"

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one example."""
        return self.data_shape.shape

    @property
    def levels(self) -> int | None:
        """The number of the data's levels; None for vectors."""
        return self.data_shape.levels

    @property
    def num_classes(self) -> int:
        """The number of the data's classes; 0 without labels."""
        return self.data_shape.num_classes

    @property
    def flow_map(self) -> NetworkFlowMap | StandardizedFlowMap | ExactFlowMap:
        """The flow map of which `score_fn` is the diagonal, for `FlowMapSampler`.

        Raises UserError for a run that learned a score alone, and for a score that is guided.
        """
        if self.config.train.objective != "flow_map":
            raise UserError(
                f"{FLOW_MAP}: {self.workdir} learned a score and no flow map: train one with python train.py "
                f"--config.train.objective=flow_map --config.train.teacher={self.workdir}, or choose another sampler"
            )
        if isinstance(self.score_fn, ExactScore):
            return ExactFlowMap(self.score_fn.distribution, self.score_fn.sde)
        if isinstance(self.score_fn, StandardizedScore):
            return self.score_fn.flow_map()
        if isinstance(self.score_fn, NetworkScore):
            return flow_map_of(self.score_fn)
        raise UserError(f"{FLOW_MAP}: --guidance guides a score, which this sampler does not take: leave it out")

    @cached_property
    def class_counts(self) -> tuple[int, ...]:
        """How many training examples each class has; only an old run has to look at its data."""
        return self.data_shape.class_counts or DataShape.of(self.dataset).class_counts

    @cached_property
    def dataset(self) -> Dataset:
        """The data that the run was trained on, loaded at first use.

        Raises UserError where they are not to be found, or are others.
        """
        from experiment.data.load import configured_dataset

        path = self.config.data.path
        if path and not user_path(path, "data.path").exists():
            raise UserError(
                f"the data of {self.workdir} are not at {path}: give the place where they are now, as --data=PATH"
            )
        dataset = configured_dataset(self.config)
        found, classes = DataShape.of(dataset), self.config.model.condition == "label"
        if (found.shape, found.levels) != (self.shape, self.levels) or (
            classes and found.num_classes != self.num_classes
        ):
            raise UserError(
                f"the data at {path or self.config.data.name} are {found.words()}, and those that {self.workdir} was "
                f"trained on {self.data_shape.words()}: give --data=PATH, the place where they are now"
            )
        return dataset

    @property
    def scaling(self) -> Scaling:
        """The map between the data's levels, or units, and the model's space."""
        return Scaling(self.levels, self.config.data.centered, self.data_shape.units)

    @cached_property
    def seconds_per_call(self) -> float | None:
        """About how long a score call takes for each sample, by the speed of the training; None where it is unknown."""
        rate = last_rate(self.workdir)
        return None if not rate else 1 / (_CALLS_OF_AN_UPDATE * rate)

    def sample(
        self,
        sampler: Any,
        n: int = 64,
        *,
        seed: int = 0,
        label: int | Sequence[int] | None = None,
        prompt: str | Sequence[str] | None = None,
        cond: Any = None,
        guidance: float | None = None,
        guidance_interval: tuple[float, float] | None = None,
        guide: str | None = None,
        **settings: Any,
    ) -> Draws:
        """Draw n samples, the same that sample.py draws.

        sampler: a name of its list, with the run's settings and those given, such as steps=50, or a sampler of
        `sde_lib`. label, prompt: the class or the text to draw, or several in turn; cond: vectors (m,) or (n, m),
        embeddings with their mask, or {"observations": (k, m)}, k independent ones of every sample. Without any of them
        the data's are drawn. guidance, guidance_interval, guide: as the flags of sample.py.

        Returns:
            The samples: x in the model's space, and data as samples.npz has them, with their labels and cost.

        Raises UserError as sample.py does.
        """
        check_flag("n", n, least=1)
        check_seed(seed)
        check_flag("steps", settings.get("steps"), "sample.steps")
        name = sampler if isinstance(sampler, str) else type(sampler).__name__
        sampler = sampler_of(self, name, **settings) if isinstance(sampler, str) else replace(sampler, **settings)
        check_samples_fit(n, self.shape)
        chosen = None if label is None else [int(one) for one in np.atleast_1d(np.asarray(label))]
        prompts = [prompt] if isinstance(prompt, str) else prompt
        told = conditions(self, n, seed, Asked(chosen, prompts, cond))
        asked = Guidance(guidance, guidance_interval, guide)
        run = together(guided(self, asked), sampler, told, asked, seed)
        draws = draw(run, sampler, jax.random.key(seed), n, self.config.sample.batch_size, name, told)
        return replace(draws, data=as_data(self.scaling, draws.x))


def in_float32(run: Any) -> Any:
    """The run with its network's products in float32, for densities and latents: the run itself where they are.

    A network in bfloat16 gives the same bits/dim, but the ODE's solver takes its rounding for the drift's and spends
    about four times the calls.
    """
    standardized = isinstance(run.score_fn, StandardizedScore)
    network_score = run.score_fn.score_fn if standardized else run.score_fn
    apply = getattr(network_score, "apply", None)
    if not isinstance(apply, OverBatch) or compute_dtype(run.config.model.dtype) == jnp.float32:
        return run
    config = run.config.copy_and_resolve_references()
    with config.unlocked():
        config.model.dtype = "float32"
    network, _ = abstract_network(config, run.data_shape)
    other = copy(run)  # with the data that are loaded
    network_score = replace(network_score, apply=OverBatch(network, apply.mesh))
    whole = replace(run.score_fn, score_fn=network_score) if standardized else network_score
    object.__setattr__(other, "score_fn", whole)
    return other


def load_run(workdir: str | Path, data: str = "", cache: str = "") -> Run:
    """Load the run in workdir, with the EMA weights of its newest whole checkpoint.

    data, cache: where the run's data, and what is prepared of them, are now; "" where they were when it was trained.

    Only reads, so training may go on meanwhile. Raises UserError when there is no run, or none of its checkpoints can
    be read.
    """
    directory = RunDirectory(workdir)
    one_host_only("what reads a run, but for sample.py and evaluate.py --likelihood and --fid,")
    config, shape = read_config(directory)
    with config.unlocked():
        config.data.path, config.data.cache = data or config.data.path, cache or config.data.cache
    apply, shapes = abstract_network(config, shape)
    restored = directory.checkpoints.restore({"ema": weights_like(config, shapes)}, say)
    if restored is None:
        raise UserError(
            f"run directory {workdir} has no checkpoint yet; wait for its training to save one, or {_make_one(workdir)}"
        )
    state, meta = restored
    gaussian = directory.gaussian(config)
    score_fn = build_score(config, OverBatch(apply, mesh_here(config.train.fsdp)), state["ema"], gaussian)
    cond_units = shape.cond_units if config.model.condition == "vector" else None
    plain = shape.units is None and cond_units is None
    whole = score_fn if plain else StandardizedScore(score_fn, shape.units, cond_units)
    return Run(directory.path, config, whole, int(meta["step"]), shape)


def _make_one(workdir: str | Path) -> str:
    return f"make one with: python train.py --workdir={workdir}"


def read_config(directory: RunDirectory) -> tuple[Any, DataShape]:
    """Read config.json.

    Returns:
        config: the run's config, checked.
        data: the shape of its data.

    Raises UserError when there is no run.
    """
    if not directory.config_path.is_file():
        kind = "is not a run directory (it has no config.json)" if directory.path.exists() else "does not exist"
        raise UserError(f"run directory {directory.path} {kind}; {_make_one(directory.path)}")
    config, beside = load_config(directory.config_path)
    check_names(config)
    return config, data_shape_of(directory.config_path, beside)


def weights_like(config: Any, shapes: Any) -> Any:
    """Add to the weights' shapes and dtypes how to place them on this host's devices, wherever they were trained."""
    shardings = weight_shardings(mesh_here(config.train.fsdp), shapes)
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings)


def load_score(workdir: str | Path) -> NetworkScore | StandardizedScore:
    """Load the run's score: its EMA weights, SDE and parameterisation as one pytree, called as score_fn(x, t).

    x is in the model's space. Of data that were standardised the pytree also holds the constants, as `units`: samples x
    are `score_fn.units.to_data(x)`, and log-densities lose `score_fn.units.log_det(shape)`. Vectors that it is told are
    in the user's units: it standardises them by its `cond_units`.
    """
    return load_run(workdir).score_fn


def load_flow_map(workdir: str | Path) -> NetworkFlowMap | StandardizedFlowMap:
    """Load the flow map of a run that learned one, flow_map(x, t, s); its `score` is what `load_score` gives.

    Raises UserError for a run that learned a score alone.
    """
    return load_run(workdir).flow_map  # type: ignore[return-value]  # no run's own score is exact
