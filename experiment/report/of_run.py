"""The whole of `evaluate.py`: from a run's directory to its report.

What is drawn lies in parts, each a file that is whole or absent, until the report is written: what was killed goes on,
and several processes share it out.
"""

import shutil
from collections.abc import Mapping
from typing import Any

from experiment.common.files import check_folder, user_path
from experiment.devices.hosts import shared_out
from experiment.evaluation.drawing import Kept
from experiment.evaluation.evaluate import asked_of_run
from experiment.evaluation.guidance_curve import read_scales
from experiment.evaluation.points import read_budgets
from experiment.report.tables import text_table

NO_SETTINGS = ("samplers", "nfe", "exact_score", "guidance")


def report_of_run(
    workdir: str, given: Mapping[str, Any], out: str | None = None, data: str = "", cache: str = ""
) -> list[str]:
    """Do the whole of `evaluate.py`: evaluate, and write the report.

    given: settings that go over those of the run's config.eval where they are not None; samplers, nfe, exact_score and
    guidance, as the flags have them. out: the folder; WORKDIR/report or WORKDIR/report_exact_score for None. data,
    cache: as for `load_run`. Raises UserError for every mistake, most before anything is drawn.

    Returns:
        The report's table, and at last the path of report.html.
    """
    settings = {name: value for name, value in given.items() if name not in NO_SETTINGS}
    default = "report_exact_score" if given.get("exact_score") else "report"
    folder = user_path(out, "--out") if out else user_path(workdir, "run directory") / default
    budgets, scales = read_budgets(given.get("nfe") or ()), read_scales(given.get("guidance"))
    if user_path(workdir, "run directory").is_dir():  # otherwise that is the mistake to tell
        check_folder(folder)
    exact_score = bool(given.get("exact_score"))
    with shared_out() as place:
        asked = asked_of_run(workdir, given.get("samplers"), settings, budgets, exact_score, scales, data, cache)
    kept = Kept(folder / "parts" / ("exact_score" if exact_score else "network"), place)
    if place.number:
        asked.share(kept)
        return [f"process {place.number} of {place.count} has done its share; the first one writes the report"]
    evaluation = asked.evaluated(kept)
    from experiment.report.report import write_report  # brings matplotlib, which no mistake should wait for

    path, aside = write_report(asked.run, evaluation, folder)
    shutil.rmtree(folder / "parts", ignore_errors=True)
    return [text_table(evaluation.report), *aside, str(path)]
