"""The first steps of every evaluation of a run: check what is given, load the run, complete the settings.

A mistake in what is given is told before the run is loaded, and one about the run before anything is computed.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from experiment.build.samplers import SAMPLERS, check_sampler
from experiment.common.errors import UserError
from experiment.evaluation.settings import FromConfig
from experiment.run.fitted import sampler_of
from experiment.run.load import Run, load_run

S = TypeVar("S", bound=FromConfig)


def open_run(
    workdir: str,
    kind: type[S],
    given: Mapping[str, Any],
    names: Sequence[str] | None = None,
    needs: Callable[[], Any] = lambda: None,
    *,
    data: str = "",
    cache: str = "",
) -> tuple[Run, S]:
    """Load the run and complete the settings of that kind by its config.eval.

    given: settings, None for the config's own. names: the samplers that were asked for, if any. needs: raises UserError
    where something is not installed. data, cache: as for `load_run`.

    Returns:
        The run, and its settings with the given ones on top.

    Raises UserError for an unknown sampler, a setting out of its range, or a missing run.
    """
    for name in names or ():
        check_sampler(name.strip())
    kind.check(given)
    needs()
    run = load_run(workdir, data, cache)
    return run, kind.from_config(run.config, **given)


def samplers_of(run: Run, names: Sequence[str] | None) -> dict[str, Any]:
    """The samplers with the run's settings, by name; None for the names of its config.eval.

    Raises UserError for an unknown sampler, and where there is none.
    """
    chosen = [name.strip() for name in (run.config.eval.samplers if names is None else names) if name.strip()]
    if not chosen:
        raise UserError(f"--samplers is empty: give some of {', '.join(SAMPLERS)}")
    return {name: sampler_of(run, name) for name in chosen}
