"""Measure what every technique gains: python -m calibration.ablation. Each row of the table adds one technique."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path

import click

from calibration.bench import Bench
from calibration.budget import within_budget
from calibration.bundle import quantize_bundle
from calibration.collect import collect
from calibration.plan import DIGITS, FLOAT, INT8, MIXED, ROW, SCALE, Plan, default_plan
from calibration.record import Calibration, Settings
from calibration.sensitivity import measure
from calibration.sites import Site, all_sites
from calibration.target import TARGETS, Target
from export.verify.fidelity import Fidelity, Teacher
from runtime import limits
from runtime.bundle.manifest import Manifest
from runtime.cli import FILE, Number, command, reports_errors
from runtime.files.atomic import scratch_directory
from runtime.files.outputs import INT8_BUNDLE, check_directory
from runtime.pipeline import Pipeline
from runtime.progress import Progress, progress_bar


@dataclass(frozen=True)
class Row:
    name: str
    plan: Plan
    calibration: Calibration
    target: Target
    method: str


def rows(
    bundle: Path, sites: Sequence[Site], target: str, plain: Calibration, scaled: Calibration, planned: Plan | None
) -> list[Row]:
    """Return the rows of the table, from the INT8 of a generic tool to the plan of this project."""
    everything = {site.key: INT8 for site in sites}
    static = default_plan(sites, SCALE)
    high = {k: FLOAT if kind == FLOAT else INT8 for k, kind in static.items()}
    digits = {k: DIGITS if kind == DIGITS and k.startswith("condition") else high[k] for k, kind in static.items()}
    without_images = Calibration(plain.bundle, plain.settings)
    whole = TARGETS[target]
    naive = replace(whole, per_channel=False)
    found = [
        Row("naive: everything INT8, one scale a tensor, min-max", everything, for_all_scales(plain), naive, "minmax"),
        Row("+ weights with a scale for each output channel", everything, for_all_scales(plain), whole, "minmax"),
        Row("+ activations with a scale for each scale", everything, plain, whole, "minmax"),
        Row("+ ranges of least squared error", everything, plain, whole, "mse"),
        Row("  percentile in its place", everything, plain, whole, "percentile"),
        Row("+ channels scaled into AdaLN", everything, scaled, whole, "mse"),
        Row("+ head, attention, first and last convolution float", high, scaled, whole, "mse"),
        Row("+ condition in two digits", digits, scaled, whole, "mse"),
        Row("+ fc2 in two digits (--scales scale)", static, scaled, whole, "mse"),
        Row(
            "+ activations with a scale for each row (--scales mixed)",
            default_plan(sites, MIXED),
            scaled,
            whole,
            "mse",
        ),
        Row(
            "  without images, channel scaling and INT8 in the decoder (--scales row)",
            default_plan(sites, ROW),
            without_images,
            whole,
            "mse",
        ),
    ]
    return (
        [*found, Row("+ the most sensitive layers in two digits", planned, scaled, whole, "mse")] if planned else found
    )


def for_all_scales(calibration: Calibration) -> Calibration:
    """Return a copy of the calibration with one range for all scales."""
    merged = deepcopy(calibration)
    for name, histograms in merged.histograms.items():
        for other in histograms[1:]:
            histograms[0].merge(other)
        merged.histograms[name] = [histograms[0]] * len(histograms)
    return merged


def study(
    bundle: Path,
    target: str,
    images: int,
    tokens: int,
    batch: int,
    budget: float | None,
    scratch: Path,
    naive: Path | None,
    progress: Progress,
) -> list[tuple[str, Fidelity]]:
    """Measure the fidelity of every row to FP32; return it by the row's name. Raises VarEdgeError."""
    sites = all_sites(bundle, Manifest.load(bundle, verify=False))
    plain = collect(bundle, scratch / "plain.json", images, Settings(channel_scaling="none"), 0, progress, sites)
    scaled = collect(bundle, scratch / "scaled.json", images, Settings(), 0, progress, sites)
    planned = None
    if budget is not None:
        bench = Bench(bundle, sites, scaled, target, MIXED, "mse")
        sensitivity = measure(bench, scratch / "sensitivity.json", progress)
        planned = within_budget(sites, default_plan(sites, MIXED), sensitivity, budget)
    teacher = Teacher.draw(Pipeline(bundle, verify=False), tokens, sizes=(batch,))
    wanted = rows(bundle, sites, target, plain, scaled, planned)
    results = []
    for i, row in enumerate(wanted):
        progress(row.name, i, len(wanted))
        out = naive if naive and i == 0 else scratch / "bundle"
        quantize_bundle(bundle, out, row.calibration, row.plan, row.target, row.method)
        results.append((row.name, teacher.compare(Pipeline(out, verify=False))))
    return results


def table(results: Sequence[tuple[str, Fidelity]]) -> str:
    """Return the results as a Markdown table."""
    lines = [
        "| plan | KL of a token | mean KL of the scales | top-1 agreement | logit error at the last scale "
        "| PSNR of pictures |",
        "|---|---|---|---|---|---|",
    ]
    for name, found in results:
        logits = f"{found.agreement:.1%} | {found.scales[-1].logit_error:.3f}"
        lines.append(f"| {name.strip()} | {found.kl:.4f} | {found.estimate} | {logits} | {found.psnr:.1f} dB |")
    return "\n".join(lines)


@command()
@click.argument("bundle", type=FILE)
@click.option("--target", type=click.Choice(["trt", "cpu"]), default="trt", help="What runs the bundles.")
@click.option(
    "--images", type=Number(int, limits.PICTURES), default=32, help="Number of images to draw for measuring the ranges."
)
@click.option(
    "--tokens", type=Number(int, limits.TESTED_TOKENS), default=600, help="Number of tokens to compare at each scale."
)
@click.option("--batch", type=Number(int, limits.BATCH), default=16, help="Number of images compared together.")
@click.option(
    "--budget",
    type=Number(float, limits.KL),
    help="Also measure a plan of at most this mean KL of the scales (nats).",
)
@click.option("--naive", type=FILE, help="Directory to keep the bundle of the first row in.")
@reports_errors
def main(
    bundle: Path, target: str, images: int, tokens: int, batch: int, budget: float | None, naive: Path | None
) -> None:
    """Measure what each technique of calibration gains, and print it as a Markdown table."""
    if naive is not None:
        check_directory(naive, INT8_BUNDLE, bundle)
    with scratch_directory(bundle) as scratch, progress_bar() as progress:
        click.echo(table(study(bundle, target, images, tokens, batch, budget, scratch, naive, progress)))


if __name__ == "__main__":
    main()
