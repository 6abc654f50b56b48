"""A line chart as SVG, without scripts or embedded fonts, readable in light and dark mode."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

WIDTH, HEIGHT = 340, 208
LEFT, RIGHT, TOP, BOTTOM = 50, 12, 30, 24
COLOURS = ("#2f81f7", "#d9730d", "#2da44e", "#a855f7", "#c93c6f", "#0891b2")
SMALLEST = 1e-12  # a logarithmic axis shows 0 as this


def colour(line: int) -> str:
    """Return the colour of a line of a chart."""
    return COLOURS[line % len(COLOURS)]


def chart(title: str, lines: Sequence[Sequence[float]], logarithmic: bool) -> str:
    """Return one `<svg>` of lines with a value for each scale; values that are not finite are left out."""
    heights = [[_height(value, logarithmic) for value in line] for line in lines]
    known = [height for row in heights for height in row if math.isfinite(height)] or [0.0]
    low, high = (math.floor(min(known)), math.ceil(max(known))) if logarithmic else (min(known), max(known))
    if high - low < 1e-9:
        low, high = low - 0.5, high + 0.5
    count = max(map(len, lines), default=1)

    def x(k: int) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * k / max(count - 1, 1)

    def y(height: float) -> float:
        return TOP + (HEIGHT - TOP - BOTTOM) * (high - height) / (high - low)

    parts = [
        f"<svg viewBox='0 0 {WIDTH} {HEIGHT}' role='img' aria-label='{escape(title)}'",
        " font-size='10' fill='currentColor'>",
        f"<text x='{LEFT}' y='16' font-size='12' font-weight='600'>{escape(title)}</text>",
    ]
    for tick in _ticks(low, high, logarithmic):
        text = f"1e{tick:.0f}" if logarithmic else f"{tick:.2%}"
        parts.append(
            f"<line x1='{LEFT}' x2='{WIDTH - RIGHT}' y1='{y(tick):.1f}' y2='{y(tick):.1f}' stroke='currentColor'"
            f" stroke-opacity='.18'/><text x='{LEFT - 5}' y='{y(tick) + 3.5:.1f}' text-anchor='end'>{text}</text>"
        )
    for k in range(count):
        text = str(k or "scale 0")
        parts.append(f"<text x='{x(k):.1f}' y='{HEIGHT - BOTTOM + 14}' text-anchor='middle'>{text}</text>")
    for i, row in enumerate(heights):
        points = [f"{x(k):.1f},{y(height):.1f}" for k, height in enumerate(row) if math.isfinite(height)]
        parts.append(f"<polyline points='{' '.join(points)}' fill='none' stroke='{colour(i)}' stroke-width='1.8'/>")
        parts += [f"<circle cx='{p.split(',')[0]}' cy='{p.split(',')[1]}' r='2.4' fill='{colour(i)}'/>" for p in points]
    return "".join([*parts, "</svg>"])


def _height(value: float, logarithmic: bool) -> float:
    if not math.isfinite(value):
        return math.nan
    return math.log10(max(value, SMALLEST)) if logarithmic else value


def _ticks(low: float, high: float, logarithmic: bool) -> list[float]:
    if not logarithmic:
        return [low + (high - low) * i / 4 for i in range(5)]
    step = max(1, math.ceil((high - low) / 6))
    return [float(tick) for tick in range(int(low), int(high) + 1, step)]
