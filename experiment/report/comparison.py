"""Several runs side by side: in what their configs differ, what may be compared, and the tables of their figures."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from experiment.command_line.help import as_text
from experiment.config import FOLLOWING, KEYS
from experiment.evaluation.results import QUALITY, Floor, LikelihoodResult, plain
from experiment.evaluation.text import number
from experiment.report.figures import Figures, FoundLikelihood
from experiment.report.runs import ComparedRun
from experiment.report.tables import Cell, Row, outside, plus_minus

GAP = "–"
TABLE_KEYS = 6  # more keys that differ are rows, not columns

# What two training losses must share to be of the same quantity, beside the data.
OF_LOSS = (
    *("sde.name", "sde.beta_min", "sde.beta_max", "sde.sigma_min", "sde.sigma_max", "sde.t_min"),
    *("model.parameterization", "model.sigma_data", "model.condition"),
    *("train.weighting", "train.times", "train.min_snr_gamma", "train.time_mean", "train.time_std"),
    *("train.uncertainty", "train.cond_dropout", "train.objective", "train.flow_map_loss", "data.dequantize"),
)
OF_PROTOCOL = ("n", "seeds", "seed", "reference", "compared", "splits", "folds")

# What two likelihoods must share to be compared.
_WORDS = {
    "unit": "unit",
    "n": "held-out examples",
    "probes": "probes",
    "k": "draws of each example",
    "dequantization": "dequantisation",
}


@dataclass(frozen=True)
class Group:
    """Runs whose distances may be compared: of the same data, by the same protocol and metrics."""

    data: str
    runs: list[ComparedRun]
    figures: Figures | None

    def floors(self) -> list[tuple[str, dict[str, Floor]]]:
        """The floors of the group, each with the name of the run that has it where they differ."""
        found: dict[str, tuple[str, dict[str, Floor]]] = {}
        for run in self.runs:
            if run.figures:
                found.setdefault(json.dumps(plain(run.figures.floors)), (run.name, run.figures.floors))
        several = len(found) > 1
        return [(f"noise floor of {name}" if several else "noise floor", floors) for name, floors in found.values()]


def differing(runs: Sequence[ComparedRun]) -> list[str]:
    """The keys of the config that have not the same value in all runs.

    What the data settle is not known of a run that is not begun, and the older name of a key is left out.
    """
    there = {key for run in runs for key in run.values}
    found = []
    for key in (*(key for key in KEYS if key in there), *sorted(there - KEYS.keys())):
        values = [
            run.values.get(key)
            for run in runs
            if not (run.data is None and key in FOLLOWING and run.values.get(key) is None)
        ]
        if key != "model.class_conditional" and any(value != values[0] for value in values):
            found.append(key)
    return found


def groups(runs: Sequence[ComparedRun]) -> list[Group]:
    """The runs by what their distances are of, in the order in which they come.

    A run that is not evaluated stands with the first ones of its data.
    """
    found: dict[Any, list[ComparedRun]] = {}
    for run in runs:
        if run.figures:
            found.setdefault((run.data_key(), _protocol(run.figures)), []).append(run)
    for run in runs:
        if not run.figures:
            key = next((key for key in found if key[0] == run.data_key()), (run.data_key(), ""))
            found.setdefault(key, []).append(run)
    order = {run.name: i for i, run in enumerate(runs)}
    return [
        Group(members[0].data_name, members, next((run.figures for run in members if run.figures), None))
        for members in (sorted(some, key=lambda run: order[run.name]) for some in found.values())
    ]


def _protocol(figures: Figures) -> str:
    shared = {key: figures.protocol.get(key) for key in OF_PROTOCOL}
    return json.dumps([shared, figures.score, sorted(figures.metrics)], default=str)


def notes_on(runs: Sequence[ComparedRun]) -> list[str]:
    """What a reader of the tables has to know: which figures are missing, and which cannot be compared with which."""
    notes = []
    data = {run.data_key(): run.data_name for run in runs}
    if len(data) > 1:
        several = dict.fromkeys(data.values())
        names = ", ".join(several) if len(several) > 1 else f"{next(iter(several))}, prepared in different ways"
        notes.append(
            f"The runs are of {len(data)} data sets ({names}): distances, floors, likelihoods and losses of different "
            "data cannot be compared. Each has a table with floors of its own."
        )
    evaluated = [run for run in runs if run.figures]
    protocols = {_protocol(run.figures) for run in evaluated if run.figures}
    if len(protocols) > len({run.data_key() for run in evaluated}):
        notes.append(
            "The runs were evaluated by different protocols (number of samples, seeds or metrics): distances stand in "
            "a table for each, with its own floor; evaluate them alike to compare them."
        )
    found = [it for run in runs for it in run.likelihoods[:1]]
    told = {key: dict.fromkeys(getattr(it.result, key) for it in found) for key in _WORDS}
    others = [f"{_WORDS[key]} ({', '.join(map(str, values))})" for key, values in told.items() if len(values) > 1]
    if others:
        notes.append(f"The likelihoods differ in {'; '.join(others)}: they cannot be compared as they stand.")
    changed = [key for key in OF_LOSS if len({repr(run.values.get(key)) for run in runs if run.rows}) > 1]
    if changed:
        notes.append(
            f"The training losses are not of the same quantity, because {', '.join(changed)} "
            f"differ{'s' * (len(changed) == 1)}: their heights cannot be compared."
        )
    of_runs: dict[str, list[str]] = {}
    for run in runs:
        for note in (*(note[0].upper() + note[1:] for note in run.notes), *run.faults):
            of_runs.setdefault(note, []).append(run.name)
    return notes + [f"{note}: {', '.join(names)}." for note, names in of_runs.items()]


def config_table(runs: Sequence[ComparedRun]) -> tuple[list[str], list[Row]]:
    """In what the configs differ: a row for each run, or for each key where there are many."""
    keys = differing(runs)

    def cell(run: ComparedRun, key: str) -> Cell:
        known = key in run.values and not (run.data is None and run.values[key] is None and key in FOLLOWING)
        return Cell(_shown(run.values[key]) if known else GAP)

    if len(keys) > TABLE_KEYS:
        return ["key", *(run.name for run in runs)], [Row(key, [cell(run, key) for run in runs]) for key in keys]
    return ["run", *keys], [Row(run.name, [cell(run, key) for key in keys]) for run in runs]


def _shown(value: Any) -> str:
    return f"({as_text(value)})" if isinstance(value, tuple) else as_text(value) or '""'


def cost_table(runs: Sequence[ComparedRun]) -> tuple[list[str], list[Row]]:
    """What each run has cost so far, and its losses."""
    header = ["run", "step", "of", "parameters", "images/s", "seconds", "loss", "held-out loss"]
    rows = []
    for run in runs:
        counts = [Cell(GAP if n is None else f"{n:,}") for n in (run.step, run.steps, run.parameters)]
        rates = [Cell(GAP if x is None else f"{x:,.0f}") for x in (run.images_per_second,)]
        others = [Cell(number(x, 4)) for x in (run.seconds, run.last("loss"), run.last("held_out_loss"))]
        rows.append(Row(run.name, [*counts, *rates, *others]))
    return header, rows


def quality_table(group: Group, short: bool = False) -> tuple[list[str], list[Row]]:
    """The quality of each run and sampler of a group, and at last the floor.

    short: metrics by their keys, and no row for a run that is not evaluated.
    """
    metrics = group.figures.metrics if group.figures else {}
    header = ["run", "sampler", "NFE", "seconds", *(key if short else it.label for key, it in metrics.items())]
    rows = []
    for run in group.runs:
        if not run.figures:
            if short:
                continue
            state = "broken report" if run.has_report else "not evaluated"
            rows.append(Row(run.name, [Cell(state), *[Cell(GAP)] * (2 + len(metrics))]))
            continue
        for name, sampler in run.figures.samplers.items():
            cost = [Cell(name), Cell(f"{sampler.nfe:,.0f}"), Cell(number(sampler.seconds))]
            values = [sampler.metrics[metric] for metric in metrics]
            cells = [Cell(plus_minus(v.mean, v.sd), outside(v.excess, QUALITY)) for v in values]
            rows.append(Row(run.name, cost + cells))
    for name, floors in group.floors():
        cells = [Cell(plus_minus(floors[metric].mean, floors[metric].sd)) for metric in metrics]
        rows.append(Row(name, [Cell("")] * 3 + cells, is_floor=True))
    return header, rows


def likelihood_table(runs: Sequence[ComparedRun], short: bool = False) -> tuple[list[str], list[Row]]:
    """Each likelihood that a run has, from its report and from likelihood/.

    short: no row for a run that has none.
    """
    header = ["run", "likelihood", "unit", "examples", "NFE", "probes", "dequantisation", "step", "file"]
    rows = []
    for run in runs:
        for it in run.likelihoods:
            told, result = [Cell(it.file)], it.result
            value = [Cell(plus_minus(result.mean, result.se_images)), Cell(result.unit), Cell(f"{result.n:,}")]
            how = [Cell(f"{result.nfe:,.0f}"), Cell(f"{result.probes}"), Cell(_draws(result)), Cell(f"{it.step:,}")]
            rows.append(Row(run.name, value + how + told))
        if not run.likelihoods and not short:
            rows.append(Row(run.name, [Cell(GAP)] * (len(header) - 1)))
    return header, rows


def _draws(result: LikelihoodResult) -> str:
    return GAP if result.dequantization is None else f"{result.dequantization}, {result.k}"


def fid_table(runs: Sequence[ComparedRun]) -> tuple[list[str], list[Row]]:
    """Each row of fid.json of the runs that have one; without rows where none has."""
    header = ["run", "sampler", "NFE", "samples", "FID", "KID", "precision", "recall", "step", "against"]
    rows = []
    for run in runs:
        for it in run.fid:
            cost = [Cell(it.sampler), Cell(f"{it.nfe:,.0f}"), Cell(f"{it.n:,}")]
            values = [number(it.fid, 4), f"{it.kid:.5f} ± {it.kid_sd:.5f}", f"{it.precision:.3f}", f"{it.recall:.3f}"]
            rows.append(Row(run.name, [*cost, *map(Cell, values), Cell(f"{it.checkpoint_step:,}"), Cell(it.reference)]))
    return header, rows


def run_json(run: ComparedRun, keys: Sequence[str]) -> dict[str, Any]:
    """A run's part of compare.json: numbers as its own files have them."""
    figures = run.figures
    return {
        "name": run.name,
        "workdir": str(run.path),
        "dataset": run.data_name,
        "config": {key: run.values.get(key) for key in keys},
        "step": run.step,
        "steps": run.steps,
        "finished": run.finished,
        "parameters": run.parameters,
        "images_per_second": run.images_per_second,
        "seconds": run.seconds,
        "loss": run.last("loss"),
        "held_out_loss": run.last("held_out_loss"),
        "evaluated_step": figures.checkpoint_step if figures else None,
        "protocol": figures.protocol if figures else None,
        "floors": {key: _spread(floor) for key, floor in figures.floors.items()} if figures else None,
        "samplers": _samplers(figures) if figures else None,
        "likelihoods": [{"file": it.file, "step": it.step, **plain(it.result)} for it in run.likelihoods],
        "fid": run.fid,
        "notes": [*run.notes, *run.faults],
    }


def _spread(found: Any) -> dict[str, Any]:
    return {key: value for key, value in plain(found).items() if key != "values"}


def _samplers(figures: Figures) -> dict[str, Any]:
    return {
        name: {
            "nfe": it.nfe,
            "seconds": it.seconds,
            "metrics": {key: _spread(value) for key, value in it.metrics.items()},
        }
        for name, it in figures.samplers.items()
    }


def csv_rows(runs: Sequence[ComparedRun], keys: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The one table of compare.csv: a row for each run and sampler, a single one of a run that is not evaluated."""
    for run in runs:
        cost = ("step", "steps", "parameters", "images_per_second", "seconds")
        row: dict[str, Any] = {"run": run.name, "dataset": run.data_name}
        row |= {key: _text(run.values.get(key)) for key in keys}
        row |= {name: getattr(run, name) for name in cost}
        row |= {"loss": run.last("loss"), "held_out_loss": run.last("held_out_loss")}
        for it in run.likelihoods[:1]:
            row |= _likelihood(it)
        yield from _with_samplers(row, run.figures) if run.figures else [row]


def _text(value: Any) -> Any:
    return as_text(value) if isinstance(value, tuple | bool) else value


def _likelihood(it: FoundLikelihood) -> Mapping[str, Any]:
    its = it.result
    return {
        "likelihood": its.mean,
        "likelihood_se": its.se_images,
        "likelihood_unit": its.unit,
        "likelihood_n": its.n,
        "likelihood_nfe": its.nfe,
    }


def _with_samplers(row: Mapping[str, Any], figures: Figures) -> Iterator[dict[str, Any]]:
    for name, sampler in figures.samplers.items():
        of_sampler = {"evaluated_step": figures.checkpoint_step, "sampler": name, "nfe": sampler.nfe}
        of_sampler |= {"sampling_seconds": sampler.seconds, "n": figures.protocol.get("n")}
        for key, value in sampler.metrics.items():
            floor = figures.floors[key]
            of_sampler |= {key: value.mean, f"{key}_sd": value.sd, f"{key}_excess": value.excess}
            of_sampler |= {f"{key}_floor": floor.mean, f"{key}_floor_sd": floor.sd}
        yield {**row, **of_sampler}
