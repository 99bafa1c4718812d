"""Samplers: frozen dataclasses of their settings, run by `sample`."""

from sde_lib.samplers.adams import DEIS, IPNDM, in_log_snr, in_rho, in_t
from sde_lib.samplers.adaptive import AdaptiveSDE
from sde_lib.samplers.annealed import AnnealedLangevin
from sde_lib.samplers.base import Sampler, Samples, sample, watched
from sde_lib.samplers.exact_law import gaussian_kl, gaussian_law, pulse
from sde_lib.samplers.exponential import (
    DDIM,
    DPMSolverPP2M,
    DPMSolverPP3M,
    DPMSolverPP3MPublished,
    SDEDPMSolverPP1,
    SDEDPMSolverPP2M,
    SDEDPMSolverPP2MHeun,
)
from sde_lib.samplers.fitted import FittedSampler, fit_table
from sde_lib.samplers.grids import FewToMany, FlowTime, Grid, Karras, Quadratic, Times, UniformLogSNR, UniformT
from sde_lib.samplers.heun import Heun
from sde_lib.samplers.langevin import Langevin, LangevinSamples, langevin
from sde_lib.samplers.linear import LinearSampler, Point, Table, columns, ends_of, table_of
from sde_lib.samplers.ode import ProbabilityFlow, decode, encode, evaluations, flow_drift
from sde_lib.samplers.predictor_corrector import PredictorCorrector
from sde_lib.samplers.sa_solver import SASolver
from sde_lib.samplers.stochastic import Ancestral, EulerMaruyama, ExponentialEuler, ReverseDiffusion
from sde_lib.samplers.unipc import UniPC
from sde_lib.samplers.weak_error import weak_error
from sde_lib.samplers.weighted import WeightedSDE

__all__ = [
    "DDIM",
    "DEIS",
    "IPNDM",
    "AdaptiveSDE",
    "Ancestral",
    "AnnealedLangevin",
    "DPMSolverPP2M",
    "DPMSolverPP3M",
    "DPMSolverPP3MPublished",
    "EulerMaruyama",
    "ExponentialEuler",
    "FewToMany",
    "FittedSampler",
    "FlowTime",
    "Grid",
    "Heun",
    "Karras",
    "Langevin",
    "LangevinSamples",
    "LinearSampler",
    "Point",
    "PredictorCorrector",
    "ProbabilityFlow",
    "Quadratic",
    "ReverseDiffusion",
    "SASolver",
    "SDEDPMSolverPP1",
    "SDEDPMSolverPP2M",
    "SDEDPMSolverPP2MHeun",
    "Sampler",
    "Samples",
    "Table",
    "Times",
    "UniPC",
    "UniformLogSNR",
    "UniformT",
    "WeightedSDE",
    "columns",
    "decode",
    "encode",
    "ends_of",
    "evaluations",
    "fit_table",
    "flow_drift",
    "gaussian_kl",
    "gaussian_law",
    "in_log_snr",
    "in_rho",
    "in_t",
    "langevin",
    "pulse",
    "sample",
    "table_of",
    "watched",
    "weak_error",
]
