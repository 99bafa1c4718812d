"""Obedience of digits to a label and to a caption, by oracles that see the pixels alone.

    python benchmarks/conditional_digits.py [--workdir=runs/conditional_digits] [--only=labels,captions]
        [--n=1000] [--sampler=sde_dpmpp_2m] [--steps=30] [--guidance=1,2,3] [--json=FILE]

Trains configs/digits_labels.py and configs/digits_captions.py into WORKDIR/labels and WORKDIR/captions where they are
not trained yet (the keys of train.py do for a shorter training: train it first), and draws n samples at each scale of
guidance. A support vector machine that was fitted to the training digits tells which digit a sample is; thickness and
slant are measured as in experiment/data/digit_captions.py, and each is ranked against the word within its digit.
Of combinations that training never saw, captions are told whole, and, past a scale of 1, also in parts ("a thick
seven", "a seven, slanted left"), as a product of what was seen. The same measures of the training digits themselves
bound what any model could reach.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np

from configs import digits_captions, digits_labels
from experiment.build.samplers import make_sampler
from experiment.common.files import write_json
from experiment.data.conditions import byte_rows
from experiment.data.digit_captions import DIGITS, HELD_OUT, SLANT, THICKNESS, Words, caption, slant, thickness
from experiment.data.load import load_dataset
from experiment.evaluation.metrics import sliced_wasserstein
from experiment.run.load import load_run
from experiment.run.sampling import as_data
from experiment.training.loop import train
from sde_lib import Product, Told, sample

LEVELS = 16
Described = tuple[str, str, str]


class Oracles:
    """What the pixels say: the digit by a classifier fitted to the training digits, thickness and slant by measure."""

    def __init__(self) -> None:
        from sklearn.svm import SVC

        self.data = load_dataset("digits")
        train, test = self.data.train, self.data.test
        self._classifier = SVC(C=10, gamma=0.001).fit(train.x.reshape(len(train), -1), train.labels)
        self.accuracy = float(np.mean(self.digit(test.x) == test.labels))

    def digit(self, levels: np.ndarray) -> np.ndarray:
        return self._classifier.predict(np.asarray(levels, float).reshape(len(levels), -1))

    def middle(self, measure: Any) -> np.ndarray:
        """The median of each digit's training examples, (10,)."""
        x, labels = self.data.train.x, self.data.train.labels
        return np.array([np.median(measure(x[labels == digit])) for digit in range(10)])


def levels_of(grey: np.ndarray) -> np.ndarray:
    """Samples as 17 levels again, of their grey values."""
    return np.rint(grey * (LEVELS / 255))


def of_labels(run: Any, oracles: Oracles, sampler: str, scale: float, args: Any) -> dict[str, Any]:
    """Digits by label: the share that obeys, and the distance within each class beside its floor."""
    wanted = np.arange(args.n) % 10
    draws = run.sample(sampler, args.n, label=list(range(10)), guidance=scale, steps=args.steps)
    found = levels_of(draws.data)
    x, labels = oracles.data.train.x, oracles.data.train.labels
    random, distances, floors = np.random.RandomState(0), [], []
    for digit in range(10):
        real = x[labels == digit].reshape(-1, 64) / LEVELS
        real = real[random.permutation(len(real))]
        drawn, half = found[wanted == digit].reshape(-1, 64) / LEVELS, len(real) // 2
        size = min(len(drawn), half)
        distances.append(sliced_wasserstein(drawn[:size], real[:size]))
        floors.append(sliced_wasserstein(real[:size], real[half : half + size]))
    return {
        "obeyed": float(np.mean(oracles.digit(found) == wanted)),
        "sliced_w2": float(np.mean(distances)),
        "sliced_w2_floor": float(np.mean(floors)),
        "nfe": draws.nfe,
    }


def of_captions(run: Any, oracles: Oracles, sampler: str, scale: float, args: Any) -> dict[str, Any]:
    """Digits by captions that name all three, of combinations that training saw, and of those that it did not."""
    every = [(digit, thick, lean) for digit in DIGITS for thick in THICKNESS[::2] for lean in SLANT[::2]]
    seen = [description for description in every if description not in HELD_OUT]
    cases = {"seen": (seen, whole), "unseen": (list(HELD_OUT), whole)}
    if scale != 1:
        cases["unseen, in parts"] = list(HELD_OUT), in_parts
    result = {}
    for name, (combinations, draw) in cases.items():
        asked = [combinations[i % len(combinations)] for i in range(args.n)]
        result[name] = obedience(oracles, asked, *draw(run, asked, sampler, scale, args))
    return result


def whole(run: Any, asked: list[Described], sampler: str, scale: float, args: Any) -> tuple[np.ndarray, float]:
    """The levels of samples by their whole captions, and their network calls."""
    prompts = [caption(*description) for description in asked]
    draws = run.sample(sampler, args.n, prompt=prompts, guidance=scale, steps=args.steps)
    return levels_of(draws.data), draws.nfe


def in_parts(run: Any, asked: list[Described], sampler: str, scale: float, args: Any) -> tuple[np.ndarray, float]:
    """The same by two captions of each, one without the slant and one without the thickness.

    s(nothing) + g [s(digit, thickness) + s(digit, slant) - s(digit) - s(nothing)]
    """
    captions = {
        "thickness": [caption(digit, thick) for digit, thick, _ in asked],
        "slant": [caption(digit, lean=lean) for digit, _, lean in asked],
        "digit": [caption(digit) for digit, _, _ in asked],
        "nothing": [""] * len(asked),
    }
    length = run.config.model.text_length
    cond = {name: byte_rows(texts, length, "caption {}") for name, texts in captions.items()}
    score_fn = Product([Told(run.score_fn, name) for name in captions], (scale, scale, -scale, 1 - scale))
    method = make_sampler(sampler, run.config, steps=args.steps)
    draws = sample(
        method, score_fn, jax.random.key(0), args.n, run.shape, cond=cond, batch_size=run.config.sample.batch_size
    )
    return levels_of(as_data(run.scaling, np.asarray(draws.x))), draws.nfe


def obedience(oracles: Oracles, asked: list[Described], found: np.ndarray, nfe: float = 0) -> dict[str, float]:
    """How far samples, as levels, are what was asked for."""
    digit = np.array([DIGITS.index(name) for name, _, _ in asked])
    right = oracles.digit(found) == digit
    result = {"digit": float(right.mean()), "nfe": nfe}
    sides = []
    for name, measure, words, place in (("thickness", thickness, THICKNESS, 1), ("slant", slant, SLANT, 2)):
        word = np.array([words.index(description[place]) - 1 for description in asked])
        values = measure(found)
        sides.append(np.sign(values - oracles.middle(measure)[digit]) == word)
        result[f"{name}_side"] = float(sides[-1].mean())
        if (found_rank := rank_correlation(word, values, digit)) is not None:
            result[f"{name}_rank_correlation"] = found_rank
    return {**result, "all_three": float(np.mean(right & sides[0] & sides[1]))}


def rank_correlation(word: np.ndarray, values: np.ndarray, digit: np.ndarray) -> float | None:
    """Spearman's, within each digit, averaged over the digits for which both words were asked; None without any.

    Two words, each of half the samples, reach 0.866 where no thin digit is thicker than a thick one.
    """
    from scipy.stats import spearmanr

    parts = [digit == one for one in range(10)]
    found = [spearmanr(word[part], values[part])[0] for part in parts if len(set(word[part])) == 2]
    return float(np.mean(found)) if found else None


def of_data(oracles: Oracles) -> dict[str, float]:
    """The same of the training digits that have both words."""
    train = oracles.data.train
    assert train.labels is not None
    found = Words.of(train).described(train.x, train.labels)
    both = [i for i, (_, thick, lean) in enumerate(found) if thick and lean]
    return obedience(oracles, [found[i] for i in both], train.x[both])


CASES = {"labels": (digits_labels, of_labels), "captions": (digits_captions, of_captions)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", default="runs/conditional_digits")
    parser.add_argument("--only", default="labels,captions")
    parser.add_argument("--n", type=int, default=1000)
    parser.add_argument("--sampler", default="sde_dpmpp_2m")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--guidance", default="1,2,3")
    parser.add_argument("--json", help="write the figures to this file, beside what it holds of other cases")
    args = parser.parse_args()
    oracles = Oracles()
    print(f"the classifier recognises {oracles.accuracy:.1%} of the held-out digits")
    figures: dict[str, Any] = {"classifier": oracles.accuracy}
    for name in args.only.split(","):
        config, measure = CASES[name]
        workdir = Path(args.workdir, name)
        if not (workdir / "checkpoints").exists():
            train(config.get_config(), workdir)
        run = load_run(workdir)
        if name == "captions":
            figures["training digits"] = of_data(oracles)
            print(f"the training digits themselves: {json.dumps(figures['training digits'])}")
        of_run = {"step": run.step, "n": args.n, "steps": args.steps}
        for sampler in args.sampler.split(","):
            for scale in map(float, args.guidance.split(",")):
                found = measure(run, oracles, sampler, scale, args)
                print(f"{name}, {sampler}, guidance {scale:g}, step {run.step}: {json.dumps(found)}", flush=True)
                figures.setdefault(name, {})[f"{sampler}, guidance {scale:g}"] = {**found, **of_run}
                if args.json:
                    path = Path(args.json)
                    write_json(path, {**(json.loads(path.read_text()) if path.is_file() else {}), **figures})


if __name__ == "__main__":
    main()
