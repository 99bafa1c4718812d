"""Guidance: scores made of scores, of which each says what it samples.

One convention throughout: the scale g = 1 is no guidance, g = 0 is what is guided away from. (Ho & Salimans 2022 write
w = g - 1.) None of these is the score of the tilted distribution at positive times: the ODE and the SDE then sample two
different distributions, and neither is the tilted one. `sde_lib.samplers.WeightedSDE` samples that.
"""

from sde_lib.guidance.classifier import ClassifierGuided
from sde_lib.guidance.extrapolation import Autoguidance, ClassifierFree, Projected
from sde_lib.guidance.observations import IndependentObservations
from sde_lib.guidance.product import Product, Told

__all__ = [
    "Autoguidance",
    "ClassifierFree",
    "ClassifierGuided",
    "IndependentObservations",
    "Product",
    "Projected",
    "Told",
]
