"""Every sampler that is a table, with the order that theory gives it: what the tests of the family are parametrised
over.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from sde_lib.samplers import (
    DDIM,
    DEIS,
    IPNDM,
    Ancestral,
    DPMSolverPP2M,
    DPMSolverPP3M,
    DPMSolverPP3MPublished,
    EulerMaruyama,
    ExponentialEuler,
    Heun,
    LinearSampler,
    ReverseDiffusion,
    SASolver,
    SDEDPMSolverPP1,
    SDEDPMSolverPP2M,
    SDEDPMSolverPP2MHeun,
    UniformLogSNR,
    UniPC,
    in_log_snr,
    in_rho,
)
from sde_lib.samplers.linear import Table, table_of
from sde_lib.sde import SDE


@dataclass(frozen=True)
class Method:
    """A sampler, its order (weak if it draws noise), whether it draws noise, and from how many steps a Gaussian shows
    the order.
    """

    sampler: LinearSampler
    order: int
    noisy: bool = False
    settled: int = 256


FAMILY = {
    "em": Method(EulerMaruyama(), 1, True),
    "em, eta 0": Method(EulerMaruyama(eta=0.0), 1),
    "em, eta 1.5": Method(EulerMaruyama(eta=1.5), 1, True),
    "reverse_diffusion": Method(ReverseDiffusion(), 1, True),
    "ancestral": Method(Ancestral(grid=UniformLogSNR()), 1, True),
    "exponential_euler": Method(ExponentialEuler(), 1, True),
    "exponential_euler, eta 0": Method(ExponentialEuler(eta=0.0), 1),
    "ddim": Method(DDIM(), 1),
    "ddim, eta 0.5": Method(DDIM(eta=0.5), 1, True),
    "ddim, eta 1": Method(DDIM(eta=1.0), 1, True),
    "dpmpp_2m": Method(DPMSolverPP2M(), 2),
    "dpmpp_3m": Method(DPMSolverPP3M(), 3, settled=64),
    "dpmpp_3m_published": Method(DPMSolverPP3MPublished(), 2),
    "sde_dpmpp_1": Method(SDEDPMSolverPP1(), 1, True),
    "sde_dpmpp_2m": Method(SDEDPMSolverPP2M(), 2, True),
    "sde_dpmpp_2m, eta 0.5": Method(SDEDPMSolverPP2M(eta=0.5), 2, True),
    "sde_dpmpp_2m, eta 1.4": Method(SDEDPMSolverPP2M(eta=1.4), 2, True),
    "sde_dpmpp_2m_heun": Method(SDEDPMSolverPP2MHeun(), 2, True),
    "sde_dpmpp_2m_heun, eta 0.5": Method(SDEDPMSolverPP2MHeun(eta=0.5), 2, True),
    "sa_solver": Method(SASolver(), 2, True),
    "sa_solver, predictor 2": Method(SASolver(predictor=2), 2, True),
    "sa_solver, eta 0.5": Method(SASolver(eta=0.5), 2, True),
    "deis_t, order 2": Method(DEIS(order=2), 2),
    "deis_t": Method(DEIS(), 3, settled=64),
    "deis_rho": Method(DEIS(variable=in_rho), 3),
    "deis_log_snr": Method(DEIS(variable=in_log_snr), 3, settled=64),
    "ipndm": Method(IPNDM(), 2),
    "unip, order 2": Method(UniPC(order=2, corrector=False), 2),
    "unip, order 3": Method(UniPC(corrector=False, grid=DPMSolverPP3M().grid), 3, settled=64),
    "unipc, order 1": Method(UniPC(order=1), 2),
    "unipc, order 2": Method(UniPC(order=2), 3, settled=64),
    "unipc, order 2, bh1": Method(UniPC(order=2, bh1=True), 3, settled=64),
    "unipc": Method(UniPC(), 4, settled=128),
    "heun": Method(Heun(), 2),
    "heun, churn 5": Method(Heun(churn=5.0), 2, True),
}


@dataclass(frozen=True)
class Padded(LinearSampler):
    """Another sampler with its table filled up to `rows` rows that change nothing and four columns, so that all
    samplers and step counts of a kind share one compiled scan.

    Args:
        inner: the sampler; `steps` and the grid of its own count.
        rows: of the table; at least the inner one's.
    """

    inner: LinearSampler = DDIM()  # noqa: RUF009 - immutable
    rows: int = 0

    @property
    def model(self) -> Any:  # type: ignore[override]
        return self.inner.model

    def update(self, sde: SDE, times: Any) -> Table:
        table = table_of(self.inner, sde)
        more = self.rows - len(table.a)

        def rows(values: Any, fill: str) -> Any:
            wide = np.asarray(values)
            return np.pad(wide, [(0, more), *[(0, 0)] * (wide.ndim - 1)], mode=fill)

        def wide(values: Any, columns: int) -> Any:
            return rows(np.pad(values, [(0, 0), (0, columns - values.shape[1])]), "constant")

        point = table.point and table.point._replace(p=rows(table.point.p, "edge"), q=wide(table.point.q, 3))
        a = np.concatenate([table.a, np.ones(more)])
        t, t_next = rows(table.t, "edge"), rows(table.t_next, "edge")
        return Table(t, t_next, a, wide(table.b, 4), None if table.c is None else rows(table.c, "constant"), point)


def padded(sampler: LinearSampler, rows: int) -> Padded:
    """The sampler, its table filled up to so many rows."""
    return Padded(steps=sampler.steps, inner=sampler, rows=rows)
