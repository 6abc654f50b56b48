"""The report of an INT8 bundle: its plan, and with a budget what was measured."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from calibration.plan import Plan
from calibration.record import Calibration, Settings
from calibration.sensitivity import Sensitivity, table
from calibration.sites import Site
from export.verify.fidelity import Fidelity
from export.verify.interval import Estimate

HEAT_MAP = "sensitivity.png"


@dataclass(frozen=True)
class Outcome:
    """A plan that keeps a budget: what it should cost, and what it costs."""

    budget: float  # mean KL of the scales, nats
    sensitivity: Sensitivity
    expected: Estimate  # the sum of the losses of its layers
    measured: Fidelity  # of the whole plan, on other images

    @property
    def sentence(self) -> str:
        return f"mean KL of the scales {self.expected} expected, {self.measured.estimate} measured"


def report(
    target: str,
    scales: str,
    method: str,
    calibration: Calibration,
    plan: Plan,
    sites: Sequence[Site],
    outcome: Outcome | None,
) -> str:
    """Return the report as Markdown: one section after the other."""
    layers = _layers(plan, sites) if outcome is None else table(outcome.sensitivity, plan)
    sections = [f"# INT8 for {target}", _ranges(scales, method, calibration), f"Layers: {counted(plan)}."]
    if outcome:
        sections += [_budget(outcome, calibration.settings), f"![sensitivity]({HEAT_MAP})"]
    return "\n\n".join([*sections, layers.rstrip()]) + "\n"


def counted(plan: Plan) -> str:
    """Return how many layers have each kind."""
    return ", ".join(f"{count} {kind}" for kind, count in Counter(plan.values()).most_common())


def _ranges(scales: str, method: str, calibration: Calibration) -> str:
    if not calibration.count:
        return "No pictures were drawn: no layer has calibrated ranges."
    scaling = calibration.settings.channel_scaling
    drawn = f"{calibration.count} pictures drawn for {_drawn_with(calibration.settings)}"
    return f"Ranges: {method} of {drawn}, smoothing {scaling}; scales: {scales}."


def _budget(outcome: Outcome, settings: Settings) -> str:
    measured, count = outcome.measured, outcome.sensitivity.images
    lines = [
        f"Budget: a mean KL of the scales of {outcome.budget:g} nats, for {_drawn_with(settings)}.",
        "With other settings the KL is another; python -m export.fidelity measures it.",
        "",
        "| the plan | mean KL of the scales, with its 95 % interval | images at every scale |",
        "|---|---|---|",
        f"| expected: the sum of its layers | {outcome.expected} | {count} |",
        f"| measured, on other images | {measured.estimate} | {measured.images} |",
        "",
        f"Measured besides: top-1 agreement {measured.agreement:.1%}, PSNR of pictures from equal tokens "
        f"{measured.psnr:.1f} dB.",
    ]
    return "\n".join(lines)


def _drawn_with(settings: Settings) -> str:
    return f"cfg {settings.cfg:g}, top-k {settings.top_k}, top-p {settings.top_p:g}"


def _layers(plan: Plan, sites: Sequence[Site]) -> str:
    return "\n".join(["| layer | plan |", "|---|---|", *(f"| {site.key} | {plan[site.key]} |" for site in sites)])
