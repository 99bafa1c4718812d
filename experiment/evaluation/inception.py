"""torch-fidelity's network and metrics on two sets of images (the optional extra `fid`).

That library has the network, its preprocessing, FID, KID and the Inception score; here are the images that it is given,
the weights that it reads, and the passes over features that are too many for memory. FID: Heusel et al. 2017,
arXiv:1706.08500, eq. 6. KID: Bińkowski et al. 2018, arXiv:1801.01401, section 4. Precision and recall: Kynkäänniemi et
al. 2019, arXiv:1904.06991, eq. 2, here in the Inception features as the ADM suite has them, not in VGG's. Inception
score: Salimans et al. 2016, arXiv:1606.03498, section 4.

Nothing is downloaded, and torch is imported only by the functions that need it. On a GPU it has what JAX leaves of the
memory: XLA_PYTHON_CLIENT_PREALLOCATE=false leaves it more.
"""

import contextlib
import hashlib
import io
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from experiment.common.errors import UserError, one_line
from experiment.common.files import read_regular
from experiment.common.progress import progress
from experiment.data.stored import release
from experiment.evaluation.images import Images

Array = np.ndarray
MOST_BYTES = 2**30  # of the weights, which have 2**27

KID_SUBSETS, KID_SUBSET_SIZE, NEIGHBOURS = 100, 1000, 3
EXTRACTOR = "inception-v3-compat"
BATCH = 32  # images at once, which take half a gigabyte inside the network
ROWS, DISTANCES = 4096, 2**25  # of features at once, and distances between them
WEIGHTS_FILE = "pt_inception-2015-12-05-6726825d.pth"
WEIGHTS_SHA256 = "6726825d"  # its first digits, which the file's name has too
WEIGHTS_REMEDY = (
    f"--fid_weights takes {WEIGHTS_FILE} of pytorch-fid's release fid_weights (torch-fidelity's "
    "weights-inception-2015-12-05-6726825d.pth of release v0.2.0 will do too); it is not downloaded for you"
)
PREPROCESSING = (
    "uint8 images as drawn and as stored, fewer levels than 256 spread over 0..255, greyscale repeated to 3 channels; "
    f"torch-fidelity's {EXTRACTOR} resizes them to 299x299 (bilinear without antialiasing, as TensorFlow 1 does) and "
    "takes (x - 128)/128; FID, KID, precision and recall in its 2048 pooled features, the Inception score from its "
    "1008 logits without bias"
)


@dataclass(frozen=True)
class FidMetrics:
    """The metrics of one set of images against another; each sd is over KID's subsets or ten parts of the samples."""

    fid: float
    kid: float
    kid_sd: float
    kid_subsets: int
    kid_subset_size: int
    precision: float
    recall: float
    neighbours: int
    inception_score: float
    inception_score_sd: float


@dataclass(frozen=True)
class Weights:
    """The file that the weights were in; `published`: whether they are those that published FIDs are of."""

    file: str
    sha256: str
    published: bool


def library() -> Any:
    """Import torch_fidelity.

    Raises UserError where the extra is not installed, or torch and torchvision do not fit each other.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torchvision tells of its image decoders, which are not used here
            import torch_fidelity
    except ImportError as error:
        raise UserError(f"--fid needs torch-fidelity ({one_line(error)}): pip install -e '.[fid]'") from None
    except RuntimeError as error:  # what torchvision raises beside another torch than it was built for
        reason = f"cannot import torch_fidelity ({one_line(error)})"
        raise UserError(f"{reason}: torch and torchvision must be built for each other; install both afresh") from None
    return torch_fidelity


def checked_weights(path: Path, folder: Path) -> tuple[Path, Weights]:
    """Copy the weights into `folder`, as plain tensors, and say which they are.

    torch-fidelity reads its file with Python's whole unpickler, which runs what a file says. So the file is read here
    as plain tensors, and the library gets a copy that has nothing else in it.

    Raises UserError for a file that is missing, or not these weights.
    """
    fidelity = library()
    import torch

    try:
        content = read_regular(path, MOST_BYTES)
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
    return copy, Weights(path.name, digest, published=digest.startswith(WEIGHTS_SHA256))


def compare_images(x: Images, y: Images, weights: Path, cache: Path) -> FidMetrics:
    """The metrics of samples x against a reference y, of 1 or 3 channels.

    Features are kept in files, and neither they nor the images are ever all in memory. weights: as `checked_weights`
    leaves them. cache: a folder for the features, empty before the first call; those of y are kept for the next x.
    """
    fidelity = library()
    from torch_fidelity.metric_fid import fid_statistics_to_metric
    from torch_fidelity.metric_isc import isc_featuresdict_to_metric
    from torch_fidelity.metric_kid import kid_features_to_metric

    cache.mkdir(parents=True, exist_ok=True)
    names = ["2048", "logits_unbiased"]
    network = fidelity.FeatureExtractorInceptionV3(EXTRACTOR, names, feature_extractor_weights_path=str(weights))
    network.requires_grad_(False).eval().to(_device())
    of_y, _ = features_of(y, network, cache / "reference")
    of_x, logits = features_of(x, network, cache / "samples", again=True)
    size = min(KID_SUBSET_SIZE, len(x), len(y))
    found = fid_statistics_to_metric(statistics(of_x), statistics(of_y), verbose=False)
    found |= kid_features_to_metric(
        *map(_tensor, (of_x, of_y)), kid_subsets=KID_SUBSETS, kid_subset_size=size, verbose=False
    )
    found |= isc_featuresdict_to_metric({"logits": _tensor(logits)}, "logits", verbose=False)
    return FidMetrics(
        fid=found[fidelity.KEY_METRIC_FID],
        kid=found[fidelity.KEY_METRIC_KID_MEAN],
        kid_sd=found[fidelity.KEY_METRIC_KID_STD],
        kid_subsets=KID_SUBSETS,
        kid_subset_size=size,
        precision=share_inside(of_x, of_y),
        recall=share_inside(of_y, of_x),
        neighbours=NEIGHBOURS,
        inception_score=found[fidelity.KEY_METRIC_ISC_MEAN],
        inception_score_sd=found[fidelity.KEY_METRIC_ISC_STD],
    )


def features_of(images: Images, network: Any, place: Path, again: bool = False) -> tuple[Array, Array]:
    """Compute the pooled features (n, 2048) and the logits (n, 1008) of the images, in two files, which are mapped.

    network: gives both, of tensors uint8 (b, 3, h, w). again: also where the files are there.
    """
    import torch

    files = [place.with_suffix(f".{name}") for name in ("features", "logits")]
    if again or not all(file.exists() for file in files):
        parts = [file.with_name(f".{file.name}.part") for file in files]
        with (
            contextlib.ExitStack() as stack,
            torch.no_grad(),
            progress(len(images), f"Inception features, {place.name}", "image", seconds=len(images) / 30) as work,
        ):
            opened = [stack.enter_context(open(part, "wb")) for part in parts]
            for batch in images.batches(BATCH):
                tensor = torch.from_numpy(batch).permute(0, 3, 1, 2).expand(-1, 3, -1, -1).to(_device())
                for found, to in zip(network(tensor), opened, strict=True):
                    to.write(found.cpu().numpy().astype(np.float32).tobytes())
                work.update(len(batch))
        for part, file in zip(parts, files, strict=True):
            part.replace(file)
    features, logits = (np.memmap(file, np.float32, "r").reshape(len(images), -1) for file in files)
    return features, logits


def _rows(features: Array, size: int) -> Iterator[Array]:
    """The rows, `size` at once, as copies in memory; what is mapped is given back."""
    for first in range(0, len(features), size):
        yield np.array(features[first : first + size])
        release(features)


def statistics(features: Array) -> dict[str, Array]:
    """The mean and covariance of the rows, in float64."""
    n, d = features.shape
    total, products = np.zeros(d), np.zeros((d, d))
    for rows in _rows(features, ROWS):
        total += rows.sum(axis=0, dtype=np.float64)
    for rows in _rows(features, ROWS):
        centred = rows - total / n
        products += centred.T @ centred
    return {"mu": total / n, "sigma": products / (n - 1)}


def share_inside(points: Array, others: Array) -> float:
    """The share of the points that lie within the distance of another one's NEIGHBOURS-th nearest neighbour from it.

    Of samples among the reference it is their precision, of the reference among the samples the recall.
    """
    import torch

    def distances(rows: Array) -> Any:
        these = torch.from_numpy(rows).to(_device())
        some = [torch.cdist(these, torch.from_numpy(them).to(_device())).cpu() for them in _rows(others, ROWS)]
        return torch.cat(some, dim=1)

    block = max(1, DISTANCES // len(others))
    radii = torch.cat([distances(rows).kthvalue(NEIGHBOURS + 1).values for rows in _rows(others, block)])
    inside = [(distances(rows) <= radii).any(dim=1) for rows in _rows(points, block)]
    return float(torch.cat(inside).double().mean())


def _tensor(mapped: Array) -> Any:
    """A tensor of a mapped file, which the library only reads."""
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it cannot be written
        return torch.from_numpy(mapped)


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def versions() -> dict[str, str]:
    """The versions of the packages that only this module uses."""
    import torch
    import torchvision

    return {
        "torch-fidelity": library().__version__,
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
    }


def device() -> str:
    """The device that the network runs on."""
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
