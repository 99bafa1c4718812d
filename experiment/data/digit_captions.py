"""Captions of the digits, in words that can be measured from the pixels: the digit, its thickness, its slant.

    "a thick seven, slanted left"    "a thin seven"    "a seven, slanted right"    "a seven"    "seven"

A digit is thin or thick, slanted left or right, among its own kind: below or above two thirds of the training examples
of that digit. Those in the middle have no such word.
"""

import dataclasses

import numpy as np

from experiment.data.dataset import Dataset, Split

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
THICKNESS, SLANT = ("thin", "", "thick"), ("left", "", "right")

# Left out of training, to see whether words are put together that were never seen so: (digit, thickness, slant).
HELD_OUT = (
    ("zero", "thin", "left"),
    ("one", "thick", "left"),
    ("two", "thin", "right"),
    ("three", "thick", "right"),
    ("four", "thin", "left"),
    ("five", "thick", "left"),
    ("six", "thin", "right"),
    ("seven", "thick", "right"),
    ("eight", "thin", "left"),
    ("nine", "thick", "left"),
)

# How much of what is so is said: (thickness, slant), and how often.
FORMS = ((True, True), (True, False), (False, True), (False, False))
SHARES = (0.6, 0.15, 0.15, 0.1)
SEED = 31  # of the choice of each example's form, of np.random.RandomState, whose stream is frozen


def thickness(images: np.ndarray) -> np.ndarray:
    """The mean width of the strokes in pixels, (n, h, w) or (n, h, w, 1) -> (n,): twice the area over the outline.

    2 sum v/sum |grad v|: a stroke of width w and length l has the area w l, and an outline of about 2 l.
    """
    v = np.pad(_grey(images), ((0, 0), (1, 1), (1, 1)))
    down, right = np.diff(v, axis=1)[:, :, :-1], np.diff(v, axis=2)[:, :-1]
    return 2 * v.sum(axis=(1, 2)) / np.maximum(np.hypot(down, right).sum(axis=(1, 2)), 1e-9)


def slant(images: np.ndarray) -> np.ndarray:
    """How far the top leans to the right, in columns for each row, (n, h, w) or (n, h, w, 1) -> (n,).

    -cov(column, row)/var(row) over the ink: the shear that would put the digit upright.
    """
    v = _grey(images)
    rows, columns = (places.ravel() for places in np.indices(v.shape[1:]))
    ink = v.reshape(len(v), -1) / np.maximum(v.sum(axis=(1, 2)), 1e-9)[:, None]
    row, column = (places[None] - (ink @ places)[:, None] for places in (rows, columns))
    return -(ink * row * column).sum(axis=1) / np.maximum((ink * row**2).sum(axis=1), 1e-9)


def _grey(images: np.ndarray) -> np.ndarray:
    images = np.asarray(images, np.float64)
    return images[..., 0] if images.ndim == 4 else images


@dataclasses.dataclass(frozen=True)
class Words:
    """The words of thickness and slant of each digit, by thirds of the training examples: limits (10, 2) of each."""

    thickness: np.ndarray
    slant: np.ndarray

    @staticmethod
    def of(train: Split) -> "Words":
        """The words that the training digits define."""
        assert train.labels is not None
        limits = [
            [np.quantile(measure(train.x[train.labels == digit]), [1 / 3, 2 / 3]) for digit in range(10)]
            for measure in (thickness, slant)
        ]
        return Words(*map(np.asarray, limits))

    def described(self, images: np.ndarray, labels: np.ndarray) -> list[tuple[str, str, str]]:
        """The (digit, thickness, slant) of each image."""
        measured = ((thickness(images), self.thickness, THICKNESS), (slant(images), self.slant, SLANT))
        words = [
            [names[i] for i in (values[:, None] > limits[labels]).sum(axis=1)] for values, limits, names in measured
        ]
        return list(zip([DIGITS[label] for label in labels], *words, strict=True))


def caption(digit: str, thick: str = "", lean: str = "", article: bool = True) -> str:
    """A caption: `caption("seven", "thick", "left")` is "a thick seven, slanted left"."""
    noun = f"{thick} {digit}" if thick else digit
    with_article = f"{'an' if noun == 'eight' else 'a'} {noun}" if article or thick or lean else noun
    return f"{with_article}, slanted {lean}" if lean else with_article


def captioned(dataset: Dataset) -> Dataset:
    """The digits with a caption each, without the training examples of HELD_OUT."""
    words = Words.of(dataset.train)
    return dataclasses.replace(
        dataset,
        train=_captioned(dataset.train, words, SEED, without=HELD_OUT),
        test=_captioned(dataset.test, words, SEED + 1),
    )


def _captioned(split: Split, words: Words, seed: int, without: tuple[tuple[str, str, str], ...] = ()) -> Split:
    assert split.labels is not None
    found = words.described(split.x, split.labels)
    random = np.random.RandomState(seed)
    forms = random.choice(len(FORMS), size=len(found), p=SHARES)
    articles = random.rand(len(found)) < 0.5
    captions = [
        caption(digit, thick if FORMS[form][0] else "", lean if FORMS[form][1] else "", article)
        for (digit, thick, lean), form, article in zip(found, forms, articles, strict=True)
    ]
    kept = np.array([description not in without for description in found])
    return dataclasses.replace(split, captions=np.array(captions)).rows(np.flatnonzero(kept))
