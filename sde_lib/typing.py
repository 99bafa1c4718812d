"""The names of the types in which signatures are written here, beside `jax.Array`."""

from typing import Any, TypeAlias, TypeVar

import jax
import numpy as np

# Numbers of the host, in float64, or of a device: tables and time grids live on the host until a compiled function
# takes them.
Array: TypeAlias = np.ndarray | jax.Array

# One number for all samples, or (n,) of them, one for each: a time, a scale, a log SNR.
Scalar: TypeAlias = float | np.ndarray | jax.Array

# The step of a discrete chain, 1 to T, or (n,) of them.
Step: TypeAlias = int | np.ndarray | jax.Array

# What goes in comes out: a function of time computes where its time lives.
ScalarT = TypeVar("ScalarT", float, np.ndarray, jax.Array, Array, Scalar)

# Any nest of arrays: a network's weights, or what it is conditioned on, of which every leaf has a row for each sample.
PyTree: TypeAlias = Any
