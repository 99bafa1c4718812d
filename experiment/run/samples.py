"""Samples of a run as files: samples.npz, in the layout that the ADM evaluation suite reads, and grid.png.

They are drawn in parts, each a file until all are there: what is killed goes on, several hosts share them out, and they
are never all in memory.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import jax
import numpy as np

from experiment.build.samplers import check_sampler
from experiment.common.files import check_folder, user_path, write_bytes, write_npz, write_npz_rows
from experiment.common.progress import Work, progress, say_start
from experiment.config import check_flag, check_seed
from experiment.devices.hosts import Place, shared_out
from experiment.run.conditions import Asked, arrays_of, conditions, kind_of_run
from experiment.run.earlier import keep_earlier
from experiment.run.fitted import sampler_of
from experiment.run.guidance import Guidance, guided
from experiment.run.load import load_run
from experiment.run.moving import GIF, Kept, path_to_keep, write_moving
from experiment.run.observations import together
from experiment.run.sampling import as_data, check_samples_fit, draw_rows, expected_seconds, picture_of, told
from experiment.run.shards import Shards

Array = np.ndarray

PICTURED = 100  # of examples that are no vectors


def draw_to_files(
    workdir: str,
    name: str,
    n: int,
    *,
    seed: int = 0,
    label: Sequence[int] | None = None,
    prompt: Sequence[str] | None = None,
    cond: str | None = None,
    guidance: Guidance | None = None,
    out: str | None = None,
    gif: bool = False,
    **settings: Any,
) -> str:
    """Draw n samples of the run into samples/<name>/ (or `out`): samples.npz, grid.png and settings.json.

    arr_0 of samples.npz is uint8 (n, h, w, c), 0..255, or floats in the data's units. What a conditional network was
    told is beside it: arr_1, the classes, int (n,); cond (n, m) or observations (k, m); prompts, strings (n,); or
    embeddings and mask. label, prompt, cond: what to draw, in turn, or a file that says it; without them it is as
    `conditions` has it. guidance: of the score. gif: write path.gif too, the way from noise to the first samples.
    settings: steps, eta, grid, as for `make_sampler`. settings.json says what was asked for; samples of other settings
    that lie there are kept beside the folder. A draw that was killed goes on with the parts that it has; of several
    processes, on one machine or many, each draws a share, and the first one writes the files.

    Returns a line that says what was done, one before it where some were kept, and one after it of the GIF.

    Raises UserError for an unknown sampler or setting, a number out of range or beyond memory, a missing run, a class
    that it does not have, a folder that cannot be written, samples that are not finite, and a GIF of data that have
    none.
    """
    check_flag("n", n, least=1)
    check_seed(seed)
    check_flag("steps", settings.get("steps"), "sample.steps")
    check_sampler(name)
    folder = user_path(out, "--out") if out else user_path(workdir, "run directory") / "samples" / name
    with shared_out() as place:
        run = guided(load_run(workdir), guidance or Guidance())
    sampler, size = sampler_of(run, name, **settings), min(run.config.sample.batch_size, n)
    check_samples_fit(size, run.shape)
    kept_path = path_to_keep(run, sampler, n) if gif else Kept(0, 0)
    rows = conditions(run, n, seed, Asked(label, prompt, cond))
    check_folder(folder)
    run = together(run, sampler, rows, guidance or Guidance(), seed)
    beside = arrays_of(kind_of_run(run), rows, labels="arr_1")
    asked = asked_for(run, sampler, n, seed, beside, guidance)
    if place.number and _drawn(folder, asked, place):
        return _share_line(name, place)
    seconds = expected_seconds(run, sampler, n)
    say_start(f"{name}: {n:,} samples of {run.workdir} at step {run.step}{told(run, seconds)}")
    start = perf_counter()
    with progress(n, name, seconds=seconds) as work:
        work.note("compiling")
        parts = parts_of(folder / "parts", run, sampler, name, asked, size, rows, work, kept_path)
        parts.fill(place)
    seconds = perf_counter() - start
    if place.number:
        return _share_line(name, place)
    kept = _keep_earlier(folder, asked)
    facts = _earlier_gif(folder)
    noted = {**asked, "job": place.job}
    write_bytes(folder / "settings.json", json.dumps({**noted, **({"gif": facts} if facts else {})}, indent=1).encode())
    nfe, path = _put_together(run, parts, folder, beside)
    line = ""
    if path:
        facts, line = write_moving(run, *path, folder)
        write_bytes(folder / "settings.json", json.dumps({**noted, "gif": facts}, indent=1).encode())
    parts.remove()
    cost = f"{nfe:,.0f} NFE, {seconds:.1f} s with compilation"
    done = f"{name}: {n} samples, {cost}, step {run.step}: {folder / 'samples.npz'}"
    return "\n".join([*kept, done, *[line] * gif])


def _share_line(name: str, place: Place) -> str:
    return f"{name}: process {place.number} of {place.count} has drawn its share; the first one writes the files"


def _drawn(folder: Path, asked: Mapping[str, Any], place: Place) -> bool:
    """Whether the first process of this job has put these samples together already."""
    try:
        found = json.loads((folder / "settings.json").read_text())
        return bool(found == {**asked, "job": place.job})
    except (OSError, ValueError):
        return False


def asked_for(
    run: Any, sampler: Any, n: int, seed: int, beside: Mapping[str, Array], guidance: Guidance | None = None
) -> dict[str, Any]:
    """What samples depend on beside the run's config, in JSON's values. beside: what they are told."""
    asked = {"sampler": repr(sampler), "n": n, "seed": seed, "steps": getattr(sampler, "steps", None)}
    return asked | {"step": run.step, "guidance": repr(guidance or Guidance()), "told": _digest(beside)}


def parts_of(
    folder: Path,
    run: Any,
    sampler: Any,
    name: str,
    asked: Mapping[str, Any],
    size: int,
    rows: Any,
    work: Work,
    kept_path: Kept = Kept(0, 0),  # noqa: B008 - it is frozen
    stored: Callable[[Array], Any] | None = None,
) -> Shards:
    """The parts of these samples, each with its NFE and seconds, the first ones with their path.

    stored: what is kept of samples in the model's space; None for them as the data are, pictures in 256 greys. Their
    folder is called by all that they depend on, so that those of other settings are never taken for them.
    """
    n, key = asked["n"], jax.random.key(asked["seed"])
    what = json.dumps([asked, size, kept_path, run.config.to_dict()], sort_keys=True, default=str)

    def compute(first: int, kept: int) -> dict[str, Array]:
        work.done = first  # others have drawn some of what is before
        start = perf_counter()
        drawn = draw_rows(run, sampler, key, first, kept, size, name, rows, work, kept_path.frames)
        x = as_data(run.scaling, drawn.x) if stored is None else np.asarray(stored(drawn.x))
        part = {"x": x, "nfe": np.array(drawn.nfe), "seconds": np.array(perf_counter() - start)}
        if drawn.path is not None and first < kept_path.shown:
            part |= {"frames": drawn.path[:, : kept_path.shown - first], "times": drawn.times}
        return part

    digest = hashlib.sha256(what.encode()).hexdigest()[:16]
    return Shards(folder / digest, n, size, compute, lambda part: len(part["x"]))


def _put_together(
    run: Any, parts: Shards, folder: Path, beside: Mapping[str, Array]
) -> tuple[float, tuple[Array, Array] | None]:
    """Write samples.npz and grid.png, part by part.

    Returns the NFE, the mean over the samples, and the path of the first ones with its times, where there is one.
    """
    head: list[Array] = []
    costs: list[tuple[float, int]] = []
    paths: list[Array] = []
    times = np.zeros(0)
    first = next(parts.read())["x"]

    def rows() -> Iterator[Array]:
        nonlocal times
        for part in parts.read():
            if first.ndim == 2 or sum(map(len, head)) < PICTURED:
                head.append(part["x"])
            if "frames" in part:
                paths.append(part["frames"])
                times = part["times"]
            costs.append((float(part["nfe"]), len(part["x"])))
            yield part["x"]

    shape = (parts.n, *first.shape[1:])
    write_npz_rows(folder / "samples.npz", "arr_0", shape, first.dtype, rows(), **beside)
    shown = np.concatenate(head)
    write_bytes(folder / "grid.png", picture_of(run.scaling, shown if shown.ndim == 2 else shown[:PICTURED]))
    path = (np.concatenate(paths, axis=1), times) if paths else None
    return sum(nfe * count for nfe, count in costs) / parts.n, path


def _digest(beside: Mapping[str, Array]) -> str:
    """What stands for the conditions of the samples: equal for equal ones."""
    found = hashlib.sha256()
    for name, array in sorted(beside.items()):
        found.update(f"{name} {array.dtype.str} {array.shape}".encode() + np.ascontiguousarray(array).tobytes())
    return found.hexdigest()[:16] if beside else ""


def _keep_earlier(folder: Path, asked: Mapping[str, Any]) -> list[str]:
    """Set the folder's samples aside where they are of other settings, and of unknown ones; see `keep_earlier`."""
    if (folder / "samples.npz").is_file() and not (folder / "settings.json").is_file():
        write_bytes(folder / "settings.json", b"{}")  # of a run before settings were kept

    def settings(document: Mapping[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in document.items() if key not in ("gif", "job")}  # the samples are the same

    files = ("samples.npz", "grid.png", GIF)
    return keep_earlier(folder, "settings.json", asked, settings, lambda _: files, "samples.npz")


def _earlier_gif(folder: Path) -> Any:
    """What settings.json says of a GIF of the same samples that lies there from an earlier call; None without one."""
    try:
        return json.loads((folder / "settings.json").read_text()).get("gif") if (folder / GIF).is_file() else None
    except (OSError, ValueError, AttributeError):
        return None


def write_samples(run: Any, x: Array, folder: Path, beside: Mapping[str, Array] | None = None) -> None:
    """Write samples.npz and grid.png of samples in the model's space; beside: other arrays for the former."""
    points = as_data(run.scaling, x)
    picture = picture_of(run.scaling, points if points.ndim == 2 else points[:PICTURED])
    write_npz(folder / "samples.npz", arr_0=points, **(beside or {}))
    write_bytes(folder / "grid.png", picture)
