"""The plot of the table: seconds against the Fréchet ratio, or bars of seconds where there is no quality."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from examples.shortcuts.judge import Quality
from examples.shortcuts.models import Candidate
from examples.shortcuts.point import Point
from examples.shortcuts.table import unit_of
from examples.shortcuts.times import STAGES, Times
from runtime.bench.summary import Ratio
from runtime.files.atomic import atomic_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDTH = 8  # inches, at 100 dots per inch: about the width of a README
COLOURS = ("#1f5fa8", "#d1690e", "#3a8f3a", "#7a4fa0")  # of precisions
STAGE_COLOURS = dict(zip(STAGES, ("#c44e52", "#4c72b0", "#dd8452", "#55a868", "#999999"), strict=True))
MARKERS = {"exact": "*", "draft": "^", "guided": "o", "tiny": "s", "combined": "D"}


def write_plot(
    path: Path, times: Mapping[Candidate, Times], qualities: Mapping[Candidate, Quality], title: str
) -> None:
    """Write the PNG, atomically. Without `qualities` it shows seconds only."""
    from matplotlib.figure import Figure

    height = 5.5 if qualities else 1.4 + 0.3 * len(times)
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    axes = figure.subplots()
    axes.set_title(title, fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    if qualities:
        _trade(axes, times, qualities)
    else:
        _bars(axes, times)
    encoded = BytesIO()
    figure.savefig(encoded, format="png", dpi=150)
    with atomic_file(path) as file:
        file.write(encoded.getbuffer())


def front(points: Mapping[Candidate, tuple[float, float]]) -> list[Candidate]:
    """Return the candidates that no other one beats in both numbers, the smaller the better; fastest first."""
    found: list[Candidate] = []
    for candidate in sorted(points, key=lambda each: points[each]):
        if not found or points[candidate][1] < points[found[-1]][1]:
            found.append(candidate)
    return found


def _trade(axes: Axes, times: Mapping[Candidate, Times], qualities: Mapping[Candidate, Quality]) -> None:
    """Draw a marker for each candidate, and a line through the Pareto front, whose points have numbers."""
    from matplotlib.ticker import FuncFormatter

    exact = next(iter(times))
    unit, factor = unit_of(times[exact].seconds.median)
    places = {each: (factor * found.seconds.median, qualities[each].frechet) for each, found in times.items()}
    best = front(places)
    axes.plot(*zip(*(places[each] for each in best), strict=True), color="#bbbbbb", linewidth=1, zorder=1)
    precisions = list(dict.fromkeys(each.bundles.precision for each in times))
    labelled: set[str] = set()
    for each, place in places.items():
        kind, colour = _kind(each.point), COLOURS[precisions.index(each.bundles.precision)]
        label = f"{each.bundles.precision} {kind}"
        axes.scatter(
            *place,
            marker=MARKERS[kind],
            s=130 if kind == "exact" else 45,
            color=colour,
            alpha=1 if each in best else 0.45,
            label=label if label not in labelled else None,
            zorder=2,
        )
        labelled.add(label)
    axes.set_yscale("log")
    axes.set_xlim(0, 1.15 * max(x for x, _ in places.values()))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(FuncFormatter(lambda value, _: f"{value:g}" if value < 10 else ""))
    numbered = list(dict.fromkeys([*best, exact]))
    for number, each in enumerate(numbered, 1):
        margin = qualities[each].frechet_margin
        axes.errorbar(*places[each], yerr=margin, color="#cccccc", linewidth=1, capsize=2, zorder=0)
        axes.annotate(str(number), places[each], (5, 4), textcoords="offset points", fontsize=10, fontweight="bold")
    axes.set_xlabel(f"{unit} for one image")
    axes.set_ylabel("Fréchet ratio: 1 is the exact path, lower is nearer to it")
    axes.grid(which="both", alpha=0.2)
    _explain(axes, numbered)


def _explain(axes: Axes, numbered: Sequence[Candidate]) -> None:
    """Write beside the axes what the markers and the numbers mean."""
    from matplotlib.lines import Line2D

    handles, names = axes.get_legend_handles_labels()
    for number, each in enumerate(numbered, 1):
        size = 6 * len(str(number)) ** 0.7
        shape = {"marker": f"${number}$", "markersize": size, "color": "black", "markeredgewidth": 0}
        handles.append(Line2D([], [], linestyle="", **shape))
        names.append(str(each))
    axes.figure.legend(handles, names, loc="outside right upper", fontsize=9, frameon=False)


def _kind(point: Point) -> str:
    kinds = {"draft": point.draft_scales is not None, "guided": point.guidance_scales is not None, "tiny": point.tiny}
    used = [kind for kind, is_used in kinds.items() if is_used]
    return "combined" if len(used) > 1 else "".join(used) or "exact"


def _bars(axes: Axes, times: Mapping[Candidate, Times]) -> None:
    """Draw a bar for each candidate, of its stages, with its time and ratio."""
    exact = next(iter(times.values())).seconds
    unit, factor = unit_of(exact.median)
    rows = list(times.items())
    axes.set_yticks(range(len(rows)), [str(candidate) for candidate, _ in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    for stage, colour in STAGE_COLOURS.items():
        widths = [factor * found.stages[stage] for _, found in rows]
        if any(widths):
            axes.barh(range(len(rows)), widths, left=_before(rows, stage, factor), color=colour, label=stage)
    for row, (_, found) in enumerate(rows):
        text = f" {factor * found.seconds.median:.3g}, {Ratio.of(exact, found.seconds).of_medians:.2f}x"
        axes.text(factor * sum(found.stages.values()), row, text, va="center", fontsize=9)
    axes.set_xlim(0, 1.25 * max(factor * sum(found.stages.values()) for _, found in rows))
    axes.set_xlabel(f"{unit} for one image, and how many times as fast as exact")
    axes.figure.legend(loc="outside lower center", ncols=len(STAGES), fontsize=9, frameon=False)


def _before(rows: Sequence[tuple[Candidate, Times]], stage: str, factor: float) -> list[float]:
    """Return where the bars of a stage begin: behind those of the stages before it."""
    earlier = STAGES[: STAGES.index(stage)]
    return [factor * sum(found.stages[each] for each in earlier) for _, found in rows]
