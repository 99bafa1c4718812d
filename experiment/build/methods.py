"""Methods of inverse problems by name, for commands. A new method is a class of sde_lib.inverse and a line here."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from experiment.build.samplers import WhenUsed
from experiment.common.errors import UserError, choose

if TYPE_CHECKING:
    from sde_lib import inverse
    from sde_lib.inverse import Method
else:
    inverse = WhenUsed("sde_lib.inverse")


@dataclass(frozen=True)
class NamedMethod:
    """What makes the method, with its own settings, and a line that says what it is."""

    make: "Callable[[], Method]"
    line: str


METHODS = {
    # One iteration: on the digits' network two are no better (benchmarks/restore.py), and each costs a product.
    "moment_matching": NamedMethod(
        lambda: inverse.MomentMatching(iterations=1),
        "exact on Gaussian data after enough --iterations, calibrated elsewhere with one",
    ),
    "pseudo_inverse": NamedMethod(lambda: inverse.PseudoInverse(), "PiGDM: near where the data are near N(m, I)"),
    "assimilation": NamedMethod(lambda: inverse.Assimilation(), "SDA, gamma = 0.01: too narrow"),
    "jensen": NamedMethod(lambda: inverse.Jensen(), "DPS as a score: too narrow; divides by the noise"),
    "proximal": NamedMethod(
        lambda: inverse.Proximal(), "DiffPIR: no derivative of the network, so the fastest; divides by the noise"
    ),
    "projection": NamedMethod(lambda: inverse.Projection(), "DDNM: for observations without noise"),
}


def method_list() -> str:
    """A line for each method of the table: its name, and what it is."""
    width = max(map(len, METHODS))
    return "\n".join(f"{name:{width}}  {named.line}" for name, named in METHODS.items())


def make_method(name: str, iterations: int | None = None) -> "Method":
    """Make the method `name`, with so many iterations where it has them.

    Raises UserError for an unknown name, and for iterations of a method that has none.
    """
    method = choose(METHODS, name, "the method", method_list()).make()
    if iterations is None:
        return method
    if not hasattr(method, "iterations"):
        raise UserError(f"--iterations: {name} has none: leave it out, or use --method=moment_matching")
    return dataclasses.replace(method, iterations=iterations)
