"""What is seen of examples, in their own units, against plain sums in float64."""

from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from experiment.common.errors import UserError
from experiment.data.scaling import Scaling
from experiment.data.units import Units
from experiment.evaluation.seen import Asked, see

RNG = np.random.default_rng(0)
MATRIX = RNG.normal(size=(5, 24))
SHAPE = (2, 4, 3)
SCALINGS = {
    "levels": Scaling(17),
    "levels from 0": Scaling(256, centered=False),
    "units": Scaling(None, units=Units(np.array([3e4, -2.0, 0.1]), np.array([2e3, 0.5, 1e-3]))),
    "none": Scaling(None),
}


@pytest.fixture
def files(tmp_path: Path) -> Path:
    mask = np.zeros(SHAPE[:2], np.uint8)
    mask[0, 1:] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    np.savez(tmp_path / "mask.npz", mask=mask > 0)
    np.save(tmp_path / "matrix.npy", MATRIX)
    np.savez(tmp_path / "zeros.npz", mask=np.zeros(SHAPE, bool))
    np.savez(tmp_path / "grey.npz", mask=np.full(SHAPE, 0.5))
    np.savez(tmp_path / "other.npz", mask=np.ones((4, 4)), more=np.ones(3))
    np.savez(tmp_path / "nan.npz", matrix=np.full((2, 24), np.nan))
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "text.npy").write_text("no array")
    return tmp_path


def left(x: np.ndarray) -> np.ndarray:
    y = np.zeros_like(x)
    y[:, :, :2] = x[:, :, :2]
    return y


def in_the_file(x: np.ndarray) -> np.ndarray:
    y = np.zeros_like(x)
    y[:, 0, 1:] = x[:, 0, 1:]
    return y


def blurred(x: np.ndarray) -> np.ndarray:
    """By the sum over all pairs of places of the periodic grid; the kernel's own ends are at half a side."""
    y = np.zeros_like(x)
    for axis, side in ((1, 2), (2, 4)):
        away = np.arange(side) - side // 2
        weights = np.exp(-0.5 * (away / 0.7) ** 2)
        y = sum(w / weights.sum() * np.roll(x, d, axis=axis) for d, w in zip(away, weights, strict=True))
        x = y
    return y


OF_DATA: dict[str, tuple[dict[str, Any], Any]] = {
    "mask": ({}, left),
    "mask of a picture": ({"seen": "mask.png"}, in_the_file),
    "mask of a file": ({"seen": "mask.npz"}, in_the_file),
    "downsample": ({"factor": 2}, lambda x: x.reshape(-1, 1, 2, 2, 2, 3).mean(axis=(2, 4))),
    "blur": ({"width": 0.7}, blurred),
    "denoise": ({}, lambda x: x),
    "colour": ({}, lambda x: x.mean(axis=-1, keepdims=True)),
    "matrix": ({"matrix": "matrix.npy"}, lambda x: x.reshape(len(x), -1) @ MATRIX.T),
}


@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize("name", OF_DATA)
def test_the_operator_in_the_model_s_space_is_that_of_the_data(files: Path, name: str, scaling: str) -> None:
    """It sees of z, in the data's units, what plain sums see of x = shift + scale z; and so does the noise."""
    asked, of_data = OF_DATA[name]
    asked = {key: str(files / value) if key in ("matrix", "seen") else value for key, value in asked.items()}
    if name == "colour" and SCALINGS[scaling].levels is None:
        return
    z = np.random.default_rng(1).uniform(-0.9, 0.9, (6, *SHAPE)).astype(np.float32)
    shift, scale = SCALINGS[scaling].affine(SHAPE)
    x = shift + scale * z.astype(float)
    seen = see(name.split()[0], Asked(**asked), SHAPE, SCALINGS[scaling])
    y = seen.to_data(np.asarray(seen.operator(jnp.asarray(z))))
    np.testing.assert_allclose((y - of_data(x)) / seen.scale, np.zeros_like(y), atol=3e-6)
    np.testing.assert_allclose(seen.to_model(y), np.asarray(seen.operator(jnp.asarray(z))), atol=3e-6)
    # A noise of 0.3 in the data's units moves y by as much in the model's space as there.
    more = seen.to_data(np.asarray(seen.operator(jnp.asarray(z))) + seen.noise_to_model(0.3)) - y
    np.testing.assert_allclose(more, np.full(y.shape, 0.3), rtol=0, atol=1e-6 * np.abs(seen.scale).max())
    asked_for = ~(of_data(np.ones((1, *SHAPE)))[0] > 0) if name.startswith("mask") else np.ones(SHAPE, bool)
    np.testing.assert_array_equal(seen.open, asked_for)


def test_levels_are_at_the_centres_of_their_bins() -> None:
    for scaling in (Scaling(17), Scaling(256, centered=False)):
        shift, scale = scaling.affine((1,))
        k = np.arange(scaling.levels or 0)
        np.testing.assert_allclose(shift + scale * np.asarray(scaling.to_model(k), float), k, atol=1e-4)


def test_a_box_and_random_places_are_as_large_as_they_say() -> None:
    box = see("mask", Asked(seen="box"), (8, 8, 3), Scaling(17)).open
    assert box.sum() == 16 * 3 and box[2:6, 2:6].all()
    for shape in ((8, 8, 3), (64,), (64, 2), (4, 4, 4, 1)):
        seen, other = (
            see("mask", Asked(seen="random", share=0.25), shape, Scaling(None), seed).open for seed in (0, 1)
        )
        assert (~seen).mean() == 0.25 and not np.array_equal(seen, other)
        assert len(shape) == 1 or all(np.array_equal(seen[..., 0], seen[..., c]) for c in range(shape[-1]))
    assert np.array_equal(see("mask", Asked(), (5,), Scaling(None)).open, [False, False, True, True, True])


@pytest.mark.parametrize(
    ("name", "asked", "words"),
    [
        ("mask", {"seen": "right"}, "give one of left, box, random, or the file of a mask"),
        ("mask", {"seen": "zeros.npz"}, "sees nothing of an example"),
        ("mask", {"seen": "grey.npz"}, "save mask > 0.5"),
        ("mask", {"seen": "other.npz"}, r"the mask is \(4, 4\), and an example \(2, 4, 3\)"),
        ("mask", {"seen": "text.png"}, "cannot read .*give a PNG"),
        ("mask", {"seen": "random", "share": 1.0}, "--share is 1: give the share"),
        ("mask", {"share": 0.5}, "--share goes with --seen=random"),
        ("mask", {"factor": 2}, "--factor is not for --operator=mask: leave it out, or use --operator=downsample"),
        ("downsample", {"factor": 3}, r"--factor is 3, and must divide each side of the grid \(2, 4\): give 2"),
        ("downsample", {"factor": 1}, "--factor is 1, and must divide"),
        ("downsample", {}, "--factor is 4, and must divide"),
        ("blur", {"width": 0.0}, "--width is 0: give"),
        ("blur", {"width": float("nan")}, "--width is nan: give"),
        ("blur", {"matrix": "matrix.npy"}, "--matrix is not for --operator=blur"),
        ("matrix", {}, "give the matrix, as --matrix=FILE"),
        ("matrix", {"matrix": "nobody.npy"}, "there is no such file: give"),
        ("matrix", {"matrix": "text.npy"}, "cannot read .*numpy.save"),
        (
            "matrix",
            {"matrix": "zeros.npz"},
            r"the matrix is \(2, 4, 3\), and an example has 24 entries: give \(m, 24\)",
        ),
        ("matrix", {"matrix": "other.npz"}, "there is no matrix among mask, more"),
        ("matrix", {"matrix": "nan.npz"}, "give real, finite numbers"),
        ("sharpen", {}, "--operator is 'sharpen'; it must be one of: mask, downsample"),
    ],
)
def test_what_cannot_be_seen_is_refused(files: Path, name: str, asked: dict[str, Any], words: str) -> None:
    asked = {
        key: str(files / value) if key in ("matrix", "seen") and "." in value else value for key, value in asked.items()
    }
    with pytest.raises(UserError, match=words):
        see(name, Asked(**asked), SHAPE, Scaling(17))


@pytest.mark.parametrize("name", ["downsample", "blur", "colour"])
def test_vectors_have_no_grid(name: str) -> None:
    with pytest.raises(UserError, match="--matrix=FILE"):
        see(name, Asked(), (6,), Scaling(None))
