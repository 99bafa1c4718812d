"""Score SDEs: one score, score_fn(x, t) = grad_x log p_t(x), drives every sampler and the likelihood."""

from sde_lib.conversions import denoiser, noise
from sde_lib.distributions import Density, DiagonalGaussian, GaussianMixture, IsotropicGaussian
from sde_lib.divergence import Exact, Hutchinson
from sde_lib.fields import StationaryGaussianField, power_law_field
from sde_lib.latents import latent_typicality, spherical_interpolation, typicality
from sde_lib.likelihood import bits_per_dim, log_prob
from sde_lib.rescheduling import reschedule
from sde_lib.samplers import (
    EulerMaruyama,
    Langevin,
    PredictorCorrector,
    ProbabilityFlow,
    ReverseDiffusion,
    decode,
    encode,
    langevin,
    sample,
)
from sde_lib.score import (
    DenoiserPrediction,
    EDMPreconditioning,
    EpsilonPrediction,
    ExactScore,
    NetworkScore,
    VelocityPrediction,
    VPrediction,
)
from sde_lib.sde import SDE, VE, VP, CosineVP, RectifiedFlow, SubVP

__all__ = [
    "SDE",
    "VE",
    "VP",
    "CosineVP",
    "DenoiserPrediction",
    "Density",
    "DiagonalGaussian",
    "EDMPreconditioning",
    "EpsilonPrediction",
    "EulerMaruyama",
    "Exact",
    "ExactScore",
    "GaussianMixture",
    "Hutchinson",
    "IsotropicGaussian",
    "Langevin",
    "NetworkScore",
    "PredictorCorrector",
    "ProbabilityFlow",
    "RectifiedFlow",
    "ReverseDiffusion",
    "StationaryGaussianField",
    "SubVP",
    "VPrediction",
    "VelocityPrediction",
    "bits_per_dim",
    "decode",
    "denoiser",
    "encode",
    "langevin",
    "latent_typicality",
    "log_prob",
    "noise",
    "power_law_field",
    "reschedule",
    "sample",
    "spherical_interpolation",
    "typicality",
]
