"""report.html: one file for a browser or a phone, without script, network or other files."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator
from html import escape
from pathlib import Path

import numpy as np
from PIL import Image

from export.verify.plot import chart, colour
from export.verify.report import COLUMNS, Entry, Report, shown
from export.verify.tolerances import LIMITS
from runtime.files.atomic import atomic_directory
from runtime.files.outputs import REPORT

JSON, HTML = "report.json", "report.html"
PICTURES = 4  # images to show
AMPLIFIED = 16  # factor that makes differences visible
PLOTS = (
    ("relative", "Logits: relative error", True),
    ("kl", "Next token: KL divergence, nats", True),
    ("top1", "Next token: top-1 agreement", False),
)

STYLE = """
:root { color-scheme: light dark; --ink: #1c2430; --paper: #fff; --soft: #5b6675; --line: #d9dee5; --bad: #b42318;
  --good: #1a7f37; --card: #f5f7f9; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6eaf0; --paper: #14181e; --soft: #97a3b3; --line: #333c48;
  --bad: #ff7b72; --good: #56d364; --card: #1c222b; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 64rem; font: 16px/1.5 system-ui, sans-serif; color: var(--ink);
  background: var(--paper); }
h1 { font-size: 1.5rem; margin: .5rem 0; } h2 { font-size: 1.15rem; margin: 2rem 0 .5rem; }
p { margin: .4rem 0; }
.soft, .absent, .shown { color: var(--soft); } .passed { color: var(--good); } .FAILED { color: var(--bad); }
.verdict { font-weight: 600; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(15rem, 1fr)); gap: .75rem; }
.card { background: var(--card); border-radius: .5rem; padding: .75rem; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(17rem, 1fr)); gap: .75rem; }
svg { width: 100%; height: auto; }
.pictures { display: grid; grid-template-columns: repeat(auto-fill, minmax(8rem, 1fr)); gap: .5rem;
  margin-bottom: 1rem; }
figure { margin: 0; }
figure img { width: 100%; image-rendering: pixelated; border-radius: .25rem; display: block; margin-bottom: .25rem; }
figcaption { font-size: .75rem; color: var(--soft); overflow-wrap: anywhere; }
.legend { display: flex; flex-wrap: wrap; gap: .25rem 1.25rem; font-size: .8rem; margin: .5rem 0; }
.legend i { display: inline-block; width: .8rem; height: .3rem; margin-right: .4rem; vertical-align: middle; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .8rem; font-variant-numeric: tabular-nums; }
th, td { padding: .2rem .6rem .2rem 0; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--line); }
th:first-child, td:first-child, td:last-child { text-align: left; }
details { margin: .5rem 0; } summary { cursor: pointer; }
"""


def write(report: Report, folder: Path) -> None:
    """Write report.json and report.html into the directory `folder`, which replaces an earlier one. Raises OSError."""
    with atomic_directory(folder, REPORT) as beside:
        write_files(report, beside)


def write_files(report: Report, folder: Path) -> None:
    """Write both files into an existing directory."""
    document = json.dumps(report.to_json(), indent=1, allow_nan=False)
    (folder / JSON).write_text(document + "\n", encoding="utf-8")
    (folder / HTML).write_text(page(report), encoding="utf-8")


def page(report: Report) -> str:
    """Return the whole HTML document."""
    verdict = "passed" if report.passed else "FAILED"
    parts = [
        f"<h1>{escape(report.model)}: <span class='{verdict}'>{verdict}</span></h1>",
        f"<p class='soft'>Against {escape(report.reference.name)}, {escape(report.settings)}. {report.created}</p>",
        "<div class='cards'>",
        *(_card(entry) for entry in report.entries),
        "</div>",
        *_plots(report),
        *_pictures(report),
        *_tables(report),
        _tolerances(),
    ]
    title = escape(f"{report.model} {verdict}")
    return (
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<title>{title}</title><style>{STYLE}</style></head><body>{''.join(parts)}</body></html>\n"
    )


def _card(entry: Entry) -> str:
    lines = [f"<b>{escape(entry.artifact.name)}</b> <span class='verdict {entry.status}'>{escape(entry.status)}</span>"]
    if entry.reason:
        lines.append(f"<span class='soft'>{escape(entry.reason)}</span>")
    else:
        lines.append(f"<span class='soft'>{escape(entry.title)}</span>")
        verdicts = [row.verdict for row in entry.rows]
        judged = verdicts.count("passed") + verdicts.count("FAILED")
        lines.append(f"{verdicts.count('passed')} of {judged} rows within tolerance")
    if entry.failed:
        first = entry.failed[0]
        lines.append(f"First: <b class='FAILED'>{escape(first.name)}</b>: {escape(first.remark)}")
    if entry.finding:
        lines.append(f"Bisected: {escape(str(entry.finding))}")
    return f"<div class='card'>{'<br>'.join(lines)}</div>"


def _plots(report: Report) -> Iterator[str]:
    """Yield the plots of errors by scale, with a line for each artifact."""
    ran = [entry for entry in report.entries if entry.rows]
    yield "<h2>Scale by scale, with the reference's tokens</h2><div class='legend'>"
    for i, entry in enumerate(ran):
        yield f"<span><i style='background:{colour(i)}'></i>{escape(entry.artifact.name)}</span>"
    yield "</div><div class='plots'>"
    for metric, title, logarithmic in PLOTS:
        lines = [[row.metrics[metric] for row in entry.rows if row.stage == "transformer"] for entry in ran]
        yield f"<div class='card'>{chart(title, lines, logarithmic)}</div>"
    yield "</div>"


def _pictures(report: Report) -> Iterator[str]:
    """Yield the images of every artifact, from the reference's tokens and from its own tokens."""
    known = report.reference.images
    for title, field, note in (
        ("Images from the reference's tokens", "led", f"Below each, its difference, amplified {AMPLIFIED} times."),
        ("Images generated freely with equal seeds", "free", "Once a token differs, the images diverge."),
    ):
        yield f"<h2>{title}</h2><p class='soft'>{note}</p>"
        for i in range(min(PICTURES, len(known))):
            yield "<div class='pictures'>" + _figure(report.reference.name, known[i])
            for entry in report.entries:
                images = getattr(entry, field)
                if images is None:
                    continue
                difference = (np.abs(images[i].astype(int) - known[i]) * AMPLIFIED).clip(max=255).astype(np.uint8)
                yield _figure(entry.artifact.name, images[i], *([difference] if field == "led" else []))
            yield "</div>"


def _figure(caption: str, *images: np.ndarray) -> str:
    """Return images (H, W, 3) uint8, one below the other, as an HTML figure."""
    text = escape(caption)
    pictures = []
    for image in images:
        file = io.BytesIO()
        Image.fromarray(image).save(file, format="png")
        data = base64.b64encode(file.getvalue()).decode()
        pictures.append(f"<img alt='{text}' src='data:image/png;base64,{data}'>")
    return f"<figure><figcaption>{text}</figcaption>{''.join(pictures)}</figure>"


def _tables(report: Report) -> Iterator[str]:
    yield "<h2>Every stage</h2>"
    for entry in report.entries:
        if not entry.rows:
            continue
        used = [name for name in COLUMNS if any(name in row.metrics for row in entry.rows)]
        head = "".join(f"<th>{name}</th>" for name in used)
        body = []
        for row in entry.rows:
            cells = "".join(f"<td>{shown(name, row.metrics.get(name))}</td>" for name in used)
            remark = f"<td class='{row.verdict}'>{escape(row.remark)}</td>"
            body.append(f"<tr><td>{escape(row.name)}</td>{cells}{remark}</tr>")
        opened = " open" if entry.failed else ""
        yield (
            f"<details{opened}><summary>{escape(entry.title)}</summary><div class='wide'><table>"
            f"<tr><th>stage</th>{head}<th></th></tr>{''.join(body)}</table></div></details>"
        )


def _tolerances() -> str:
    rows = []
    for precision, stages in LIMITS.items():
        for stage, limits in stages.items():
            text = ", ".join(f"{name} {value:g}" for name, value in limits.items())
            rows.append(f"<tr><td>{precision}</td><td>{stage}</td><td>{text}</td></tr>")
    return (
        "<details><summary>Tolerances</summary><div class='wide'><table><tr><th>precision</th><th>stage</th><th>limits"
        f"</th></tr>{''.join(rows)}</table></div></details>"
    )
