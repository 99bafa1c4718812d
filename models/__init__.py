"""Networks (Flax NNX): raw functions of (x, c_noise, cond) that know no SDE.

The parameterisation in sde_lib turns one into a score.

    apply, params = split(DiT(shape=(8, 8, 1), rngs=nnx.Rngs(0)))
    y = apply(params, x, c_noise, cond=None, key=None)
"""

from models.conditions import AlwaysTold, Augmented, Embeddings, Kind, Label, Text, Vector
from models.dit import DiT
from models.functional import Apply, OneKey, split
from models.mlp import MLP
from models.ncsnpp import NCSNpp
from models.unet import UNet

__all__ = [
    "MLP",
    "AlwaysTold",
    "Apply",
    "Augmented",
    "DiT",
    "Embeddings",
    "Kind",
    "Label",
    "NCSNpp",
    "OneKey",
    "Text",
    "UNet",
    "Vector",
    "split",
]
