"""The order of a training run's examples: batch k is a pure function of (seed, k).

Nothing is iterated and nothing has to be saved, so a run resumes exactly.
"""

from functools import lru_cache

import numpy as np


def batch_indices(seed: int, step: int, batch_size: int, n: int) -> np.ndarray:
    """The indices (batch_size,) int64, into n examples, of batch `step`: a pure function of its arguments.

    The batches lie end to end over an endless row of epochs, each a fresh shuffle of all n: place
    p = step * batch_size + i holds element p mod n of the shuffle of epoch p // n. So each epoch has every example
    exactly once, whether or not batch_size divides n.

    Raises ValueError for n < 1, batch_size < 1 or step < 0.
    """
    if n < 1 or batch_size < 1 or step < 0:
        raise ValueError(f"need n >= 1, batch_size >= 1 and step >= 0; got n={n}, batch_size={batch_size}, step={step}")
    first = step * batch_size
    last = first + batch_size
    epochs = range(first // n, (last - 1) // n + 1)
    return np.concatenate([_shuffle(seed, e, n)[max(first - e * n, 0) : last - e * n] for e in epochs])


@lru_cache(maxsize=4)  # pure, so remembering is invisible; a run needs two at a time
def _shuffle(seed: int, epoch: int, n: int) -> np.ndarray:
    order = np.random.default_rng([seed % 2**64, epoch]).permutation(n)
    order.flags.writeable = False
    return order
