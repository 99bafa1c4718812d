"""Samplers: frozen dataclasses of their settings, run by `sample`."""

from sde_lib.samplers.base import Sampler, Samples, sample
from sde_lib.samplers.langevin import Langevin, LangevinSamples, langevin
from sde_lib.samplers.ode import ProbabilityFlow, decode, encode
from sde_lib.samplers.predictor_corrector import PredictorCorrector
from sde_lib.samplers.stochastic import EulerMaruyama, ReverseDiffusion, euler_maruyama, reverse_diffusion

__all__ = [
    "EulerMaruyama",
    "Langevin",
    "LangevinSamples",
    "PredictorCorrector",
    "ProbabilityFlow",
    "ReverseDiffusion",
    "Sampler",
    "Samples",
    "decode",
    "encode",
    "euler_maruyama",
    "langevin",
    "reverse_diffusion",
    "sample",
]
