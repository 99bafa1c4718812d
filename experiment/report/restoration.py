"""The whole of `python -m experiment.restore`: from a run's directory to restored examples, their page and figures."""

import shlex
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from experiment.build.methods import make_method, method_list
from experiment.build.samplers import FLOW_MAP, check_sampler, make_sampler
from experiment.common.errors import UserError, choose
from experiment.common.files import check_folder, user_path, write_bytes, write_json, write_npz, write_text
from experiment.common.progress import say_start
from experiment.common.provenance import provenance
from experiment.config import check_flag, check_seed
from experiment.data.dataset import some_of
from experiment.evaluation.restoration import (
    Calibration,
    Estimate,
    Restored,
    calibration_of,
    draw_given,
    restore_examples,
)
from experiment.evaluation.results import plain
from experiment.evaluation.seen import OPERATORS, Asked, Seen, operator_list, read_observed, see
from experiment.report.document import Figure
from experiment.report.page import captioned, facts_of, figure_of, head_of, page_of
from experiment.report.restored_picture import picture_of
from experiment.report.tables import plus_minus
from experiment.run.conditions import Asked as Told
from experiment.run.conditions import arrays_of, kind_of_run, told_or_nothing
from experiment.run.earlier import keep_earlier
from experiment.run.load import in_float32, load_run

Array = np.ndarray

SAMPLER, GRID, STEPS = "sde_dpmpp_2m", "log_snr", 100  # an SDE's: it forgets the early errors of every method
FILES = ("restored.npz", "restore.html", "examples.png")  # beside restore.json
MEANINGS = {
    "rmse over spread": "Root mean square error of the draws' mean, over their standard deviation and sqrt(1 + 1/k). "
    "Above 1 the draws are too near to each other, below 1 too far apart.",
    "coverage": "The share of the truths that lie in the central part of their draws. Below it the draws are too "
    "narrow, or beside the truth.",
    "residual over noise": "Root mean square of y - A(draw), over the noise. Above 1 the draws do not reach what was "
    "seen, below 1 they follow its noise.",
}


# The flags, but for the places of files.
SETTINGS = (
    *("operator", "seen", "share", "factor", "width", "matrix", "noise", "method", "iterations"),
    *("sampler", "steps", "eta", "grid", "particles", "n", "draws", "seed"),
    *("observed", "label", "prompt", "cond"),
)


def restore_run(
    workdir: str, given: Mapping[str, Any], out: str | None = None, data: str = "", cache: str = ""
) -> list[str]:
    """Do the whole of the command.

    given: SETTINGS by name, None where one was not given. out: the folder, WORKDIR/restore/OPERATOR for None. data,
    cache: as for `load_run`.

    Returns:
        Lines that say what was done, the figures, and at last the path of the page.

    Raises UserError for every mistake, before anything is drawn.
    """
    if "list" in (given["operator"], given["method"]):
        return [operator_list() if given["operator"] == "list" else method_list()]
    operator, chosen = _checked(given)
    noise, method = float(given["noise"]), make_method(given["method"], given["iterations"])
    if method.divides_by_noise and noise == 0:
        raise UserError(
            f"--noise=0: {given['method']} divides by it: give a noise above 0, or --method=moment_matching"
        )
    run = in_float32(load_run(workdir, data, cache))
    sampler = _sampler(run, given)
    seen = see(operator, chosen, tuple(run.shape), run.scaling, given["seed"])
    folder = user_path(out, "--out") if out else run.workdir / "restore" / operator
    check_folder(folder)
    sees = f"{seen.words} seen, noise {_noise_words(run, seen, noise)}"
    if given["observed"] is None:
        n = min(given["n"], len(run.dataset.test))
        what = f"{n:,} held-out examples, {sees}"
        say_start(f"{operator}: {what}; {run.workdir} at step {run.step}")
        found = restore_examples(run, seen, noise, method, sampler, n=n, draws=given["draws"], seed=given["seed"])
    else:
        y = read_observed(given["observed"], seen, run.scaling)[: given["n"]]
        n = len(y)
        told = told_or_nothing(run, n, Told(given["label"], given["prompt"], given["cond"]))
        what = f"{n:,} observation{'s'[: n != 1]} of {Path(given['observed']).name}, {sees}"
        say_start(f"{operator}: {what}; {run.workdir} at step {run.step}")
        found = draw_given(run, seen, y, noise, method, sampler, told, given["draws"], given["seed"])
    figures = calibration_of(found, seen, run.scaling)
    notes = notes_of(run, seen, noise, method, figures)
    settings = {
        "operator": operator,
        "seen": seen.words,
        **{name: value for name, value in vars(chosen).items() if value is not None},
        "noise": noise,
        "method": repr(method),
        "sampler": repr(sampler),
        "n": n,
        "draws": given["draws"],
        "seed": given["seed"],
        "step": run.step,
        **{name: given[name] for name in ("observed", "label", "prompt", "cond") if given[name] is not None},
    }
    aside = write_restoration(run, seen, found, figures, settings, what, notes, folder)
    cost = f"{found.nfe:,.0f} NFE and {found.jvps:,.0f} derivative products a draw, {found.seconds:.1f} s"
    return [
        *aside,
        f"{operator}: {what}: {given['draws']} draws of each by {given['method']}, {cost} with compilation, step "
        f"{run.step}",
        *figure_lines(figures),
        *notes,
        str(folder / "restore.html"),
    ]


def _checked(given: Mapping[str, Any]) -> tuple[str, Asked]:
    """The operator's name, and how it is to see.

    Raises UserError for an unknown operator or sampler, and numbers out of range: what needs no run.
    """
    operator = given["operator"] if given["operator"] is not None else "matrix" if given["matrix"] else "mask"
    choose(OPERATORS, operator, "--operator", operator_list())
    if given["noise"] is None:
        raise UserError(
            "--noise is missing: give the standard deviation of the observation's noise, in the levels of the data "
            "or the units of its numbers"
        )
    if not 0 <= given["noise"] < np.inf:
        raise UserError(f"--noise is {given['noise']:g}: give a standard deviation, 0 or above")
    check_flag("n", given["n"], least=1)
    for name in ("label", "prompt", "cond"):
        if given[name] is not None and given["observed"] is None:
            raise UserError(f"--{name} goes with --observed: held-out examples come with what they are: leave it out")
    if given["draws"] == 1:
        raise UserError("--draws is 1, and one draw has no spread: give at least 2, such as --draws=15")
    for name, least in (("draws", 2), ("iterations", 1), ("particles", 1)):
        check_flag(name, given[name], least=least)
    check_seed(given["seed"])
    check_flag("steps", given["steps"], "sample.steps")
    check_sampler(given["sampler"] or SAMPLER)
    if given["sampler"] == FLOW_MAP:
        raise UserError(f"--sampler={FLOW_MAP} takes no score given an observation: leave it out, or choose another")
    return operator, Asked(**{name: given[name] for name in Asked.__dataclass_fields__})


def _sampler(run: Any, given: Mapping[str, Any]) -> Any:
    """The sampler that was asked for: by default the reverse SDE on a grid even in log SNR."""
    name, steps = given["sampler"], given["steps"]
    if given["particles"] is not None:
        for flag in ("sampler", "eta", "grid"):
            if given[flag] is not None:
                raise UserError(f"--{flag} is not for --particles, which bring a sampler of their own: leave it out")
        if given["noise"] == 0:
            raise UserError("--noise=0: particles are weighed by it: give a noise above 0, or leave --particles out")
        from sde_lib.inverse import TwistedSMC

        return TwistedSMC(steps=steps or STEPS, particles=given["particles"])
    if name is None:
        return make_sampler(SAMPLER, run.config, steps=steps or STEPS, eta=given["eta"], grid=given["grid"] or GRID)
    return make_sampler(name, run.config, steps=steps, eta=given["eta"], grid=given["grid"])


def _noise_words(run: Any, seen: Seen, noise: float) -> str:
    """The noise in the units of the data, and in those of the model."""
    if run.scaling.levels is None:
        return f"{noise:g} in the units of the data"
    top = run.scaling.levels - 1
    return f"{noise:g} of the levels 0..{top} ({float(seen.noise_to_model(noise).flat[0]):.3g} in the model's space)"


def figure_lines(found: Calibration) -> list[str]:
    """The figures of the calibration as lines for a terminal."""
    if found.ratio is None:
        return [f"residual over noise {_told(found.residual)} (exact posterior: 1)"]
    shares = ", ".join(f"{share:.0%}: {_told(estimate)}" for share, estimate in found.coverage.items())
    return [
        f"rmse over spread {_told(found.ratio)}; residual over noise {_told(found.residual)} (exact posterior: 1)",
        f"coverage of the central {shares}",
    ]


def notes_of(run: Any, seen: Seen, noise: float, method: Any, figures: Calibration) -> list[str]:
    """What a reader of the figures should know: where draws cannot be as near to what was seen as the noise says."""
    sde, notes = run.score_fn.sde, []
    left = float(sde.sigma(sde.t_min) / sde.alpha(sde.t_min))
    if 0 < float(seen.noise_to_model(noise).min()) < left:
        notes.append(
            f"the noise is below what is left at the run's t_min, {left:.2g} in the model's space: so near the draws "
            "are those of the last denoising, whatever was seen"
        )
    value, error = figures.residual.value, figures.residual.error
    if hasattr(method, "iterations") and value is not None and value - 1 > max(0.1, 4 * (error or 0)):
        notes.append(
            f"the draws are off what was seen by {value:.2g} times the noise: --iterations={4 * method.iterations} "
            f"would bring them nearer than {method.iterations}"
        )
    return notes


def _told(estimate: Estimate) -> str:
    return plus_minus(estimate.value, estimate.error)


def write_restoration(
    run: Any,
    seen: Seen,
    found: Restored,
    figures: Calibration,
    settings: Mapping[str, Any],
    what: str,
    notes: list[str],
    folder: Path,
) -> list[str]:
    """Write restored.npz, restore.json, the picture and the page; a result of other settings is kept beside.

    Returns:
        A line that says where the earlier result is; none where there was none.

    Raises UserError where the folder cannot be written.
    """
    draws = np.asarray(run.scaling.to_data(found.draws))
    of_draws = draws.astype(np.float64)
    arrays = {
        "draws": draws,
        "mean": of_draws.mean(axis=1),
        "sd": of_draws.std(axis=1, ddof=1),
        "y": seen.to_data(found.y),
        "open": seen.open,
        **arrays_of(kind_of_run(run), found.cond, texts="captions"),
    }
    if found.truth is not None:
        places = some_of(len(found.truth), len(run.dataset.test))
        arrays |= {"truth": np.asarray(run.scaling.to_data(found.truth)), "index": places}
    document = plain(
        {
            **settings,
            "dataset": run.dataset.name,
            "workdir": str(run.workdir),
            "figures": {
                "rmse": figures.rmse,
                "spread": figures.spread,
                "rmse_over_spread": figures.ratio,
                "coverage": figures.coverage,
                "residual_over_noise": figures.residual,
            },
            "notes": notes,
            "nfe": found.nfe,
            "jvps": found.jvps,
            "seconds": found.seconds,
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
            **provenance(),
        }
    )
    figure = picture_of(run, seen, found, arrays)
    aside = keep_earlier(folder, "restore.json", document, lambda it: [it[name] for name in settings], lambda _: FILES)
    write_npz(folder / "restored.npz", **arrays)
    write_bytes(folder / figure.file, figure.png)
    write_json(folder / "restore.json", document)
    write_text(folder / "restore.html", _page(run, document, figures, what, figure))
    return aside


def _page(run: Any, document: Mapping[str, Any], figures: Calibration, what: str, figure: Figure) -> str:
    k = document["draws"]
    rows = [
        *([("rmse over spread", "1", figures.ratio)] if figures.ratio else []),
        *((f"coverage of the central {share:.0%}", f"{share:g}", it) for share, it in figures.coverage.items()),
        ("residual over noise", "1", figures.residual),
    ]
    body = "".join(
        f"<tr><th>{escape(name)}</th><td>{exact}</td><td>{escape(_told(estimate))}</td></tr>"
        for name, exact, estimate in rows
    )
    width = "levels" if run.scaling.levels is not None else "standard deviations of the data"
    caption = (
        f"± standard error over {document['n']:,} examples, {k} draws of each. The draws' standard deviation is "
        f"{figures.spread.value or 0:.3g} {width}, root mean square over the entries asked for"
        + (f", and their mean is off by {figures.rmse.value or 0:.3g}." if figures.rmse else ".")
    )
    meanings = "".join(
        f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>"
        for name, text in MEANINGS.items()
        if figures.ratio or name == "residual over noise"
    )
    facts = {
        name: document[name] for name in ("command", "seen", "noise", "method", "sampler", "nfe", "jvps", "seconds")
    }
    facts |= {"seed": document["seed"], "device": document["device"], "git commit": document["git_commit"]}
    facts["versions"] = ", ".join(f"{package} {version}" for package, version in document["versions"].items())
    known = "observed" not in document or not {"label", "prompt", "cond"}.isdisjoint(document)
    told = " The network was told what each example is." if known and kind_of_run(run) is not None else ""
    lead = f"{document['workdir']} at step {run.step:,}: {what}; {k} draws of each.{told}"
    table = captioned(caption, ["", "exact posterior", "measured"], body)
    title, notes = f"{run.dataset.name}: {document['operator']}", document["notes"]
    boxed = f'<div class="note">{"".join(f"<p>{escape(note)}</p>" for note in notes)}</div>' if notes else ""
    return page_of(
        title,
        head_of(title, document["date"], document["git_commit"], lead, boxed),
        [
            ("Examples", figure_of(figure)),
            ("Calibration", f"{table}<dl>{meanings}</dl>"),
            ("Where these numbers come from", facts_of(facts, run.config.to_dict())),
        ],
    )
