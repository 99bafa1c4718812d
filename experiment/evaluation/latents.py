"""Latents of a run: examples carried to their latents and back, paths between them, and how typical they are.

Levels are dequantised uniformly: at the centre of its bin an image lies nearer to the mode than any data that the
network was trained on, and its latent is too short. Example i has the same draws in every mode, in any batch and for
any --n.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiment.common.errors import UserError
from experiment.common.files import check_folder, user_path, write_bytes, write_json, write_npz
from experiment.common.progress import say_start
from experiment.config import MOST, check_flag, check_seed
from experiment.data.conditions import condition_rows
from experiment.data.dataset import Split, some_of
from experiment.data.npz import DATA_KEYS, read_npz, told_in
from experiment.run.conditions import arrays_of, conditions_of, kind_of_run, take

Array = np.ndarray

_TRAIN, _TEST, _FILE = range(3)  # the sets that a seed's randomness is split into, and then by purpose
_DRAWS, _PROBES = range(2)
SHOWN = 10  # examples at either end of the scale


def dequantised(run: Any, examples: Split, index: Array, of: int, seed: int) -> tuple[Array, Any]:
    """Dequantise the rows `index` of a set's examples.

    Returns:
        The points at t_min (n, *shape), and what a conditional network is told of them.
    """
    from sde_lib import UniformDequantization, row_keys

    if not len(index):
        raise UserError(f"{run.dataset.name} has no examples there: train on data with a held-out split")
    z = run.scaling.to_model(examples.x[index])
    if run.scaling.levels is not None:
        keys = row_keys(_key(seed, of, _DRAWS), index)
        z, _ = UniformDequantization(run.scaling.bin_width)(run.score_fn.sde, keys, z)
    return np.asarray(z), conditions_of(run, examples, index)


def _key(seed: int, of: int, purpose: int) -> Any:
    import jax

    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), of), purpose)


def in_batches(run: Any, solve: Callable[..., Any], x: Array, cond: Any, description: str) -> tuple[list[Array], float]:
    """Call solve(x, cond, first), which returns arrays of rows and then NFE, for each batch.

    Returns:
        Each of the arrays, joined over the batches, and the mean NFE.
    """
    from experiment.common.progress import progress
    from experiment.run.sampling import GUESSED_CALLS, padded, seconds_per_call, solver_remedy

    n, found, calls = len(x), [], 0
    size = min(run.config.eval.batch_size, n)
    seconds = n * GUESSED_CALLS * seconds_per_call(run)
    with progress(n, description, "example", seconds) as work, solver_remedy():
        work.note("compiling")
        for first in range(0, n, size):
            rows = padded(np.arange(first, min(first + size, n)), size)
            *arrays, nfe = solve(x[rows], take(cond, rows), first)
            kept = min(size, n - first)
            found.append([np.asarray(array)[:kept] for array in arrays])
            calls += kept * int(nfe)
            work.note("")
            work.update(kept)
    return [np.concatenate(parts) for parts in zip(*found, strict=True)], calls / n


def carry(run: Any, direction: Callable[..., Any], x: Array, cond: Any, description: str) -> tuple[Array, float]:
    """Carry x by `sde_lib.encode` or `decode`, at the tolerances of the run's config.sample.

    Returns:
        The carried x, and the mean NFE.
    """
    from sde_lib import ProbabilityFlow

    flow = ProbabilityFlow(rtol=run.config.sample.rtol, atol=run.config.sample.atol)

    def solve(x: Array, told: Any, first: int) -> Any:
        result = direction(run.score_fn, x, flow=flow, cond=told)
        return result.x, result.nfe

    (carried,), nfe = in_batches(run, solve, x, cond, description)
    return carried, nfe


def scores(run: Any, x: Array, cond: Any, of: int, *, probes: int, seed: int, description: str) -> tuple[Array, Array]:
    """Compute the likelihood of points x (n, *shape).

    Returns:
        Their log-densities (n,) in nats, in the user's units, and their latents (n, *shape).
    """
    from sde_lib import Hutchinson, log_prob

    key, settings = _key(seed, of, _PROBES), run.config.eval

    def solve(x: Any, told: Any, first: int) -> Any:
        divergence = Hutchinson(probes=probes)
        return log_prob(
            run.score_fn,
            x,
            key,
            divergence=divergence,
            rtol=settings.rtol,
            atol=settings.atol,
            first=first,
            cond=told,
        )

    (nats, _, latent), _ = in_batches(run, solve, x, cond, description)
    return np.asarray(nats, np.float64) - run.scaling.log_det(tuple(run.shape)), latent


def read_rows(run: Any, path: Path, flag: str, names: tuple[str, ...], images: bool) -> tuple[dict[str, Array], Split]:
    """Read a file's rows and check them against the run.

    Returns:
        All arrays of the file; the first of `names` that it has (n, *shape); its classes for a conditional network.

    Raises UserError where it is not uint8 images, or floats, of the run's shape, and where the network needs classes
    that are not there.
    """
    if not path.is_file():
        raise UserError(f"--{flag}={path}: there is no such file; give an .npz")
    arrays = read_npz(path)
    x = next((arrays[name] for name in names if name in arrays), None)
    numbers = "f" if flag == "decode" else "iuf"  # latents are floats, examples any numbers
    has = f"{', '.join(arrays) or 'no arrays'}" if x is None else f"{x.dtype} of shape {x.shape}"
    x = x[..., None] if x is not None and images and x.ndim == 3 else x
    if x is None or not len(x) or x.shape[1:] != tuple(run.shape) or x.dtype.kind not in ("u" if images else numbers):
        kind, shape = "uint8 images" if images else "floats", ", ".join(map(str, run.shape))
        wanted = f"{kind} (n, {shape}), named {' or '.join(names)}"
        raise UserError(f"--{flag}={path}: this run takes {wanted}, and the file holds {has}")
    if not np.isfinite(x).all():
        raise UserError(f"--{flag}={path}: a value is not finite; drop its row")
    told_kind = kind_of_run(run)
    if told_kind is None:
        return arrays, Split(x)
    told = told_in(path, arrays, len(x))
    if told.labels is not None and (told.labels.max() >= run.num_classes or told.labels.min() < 0):
        told = replace(told, labels=None)
    if condition_rows(told_kind, told) is None:
        name, what = SAVED[run.config.model.condition]
        what = what.format(most=run.num_classes - 1)
        raise UserError(f"--{flag}={path}: the network is conditional; save {what} for each row, as {name}")
    return arrays, replace(told, x=x)


SAVED = {
    "label": ("labels", "a class 0..{most}"),
    "vector": ("cond", "a vector"),
    "text": ("captions, or embeddings and mask", "a caption"),
}


def read_examples(run: Any, path: Path) -> Split:
    """Read --of's examples, in the levels of the run's data, or vectors, with what is told of them.

    Images have the file's `levels`, or 256, as samples.npz has.
    """
    images = run.scaling.levels is not None
    arrays, found = read_rows(run, path, "of", DATA_KEYS, images)
    if images:
        levels, most = arrays.get("levels", np.array(256)), int(found.x.max())
        if levels.size != 1 or levels.dtype.kind not in "iu" or not most < levels.item() <= 256:
            told = f"values to {most} take `levels`, one integer, from {most + 1} to 256"
            raise UserError(f"--of={path}: {told}; it is {levels.tolist()!r:.40}")
        top = max(levels.item() - 1, 1)
        return replace(found, x=np.rint(found.x * ((run.scaling.levels - 1) / top)).astype(np.uint8))
    return found


def encode_examples(run: Any, folder: Path, *, n: int | None = None, seed: int = 0) -> str:
    """Carry n held-out examples to their latents (--encode)."""
    from sde_lib import encode

    test = run.dataset.test
    index = some_of(n or run.config.eval.likelihood_n, len(test))
    x, cond = dequantised(run, test, index, _TEST, seed)
    latents, nfe = carry(run, encode, x, cond, "encode")
    arrays = {"latents": latents, "index": index} | arrays_of(kind_of_run(run), cond, texts="captions")
    write_npz(folder / "latents.npz", **arrays)
    return f"encode: {len(index):,} held-out examples, {nfe:,.0f} NFE, step {run.step}: {folder / 'latents.npz'}"


def decode_latents(run: Any, folder: Path, *, decode: str) -> str:
    """Carry the file's latents back to samples (--decode)."""
    from experiment.run.samples import write_samples
    from sde_lib import decode as backwards

    _, found = read_rows(run, user_path(decode, "--decode"), "decode", ("latents",), images=False)
    kind = kind_of_run(run)
    cond = condition_rows(kind, found)
    x, nfe = carry(run, backwards, found.x.astype(np.float32), cond, "decode")
    write_samples(run, x, folder, arrays_of(kind, cond, labels="arr_1"))
    return f"decode: {len(x):,} latents, {nfe:,.0f} NFE, step {run.step}: {folder / 'samples.npz'}"


def interpolate_examples(run: Any, folder: Path, *, interpolate: list[str], points: int = 9, seed: int = 0) -> str:
    """Draw a path of so many points between two held-out examples, ends included (--interpolate)."""
    from experiment.plots import likelihood as plots
    from experiment.run.sampling import pictured
    from sde_lib import decode, encode, spherical_interpolation

    test, scaling = run.dataset.test, run.scaling
    index = _pair(interpolate, len(test))
    ends, cond = dequantised(run, test, index, _TEST, seed)
    if not all(np.array_equal(rows[0], rows[1]) for rows in jax.tree.leaves(cond)):
        which = f"classes {cond[0]} and {cond[1]}" if np.ndim(cond) == 1 else "different conditions"
        raise UserError(
            f"--interpolate: examples {index[0]} and {index[1]} are of {which}, and a conditional network has a map of "
            "its own for each: choose two of one"
        )
    weight = np.linspace(0, 1, points)
    latents, to = carry(run, encode, ends, cond, "encode")
    between = np.asarray(spherical_interpolation(latents[:1], latents[1:], weight))
    x, back = carry(run, decode, between, take(cond, np.zeros(points, int)), "decode")
    rows = weight.reshape(-1, *[1] * len(run.shape))
    path = np.asarray(scaling.to_data(x))
    if len(run.shape) == 1:
        std = float(run.score_fn.sde.sigma(run.score_fn.sde.t_max))
        picture = plots.vector_path(path, between, test.x, std, square=scaling.units is None)
    else:
        blended = (1 - rows) * test.x[index[0]] + rows * test.x[index[1]]
        straight = "pixel by pixel" if len(run.shape) == 3 else "value by value"
        ways = {"through the latents": path, straight: blended}
        picture = plots.image_paths({name: pictured(scaling, way) for name, way in ways.items()}, weight)
    path = scaling.to_uint8(path) if scaling.levels else path
    write_npz(folder / "path.npz", arr_0=path, latents=between, weight=weight, index=index)
    write_bytes(folder / "path.png", picture)
    return (
        f"interpolate: {points} points from example {index[0]} to {index[1]}, {to + back:,.0f} NFE, step "
        f"{run.step}: {folder / 'path.png'}"
    )


def _pair(given: list[str], available: int) -> Array:
    """The two indices of --interpolate. Raises UserError for anything else."""
    try:
        first, second = map(int, given)
    except ValueError:
        raise UserError(
            f"--interpolate={','.join(given)}: give two held-out examples by index, such as --interpolate=3,17"
        ) from None
    for index in (first, second):
        if not 0 <= index < available:
            raise UserError(
                f"--interpolate: there is no held-out example {index}; the indices are 0 to {available - 1}"
            )
    if first == second:
        raise UserError(f"--interpolate={first},{second}: give two different examples")
    return np.array([first, second])


def score_examples(
    run: Any, folder: Path, *, of: str | None = None, n: int | None = None, probes: int | None = None, seed: int = 0
) -> str:
    """Score n held-out examples against n training examples, or n of a file against n held-out ones (--typicality).

    The network has not seen the held-out ones, so against them another set's p-values are exact. Against the training
    examples they say how much nearer the network came to these.
    """
    from experiment.evaluation.results import plain
    from experiment.plots import likelihood as plots
    from experiment.run.earlier import keep_earlier
    from experiment.run.sampling import pictured
    from sde_lib import latent_typicality, typicality

    n, probes = n or run.config.eval.likelihood_n, probes or run.config.eval.probes
    train, test = run.dataset.train, run.dataset.test
    sets: list[tuple[str, int, Split]] = [("held-out examples", _TEST, test)]
    if of is None:
        sets.insert(0, ("training examples", _TRAIN, train))
    else:
        sets.append((Path(of).name, _FILE, read_examples(run, user_path(of, "--of"))))
    if len(sets[0][2]) < 2:
        raise UserError(
            f"typicality needs at least 2 {sets[0][0]} to compare with, and {run.dataset.name} has {len(sets[0][2])}"
        )
    std = float(run.score_fn.sde.sigma(run.score_fn.sde.t_max))
    found: list[dict[str, Any]] = []
    for name, which, examples in sets:
        # A folder's images may lie in the order of their classes.
        index = np.random.RandomState(seed).permutation(len(examples))[:n]
        points = dequantised(run, examples, index, which, seed)
        nats, latent = scores(run, *points, which, probes=probes, seed=seed, description=name)
        latent_z, latent_p_value = map(np.asarray, latent_typicality(latent, std))
        arrays = {"index": index, "nats": nats, "latent_z": latent_z, "latent_p_value": latent_p_value}
        found.append({"name": name} | {key: values[np.argsort(index)] for key, values in arrays.items()})
    reference, tested = found
    try:
        # Its p-values are left out: they would be against a set that holds the example.
        reference["z"], _ = typicality(reference["nats"], reference["nats"])
        tested["z"], tested["p_value"] = typicality(tested["nats"], reference["nats"])
    except ValueError as error:  # not finite, or all equal
        raise UserError(f"{error}, or train the network longer") from error
    x = sets[1][2].x[tested["index"]]
    pictures = x if len(run.shape) == 1 else pictured(run.scaling, x)
    picture = plots.typicality(reference, tested, int(np.prod(run.shape)), pictures, SHOWN)
    document = {
        "workdir": str(run.workdir),
        "step": run.step,
        "seed": seed,
        "probes": probes,
        "reference": reference,
        "tested": tested,
    }
    content = plain(document)
    aside = keep_earlier(folder, "typicality.json", content, _settings_of, lambda found: ["typicality.png"])
    write_json(folder / "typicality.json", content)
    write_bytes(folder / "typicality.png", picture)
    small = {name: np.mean(tested[name] <= 0.05) for name in ("p_value", "latent_p_value")}
    told = (
        f"typicality: {len(x):,} {tested['name']} against {len(reference['index']):,} {reference['name']}: "
        f"mean z {tested['z'].mean():+.2f}, {small['p_value']:.1%} with p <= 0.05; of the latents' norms "
        f"{tested['latent_z'].mean():+.2f}, {small['latent_p_value']:.1%}; step {run.step}: {folder / 'typicality.png'}"
    )
    return "\n".join([*aside, told])


def _settings_of(document: Any) -> list[Any]:
    """What two typicality.json of the same settings share."""
    sets = [[document[part]["name"], document[part]["index"]] for part in ("reference", "tested")]
    return [document["step"], document["seed"], document["probes"], *sets]


# Each mode, and the flags that are its own.
MODES: dict[str, tuple[Callable[..., str], tuple[str, ...]]] = {
    "encode": (encode_examples, ("n", "seed")),
    "decode": (decode_latents, ()),
    "interpolate": (interpolate_examples, ("points", "seed")),
    "typicality": (score_examples, ("of", "n", "probes", "seed")),
}
SETTINGS = ("points", "of", "n", "probes", "seed")
LIMITS = {"n": (1, MOST), "points": (2, 10_000), "probes": (1, 10_000)}


def latents_of_run(workdir: str, given: dict[str, Any], out: str | None = None, data: str = "", cache: str = "") -> str:
    """Do the whole of `python -m experiment.latents`; returns the line that says what was done.

    given: the flags by name, None where one was not given. data, cache: as for `load_run`.

    Raises UserError unless exactly one mode is given, for a flag that it does not have, and for whatever else the user
    can mend.
    """
    from experiment.run.load import in_float32, load_run

    modes = [name for name in MODES if given.get(name)]
    if len(modes) != 1:
        got = f", not {' and '.join(f'--{name}' for name in modes)}" if modes else ""
        raise UserError(f"choose one of --encode, --decode=FILE.npz, --interpolate=3,17 and --typicality{got}")
    mode = modes[0]
    function, own = MODES[mode]
    settings = {name: given[name] for name in SETTINGS if given.get(name) is not None}
    for name in settings:
        if name not in own:
            raise UserError(f"--{name} is not for --{mode}: leave it out")
    check_seed(settings.get("seed"))
    for name, (least, most) in LIMITS.items():
        check_flag(
            name, settings.get(name), least=max(least, 2 if mode == "typicality" and name == "n" else 0), most=most
        )
    if mode in ("decode", "interpolate"):
        settings[mode] = given[mode]
    run = in_float32(load_run(workdir, data, cache))
    folder = user_path(out, "--out") if out else run.workdir / "latents"
    check_folder(folder)
    say_start(f"{mode}: {run.workdir} at step {run.step}")
    return function(run, folder, **settings)
