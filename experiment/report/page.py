"""report.html: one page that needs nothing else, with inline style, pictures as data and a script of its own.

It is light or dark as the reader has it. Without the script it shows every picture and every number; the script adds a
slider over the frames of a path, and a bar's numbers under the pointer.
"""

import base64
import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from experiment.evaluation.curves import INSIDE
from experiment.evaluation.results import (
    MEMORISATION,
    QUALITY,
    Calibration,
    ExactResult,
    GuidanceResult,
    LikelihoodResult,
    Report,
    SamplerResult,
)
from experiment.evaluation.text import number
from experiment.report.document import Document, Figure, Places
from experiment.report.tables import (
    Row,
    calibration_line,
    calibration_rows,
    curve_lines,
    exact_rows,
    guidance_rows,
    likelihood_line,
    score_error_line,
    table_rows,
)

CSS = """
:root { --ground: #fff; --ink: #1d2126; --soft: #5a636e; --line: #dde1e6;
  --card: #f5f6f8; --accent: #0072b2; --warn: #b34a00; }
@media (prefers-color-scheme: dark) {
  :root { --ground: #14171b; --ink: #e7eaee; --soft: #9aa4b0; --line: #2c323a;
    --card: #1c2026; --accent: #56b4e9; --warn: #f0a35e; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 60rem; padding: 2.5rem 1.25rem 4rem; background: var(--ground); color: var(--ink);
  font: 16px/1.55 system-ui, sans-serif; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .3rem; } h2 { font-size: 1.25rem; margin: 2.8rem 0 .6rem; }
p { margin: .5rem 0; } .soft, figcaption, dd { color: var(--soft); } .lead { font-size: 1.08rem; }
.note { background: var(--card); border-left: 3px solid var(--accent); padding: .6rem 1rem; margin: 1rem 0;
  border-radius: 0 6px 6px 0; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: .93rem; }
th, td { text-align: right; padding: .42rem .6rem; border-bottom: 1px solid var(--line); white-space: nowrap; }
thead th { white-space: normal; vertical-align: bottom; }
th:first-child, td:first-child, table.facts td { text-align: left; }
table.facts td { white-space: normal; overflow-wrap: anywhere; }
tr.floor { color: var(--soft); font-style: italic; } .outside { color: var(--warn); font-weight: 600; }
.pictures { display: flex; flex-wrap: wrap; gap: 1rem; } figure { margin: .8rem 0 0; }
figcaption { font-size: .88rem; margin-top: .3rem; }
img { width: 100%; height: auto; display: block; border-radius: 6px; image-rendering: auto; }
dt { font-weight: 600; margin-top: .6rem; } dd { margin: 0; }
pre { background: var(--card); padding: 1rem; overflow-x: auto; border-radius: 6px; font-size: .85rem; }
summary { cursor: pointer; }
.over { position: relative; } .scrub { margin-top: .6rem; } canvas { max-width: 100%; height: auto; display: block; }
.row { display: flex; flex-wrap: wrap; align-items: center; gap: .4rem 1rem; margin-top: .4rem; }
.row input { flex: 1 1 12rem; accent-color: var(--accent); } output { font-variant-numeric: tabular-nums; }
.row button { font: inherit; width: 4.5rem; padding: .15rem 0; color: var(--ink); background: var(--card);
  border: 1px solid var(--line); border-radius: 6px; cursor: pointer; }
.row output { flex: 0 0 12rem; }
.bar { position: absolute; padding: 0; border: 0; background: none; }
.bar:hover { background: #0072b222; } .bar:focus-visible, .row :focus-visible { outline: 2px solid #0072b2; }
.tip { position: absolute; z-index: 1; max-width: min(22rem, 100%); padding: .35rem .6rem; border-radius: 6px;
  background: var(--ink); color: var(--ground); font-size: .85rem; line-height: 1.35; pointer-events: none; }
@media print { .scrub, .tip { display: none; } }
@media (prefers-reduced-motion: reduce) { .row button { display: none; } }
@media (max-width: 40rem) { body { padding: 1.5rem 1rem 3rem; } .pictures figure { width: 100% !important; } }
"""

CALIBRATED = (
    "Of exact draws each coordinate's rank among them is uniform; a small p says that it is not. Truths at the ends "
    "mean draws that are too narrow. Draws that ignore the condition pass as well: the likelihood tells those."
)


SCRIPT = Path(__file__).with_name("page.js")


def html_page(document: Document) -> str:
    """Set out the document as one self-contained page."""
    return page_of(document.title, _head(document), _sections(document), f"<script>\n{SCRIPT.read_text()}</script>")


def page_of(title: str, head: str, sections: Sequence[tuple[str, str]], end: str = "") -> str:
    """A self-contained page: its head, and each section's title and content; one without content is left out."""
    shown = "\n".join(f"<section><h2>{escape(name)}</h2>{content}</section>" for name, content in sections if content)
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><meta name="color-scheme" '
        'content="light dark">'
        f"<title>{escape(title)}</title><style>{CSS}</style></head>\n"
        f"<body>{head}\n{shown}{end}</body></html>\n"
    )


def head_of(title: str, date: str, commit: str, facts: str, boxed: str = "") -> str:
    """The head of a page: its title, when and from which commit it is, and the facts in a sentence."""
    short = commit[:10] + ("+changes" if commit.endswith("+changes") else "")
    return (
        f'<header><h1>{escape(title)}</h1><p class="soft">{escape(date)} · commit {escape(short)}</p>'
        f'<p class="lead">{escape(facts)}</p>{boxed}</header>'
    )


def _sections(document: Document) -> list[tuple[str, str]]:
    """Each section's title and content; the content is empty where the report has no such section."""
    report, figures = document.report, document.figures

    def pictures(section: str) -> str:
        return f'<div class="pictures">{"".join(figure_of(f) for f in figures if f.section == section)}</div>'

    drawn = {figure.section for figure in figures}
    curves = "".join(f"<p>{escape(line)}.</p>" for line in curve_lines(report))
    return [
        ("Quality", _quality(report) + pictures("quality") + _meanings(report)),
        ("Quality over NFE", pictures("curves") + curves if "curves" in drawn else ""),
        ("Guidance", _guidance(report.guidance) + pictures("guidance") if report.guidance else ""),
        ("Against the exact distribution", _exact(report.exact) + pictures("exact") if report.exact else ""),
        ("Samples", pictures("samples")),
        ("From noise to sample", pictures("strips")),
        ("Memorisation", _memorisation(report)),
        ("Likelihood of held-out data", _likelihood(report.likelihood) + pictures("likelihood")),
        ("Calibration", _calibration(report.calibration) + pictures("calibration") if report.calibration else ""),
        ("Training", pictures("training") if "training" in drawn else ""),
        ("Where these numbers come from", _origin(document)),
    ]


def _head(document: Document) -> str:
    report = document.report
    seeds = f"{report.protocol.seeds} seed{'s' * (report.protocol.seeds > 1)}"
    facts = (
        f"{document.workdir} at step {report.checkpoint_step:,}, {report.score}. {report.protocol.n:,} samples for each"
        f" of {seeds} and each sampler, from the same score and the same x_T."
    )
    notes = "".join(f"<p>{escape(note)}</p>" for note in report.notes)
    boxed = f'<div class="note">{notes}</div>' if notes else ""
    return head_of(document.title, document.date, document.origin["git_commit"], facts, boxed)


def _quality(report: Report) -> str:
    size, protocol = report.protocol.compared, report.protocol
    caption = (
        f"Mean ± standard deviation over sample seeds. Smaller is better; coloured: more than {INSIDE:g} floor standard"
        f" deviations above the floor. The floor is {size:,} real examples against {size:,} others, over"
        f" {protocol.splits} random splits of the {protocol.reference} split; samples are held against parts of the"
        f" same size. NFE: network calls per sample. Seconds: for {protocol.n:,} samples, without compilation."
    )
    return table_of(caption, *table_rows(report, QUALITY))


def table_of(caption: str, header: Sequence[str], rows: Sequence[Row]) -> str:
    """A table of these rows under its header, with a caption."""
    body = "".join(
        f"<tr{' class=floor' if row.is_floor else ''}><th>{escape(row.name)}</th>"
        + "".join(f"<td{' class=outside' if cell.outside else ''}>{escape(cell.text)}</td>" for cell in row.cells)
        + "</tr>"
        for row in rows
    )
    return captioned(caption, header, body)


def captioned(caption: str, header: Sequence[str], body: str) -> str:
    """A table under its header, with the rows' HTML and a caption."""
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    return (
        f'<figure><div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def _meanings(report: Report) -> str:
    shown = {metric.label: metric.meaning for metric in report.metrics_of(QUALITY).values()}
    shown |= {name: f"Left out: {reason}." for name, reason in report.left_out.items()}
    return f"<dl>{''.join(f'<dt>{escape(k)}</dt><dd>{escape(v)}</dd>' for k, v in shown.items())}</dl>"


def _guidance(found: GuidanceResult) -> str:
    classes = found.recognised is not None
    within = "within each class, the mean over the classes" if classes else "of all samples"
    caption = (
        f"{found.n:,} samples of each, in {found.steps} steps, told what held-out examples are told. The distance is "
        f"{within}; mean ± standard deviation over random parts of the data, against which it is taken; the floor is "
        "such parts against others."
    )
    if classes:
        caption += (
            " Obeyed: samples of the class that was asked for, by a small classifier trained on the training split; of "
            "the held-out examples it recognises the share in the last row."
        )
    caption += " A scale of 1 is no guidance. Of a larger one the SDE and the ODE sample two distributions."
    return table_of(caption, *guidance_rows(found))


def _exact(exact: ExactResult) -> str:
    header, *rows = exact_rows(exact)
    return captioned(f"{score_error_line(exact)}. {exact.meaning}", header, _body(rows))


def _body(rows: Sequence[Sequence[str]]) -> str:
    return "".join(
        f"<tr><th>{escape(name)}</th>{''.join(f'<td>{escape(cell)}</td>' for cell in cells)}</tr>"
        for name, *cells in rows
    )


def _memorisation(report: Report) -> str:
    meanings = " ".join(metric.meaning for metric in report.metrics_of(MEMORISATION).values())
    caption = meanings + " The floor: half of the held-out examples against the other half."
    return table_of(caption, *table_rows(report, MEMORISATION))


def _likelihood(found: LikelihoodResult) -> str:
    line = likelihood_line(found)
    return f'<p>{escape(line[0].upper() + line[1:])}.</p><div class="note"><p>{escape(found.caveat)}</p></div>'


def _calibration(found: Calibration) -> str:
    header, *rows = calibration_rows(found)
    line = calibration_line(found)
    return captioned(f"{line[0].upper() + line[1:]}. {CALIBRATED}", header, _body(rows))


def _origin(document: Document) -> str:
    origin, protocol, data = document.origin, document.report.protocol, document.report.dataset
    versions = {"Python": origin["python"], **origin["versions"]}
    facts = {
        "command": document.command,
        "data": f"{data.name}, {' × '.join(map(str, data.shape))}, {data.train:,} to train on, {data.test:,} held out",
        "seeds": f"samples {protocol.seed} to {protocol.seed + protocol.seeds - 1}, training {document.config['seed']}",
        "device": f"{origin['device']} ({origin['devices']})",
        "git commit": origin["git_commit"],
        "trained at commit": (document.trained_with or {}).get("git_commit", "unknown"),
        "versions": ", ".join(f"{package} {version}" for package, version in versions.items()),
    }
    facts |= {f"sampler {name}": _settings(sampler) for name, sampler in document.report.samplers.items()}
    return facts_of(facts, document.config)


def facts_of(facts: Mapping[str, object], config: Mapping[str, object]) -> str:
    """A table of facts, and the whole config behind a fold."""
    whole = escape(json.dumps(config, indent=2))
    return f"{facts_table(facts)}<details><summary>The whole config</summary><pre>{whole}</pre></details>"


def facts_table(facts: Mapping[str, object]) -> str:
    """A table of facts, each with its name."""
    rows = "".join(f"<tr><th>{escape(k)}</th><td>{escape(str(v))}</td></tr>" for k, v in facts.items())
    return f'<div class="scroll"><table class="facts"><tbody>{rows}</tbody></table></div>'


def _settings(sampler: SamplerResult) -> str:
    settings = ", ".join(f"{k} {v}" for k, v in sampler.settings.items() if k != "class")
    return f"{sampler.settings['class']}: {settings}; compiled in about {number(sampler.compile_seconds, 2)} s"


def figure_of(figure: Figure) -> str:
    """A figure with its caption, of its own width where the page has room."""
    caption = escape(figure.caption)
    narrow = f'<source media="(max-width: 40rem)" srcset="{_data(figure.narrow)}">' if figure.narrow else ""
    places = "" if figure.places is None else _places(figure.places)
    return (
        f'<figure style="width: {100 * figure.width:g}%"{places}><picture>{narrow}<img alt="{caption}" '
        f'src="{_data(figure.png)}"></picture><figcaption>{caption}</figcaption></figure>'
    )


def _places(places: Places) -> str:
    """The attribute that the page's script reads."""
    narrow = {} if places.kind == "frames" else {"narrow": places.narrow}  # its frames are those of the wide picture
    told = json.dumps({"texts": list(places.texts), "wide": places.wide, **narrow}, separators=(",", ":"))
    return f' data-{places.kind}="{escape(told)}"'


def _data(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"
