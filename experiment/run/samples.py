"""Samples of a run as files: samples.npz, in the layout that the ADM evaluation suite reads, and grid.png."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from experiment.build.samplers import check_sampler
from experiment.common.files import check_folder, user_path, write_bytes, write_npz
from experiment.common.progress import say_start
from experiment.config import check_flag, check_seed
from experiment.run.conditions import Asked, arrays_of, conditions, kind_of_run
from experiment.run.earlier import keep_earlier
from experiment.run.fitted import sampler_of
from experiment.run.guidance import Guidance, guided
from experiment.run.load import load_run
from experiment.run.moving import GIF, Kept, path_to_keep, write_moving
from experiment.run.observations import together
from experiment.run.sampling import as_data, check_samples_fit, draw, expected_seconds, picture_of, told

Array = np.ndarray


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
    that lie there are kept beside the folder. Returns a line that says what was done, one before it where some were
    kept, and one after it of the GIF.

    Raises UserError for an unknown sampler or setting, a number out of range or beyond memory, a missing run, a class
    that it does not have, a folder that cannot be written, samples that are not finite, and a GIF of data that have
    none.
    """
    import jax

    check_flag("n", n, least=1)
    check_seed(seed)
    check_flag("steps", settings.get("steps"), "sample.steps")
    check_sampler(name)
    folder = user_path(out, "--out") if out else user_path(workdir, "run directory") / "samples" / name
    run = guided(load_run(workdir), guidance or Guidance())
    sampler = sampler_of(run, name, **settings)
    check_samples_fit(n, run.shape)
    kept_path = path_to_keep(run, sampler, n) if gif else Kept(0, 0)
    rows = conditions(run, n, seed, Asked(label, prompt, cond))
    check_folder(folder)
    run = together(run, sampler, rows, guidance or Guidance(), seed)
    seconds = expected_seconds(run, sampler, n)
    say_start(f"{name}: {n:,} samples of {run.workdir} at step {run.step}{told(run, seconds)}")
    start = perf_counter()
    size, key = run.config.sample.batch_size, jax.random.key(seed)
    draws = draw(run, sampler, key, n, size, name, rows, frames=kept_path.frames, shown=kept_path.shown)
    seconds = perf_counter() - start
    beside = arrays_of(kind_of_run(run), rows, labels="arr_1")
    asked = {"sampler": repr(sampler), "n": n, "seed": seed, "steps": getattr(sampler, "steps", None)}
    asked |= {"step": run.step, "guidance": repr(guidance or Guidance()), "told": _digest(beside)}
    kept = _keep_earlier(folder, asked)
    write_samples(run, draws.x, folder, beside)
    facts, line = write_moving(run, *draws.path, folder) if draws.path else (_earlier_gif(folder), "")
    asked |= {"gif": facts} if facts else {}
    write_bytes(folder / "settings.json", json.dumps(asked, indent=1).encode())
    cost = f"{draws.nfe:,.0f} NFE, {seconds:.1f} s with compilation"
    done = f"{name}: {n} samples, {cost}, step {run.step}: {folder / 'samples.npz'}"
    return "\n".join([*kept, done, *[line] * gif])


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
        return {key: value for key, value in document.items() if key != "gif"}  # the samples are the same

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
    picture = picture_of(run.scaling, points if points.ndim == 2 else points[:100])
    write_npz(folder / "samples.npz", arr_0=points, **(beside or {}))
    write_bytes(folder / "grid.png", picture)
