"""The captions of the digits: their words are what the pixels say, by measures that known strokes give back."""

import numpy as np
import pytest

from experiment.data.digit_captions import (
    DIGITS,
    HELD_OUT,
    SLANT,
    THICKNESS,
    Words,
    caption,
    captioned,
    slant,
    thickness,
)
from experiment.data.load import load_dataset


@pytest.fixture(scope="module")
def digits():
    return load_dataset("digits")


def stroke(width, lean=0.0, size=64):
    """A straight stroke down the middle, `width` pixels across, its top `lean` columns to the right for each row."""
    rows, columns = np.indices((size, size))
    middle = size / 2 - lean * (rows - size / 2)
    across = columns - middle
    return ((-width / 2 <= across) & (across < width / 2) & (abs(rows - size / 2) < size / 3)).astype(float)


def test_thickness_and_slant_are_those_of_known_strokes():
    widths = thickness(np.stack([stroke(w) for w in (2, 4, 6)]))
    assert np.all(np.diff(widths) > 1.5)
    np.testing.assert_allclose(widths, [2, 4, 6], rtol=0.15)  # the two ends count as outline too
    np.testing.assert_allclose(thickness(3 * stroke(4)[None]), widths[1:2])  # whatever the ink's grey
    leans = np.array([-0.4, 0.0, 0.25, 0.5])
    np.testing.assert_allclose(slant(np.stack([stroke(5, lean) for lean in leans])), leans, atol=0.02)
    assert np.isfinite([thickness(np.zeros((1, 8, 8, 1))), slant(np.zeros((1, 8, 8, 1)))]).all()


def test_words_are_thirds_of_each_digit_and_mirrored_ink_leans_the_other_way(digits):
    words = Words.of(digits.train)
    found = words.described(digits.train.x, digits.train.labels)
    for digit in DIGITS:
        of = [description for description in found if description[0] == digit]
        for place, names in ((1, THICKNESS), (2, SLANT)):
            counts = [sum(description[place] == name for description in of) for name in names]
            assert max(counts) - min(counts) <= 0.03 * len(of) + 2
    x, labels = digits.train.x, digits.train.labels
    for name, measure, place in (("thick", thickness, 1), ("right", slant, 2)):
        values, other = measure(x), {"thick": "thin", "right": "left"}[name]
        for digit in range(10):
            of = [i for i in range(len(x)) if labels[i] == digit]
            high, low = ([values[i] for i in of if found[i][place] == word] for word in (name, other))
            assert min(high) > max(low)
    np.testing.assert_allclose(slant(x[:, :, ::-1]), -slant(x), atol=1e-9)


def test_captions_say_what_is_so_and_the_same_at_every_load(digits):
    found, again = captioned(digits), captioned(digits)
    np.testing.assert_array_equal(found.train.captions, again.train.captions)
    words = Words.of(digits.train)
    for split in (found.train, found.test):
        described = words.described(split.x, split.labels)
        lengths = set()
        for text, (digit, thick, lean) in zip(split.captions, described, strict=True):
            said = set(text.replace(",", "").split()) - {"a", "an", "slanted"}
            assert digit in said and said <= {digit, thick, lean}
            lengths.add(len(said))
        assert lengths == {1, 2, 3}
    assert max(len(text) for text in found.train.captions) <= 32
    assert caption("seven", "thick", "left") == "a thick seven, slanted left"
    assert (caption("eight"), caption("one"), caption("one", article=False)) == ("an eight", "a one", "one")


def test_some_combinations_are_never_trained_on(digits):
    found, words = captioned(digits), Words.of(digits.train)
    seen = set(words.described(found.train.x, found.train.labels))
    assert not seen & set(HELD_OUT) and len(HELD_OUT) == 10
    for place in range(3):  # but each of their words is, with the digit too
        assert {d[place] for d in HELD_OUT} <= {d[place] for d in seen}
    assert all(any(d[0] == digit and d[1] == thick for d in seen) for digit, thick, _ in HELD_OUT)
    assert (
        len(digits.train) - len(found.train)
        == sum(d in HELD_OUT for d in words.described(digits.train.x, digits.train.labels))
        > 100
    )
    assert set(HELD_OUT) & set(words.described(found.test.x, found.test.labels))  # the held-out digits are whole
