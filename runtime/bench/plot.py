"""Plot a report: where the time of an image goes, with one bar for each kind of run."""

from __future__ import annotations

from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ..bundle.names import TINY_DECODER
from ..drafted import DRAFT
from ..files.atomic import atomic_file
from .report import BatchTimes, Report
from .tables import seconds

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOUR_MAPS = {
    "condition": "Purples",
    "transformer": "Blues",
    "bridge": "Oranges",
    "step": "Blues",  # transformer and bridge together, if an engine records them as one CUDA graph
    "decoder": "Greens",
    TINY_DECODER: "YlGn",
    **{DRAFT + graph: "Reds" for graph in ("condition", "transformer", "bridge", "step")},
}
OUTSIDE, RIVAL = "#999999", "#d4d4d4"
LABELLED = 0.03  # share of the axis above which a segment has room for text

Segment = tuple[float, str, str]  # seconds per image, colour, text


class Bar(NamedTuple):
    """One kind of run: its median seconds per image, and those of its parts."""

    name: str
    whole: float
    segments: list[Segment]


def write_plot(path: Path, report: Report) -> None:
    """Write a PNG of seconds per image, stacked by graph (colour) and scale (from pale to dark)."""
    from matplotlib.figure import Figure

    bars = list(_bars(report))
    figure = Figure(figsize=(4.5 + 1.3 * len(bars), 6), layout="constrained")
    axes = figure.subplots()
    highest = max(bar.whole for bar in bars)
    axes.set_ylim(0, 1.1 * highest)
    axes.set_xticks(range(len(bars)), [bar.name for bar in bars])
    for x, bar in enumerate(bars):
        _stack(axes, x, bar, LABELLED * highest)
    _explain(axes, report)
    encoded = BytesIO()
    figure.savefig(encoded, format="png", dpi=150)
    with atomic_file(path) as file:
        file.write(encoded.getbuffer())


def _bars(report: Report) -> Iterator[Bar]:
    for times in report.batches:
        yield Bar(f"runtime\nbatch {times.batch}", times.seconds.median / times.batch, _runtime(times))
        for rival in times.rivals:
            whole = rival.seconds.median / times.batch
            yield Bar(f"{rival.name}\nbatch {times.batch}", whole, [(whole, RIVAL, "")])


def _runtime(times: BatchTimes) -> list[Segment]:
    """Return the segments graph by graph, each graph from the first scale to the last."""
    last = max(stage.scale or 0 for stage in times.stages)
    segments = []
    for graph in COLOUR_MAPS:
        for stage in times.stages:
            if stage.graph == graph:
                shade = 1.0 if stage.scale is None else stage.scale / last
                text = graph if stage.scale is None else f"{graph} {stage.scale}"
                segments.append((stage.seconds / times.batch, _colour(graph, shade), text))
    return [*segments, (times.outside_graphs / times.batch, OUTSIDE, "outside")]


def _colour(graph: str, shade: float) -> str:
    """Return the colour of a graph, from pale (shade 0) to dark (shade 1)."""
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    return to_hex(colormaps[COLOUR_MAPS[graph]](0.25 + 0.45 * shade))


def _stack(axes: Axes, x: int, bar: Bar, room: float) -> None:
    """Draw one bar, with text in segments higher than `room` and the total time on top."""
    bottom = 0.0
    for height, colour, text in bar.segments:
        axes.bar(x, height, bottom=bottom, color=colour, edgecolor="white", linewidth=0.3)
        if height > room:
            axes.text(x, bottom + height / 2, text, ha="center", va="center", fontsize=7, zorder=3)
        bottom += height
    axes.text(x, bottom, seconds(bar.whole), ha="center", va="bottom", fontweight="bold")


def _explain(axes: Axes, report: Report) -> None:
    from matplotlib.patches import Patch

    floor, stages = report.floor, report.batches[0].stages
    scales = len({stage.scale for stage in stages if stage.scale is not None})
    graphs = {stage.graph for stage in stages}
    line = axes.axhline(floor.seconds_per_picture, color="black", linewidth=0.8, linestyle="--")
    line.set_label(f"float32 floor at {floor.flop_per_second / 1e9:.0f} GFLOP/s")
    patches = [Patch(color=_colour(graph, 0.6), label=graph) for graph in COLOUR_MAPS if graph in graphs]
    axes.legend(handles=[*reversed(patches), line], loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    axes.set_ylabel("seconds per picture (medians)")
    axes.spines[["top", "right"]].set_visible(False)
    bundle, machine = report.bundle, report.machine
    drafted = f"{report.draft.name} {report.draft.precision}, then " if report.draft else ""
    title = f"{drafted}{bundle.name} {bundle.precision}, {report.backend}, {scales} scales\n"
    axes.set_title(title + f"{machine.cpu}, {report.threads} thread(s), {report.date:.10}", fontsize=10)
