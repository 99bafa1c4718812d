"""Idioms of arrays whose first axis counts samples: a number, a sum, a key or a draw of noise for each."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike


def per_row(values: ArrayLike, x: jax.Array) -> jax.Array:
    """A scalar or (n,) made ready to multiply x, in x's dtype."""
    values = jnp.asarray(values, x.dtype)
    return values.reshape(values.shape + (1,) * (x.ndim - values.ndim)) if values.ndim else values


def sum_of_entries(x: jax.Array) -> jax.Array:
    """The sum over the entries of each sample, (n,)."""
    return jnp.sum(x.reshape(x.shape[0], -1), axis=1)


@jax.jit
def row_keys(key: jax.Array, rows: ArrayLike) -> jax.Array:
    """One key for each row, (n,), from (key, row) alone: all randomness of a sample comes from its own.

    rows: (n,) integers, which are the samples' indices and not their places in a batch.
    """
    return jax.vmap(jax.random.fold_in, (None, 0))(key, rows)


def fold_in_each(keys: jax.Array, number: ArrayLike) -> jax.Array:
    """The keys (n,) of each row's stream of this number: another purpose, step or draw."""
    return jax.vmap(jax.random.fold_in, (0, None))(keys, number)


def normal_like(keys: jax.Array, x: jax.Array) -> jax.Array:
    """Draw standard normal noise like x, row i from keys[i] alone."""
    return jax.vmap(lambda key: jax.random.normal(key, x.shape[1:], x.dtype))(keys)
