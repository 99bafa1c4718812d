"""Samplers and time grids by name, for configs and commands. A new sampler is a class of sde_lib and a line here."""

import dataclasses
from typing import Any, NamedTuple

import diffrax

from experiment.errors import UserError, choose
from sde_lib.samplers import (
    DDIM,
    DEIS,
    IPNDM,
    AdaptiveSDE,
    Ancestral,
    AnnealedLangevin,
    DPMSolverPP2M,
    DPMSolverPP3M,
    DPMSolverPP3MPublished,
    EulerMaruyama,
    ExponentialEuler,
    FlowTime,
    Grid,
    Heun,
    Karras,
    PredictorCorrector,
    ProbabilityFlow,
    Quadratic,
    ReverseDiffusion,
    Sampler,
    SASolver,
    SDEDPMSolverPP1,
    SDEDPMSolverPP2M,
    SDEDPMSolverPP2MHeun,
    UniformLogSNR,
    UniformT,
    UniPC,
    in_log_snr,
    in_rho,
)


class Named(NamedTuple):
    """A sampler with its own settings, and a line that says what it is."""

    sampler: Sampler
    line: str


SAMPLERS = {
    "em": Named(EulerMaruyama(), "Euler-Maruyama on the reverse SDE; --eta=0 is Euler on the ODE"),
    "pc": Named(PredictorCorrector(), "Euler-Maruyama with a Langevin corrector"),
    "ode": Named(ProbabilityFlow(), "the probability-flow ODE, adaptive Tsit5; with --steps at fixed steps"),
    "reverse_diffusion": Named(ReverseDiffusion(), "the forward chain's own step reversed"),
    "pc_reverse_diffusion": Named(
        PredictorCorrector(predictor=ReverseDiffusion()), "reverse diffusion with a Langevin corrector"
    ),
    "ancestral": Named(Ancestral(), "DDPM's ancestral sampling"),
    "exponential_euler": Named(ExponentialEuler(), "the linear drift exactly, the score frozen over a step"),
    "ddim": Named(DDIM(), "exponential Euler in the denoiser; --eta from 0 (ODE) to 1 (ancestral)"),
    "dpmpp_2m": Named(DPMSolverPP2M(), "DPM-Solver++(2M), order 2"),
    "dpmpp_3m": Named(DPMSolverPP3M(), "DPM-Solver++(3M), order 3"),
    "dpmpp_3m_published": Named(DPMSolverPP3MPublished(), "DPM-Solver++(3M) as published, order 2"),
    "sde_dpmpp_1": Named(SDEDPMSolverPP1(), "the reverse SDE with the denoiser frozen, any --eta"),
    "sde_dpmpp_2m": Named(SDEDPMSolverPP2M(), "SDE-DPM-Solver++(2M), midpoint, weak order 2, any --eta"),
    "sde_dpmpp_2m_heun": Named(SDEDPMSolverPP2MHeun(), "SDE-DPM-Solver++(2M), Heun form, weak order 2, any --eta"),
    "sa_solver": Named(SASolver(), "SA-Solver: stochastic Adams with a corrector, weak order 2, any --eta"),
    "deis_t": Named(DEIS(), "tAB-DEIS, order 3"),
    "deis_rho": Named(DEIS(variable=in_rho), "rhoAB-DEIS, order 3; the linear multistep method"),
    "deis_log_snr": Named(DEIS(variable=in_log_snr), "DEIS in log SNR, order 3"),
    "ipndm": Named(IPNDM(), "Adams-Bashforth's weights on DDIM's noise"),
    "unipc": Named(UniPC(), "UniPC-3, bh2, order 4"),
    "unipc_2": Named(UniPC(order=2), "UniPC-2, bh2, order 3"),
    "unipc_bh1": Named(UniPC(bh1=True), "UniPC-3, bh1, order 4"),
    "heun": Named(Heun(), "EDM's Heun method, deterministic, order 2, two calls a step"),
    "heun_churn": Named(
        Heun(churn=40.0, churn_min=0.05, churn_max=50.0, churn_noise=1.003), "EDM's stochastic sampler"
    ),
    "rk_midpoint": Named(
        ProbabilityFlow(solver=diffrax.Midpoint(), steps=100), "the ODE in t by the midpoint method, two calls a step"
    ),
    "rk_bosh3": Named(
        ProbabilityFlow(solver=diffrax.Bosh3(), steps=100), "the ODE in t by Bogacki-Shampine 3, three calls a step"
    ),
    "rk_tsit5": Named(
        ProbabilityFlow(solver=diffrax.Tsit5(), steps=100), "the ODE in t by Tsitouras 5, six calls a step"
    ),
    "adaptive_sde": Named(AdaptiveSDE(), "midpoint steps of the reverse SDE, each sample's own"),
    "annealed_langevin": Named(
        AnnealedLangevin(), "NCSN's Langevin steps on a ladder of noise levels; --steps are its levels"
    ),
}

GRIDS: dict[str, Grid] = {
    "t": UniformT(),
    "log_snr": UniformLogSNR(),
    "karras": Karras(),
    "quadratic": Quadratic(),
    "flow": FlowTime(),
}


def check_sampler(name: str, what: str = "the sampler") -> Named:
    """Look the sampler up in the table.

    Raises UserError for an unknown name, with the list, and a line for each in the error's listing.
    """
    width = max(map(len, SAMPLERS))
    listing = "\n".join(f"{known:{width}}  {named.line}" for known, named in SAMPLERS.items())
    return choose(SAMPLERS, name, what, listing)


def make_sampler(
    name: str, config: Any, *, steps: int | None = None, eta: float | None = None, grid: str | None = None
) -> Any:
    """Make the sampler `name` with the settings of the config's `sample` section that it has.

    Settings that are given as arguments go over those of the config. Raises UserError for an unknown sampler or grid,
    and for a setting that the sampler does not have or take.
    """
    prototype: Any = check_sampler(name).sampler
    fields = {field.name for field in dataclasses.fields(prototype)}
    own = fields - ({"steps"} if isinstance(prototype, ProbabilityFlow) and prototype.steps is None else set())
    settings = {key: value for key, value in config.sample.to_dict().items() if key in own}
    flags = {"steps": steps, "eta": eta, "grid": None if grid is None else choose(GRIDS, grid, "--grid")}
    for flag, value in flags.items():
        if value is not None:
            if flag not in fields:
                others = [n for n, named in SAMPLERS.items() if hasattr(named.sampler, flag)]
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
