"""torch-fidelity's network and metrics on two sets of images (the optional extra `fid`).

That library has the network, its preprocessing and the metrics; here are only the images that it is given and the
weights that it reads. FID: Heusel et al. 2017, arXiv:1706.08500, eq. 6. KID: Bińkowski et al. 2018, arXiv:1801.01401,
section 4. Precision and recall: Kynkäänniemi et al. 2019, arXiv:1904.06991, eq. 2, here in the Inception features as
the ADM suite has them, not in VGG's. Inception score: Salimans et al. 2016, arXiv:1606.03498, section 4.

Nothing is downloaded, and torch is imported only by the functions that need it. On a GPU it has what JAX leaves of the
memory: XLA_PYTHON_CLIENT_PREALLOCATE=false leaves it more.
"""

import hashlib
import io
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from experiment.common.errors import UserError, one_line
from experiment.common.files import read_regular

Array = np.ndarray
MOST_BYTES = 2**30  # of the weights, which have 2**27

KID_SUBSETS, KID_SUBSET_SIZE, NEIGHBOURS = 100, 1000, 3
EXTRACTOR = "inception-v3-compat"
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


def compare_images(x: Array, y: Array, weights: Path, cache: Path) -> FidMetrics:
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
    return FidMetrics(
        fid=found[fidelity.KEY_METRIC_FID],
        kid=found[fidelity.KEY_METRIC_KID_MEAN],
        kid_sd=found[fidelity.KEY_METRIC_KID_STD],
        kid_subsets=KID_SUBSETS,
        kid_subset_size=size,
        precision=found[fidelity.KEY_METRIC_PRECISION],
        recall=found[fidelity.KEY_METRIC_RECALL],
        neighbours=NEIGHBOURS,
        inception_score=found[fidelity.KEY_METRIC_ISC_MEAN],
        inception_score_sd=found[fidelity.KEY_METRIC_ISC_STD],
    )


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
