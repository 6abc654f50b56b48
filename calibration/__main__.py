"""The command python -m calibration: quantize an FP32 bundle to INT8."""

from __future__ import annotations

from pathlib import Path

import click

from runtime import limits
from runtime.cli import FILE, Number, batch_sizes, command, progress_bar, reports_errors
from runtime.limits import shown
from runtime.optional import require
from runtime.sampling import Sampling


@command()
@click.argument("bundle", type=FILE)
@click.option("--out", type=FILE, required=True, help="INT8 bundle to write.")
@click.option("--target", type=click.Choice(["trt", "cpu"]), default="trt", help="TensorRT, or ONNX Runtime on a CPU.")
@click.option("--images", type=Number(int, limits.PICTURES), default=128, help="Pictures to draw for the ranges.")
@click.option(
    "--method", type=click.Choice(["mse", "entropy", "percentile", "minmax"]), default="mse", help="Of a range."
)
@click.option(
    "--budget", type=Number(float, limits.KL), help="Measure every layer, and plan for at most this KL a token (0.008)."
)
@click.option(
    "--set", "overrides", multiple=True, metavar="LAYER=KIND", help="int8, int8x2, weights or float; repeatable."
)
@click.option("--weights-only", is_flag=True, help="INT8 weights, everything else as in the base.")
@click.option(
    "--smoothing", type=click.Choice(["adaln", "all", "none"]), default="adaln", help="Of channels, into weights."
)
@click.option(
    "--alpha",
    type=Number(float, limits.ALPHA),
    default=0.5,
    help="How much of the channels' differences goes into the weights.",
)
@click.option("--seed", type=Number(int, limits.STORED_SEED), default=0, help="Of the first picture.")
@click.option(
    "--first",
    type=Number(int, limits.PICTURES_BEFORE),
    default=0,
    help="Number of the first picture, to share the work.",
)
@click.option("--merge", multiple=True, type=FILE, help="Add another machine's calibration.json.")
@click.option("--calibration", type=FILE, help="[default: BUNDLE/calibration.json]")
@click.option("--batches", default="1", help="Batch sizes of the static per-scale steps: 1,8")
@reports_errors
def main(
    bundle: Path,
    out: Path,
    target: str,
    images: int,
    method: str,
    budget: float | None,
    overrides: tuple[str, ...],
    weights_only: bool,
    smoothing: str,
    alpha: float,
    seed: int,
    first: int,
    merge: tuple[Path, ...],
    calibration: Path | None,
    batches: str,
) -> None:
    """Calibrate the FP32 BUNDLE on pictures that it draws, and write it in INT8.

    What was collected stays in calibration.json beside the bundle: interrupted, it is gone on with, and it serves both
    targets.
    """
    kinds = tuple(_assignment(text) for text in overrides)
    sizes = sorted(batch_sizes(batches))
    if weights_only and budget is not None:
        raise click.UsageError("--weights-only has no activations to plan for; give it without --budget.")
    require("calibration", "onnx", "onnxscript", "onnx_ir")
    if budget is not None:
        require("--budget", "matplotlib")  # for the map of what it measured

    from calibration.make import Request, make_int8
    from calibration.record import Settings

    settings = Settings(seed, Sampling.cfg, Sampling.top_k, Sampling.top_p, smoothing, alpha)
    request = Request(target, method, images, first, settings, budget, kinds, weights_only, tuple(sizes), merge)
    with progress_bar() as bar:
        task = bar.add_task("starting", total=None)

        def progress(stage: str, done: int, total: int) -> None:
            bar.update(task, description=stage, completed=done, total=total)

        def warn(note: str) -> None:
            click.echo(f"Warning: {note}", err=True)

        summary = make_int8(bundle, out, request, calibration, progress, warn)
    click.echo(f"{out}: {summary}")


def _assignment(text: str) -> tuple[str, str]:
    name, equals, kind = text.partition("=")
    if not (name and equals and kind):
        raise click.UsageError(f"--set: expected LAYER=KIND such as fc2=float, found {shown(text)}.")
    return name, kind


if __name__ == "__main__":
    main()
