"""FID, KID, precision and recall, and the Inception score of a run's samples, by torch-fidelity (the optional extra
`fid`).

That library has the network, its preprocessing and the metrics; here are only the images that it is given and the
record of what was compared. FID: Heusel et al. 2017, arXiv:1706.08500, eq. 6. KID: Bińkowski et al. 2018,
arXiv:1801.01401, section 4. Precision and recall: Kynkäänniemi et al. 2019, arXiv:1904.06991, eq. 2, here in the
Inception features as the ADM suite has them, not in VGG's. Inception score: Salimans et al. 2016, arXiv:1606.03498,
section 4.

Nothing is downloaded, and torch is imported only by the functions that need it. On a GPU it has what JAX leaves of the
memory: XLA_PYTHON_CLIENT_PREALLOCATE=false leaves it more.
"""

import hashlib
import io
import json
import sys
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from experiment.build.samplers import SAMPLERS, check_sampler, make_sampler
from experiment.config import load_config
from experiment.data.load import load_dataset
from experiment.data.scaling import Scaling
from experiment.errors import UserError
from experiment.evaluation.curves import at_budgets
from experiment.evaluation.evaluate import plain, sample_key, settings_of
from experiment.evaluation.text import aligned, number
from experiment.files import write_json
from experiment.provenance import provenance
from experiment.run.load import load_run
from experiment.sampling import class_labels, draw

Array = np.ndarray

FULL_N = 50_000  # what published numbers are of
MIN_SIZE = 10  # images on each side: the Inception score has ten parts
KID_SUBSETS, KID_SUBSET_SIZE, NEIGHBOURS = 100, 1000, 3
EXTRACTOR = "inception-v3-compat"
WEIGHTS_FILE = "pt_inception-2015-12-05-6726825d.pth"
WEIGHTS_SHA256 = "6726825d"  # its first digits, which the file's name has too
WEIGHTS_REMEDY = (
    f"--fid_weights takes {WEIGHTS_FILE} of pytorch-fid's release fid_weights (torch-fidelity's "
    "weights-inception-2015-12-05-6726825d.pth"
    " of release v0.2.0 will do too); it is not downloaded for you"
)
PREPROCESSING = (
    "uint8 images as drawn and as stored, fewer levels than 256 spread over 0..255, greyscale repeated to 3 "
    "channels; torch-fidelity's "
    f"{EXTRACTOR} resizes them to 299x299 (bilinear without antialiasing, as TensorFlow 1 does) and takes (x - "
    "128)/128; "
    "FID, KID, precision and recall in its 2048 pooled features, the Inception score from its 1008 logits without bias"
)


@dataclass(frozen=True)
class FidSettings:
    """What to compare.

    weights: file of the Inception weights. n: samples for each sampler; seed: of them. reference: "train" or "test", of
    the run's own data; or the path of a folder or zip of images or an .npz, all of whose images are taken; or a data
    set's name, for its train split.
    """

    weights: str | None
    n: int = FULL_N
    seed: int = 0
    reference: str = "train"

    def __post_init__(self) -> None:
        if not self.weights:
            raise UserError(f"--fid needs the Inception weights: {WEIGHTS_REMEDY}")
        if self.n < MIN_SIZE:
            raise UserError(f"--n is {self.n}: give at least {MIN_SIZE}")
        if not 0 <= self.seed < 2**32:
            raise UserError(f"--seed is {self.seed}: give an integer from 0 to 2^32 - 1")


def library() -> Any:
    """torch_fidelity. Raises UserError where the extra is not installed, or torch and torchvision do not fit each
    other.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torchvision tells of its image decoders, which are not used here
            import torch_fidelity
    except ImportError as error:
        raise UserError(f"--fid needs torch-fidelity ({error}): pip install -e '.[fid]'") from None
    except RuntimeError as error:  # what torchvision raises beside another torch than it was built for
        reason = f"cannot import torch_fidelity ({error})"
        raise UserError(f"{reason}: torch and torchvision must be built for each other; install both afresh") from None
    return torch_fidelity


def checked_weights(path: Path, folder: Path) -> tuple[Path, dict[str, Any]]:
    """(a copy of the weights in `folder`, {file, sha256, published}); published: whether they are those that published
    FIDs are of.

    torch-fidelity reads its file with Python's whole unpickler, which runs what a file says. So the file is read here
    as plain tensors, and the library gets a copy that has nothing else in it. Raises UserError for a file that is
    missing, or not these weights.
    """
    fidelity = library()
    import torch

    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror}): {WEIGHTS_REMEDY}") from None
    copy = folder / "weights.pth"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what the error below tells
            state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception:  # of a dozen kinds, with messages of many lines
        raise UserError(f"{path} holds no plain PyTorch weights, and nothing else is read: {WEIGHTS_REMEDY}") from None
    torch.save(state, copy)
    try:
        fidelity.FeatureExtractorInceptionV3(EXTRACTOR, ["2048"], feature_extractor_weights_path=str(copy))
    except Exception:  # names or shapes that are not the network's, or no dictionary of them
        raise UserError(f"{path} holds the weights of another network: {WEIGHTS_REMEDY}") from None
    digest = hashlib.sha256(content).hexdigest()
    return copy, {"file": path.name, "sha256": digest, "published": digest.startswith(WEIGHTS_SHA256)}


def compare_images(x: Array, y: Array, weights: Path, cache: Path) -> dict[str, float]:
    """The metrics of samples x (n, h, w, c) against a reference y (m, h, w, c), both uint8, c being 1 or 3.

    weights: as `checked_weights` leaves them. cache: an empty folder, where the features of y are kept for the next x.
    """
    fidelity = library()
    import torch

    def images(z: Array) -> Any:
        channels_first = torch.from_numpy(z).permute(0, 3, 1, 2).expand(-1, 3, -1, -1)
        return torch.utils.data.Subset(channels_first, range(len(z)))

    size = min(KID_SUBSET_SIZE, len(x), len(y))
    found = fidelity.calculate_metrics(
        input1=images(x),
        input2=images(y),
        input2_cache_name="reference",
        cache_root=str(cache),
        feature_extractor=EXTRACTOR,  # named, for by itself the library fetches VGG's weights for precision and recall
        feature_extractor_weights_path=str(weights),
        isc=True,
        fid=True,
        kid=True,
        prc=True,
        kid_subsets=KID_SUBSETS,
        kid_subset_size=size,
        prc_neighborhood=NEIGHBOURS,
        cuda=torch.cuda.is_available(),
        save_cpu_ram=True,  # distances in parts, and no forked loaders, which JAX's threads would not survive
        verbose=sys.stderr.isatty(),
    )
    return {
        "fid": found[fidelity.KEY_METRIC_FID],
        "kid": found[fidelity.KEY_METRIC_KID_MEAN],
        "kid_sd": found[fidelity.KEY_METRIC_KID_STD],
        "kid_subsets": KID_SUBSETS,
        "kid_subset_size": size,
        "precision": found[fidelity.KEY_METRIC_PRECISION],
        "recall": found[fidelity.KEY_METRIC_RECALL],
        "neighbours": NEIGHBOURS,
        "inception_score": found[fidelity.KEY_METRIC_ISC_MEAN],
        "inception_score_sd": found[fidelity.KEY_METRIC_ISC_STD],
    }


def reference_images(run: Any, reference: str) -> tuple[Array, dict[str, Any]]:
    """(uint8 (m, h, w, c), {name, split, images, shape}) of FidSettings.reference.

    Raises UserError for one that is not there, holds no images, too few, or others than the run draws in size or
    channels.
    """
    path, (crop, size) = Path(reference).expanduser(), (run.config.data.crop, run.config.data.size)
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
    x = np.concatenate([dataset.train.x, dataset.test.x]) if split == "all" else getattr(dataset, split).x
    if x.shape[1:] != tuple(run.shape):
        shapes = ["x".join(map(str, shape)) for shape in (x.shape[1:], run.shape)]
        raise UserError(
            f"--fid_reference={reference} has images of {shapes[0]}, the run draws {shapes[1]}: resize or convert them"
        )
    if len(x) < MIN_SIZE:
        raise UserError(f"--fid_reference={reference} has {len(x)} image(s): give at least {MIN_SIZE}")
    return grey_values(x, dataset.levels), {
        "name": dataset.name,
        "split": split,
        "images": len(x),
        "shape": list(x.shape[1:]),
    }


def grey_values(x: Array, levels: int) -> Array:
    """Levels as uint8 0..255, through a table: `Scaling.to_uint8` takes eight bytes for each."""
    return Scaling(levels).to_uint8(np.arange(levels))[x]


def fid(run: Any, samplers: Sequence[tuple[str, Any]], settings: FidSettings) -> Iterator[dict[str, Any]]:
    """Draw, compare and yield a row for each (name, sampler): the metrics, and all that they depend on, in plain
    values.

    `run` is as for `evaluate`. Raises UserError before anything is drawn for what is wrong with the run's kind of data,
    the weights or the reference; later for samples that are not finite.
    """
    library()
    if run.scaling.levels is None or run.shape[-1] not in (1, 3):
        kind = "vectors" if run.scaling.levels is None else f"images of {run.shape[-1]} channels"
        raise UserError(
            f"--fid is of greyscale or colour images, and this run draws {kind}: leave --fid out for the other measures"
        )
    with tempfile.TemporaryDirectory() as folder:
        weights, described = checked_weights(Path(settings.weights or "").expanduser(), Path(folder))
        reference, of_reference = reference_images(run, settings.reference)
        cache = Path(folder, "cache")
        for name, sampler in samplers:
            labels = class_labels(run, settings.n, settings.seed)
            draws = draw(run, sampler, sample_key(settings.seed), settings.n, run.config.eval.batch_size, name, labels)
            if not np.isfinite(draws.x).all():
                raise UserError(
                    f"{name} drew samples that are not finite: train longer, or give it more steps "
                    "(config.sample.steps)"
                )
            samples = grey_values(np.asarray(run.scaling.to_data(draws.x)), run.scaling.levels)
            found = compare_images(samples, reference, weights, cache)
            yield plain(
                {
                    "sampler": name,
                    "nfe": draws.nfe,
                    "n": settings.n,
                    **found,
                    "notes": _notes(settings.n, found["kid_subset_size"], described["published"]),
                    "seed": settings.seed,
                    "final_denoising": bool(getattr(sampler, "denoise", False)),
                    "settings": settings_of(sampler),
                    "network": _network(run),
                    "reference": of_reference,
                    "inception_weights": described,
                    "preprocessing": PREPROCESSING,
                    **_provenance(),
                }
            )


def _network(run: Any) -> dict[str, Any]:
    """Which weights drew: the EMA of which step and decay, or an average that was rebuilt after training."""
    saved = Path(run.workdir) / "config.json"
    rebuilt = load_config(saved)[1].get("reconstructed") if saved.is_file() else None
    average = (
        {"weights": "power-function average", **rebuilt} if rebuilt else {"weights": "EMA", "ema": run.config.train.ema}
    )
    return {"workdir": str(run.workdir), "checkpoint_step": int(run.step), **average}


def _provenance() -> dict[str, Any]:
    """`provenance` with the packages that only this module uses, the device that they used, and the date."""
    import torch
    import torchvision

    origin = provenance()
    versions = {
        "torch-fidelity": library().__version__,
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
    }
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    date = datetime.now(UTC).isoformat(timespec="seconds")
    return {**origin, "versions": {**origin["versions"], **versions}, "torch_device": device, "date": date}


def _notes(n: int, kid_subset_size: float, published: bool) -> list[str]:
    """What keeps the numbers from being compared with others, each in a sentence."""
    notes = []
    if n != FULL_N:
        notes.append(
            f"FID depends on n, and falls as it grows: these are of {n:,} samples, published ones of {FULL_N:,}."
        )
    if kid_subset_size < KID_SUBSET_SIZE:
        notes.append(
            f"KID is of subsets of {kid_subset_size:,} images, not of the usual {KID_SUBSET_SIZE:,}, for want of "
            "images."
        )
    if not published:
        notes.append(
            f"The weights are not those of published FIDs: the SHA-256 of theirs begins with {WEIGHTS_SHA256}."
        )
    return notes


def fid_lines(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """A table for a terminal, a line for each row, and the notes."""
    header = ["sampler", "NFE", "FID", "KID", "precision", "recall", "Inception score"]
    cells = [
        [
            row["sampler"],
            f"{row['nfe']:,.0f}",
            number(row["fid"], 4),
            f"{row['kid']:.5f} ± {row['kid_sd']:.5f}",
            f"{row['precision']:.3f}",
            f"{row['recall']:.3f}",
            f"{row['inception_score']:.3f} ± {row['inception_score_sd']:.3f}",
        ]
        for row in rows
    ]
    of = rows[0]["reference"]
    against = (
        f"{rows[0]['n']:,} samples each against {of['images']:,} images of {of['name']} ({of['split']}); ± is "
        "over KID's subsets"
    )
    return [*aligned([header, *cells]), f"{against}, and over ten parts of the samples", *rows[0]["notes"]]


def fid_of_run(
    workdir: str, names: Sequence[str] | None, given: Mapping[str, Any], budgets: Sequence[int] = ()
) -> tuple[list[str], Path]:
    """The whole of `evaluate.py --fid`: returns the table's lines and the file fid/fid.json, a list that gains a row
    for each sampler.

    names: samplers, None for the config's eval.samplers. given: fields of FidSettings that are not None. budgets: score
    calls, besides the final denoising, that every fixed-step sampler is measured at. Raises UserError for every
    mistake, most before the run is loaded.
    """
    for name in names or ():
        check_sampler(name.strip())
    chosen = {k: v for k, v in given.items() if v is not None}
    FidSettings(**{"weights": None, **chosen})  # a mistake is told before the run is loaded
    library()
    run = load_run(workdir)
    settings = FidSettings(**{"seed": run.config.eval.seed, **chosen})
    names = [name.strip() for name in (run.config.eval.samplers if names is None else names) if name.strip()]
    if not names:
        raise UserError(f"--samplers is empty: give some of {', '.join(SAMPLERS)}")
    at_largest, at_fewer = at_budgets({name: make_sampler(name, run.config) for name in names}, budgets)
    samplers = [
        (n, s) for n in at_largest for s in (*(fewer for (of, _), fewer in at_fewer.items() if of == n), at_largest[n])
    ]
    path = run.workdir / "fid" / "fid.json"
    earlier, rows = _read(path), []
    for row in fid(run, samplers, settings):
        rows.append(row)
        write_json(path, [*earlier, *rows])
    return fid_lines(rows), path


def _read(path: Path) -> list[Any]:
    """The rows that are there already: they took hours, and stay."""
    try:
        return json.loads(path.read_text()) if path.exists() else []
    except (OSError, ValueError):
        raise UserError(f"cannot read {path}, which new rows go to: move it away") from None
