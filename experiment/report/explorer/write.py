"""The whole of `python -m experiment.explorer`."""

import os
from pathlib import Path

from experiment.common.errors import UserError
from experiment.common.files import check_folder, user_path, write_text
from experiment.common.progress import say_start
from experiment.report.explorer.page import explorer_page

NOTEBOOKS = Path(__file__).parents[3] / "notebooks"


def write_explorer(out: str, workdir: str = "", data: str = "", cache: str = "") -> list[str]:
    """Do the whole of the command.

    workdir: a run whose field is shown beside the exact one, "" for none. data, cache: as for `load_run`.

    Returns:
        Lines that say what was written, the last of them its path.

    Raises UserError for a file that cannot be written, and for a run that the page cannot show.
    """
    path = user_path(out, "--out")
    if path.is_dir():
        raise UserError(f"--out={out} is a folder: give the page's file in it, such as {path / 'explorer.html'}")
    check_folder(path.parent)
    run = None
    if workdir:
        # What needs JAX and a network is imported only for a run.
        from experiment.report.explorer.learned import run_data
        from experiment.run.load import in_float32, load_run

        loaded = in_float32(load_run(workdir, data, cache))
        say_start(f"{loaded.workdir} at step {loaded.step}: its densities on the plane")
        run = run_data(loaded)
    page = explorer_page(way_to(NOTEBOOKS, path.parent), run)
    write_text(path, page)
    return [f"The explorer, {len(page.encode()) / 1e3:,.0f} kB: open it in a browser.", str(path)]


def way_to(folder: Path, start: Path) -> str:
    """The link to a folder from a page in `start`: relative where it can be, so that both may move together."""
    try:
        return Path(os.path.relpath(folder, start.resolve())).as_posix()
    except ValueError:  # another drive
        return folder.as_uri()
