"""Idioms of arrays whose first axis counts samples: a number, a sum, a key or a draw of noise for each."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from sde_lib.typing import PyTree


def per_row(values: ArrayLike, x: jax.Array) -> jax.Array:
    """A scalar or (n,) made ready to multiply x (n, *shape), in x's dtype, or float32 for integers.

    Raises ValueError for values of another number of samples.
    """
    values = jnp.asarray(values, jnp.promote_types(x.dtype, jnp.float32) if x.dtype.kind in "iub" else x.dtype)
    if values.ndim and values.shape != x.shape[:1]:
        raise ValueError(f"there must be one value for all {x.shape[0]} samples or one for each, not {values.shape}")
    return values.reshape(values.shape + (1,) * (x.ndim - values.ndim)) if values.ndim else values


def points(x: ArrayLike) -> jax.Array:
    """The points x (n, *shape) as numbers to compute with: float32 at least, also of integers and of half precision.

    Raises ValueError for a single number.
    """
    x = jnp.asarray(x)
    if not x.ndim:
        raise ValueError("points must be an array (n, *shape), not a number: give one point as x[None]")
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def like(result: jax.Array, x: ArrayLike) -> jax.Array:
    """The result in the dtype of x, where that is a float's."""
    dtype = jnp.result_type(x)
    return result.astype(dtype) if jnp.issubdtype(dtype, jnp.floating) else result


def check_entries(owner: object, x: jax.Array, shape: tuple[int, ...]) -> None:
    """Raise ValueError for points x (n, ..) that have not as many entries as the shape: they would broadcast."""
    if math.prod(x.shape[1:]) != math.prod(shape):
        raise ValueError(
            f"{type(owner).__name__}: points must be (n, *shape) with {math.prod(shape)} entries each, not {x.shape}: "
            "give one point as x[None]"
        )


def check_rows(cond: PyTree, n: int) -> None:
    """Raise ValueError for a conditioning that has not a row for each of n samples: rows would repeat."""
    for leaf in jax.tree.leaves(cond):
        shape = np.shape(leaf)
        if shape[:1] != (n,):
            rows = f"{shape[0]} rows" if shape else "no rows"
            raise ValueError(f"cond has {rows} for n = {n}: give an array with one for each sample")


def sum_of_entries(x: jax.Array) -> jax.Array:
    """The sum over the entries of each sample, (n,)."""
    return jnp.sum(x.reshape(x.shape[0], -1), axis=1)


@jax.jit
def row_keys(key: jax.Array, rows: ArrayLike) -> jax.Array:
    """One key for each row, (n,), from (key, row) alone: all randomness of a sample comes from its own.

    rows: (n,) integers, which are the samples' indices and not their places in a batch.
    """
    return jax.vmap(jax.random.fold_in, (None, 0))(threefry(key), rows)


def threefry(keys: jax.Array) -> jax.Array:
    """The keys as threefry's, of whatever generator they are: what many of them draw at once, each draws alone.

    Under `vmap` the generators rbg and unsafe_rbg draw for all rows from the first one's key.
    """
    if not jnp.issubdtype(keys.dtype, jax.dtypes.prng_key):
        keys = jax.random.wrap_key_data(keys)
    if str(jax.random.key_impl(keys)) == "threefry2x32":
        return keys
    words = jax.random.key_data(keys)
    keys = jax.random.wrap_key_data(words[..., :2], impl="threefry2x32")
    fold = jax.vmap(jax.random.fold_in) if keys.ndim else jax.random.fold_in
    for i in range(2, words.shape[-1]):
        keys = fold(keys, words[..., i])
    return keys


def fold_in_each(keys: jax.Array, number: ArrayLike) -> jax.Array:
    """The keys (n,) of each row's stream of this number: another purpose, step or draw."""
    return jax.vmap(jax.random.fold_in, (0, None))(threefry(keys), number)


def normal_like(keys: jax.Array, x: jax.Array) -> jax.Array:
    """Draw standard normal noise like x, row i from keys[i] alone."""
    return jax.vmap(lambda key: jax.random.normal(key, x.shape[1:], x.dtype))(threefry(keys))
