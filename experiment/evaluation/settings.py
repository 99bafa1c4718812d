"""How much to measure: settings that come from a run's config.eval, with what a user gives on top."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from experiment.errors import UserError
from experiment.evaluation.metrics import MIN_SIZE

SEEDS = 2**32  # what NumPy's generators take


@dataclass(frozen=True, kw_only=True)
class FromConfig:
    """Base of settings whose fields without a default are those of config.eval with the same names."""

    LEAST: ClassVar[Mapping[str, int]] = {}  # the least value of each field that has one

    def __post_init__(self) -> None:
        self.check({field.name: getattr(self, field.name) for field in dataclasses.fields(self)})

    @classmethod
    def from_config(cls, config: Any, **given: Any) -> Self:
        """The settings of a run's config, under those that are given and not None.

        Raises UserError for a value that is out of its range.
        """
        own = [field.name for field in dataclasses.fields(cls) if field.default is dataclasses.MISSING]
        chosen = {name: value for name, value in given.items() if value is not None}
        return cls(**{**{name: getattr(config.eval, name) for name in own}, **chosen})

    @classmethod
    def check(cls, given: Mapping[str, Any]) -> None:
        """Raises UserError for a value that is out of its range, whichever others are not known yet."""
        for name, least in cls.LEAST.items():
            value = given.get(name)
            if value is not None and value < least:
                raise UserError(f"--{name} is {value}: give at least {least}")
        if (given.get("seed") or 0) >= SEEDS:
            raise UserError(f"--seed is {given['seed']}: give an integer from 0 to 2^32 - 1")


@dataclass(frozen=True, kw_only=True)
class Settings(FromConfig):
    """How much `evaluate` measures.

    n: samples for each sampler and seed; seeds: how many seeds, counted from `seed`; reference: the split that samples
    are held against; likelihood_n: held-out examples (all, if fewer); probes: Hutchinson probes for each; rtol, atol:
    of the likelihood's solve.
    """

    n: int
    seeds: int
    seed: int
    reference: str
    likelihood_n: int
    probes: int
    batch_size: int
    rtol: float
    atol: float

    LEAST: ClassVar = {"n": MIN_SIZE, "seeds": 1, "seed": 0, "likelihood_n": 2, "probes": 1, "batch_size": 1}
