"""Samplers and time grids by name, for configs and commands. A new sampler is a class of sde_lib and a line here."""

import dataclasses
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from experiment.common.errors import UserError, choose


class WhenUsed:
    """A module that is imported at its first use: a list of names, or a misspelt one, needs no jax."""

    def __init__(self, name: str):
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        return getattr(importlib.import_module(self._name), attribute)


if TYPE_CHECKING:
    import diffrax

    from sde_lib import flow_map as samplers_of_maps
    from sde_lib import samplers
    from sde_lib.samplers import Grid, Sampler
else:
    diffrax, samplers, samplers_of_maps = map(WhenUsed, ("diffrax", "sde_lib.samplers", "sde_lib.flow_map"))


@dataclass(frozen=True)
class Named:
    """A sampler with its own settings, or the class or function that makes it, and a line that says what it is."""

    make: "Callable[[], Sampler | samplers_of_maps.FlowMapSampler] | Sampler"
    line: str

    @property
    def sampler(self) -> Any:
        """The sampler with its own settings."""
        return self.make() if callable(self.make) else self.make


SAMPLERS = {
    "em": Named(lambda: samplers.EulerMaruyama(), "Euler-Maruyama on the reverse SDE; --eta=0 is Euler on the ODE"),
    "pc": Named(lambda: samplers.PredictorCorrector(), "Euler-Maruyama with a Langevin corrector"),
    "ode": Named(
        lambda: samplers.ProbabilityFlow(), "the probability-flow ODE, adaptive Tsit5; with --steps at fixed steps"
    ),
    "reverse_diffusion": Named(lambda: samplers.ReverseDiffusion(), "the forward chain's own step reversed"),
    "pc_reverse_diffusion": Named(
        lambda: samplers.PredictorCorrector(predictor=samplers.ReverseDiffusion()),
        "reverse diffusion with a Langevin corrector",
    ),
    "ancestral": Named(lambda: samplers.Ancestral(), "DDPM's ancestral sampling"),
    "exponential_euler": Named(
        lambda: samplers.ExponentialEuler(), "the linear drift exactly, the score frozen over a step"
    ),
    "ddim": Named(lambda: samplers.DDIM(), "exponential Euler in the denoiser; --eta from 0 (ODE) to 1 (ancestral)"),
    "dpmpp_2m": Named(lambda: samplers.DPMSolverPP2M(), "DPM-Solver++(2M), order 2"),
    "dpmpp_3m": Named(lambda: samplers.DPMSolverPP3M(), "DPM-Solver++(3M), order 3"),
    "dpmpp_3m_published": Named(lambda: samplers.DPMSolverPP3MPublished(), "DPM-Solver++(3M) as published, order 2"),
    "sde_dpmpp_1": Named(lambda: samplers.SDEDPMSolverPP1(), "the reverse SDE with the denoiser frozen, any --eta"),
    "sde_dpmpp_2m": Named(
        lambda: samplers.SDEDPMSolverPP2M(), "SDE-DPM-Solver++(2M), midpoint, weak order 2, any --eta"
    ),
    "sde_dpmpp_2m_heun": Named(
        lambda: samplers.SDEDPMSolverPP2MHeun(), "SDE-DPM-Solver++(2M), Heun form, weak order 2, any --eta"
    ),
    "sa_solver": Named(
        lambda: samplers.SASolver(), "SA-Solver: stochastic Adams with a corrector, weak order 2, any --eta"
    ),
    "deis_t": Named(lambda: samplers.DEIS(), "tAB-DEIS, order 3"),
    "deis_rho": Named(
        lambda: samplers.DEIS(variable=samplers.in_rho), "rhoAB-DEIS, order 3; the linear multistep method"
    ),
    "deis_log_snr": Named(lambda: samplers.DEIS(variable=samplers.in_log_snr), "DEIS in log SNR, order 3"),
    "ipndm": Named(lambda: samplers.IPNDM(), "Adams-Bashforth's weights on DDIM's noise"),
    "unipc": Named(lambda: samplers.UniPC(), "UniPC-3, bh2, order 4"),
    "unipc_2": Named(lambda: samplers.UniPC(order=2), "UniPC-2, bh2, order 3"),
    "unipc_bh1": Named(lambda: samplers.UniPC(bh1=True), "UniPC-3, bh1, order 4"),
    "heun": Named(lambda: samplers.Heun(), "EDM's Heun method, deterministic, order 2, two calls a step"),
    "heun_churn": Named(
        lambda: samplers.Heun(churn=40.0, churn_min=0.05, churn_max=50.0, churn_noise=1.003), "EDM's stochastic sampler"
    ),
    "rk_midpoint": Named(
        lambda: samplers.ProbabilityFlow(solver=diffrax.Midpoint(), steps=100),
        "the ODE in t by the midpoint method, two calls a step",
    ),
    "rk_bosh3": Named(
        lambda: samplers.ProbabilityFlow(solver=diffrax.Bosh3(), steps=100),
        "the ODE in t by Bogacki-Shampine 3, three calls a step",
    ),
    "rk_tsit5": Named(
        lambda: samplers.ProbabilityFlow(solver=diffrax.Tsit5(), steps=100),
        "the ODE in t by Tsitouras 5, six calls a step",
    ),
    "adaptive_sde": Named(lambda: samplers.AdaptiveSDE(), "midpoint steps of the reverse SDE, each sample's own"),
    "annealed_langevin": Named(
        lambda: samplers.AnnealedLangevin(), "NCSN's Langevin steps on a ladder of noise levels; --steps are its levels"
    ),
}

GRIDS: "dict[str, Callable[[], Grid]]" = {
    "t": lambda: samplers.UniformT(),
    "log_snr": lambda: samplers.UniformLogSNR(),
    "karras": lambda: samplers.Karras(),
    "quadratic": lambda: samplers.Quadratic(),
    "flow": lambda: samplers.FlowTime(),
}


FITTED = "fitted"  # the name of what is no class but a run's: see experiment/run/fitted.py
FLOW_MAP = "flow_map"  # of runs that learned one: see experiment/run/fitted.py


def _of_a_run() -> Any:
    raise UserError(f"{FITTED}: such samplers are a run's own: make one by python -m experiment.fit_sampler")


_OF_RUNS = {
    FITTED: Named(
        _of_a_run, "times and weights fitted to this run by python -m experiment.fit_sampler, for few --steps"
    ),
    FLOW_MAP: Named(
        lambda: samplers_of_maps.FlowMapSampler(),
        "jumps of a run trained with train.objective=flow_map, one call a step; --renoise from 0 to 1",
    ),
}


def sampler_list() -> str:
    """A line for each sampler of the table, and for a run's own: its name, and what it is."""
    width = max(map(len, SAMPLERS))
    return "\n".join(f"{name:{width}}  {named.line}" for name, named in {**SAMPLERS, **_OF_RUNS}.items())


def check_sampler(name: str, what: str = "the sampler") -> Named:
    """Look the sampler up in the table.

    Raises UserError for an unknown name, with the list, and a line for each in the error's listing.
    """
    return choose({**SAMPLERS, **_OF_RUNS}, name, what, sampler_list())


def make_sampler(
    name: str,
    config: Any,
    *,
    steps: int | None = None,
    eta: float | None = None,
    grid: str | None = None,
    renoise: float | None = None,
) -> Any:
    """Make the sampler `name` with the settings of the config's `sample` section that it has.

    Settings that are given as arguments go over those of the config. Raises UserError for an unknown sampler or grid,
    and for a setting that the sampler does not have or take.
    """
    prototype: Any = check_sampler(name).sampler
    fields = {field.name for field in dataclasses.fields(prototype)}
    few = getattr(prototype, "steps", 0) is None or name == FLOW_MAP  # config.sample.steps is none of its steps
    own = fields - ({"steps"} if few else set())
    settings = {key: value for key, value in config.sample.to_dict().items() if key in own}
    flags = {
        "steps": steps,
        "eta": eta,
        "renoise": renoise,
        "grid": None if grid is None else choose(GRIDS, grid, "--grid")(),
    }
    for flag, value in flags.items():
        if value is not None:
            if flag not in fields:
                others = [
                    n for n, named in {**SAMPLERS, FLOW_MAP: _OF_RUNS[FLOW_MAP]}.items() if hasattr(named.sampler, flag)
                ]
                raise UserError(
                    f"--{flag}: {name} has no such setting; leave it out, or use one of: {', '.join(others)}"
                )
            settings[flag] = value
    least = getattr(prototype, "min_steps", 1)
    if settings.get("steps") is not None and settings["steps"] < least:
        remedy = f"give at least {least} for {name}, or leave it out for the run's config.sample.steps"
        raise UserError(f"--steps is {settings['steps']}: {remedy}")
    try:
        return dataclasses.replace(prototype, **settings)
    except ValueError as error:
        raise UserError(f"--sampler={name}: {error}") from error


def at_nfe(name: str, sampler: Any, nfe: int) -> Any | None:
    """Give the sampler as many steps as spend `nfe` score calls, besides the final denoising.

    None for a sampler that chooses its own steps. Raises UserError where no number of steps spends `nfe` calls.
    """
    if not hasattr(sampler, "at_nfe") or sampler.steps is None:
        return None
    try:
        return sampler.at_nfe(nfe + sampler.denoise)
    except ValueError as error:
        raise UserError(f"--nfe={nfe}: {error}; leave {name} out, or choose another budget") from error
