"""report.html: one page that needs nothing else. Inline style, pictures as data, no script; light or dark as the reader
has it.
"""

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from experiment.evaluation.comparison import QUALITY
from experiment.evaluation.curves import INSIDE
from experiment.evaluation.text import number
from experiment.report.tables import curve_lines, exact_rows, likelihood_line, score_error_line, table_rows


@dataclass(frozen=True)
class Figure:
    """A picture of the report: `section` is where it stands, `width` its share of the page's width."""

    file: str
    section: str
    caption: str
    png: bytes
    width: float = 1.0


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
p { margin: .5rem 0; } .soft, figcaption, caption, dd { color: var(--soft); } .lead { font-size: 1.08rem; }
.note { background: var(--card); border-left: 3px solid var(--accent); padding: .6rem 1rem; margin: 1rem 0;
  border-radius: 0 6px 6px 0; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: .93rem; }
caption { caption-side: bottom; text-align: left; padding-top: .5rem; font-size: .88rem; }
th, td { text-align: right; padding: .42rem .6rem; border-bottom: 1px solid var(--line); white-space: nowrap; }
thead th { white-space: normal; vertical-align: bottom; }
th:first-child, td:first-child, table.facts td { text-align: left; } table.facts td { white-space: normal; }
tr.floor { color: var(--soft); font-style: italic; } .outside { color: var(--warn); font-weight: 600; }
.pictures { display: flex; flex-wrap: wrap; gap: 1rem; } figure { margin: .8rem 0 0; }
figcaption { font-size: .88rem; margin-top: .3rem; }
img { width: 100%; height: auto; display: block; border-radius: 6px; image-rendering: auto; }
dt { font-weight: 600; margin-top: .6rem; } dd { margin: 0; }
pre { background: var(--card); padding: 1rem; overflow-x: auto; border-radius: 6px; font-size: .85rem; }
summary { cursor: pointer; }
"""


def html_page(report: Mapping[str, Any], figures: Sequence[Figure]) -> str:
    """One self-contained page: inline style, pictures as data, nothing loaded from elsewhere, no script."""

    def pictures(section: str) -> str:
        return f'<div class="pictures">{"".join(_figure(f) for f in figures if f.section == section)}</div>'

    sections = [
        ("Quality", _quality(report) + pictures("quality") + _meanings(report)),
        ("Quality over NFE", pictures("curves") + "".join(f"<p>{escape(line)}.</p>" for line in curve_lines(report))),
        ("Against the exact law", _exact(report) + pictures("exact")),
        ("Samples", pictures("samples")),
        ("From noise to sample", pictures("strips")),
        ("Memorisation", _memorisation(report)),
        ("Likelihood of held-out data", _likelihood(report) + pictures("likelihood")),
        ("Training", pictures("training")),
        ("Where these numbers come from", _origin(report)),
    ]
    shown = {f.section for f in figures} | ({"exact"} if report["exact"] else set())
    optional = {"Training": "training", "Quality over NFE": "curves", "Against the exact law": "exact"}
    body = "\n".join(
        f"<section><h2>{escape(title)}</h2>{content}</section>"
        for title, content in sections
        if optional.get(title) in {None, *shown}
    )
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><meta name="color-scheme" '
        'content="light dark">'
        f"<title>{escape(report['title'])}</title><style>{CSS}</style></head>\n<body>{_head(report)}\n{body}</body></html>\n"
    )


def _head(report: Mapping[str, Any]) -> str:
    protocol = report["protocol"]
    facts = (
        f"{report['workdir']} at step {report['checkpoint_step']:,}, {report['score']}. {protocol['n']:,} samples "
        "for each of"
        f" {protocol['seeds']} seed{'s' * (protocol['seeds'] > 1)} and each sampler, from the same score and the "
        "same x_T."
    )
    notes = "".join(f"<p>{escape(note)}</p>" for note in report["notes"])
    boxed = f'<div class="note">{notes}</div>' if notes else ""
    return (
        f'<header><h1>{escape(report["title"])}</h1><p class="soft">{escape(report["date"])} · commit'
        f" {escape(report['git_commit'][:10] + ('+changes' if report['git_commit'].endswith('+changes') else ''))}</p>"
        f'<p class="lead">{escape(facts)}</p>{boxed}</header>'
    )


def _quality(report: Mapping[str, Any]) -> str:
    size = report["protocol"]["compared"]
    return _table(
        report,
        QUALITY,
        f"Mean ± standard deviation over sample seeds. Smaller is better; coloured: more than {INSIDE:g} floor standard"
        f" deviations above the floor. The floor is {size:,} real examples against {size:,} others, over"
        f" {report['protocol']['splits']} random splits of the {report['protocol']['reference']} split; samples are "
        "held against"
        f" parts of the same size. NFE: network calls per sample. Seconds: for {report['protocol']['n']:,} samples, "
        "without compilation.",
    )


def _table(report: Mapping[str, Any], kind: str, caption: str) -> str:
    header, rows = table_rows(report, kind)
    body = "".join(
        f"<tr{' class=floor' if name == 'noise floor' else ''}><th>{escape(name)}</th>"
        + "".join(f"<td{' class=outside' if out else ''}>{escape(text)}</td>" for text, out in cells)
        + "</tr>"
        for name, cells in rows
    )
    return _captioned(caption, header, body)


def _captioned(caption: str, header: Sequence[str], body: str) -> str:
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    return (
        "<div "
        f'class="scroll"><table><caption>{escape(caption)}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
    )


def _meanings(report: Mapping[str, Any]) -> str:
    shown = {m["label"]: m["meaning"] for m in report["metrics"].values() if m["kind"] == QUALITY}
    shown |= {name: f"Left out: {reason}." for name, reason in report["left_out"].items()}
    return f"<dl>{''.join(f'<dt>{escape(k)}</dt><dd>{escape(v)}</dd>' for k, v in shown.items())}</dl>"


def _exact(report: Mapping[str, Any]) -> str:
    if not report["exact"]:
        return ""
    header, *rows = exact_rows(report["exact"])
    body = "".join(
        f"<tr><th>{escape(name)}</th>{''.join(f'<td>{escape(cell)}</td>' for cell in cells)}</tr>"
        for name, *cells in rows
    )
    caption = f"{score_error_line(report['exact'])}. {report['exact']['meaning']}"
    return _captioned(caption, header, body)


def _memorisation(report: Mapping[str, Any]) -> str:
    meanings = " ".join(m["meaning"] for m in report["metrics"].values() if m["kind"] != QUALITY)
    return _table(
        report, "memorisation", meanings + " The floor: half of the held-out examples against the other half."
    )


def _likelihood(report: Mapping[str, Any]) -> str:
    line = likelihood_line(report["likelihood"])
    return (
        f"<p>{escape(line[0].upper() + line[1:])}.</p><div "
        f'class="note"><p>{escape(report["likelihood"]["caveat"])}</p></div>'
    )


def _origin(report: Mapping[str, Any]) -> str:
    data = report["dataset"]
    facts = {
        "command": report["command"],
        "data": f"{data['name']}, {' × '.join(map(str, data['shape']))}, {data['train']:,} to train on, "
        f"{data['test']:,} held out",
        "seeds": f"samples {report['seed']} to {report['seed'] + report['protocol']['seeds'] - 1}, training "
        f"{report['config']['seed']}",
        "device": f"{report['device']} ({report['devices']})",
        "git commit": report["git_commit"],
        "trained at commit": (report["trained_with"] or {}).get("git_commit", "unknown"),
        "versions": ", ".join(f"{k} {v}" for k, v in {"Python": report["python"], **report["versions"]}.items()),
    }
    facts |= {f"sampler {k}": _settings(d) for k, d in report["samplers"].items()}
    rows = "".join(f"<tr><th>{escape(k)}</th><td>{escape(str(v))}</td></tr>" for k, v in facts.items())
    config = escape(json.dumps(report["config"], indent=2))
    return (
        f'<div class="scroll"><table class="facts"><tbody>{rows}</tbody></table></div>'
        f"<details><summary>The whole config</summary><pre>{config}</pre></details>"
    )


def _settings(sampler: Mapping[str, Any]) -> str:
    settings = ", ".join(f"{k} {v}" for k, v in sampler["settings"].items() if k != "class")
    return f"{sampler['settings']['class']}: {settings}; compiled in about {number(sampler['compile_seconds'], 2)} s"


def _figure(figure: Figure) -> str:
    data = base64.b64encode(figure.png).decode()
    caption = escape(figure.caption)
    return (
        f'<figure style="width: {100 * figure.width:g}%"><img alt="{caption}" src="data:image/png;base64,{data}">'
        f"<figcaption>{caption}</figcaption></figure>"
    )
