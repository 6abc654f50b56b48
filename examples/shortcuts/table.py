"""The table of seconds and quality, in Markdown."""

from __future__ import annotations

from collections.abc import Mapping

from examples.shortcuts.judge import Quality
from examples.shortcuts.models import Candidate
from examples.shortcuts.point import Point
from examples.shortcuts.times import STAGES, Times
from runtime.bench.summary import Ratio

MOST_FRECHET, MOST_DROP = 1.25, 1.0  # what a shortcut may cost to be named as the fastest good one
QUALITY_COLUMNS = ("accuracy", "drop in points", "Fréchet ratio", "KL of a token")


def table(times: Mapping[Candidate, Times], qualities: Mapping[Candidate, Quality]) -> str:
    """Return one row for each candidate. The first one is the exact path that the others are compared with.

    Without `qualities` the columns of quality are left out.
    """
    exact = next(iter(times.values())).seconds
    unit, factor = unit_of(exact.median)
    head = ["shortcut", unit, *STAGES, "times as fast (range of the rounds)", *(QUALITY_COLUMNS if qualities else ())]
    lines = [head, ["---"] * len(head)]
    for candidate, found in times.items():
        ratio = Ratio.of(exact, found.seconds)
        spent = (found.seconds.median, *found.stages.values())
        cells = [str(candidate), *(f"{factor * value:.3g}" for value in spent)]
        cells.append(f"{ratio.of_medians:.2f} ({ratio.min:.2f} to {ratio.max:.2f})")
        lines.append(cells + (_quality(qualities[candidate]) if qualities else []))
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def unit_of(seconds: float) -> tuple[str, float]:
    """Return the unit of a column of times like this one, and how many of it are a second."""
    return ("seconds", 1) if seconds >= 1 else ("milliseconds", 1e3)


def _quality(found: Quality) -> list[str]:
    return [f"{found.accuracy:.1%}", str(found.drop), str(found.frechet_ratio), f"{found.kl:.4f}"]


def fastest_good(times: Mapping[Candidate, Times], qualities: Mapping[Candidate, Quality]) -> str:
    """Return a sentence that names the fastest shortcut that costs little."""
    exact, *others = times
    shorter = [c for c in others if c.point != Point() and times[c].seconds.median < times[exact].seconds.median]
    limits = f"at most {MOST_DROP:g} point of accuracy lost and a Fréchet ratio of at most {MOST_FRECHET}"
    # The measured values decide: their intervals are in the table.
    good = [c for c in shorter if qualities[c].lost <= MOST_DROP and qualities[c].frechet <= MOST_FRECHET]
    if not good:
        return f"No shortcut has {limits}."
    best = min(good, key=lambda candidate: times[candidate].seconds.median)
    ratio = Ratio.of(times[exact].seconds, times[best].seconds).of_medians
    return f"The fastest with {limits}: {best}, {ratio:.2f} times as fast."
