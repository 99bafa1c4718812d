"""The classifier two-sample test of posteriors, as the benchmark sbibm defines it.

A small network learns to tell two samples apart; its accuracy on what it has not seen is 0.5 for samples of one
distribution, and at best 1/2 + TV/2 for two at a total variation distance TV. It falls with the number of samples for
the same error, so numbers compare only at equal n.
"""

import numpy as np

from experiment.common.errors import UserError

FOLDS = 5
SEED = 1


def c2st(reference: np.ndarray, samples: np.ndarray) -> float:
    """Compute the mean accuracy over five folds of telling samples (n, d) from the reference (k, d).

    Both are z-scored by the reference's mean and standard deviation; the classifier has two hidden layers of 10 d.

    Lopez-Paz & Oquab 2017, arXiv:1610.06545; Lueckmann et al. 2021, arXiv:2101.04653, section 2.4.

    Raises UserError for samples of other sizes, for fewer than five of a kind, and for NaN or infinity.
    """
    reference, samples = (np.asarray(x, np.float64) for x in (reference, samples))
    if reference.ndim != 2 or samples.ndim != 2 or reference.shape[1] != samples.shape[1]:
        raise UserError(
            f"C2ST: reference {reference.shape}, samples {samples.shape}: give both as rows of equal length"
        )
    if min(len(reference), len(samples)) < FOLDS:
        raise UserError(
            f"C2ST needs at least {FOLDS} rows of either kind, not {len(reference)} and {len(samples)}: draw more"
        )
    mean, std = reference.mean(axis=0), reference.std(axis=0, ddof=1)
    if not np.all(std > 0):
        raise UserError(f"C2ST: column {int(np.argmin(std))} of the reference is constant; leave it out")
    rows = (np.concatenate([reference, samples]) - mean) / std
    if not np.all(np.isfinite(rows)):
        raise UserError("C2ST: the samples or the reference have NaN or infinity; leave those rows out")
    from sklearn.model_selection import KFold, cross_val_score  # a second to import
    from sklearn.neural_network import MLPClassifier
    from threadpoolctl import threadpool_limits

    width = 10 * rows.shape[1]
    classifier = MLPClassifier((width, width), activation="relu", solver="adam", max_iter=10_000, random_state=SEED)
    folds = KFold(FOLDS, shuffle=True, random_state=SEED)
    labels = np.repeat([0, 1], [len(reference), len(samples)])
    with threadpool_limits(1, "blas"):  # the products are small, and threads wait for each other
        return float(np.mean(cross_val_score(classifier, rows, labels, cv=folds, scoring="accuracy")))
