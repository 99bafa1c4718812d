"""FID, KID, precision and recall, and the Inception score of a run's samples, with the record of what was compared.

The metrics are torch-fidelity's (`experiment.evaluation.inception`).
"""

import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from experiment.common.errors import UserError, shown
from experiment.common.files import check_folder, user_path, write_json
from experiment.common.progress import say_start
from experiment.common.provenance import provenance
from experiment.config import load_config
from experiment.data.load import load_dataset
from experiment.data.npz import mapped_images
from experiment.devices.hosts import Place, shared_out
from experiment.evaluation import inception
from experiment.evaluation.drawing import Kept, Wanted, in_parts
from experiment.evaluation.images import Images
from experiment.evaluation.inception import FidMetrics, Weights
from experiment.evaluation.opening import open_run, samplers_of
from experiment.evaluation.points import points_at, read_budgets, settings_of
from experiment.evaluation.results import plain
from experiment.evaluation.settings import FromConfig
from experiment.evaluation.text import fitted, number
from experiment.run.conditions import conditions
from experiment.run.sampling import check_samples_fit, expected_seconds, told
from experiment.run.shards import Shards

Array = np.ndarray

FULL_N = 50_000  # what published numbers are of
MIN_SIZE = 10  # images on each side: the Inception score has ten parts


@dataclass(frozen=True, kw_only=True)
class FidSettings(FromConfig):
    """The settings of `fid`.

    weights: file of the Inception weights. n: samples for each sampler; seed: of them. reference: "train" or "test", of
    the run's own data; or the path of a folder or zip of images or an .npz, all of whose images are taken; or a data
    set's name, for its train split.
    """

    weights: str | None = None
    n: int = FULL_N
    seed: int
    reference: str = "train"

    LEAST: ClassVar = {"n": MIN_SIZE}

    @classmethod
    def check(cls, given: Mapping[str, Any]) -> None:
        """Raises UserError where the weights are missing, or a value is out of its range."""
        if not given.get("weights"):
            raise UserError(f"--fid needs the Inception weights: {inception.WEIGHTS_REMEDY}")
        super().check(given)


@dataclass(frozen=True)
class Reference:
    """The images that samples are held against; `images` is their number."""

    name: str
    split: str
    images: int
    shape: list[int]


@dataclass(frozen=True)
class FidRow:
    """A row of fid.json: the metrics of one sampler, and all that they depend on.

    network: which weights drew. origin: versions, commit, devices and date, each a key of the row.
    """

    sampler: str
    nfe: float
    n: int
    metrics: FidMetrics
    notes: list[str]
    seed: int
    final_denoising: bool
    settings: dict[str, Any]
    network: dict[str, Any]
    reference: Reference
    inception_weights: Weights
    preprocessing: str
    origin: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """The row in JSON's values; the metrics and the origin are keys of it like others."""
        row: dict[str, Any] = {}
        for name, value in plain(self).items():
            row |= value if name in ("metrics", "origin") else {name: value}
        return row


def reference_images(run: Any, reference: str, folder: Path | None = None) -> tuple[Images, Reference]:
    """Find the images of FidSettings.reference, to be read some at a time.

    folder: where those of an .npz may be unpacked, so that they need not lie in memory. Raises UserError for one that
    is not there, holds no images, too few, or others than the run draws in size or channels.
    """
    path, (crop, size) = user_path(reference, "--fid_reference"), (run.config.data.crop, run.config.data.size)
    mapped = None
    if folder is not None and path.is_file() and path.suffix.lower() == ".npz" and not (crop or size):
        mapped = mapped_images(path, folder)
    if mapped is not None:
        parts, levels, name, split = mapped, 256, shown(path.stem), "all"
    else:
        parts, levels, name, split = _loaded(run, reference, path)
    n, shape = sum(map(len, parts)), parts[0].shape[1:]
    if shape != tuple(run.shape):
        shapes = ["x".join(map(str, its)) for its in (shape, run.shape)]
        raise UserError(
            f"--fid_reference={reference} has images of {shapes[0]}, the run draws {shapes[1]}: resize or convert them"
        )
    if n < MIN_SIZE:
        raise UserError(f"--fid_reference={reference} has {n} image(s): give at least {MIN_SIZE}")
    return Images(parts, levels), Reference(name, split, n, list(shape))


def _loaded(run: Any, reference: str, path: Path) -> tuple[list[Array], int, str, str]:
    """The arrays of images of a data set, their levels, its name, and the split."""
    crop, size = run.config.data.crop, run.config.data.size
    if reference in ("train", "test"):
        dataset, split = run.dataset, reference
    elif path.exists():
        dataset, split = load_dataset("", str(path), run.config.data.cache, crop=crop, size=size), "all"
    else:
        try:
            dataset, split = load_dataset(reference, "", run.config.data.cache, crop=crop, size=size), "train"
        except UserError as error:
            raise UserError(
                f"--fid_reference={reference} is neither train, test, a folder nor a file; as a data set: {error}"
            ) from None
    if dataset.levels is None:
        raise UserError(f"--fid_reference={reference} holds vectors: give images")
    parts = [dataset.train.x, dataset.test.x] if split == "all" else [getattr(dataset, split).x]
    return parts, dataset.levels, dataset.name, split


def fid(
    run: Any,
    samplers: Sequence[tuple[str, Any]],
    settings: FidSettings,
    parts: Path | None = None,
    place: Place | None = None,
) -> Iterator[FidRow]:
    """Draw, compare and yield a row for each (name, sampler).

    run: as for `evaluate`. parts: the folder where samples are kept, so that a killed computation goes on; None for
    none. place: of this process, the first of those that share out the samples there.

    Raises UserError before anything is drawn for what is wrong with the run's kind of data, the weights or the
    reference; later for samples that are not finite.
    """
    inception.library()
    if run.scaling.levels is None or run.shape[-1] not in (1, 3):
        kind = "vectors" if run.scaling.levels is None else f"images of {run.shape[-1]} channels"
        raise UserError(
            f"--fid is of greyscale or colour images, and this run draws {kind}: leave --fid out for the other measures"
        )
    with tempfile.TemporaryDirectory() as folder:
        weights, of_weights = inception.checked_weights(
            user_path(settings.weights or "", "--fid_weights"), Path(folder)
        )
        reference, of_reference = reference_images(run, settings.reference, Path(folder))
        for i, (name, sampler) in enumerate(samplers):
            drawn = parts or Path(folder, "parts")
            kept = samples_in_parts(run, sampler, name, settings, drawn, place or Place())
            samples, nfe = unpacked(kept, Path(folder, f"samples{i}.npy"))
            metrics = inception.compare_images(Images([samples]), reference, weights, Path(folder, "cache"))
            yield FidRow(
                sampler=name,
                nfe=nfe,
                n=settings.n,
                metrics=metrics,
                notes=_notes(settings.n, metrics.kid_subset_size, of_weights.published),
                seed=settings.seed,
                final_denoising=bool(getattr(sampler, "denoise", False)),
                settings=settings_of(sampler),
                network=_network(run),
                reference=of_reference,
                inception_weights=of_weights,
                preprocessing=inception.PREPROCESSING,
                origin=_origin(),
            )


def samples_in_parts(run: Any, sampler: Any, name: str, settings: FidSettings, folder: Path, place: Place) -> Shards:
    """Draw the samples into the folder, or what is missing of them, or this process's share."""
    n, cond = settings.n, conditions(run, settings.n, settings.seed)
    wanted = Wanted(run, sampler, name, settings.seed, n, run.config.eval.batch_size, cond)
    return in_parts(wanted, Kept(folder, place))


def unpacked(parts: Shards, path: Path) -> tuple[Array, float]:
    """Put the samples into one file, which is mapped. Returns them, uint8 (n, h, w, c), and the mean of their NFE."""
    whole, first, cost = None, 0, 0.0
    for part in parts.read():
        if whole is None:
            whole = np.lib.format.open_memmap(path, "w+", np.uint8, (parts.n, *part["x"].shape[1:]))
        whole[first : first + len(part["x"])] = part["x"]
        first, cost = first + len(part["x"]), cost + float(part["nfe"]) * len(part["x"])
    assert whole is not None  # there is one sample at least
    whole.flush()
    return np.load(path, mmap_mode="r"), cost / parts.n


def _network(run: Any) -> dict[str, Any]:
    """Name the weights that drew: the EMA of which step and decay, or an average that was rebuilt after training."""
    saved = Path(run.workdir) / "config.json"
    rebuilt = load_config(saved)[1].get("reconstructed") if saved.is_file() else None
    average = (
        {"weights": "power-function average", **rebuilt} if rebuilt else {"weights": "EMA", "ema": run.config.train.ema}
    )
    return {"workdir": str(run.workdir), "checkpoint_step": int(run.step), **average}


def _origin() -> dict[str, Any]:
    """The provenance with torch's versions and device, and the date."""
    ours = provenance()
    return {
        **ours,
        "versions": {**ours["versions"], **inception.versions()},
        "torch_device": inception.device(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _notes(n: int, kid_subset_size: float, published: bool) -> list[str]:
    """Say, in a sentence for each, what keeps the numbers from being compared with others."""
    notes = []
    if n != FULL_N:
        notes.append(
            f"FID depends on n, and falls as it grows: these are of {n:,} samples, published ones of {FULL_N:,}."
        )
    if kid_subset_size < inception.KID_SUBSET_SIZE:
        notes.append(
            f"KID is of subsets of {kid_subset_size:,} images, not of the usual {inception.KID_SUBSET_SIZE:,}, for "
            "want of images."
        )
    if not published:
        notes.append(
            "The weights are not those of published FIDs: the SHA-256 of theirs begins with "
            f"{inception.WEIGHTS_SHA256}."
        )
    return notes


def fid_lines(rows: Sequence[FidRow]) -> list[str]:
    """A table for a terminal, a line for each row, and the notes."""
    header = ["sampler", "NFE", "FID", "KID", "precision", "recall", "Inception score"]
    cells = [
        [
            row.sampler,
            f"{row.nfe:,.0f}",
            number(row.metrics.fid, 4),
            f"{row.metrics.kid:.5f} ± {row.metrics.kid_sd:.5f}",
            f"{row.metrics.precision:.3f}",
            f"{row.metrics.recall:.3f}",
            f"{row.metrics.inception_score:.3f} ± {row.metrics.inception_score_sd:.3f}",
        ]
        for row in rows
    ]
    of = rows[0].reference
    against = (
        f"{rows[0].n:,} samples each against {of.images:,} images of {of.name} ({of.split}); ± is over KID's subsets, "
        "and over ten parts of the samples"
    )
    return [*fitted([header, *cells]), against, *rows[0].notes]


def fid_of_run(
    workdir: str, given: Mapping[str, Any], out: str | None = None, data: str = "", cache: str = ""
) -> list[str]:
    """Do the whole of `evaluate.py --fid`: fid/fid.json, a list, gains a row for each sampler at each budget.

    given: fields of FidSettings that are not None; samplers, of the config's eval.samplers where there are none; nfe,
    texts of score calls, besides the final denoising, that every fixed-step sampler is measured at. out: the folder,
    WORKDIR/fid for None. data, cache: as for `load_run`. Raises UserError for every mistake, most before the run is
    loaded.

    Returns:
        The table's lines, and at last the file's path.
    """
    of_settings = {name: value for name, value in given.items() if name not in ("samplers", "nfe")}
    names, budgets = given.get("samplers"), read_budgets(given.get("nfe") or ())
    with shared_out() as place:
        run, settings = open_run(workdir, FidSettings, of_settings, names, inception.library, data=data, cache=cache)
    path = (user_path(out, "--out") if out else run.workdir / "fid") / "fid.json"
    points = points_at(samplers_of(run, names), budgets)
    check_samples_fit(min(run.config.eval.batch_size, settings.n), run.shape)
    check_folder(path.parent)
    drawn = path.parent / "parts"
    if place.number:
        for point in points:
            samples_in_parts(run, point.sampler, point.name, settings, drawn, place)
        return [f"process {place.number} of {place.count} has drawn its share; the first one writes the files"]
    earlier, rows = _read(path), []
    seconds = sum(expected_seconds(run, point.sampler, settings.n) for point in points)
    say_start(
        f"FID of {run.workdir} at step {run.step}: {', '.join(map(str, points))}, {settings.n:,} samples each"
        f"{told(run, seconds)}"
    )
    for row in fid(run, [(point.name, point.sampler) for point in points], settings, drawn, place):
        rows.append(row)
        earlier = [found for found in earlier if not _repeats(row, found)]
        write_json(path, [*earlier, *(row.to_json() for row in rows)])
    shutil.rmtree(drawn, ignore_errors=True)
    return [*fid_lines(rows), str(path)]


def _repeats(row: FidRow, earlier: Any) -> bool:
    """Whether an earlier row is of the same samples, reference and versions: its command was killed, and repeated."""
    ours, measured = row.to_json(), {"date", *plain(row.metrics)}
    return isinstance(earlier, dict) and all(
        earlier.get(name) == value for name, value in ours.items() if name not in measured
    )


def _read(path: Path) -> list[Any]:
    """The rows that are there already: they took hours, and stay. Raises UserError where they cannot be read."""
    try:
        rows = json.loads(path.read_text()) if path.exists() else []
        if isinstance(rows, list):
            return rows
    except (OSError, ValueError, RecursionError):
        pass
    raise UserError(f"cannot read {path}, which new rows go to: move it away")
