"""The explorer's page: style, numbers, words and script in one file that loads nothing.

The script is written as modules (`compass.mjs` is the mathematics, `stage.mjs` what figures are drawn with, `figures/`
one file a figure) and laid into the page, each in a scope of its own.
"""

import json
import re
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from experiment.data.toys import eight_scale
from sde_lib import VP, CosineVP, GaussianMixture, RectifiedFlow

HERE = Path(__file__).parent
IMPORT = re.compile(r"^import \{([^}]*)\} from \"([^\"]+)\";\n", re.M)
EXPORT = re.compile(r"^export ((?:function\*?|const|class) (\w+))", re.M)

COMPONENTS = 64
WIDTH = 0.05  # of the figure-eight, across
OVERLAP = 0.6  # of each Gaussian along it, in distances of neighbours: no beads are seen
CONDITIONAL, UNCONDITIONAL = (1.0, 0.25), (0.0, 1.0)  # mean and variance of the Gaussians that guidance is shown on
DECIMALS = 6  # of the numbers in the page: the same on every machine

Section = tuple[str, str]  # a heading's anchor and its words


def rounded(values: Any) -> Any:
    """The values as nested lists of so many decimals; no negative zeros."""
    return (np.round(np.asarray(values, float), DECIMALS) + 0.0).tolist()


def figure_eight() -> dict[str, Any]:
    """The figure-eight as 64 Gaussians, and its outline.

    They stand evenly in the angle t of the curve a (sin t, sin t cos t), as the points of the toy `figure_eight` do,
    and lie along it, as long as their neighbours are far.

    Returns:
        weights (64,), means (64, 2), covariances (64, 2, 2) and outline (128, 2).
    """
    t = 2 * np.pi * np.arange(COMPONENTS) / COMPONENTS
    rate = eight_scale() * np.stack([np.cos(t), np.cos(2 * t)], axis=1)
    speed = np.linalg.norm(rate, axis=1)
    along = rate / speed[:, None]
    across = np.stack([-along[:, 1], along[:, 0]], axis=1)
    length = OVERLAP * speed * 2 * np.pi / COMPONENTS
    outer = lambda v: v[:, :, None] * v[:, None, :]  # noqa: E731
    covariances = length[:, None, None] ** 2 * outer(along) + WIDTH**2 * outer(across)
    return {
        "weights": [1 / COMPONENTS] * COMPONENTS,
        "means": rounded(_curve(t)),
        "covariances": rounded(covariances),
        "outline": rounded(_curve(2 * np.pi * np.arange(2 * COMPONENTS) / (2 * COMPONENTS))),
    }


def _curve(t: np.ndarray) -> np.ndarray:
    return eight_scale() * np.stack([np.sin(t), np.sin(t) * np.cos(t)], axis=1)


def peaks() -> dict[str, Any]:
    """Three peaks on a line, of mean 0 and variance about 1."""
    return {
        "weights": [0.5, 0.2, 0.3],
        "means": [[-0.9], [0.3], [1.3]],
        "covariances": [[[0.03]], [[0.01]], [[0.04]]],
    }


def numbers() -> dict[str, Any]:
    """What Python writes into the page: data, processes with sde_lib's constants, and the Gaussians of guidance."""
    eight = figure_eight()
    outline = eight.pop("outline")
    linear, cosine, flow = VP(), CosineVP(), RectifiedFlow()
    return {
        "eight": eight,
        "outline": outline,
        "peaks": peaks(),
        "processes": {
            "vp": {
                "beta_min": linear.beta_min,
                "beta_max": linear.beta_max,
                "t_min": linear.t_min,
                "t_max": linear.t_max,
            },
            "cosine": {"s": cosine.s, "t_min": cosine.t_min, "t_max": cosine.t_max},
            "flow": {"t_min": flow.t_min, "t_max": flow.t_max},
        },
        "guidance": {"conditional": CONDITIONAL, "unconditional": UNCONDITIONAL},
    }


def mixture_of(written: Mapping[str, Any]) -> GaussianMixture:
    """The mixture that the page has under such numbers."""
    return GaussianMixture(*(np.asarray(written[name]) for name in ("weights", "means", "covariances")))


def script(entry: str = "main.mjs") -> str:
    """The modules that `entry` needs, itself last, each as one constant of what it exports."""
    texts: dict[str, str] = {}

    def add(path: Path) -> None:
        name = path.relative_to(HERE).as_posix()
        if name in texts:
            return
        source = path.read_text()
        for _, place in IMPORT.findall(source):
            add((path.parent / place).resolve())
        texts[name] = _scope(path, source)

    add(HERE / entry)
    return "\n".join(texts.values())


def _scope(path: Path, source: str) -> str:
    def imported(found: re.Match[str]) -> str:
        names = " ".join(found[1].split())
        return f"const {{{names}}} = {_constant((path.parent / found[2]).resolve())};\n"

    exported = [name for _, name in EXPORT.findall(source)]
    body = EXPORT.sub(r"\1", IMPORT.sub(imported, source))
    return f"const {_constant(path)} = (() => {{\n{body}return {{{', '.join(exported)}}};\n}})();"


def _constant(path: Path) -> str:
    return "$" + re.sub(r"\W", "_", path.relative_to(HERE).with_suffix("").as_posix())


def data(values: Any) -> str:
    """The values as JSON that a script element can hold."""
    return json.dumps(values, separators=(",", ":"), allow_nan=False).replace("</", "<\\/")


def explorer_page(notebooks: str, run: Mapping[str, Any] | None = None) -> str:
    """The page.

    notebooks: the way from the page's folder to the notebooks'. run: what `run_data` found of a run, to be shown first.
    """
    template = (HERE / "template.html").read_text()
    constants = VP(), CosineVP()
    section = "" if run is None else (HERE / "run_section.html").read_text()
    parts = {
        "run_section": "" if run is None else fill(section, {name: escape(str(v)) for name, v in run["words"].items()}),
        "run_data": ""
        if run is None
        else f'<script type="application/json" id="run-data">{data(run["data"])}</script>',
        "style": (HERE / "style.css").read_text(),
        "script": script(),
        "numbers": data(numbers()),
        "components": str(COMPONENTS),
        "beta_min": f"{constants[0].beta_min:g}",
        "beta_max": f"{constants[0].beta_max:g}",
        "s": f"{constants[1].s:g}",
        "notebooks": escape(notebooks),
        "colophon": "Written by <code>python -m experiment.explorer</code> from the numbers of <code>sde_lib</code>, "
        "and held against it by tests.",
    }
    parts["contents"] = _contents(template if run is None else parts["run_section"] + template)
    return fill(template, parts)


def fill(template: str, parts: Mapping[str, str]) -> str:
    """The template with each {{name}} replaced, once: what is put in is not looked at again."""
    return re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], template)


def _contents(text: str) -> str:
    headings = re.findall(r'<h2 id="(\w+)-title">(?:\d · )?(.*?)</h2>', text)
    return "".join(f'<li><a href="#{place}">{words}</a></li>' for place, words in headings)
