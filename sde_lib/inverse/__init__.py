"""Inverse problems: a score given an observation, y = A(x) + noise, from the score without it."""

from sde_lib.inverse.gibbs import SplitGibbs
from sde_lib.inverse.methods import Assimilation, Jensen, Method, MomentMatching, Projection, Proximal, PseudoInverse
from sde_lib.inverse.observed import Observed
from sde_lib.inverse.operators import Convolve, Downsample, Linear, Mask, ObservationOperator, Operator
from sde_lib.inverse.repaint import RePaint
from sde_lib.inverse.twisted import TwistedSMC

__all__ = [
    "Assimilation",
    "Convolve",
    "Downsample",
    "Jensen",
    "Linear",
    "Mask",
    "Method",
    "MomentMatching",
    "ObservationOperator",
    "Observed",
    "Operator",
    "Projection",
    "Proximal",
    "PseudoInverse",
    "RePaint",
    "SplitGibbs",
    "TwistedSMC",
]
