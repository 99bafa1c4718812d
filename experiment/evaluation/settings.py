"""Settings of an evaluation: those of a run's config.eval, with what a user gives on top."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from experiment.config import MOST, check_flag, check_seed

FOLDS = 5  # of the classifiers that tell samples from data
MIN_SIZE = 2 * FOLDS  # points on each side: every fold holds out two of each


@dataclass(frozen=True, kw_only=True)
class FromConfig:
    """Base of settings whose fields without a default are those of config.eval with the same names.

    Their defaults and ranges are `experiment.config`'s; LEAST and MOST have the limits of others, or narrower ones.
    """

    LEAST: ClassVar[Mapping[str, int]] = {}
    MOST: ClassVar[Mapping[str, int]] = {}

    def __post_init__(self) -> None:
        self.check({field.name: getattr(self, field.name) for field in dataclasses.fields(self)})

    @classmethod
    def of_config(cls) -> list[str]:
        """The names of the fields that config.eval has."""
        return [field.name for field in dataclasses.fields(cls) if field.default is dataclasses.MISSING]

    @classmethod
    def from_config(cls, config: Any, **given: Any) -> Self:
        """The settings of a run's config, under those that are given and not None.

        Raises UserError for a value that is out of its range.
        """
        chosen = {name: value for name, value in given.items() if value is not None}
        return cls(**{**{name: getattr(config.eval, name) for name in cls.of_config()}, **chosen})

    @classmethod
    def check(cls, given: Mapping[str, Any]) -> None:
        """Raises UserError for a value that is out of its range, whichever others are not known yet."""
        for name, value in given.items():
            if name != "seed" and isinstance(value, int) and not isinstance(value, bool):
                key = f"eval.{name}" if name in cls.of_config() else ""
                check_flag(name, value, key, least=cls.LEAST.get(name), most=cls.MOST.get(name, MOST))
        check_seed(given.get("seed"), given.get("seeds") or 1)


@dataclass(frozen=True, kw_only=True)
class Settings(FromConfig):
    """The settings of `evaluate`.

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

    LEAST: ClassVar = {"n": MIN_SIZE}
