"""The command python -m calibration: quantize an FP32 bundle to INT8."""

from __future__ import annotations

from pathlib import Path

import click

from runtime import limits
from runtime.cli import FILE, Number, batch_sizes, command, reports_errors, warn
from runtime.drawing import sampling_options
from runtime.limits import shown
from runtime.optional import require
from runtime.progress import progress_bar
from runtime.sampling import TOP_K, Sampling

# docs/int8.md, "Cost": ONNX Runtime unpacks the weights in each product.
SLOW_WEIGHTS = "--weights-only on a CPU is slower than FP32; without it INT8 is smaller and faster (docs/int8.md)"


@command()
@click.argument("bundle", type=FILE)
@click.option("--out", type=FILE, required=True, help="Directory to write the INT8 bundle to.")
@click.option(
    "--target",
    type=click.Choice(["trt", "cpu"]),
    default="trt",
    help="What runs the bundle: TensorRT (trt) or ONNX Runtime on a CPU (cpu).",
)
@click.option(
    "--scales",
    type=click.Choice(["row", "scale", "mixed"]),
    help="Where the scales of INT8 activations come from: each row itself (row; draws no images, and the decoder's "
    "convolutions stay float), measured ranges (scale), or each row and measured ranges in the decoder (mixed).  "
    "[default: row, with --target cpu mixed]",
)
@click.option(
    "--images",
    type=Number(int, limits.PICTURES),
    help="Number of images to draw for measuring the ranges of activations.  [default: 16, with --scales scale 128]",
)
@click.option(
    "--method",
    type=click.Choice(["mse", "percentile", "minmax"]),
    default="mse",
    help="How activation ranges are chosen from what was measured.",
)
@click.option(
    "--budget",
    type=Number(float, limits.KL),
    help="Measure each layer in INT8, and plan for at most this mean KL of the scales in nats, such as 0.005.",
)
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="LAYER=KIND",
    help="Compute the layers that LAYER names as int8, int8x2, weights or float, also with --budget. Can be repeated.",
)
@click.option("--weights-only", is_flag=True, help="Quantize only the weights; compute in FP16 (trt) or FP32 (cpu).")
@click.option(
    "--measure-speed",
    is_flag=True,
    help="Time each kind of layer on this CPU, with --target cpu, and leave those float that INT8 slows down.",
)
@click.option(
    "--channel-scaling",
    "--smoothing",
    type=click.Choice(["adaln", "all", "none"]),
    help="Layers whose channels are scaled (SmoothQuant): those after AdaLN (adaln), all, or none.  "
    "[default: adaln, with --scales row none]",
)
@click.option(
    "--alpha",
    type=Number(float, limits.ALPHA),
    default=0.5,
    help="Strength of --channel-scaling: 0 makes the weight rows alike, 1 the activation channels.",
)
@click.option("--seed", type=Number(int, limits.STORED_SEED), default=0, help="Seed of the images.")
@click.option(
    "--first",
    type=Number(int, limits.PICTURES_BEFORE),
    default=0,
    help="Index of the first image, to share the work among machines with --merge.",
)
@click.option("--merge", multiple=True, type=FILE, help="Add the calibration.json of another machine. Can be repeated.")
@click.option(
    "--calibration", type=FILE, help="File to keep the measured ranges in.  [default: BUNDLE/calibration.json]"
)
@click.option("--batches", default="1", help="Batch sizes of the static graphs for each scale, such as 1,8.")
@sampling_options(Sampling(), shortcuts=False)
@reports_errors
def main(
    bundle: Path,
    out: Path,
    target: str,
    scales: str | None,
    images: int | None,
    method: str,
    budget: float | None,
    overrides: tuple[str, ...],
    weights_only: bool,
    measure_speed: bool,
    channel_scaling: str | None,
    alpha: float,
    seed: int,
    first: int,
    merge: tuple[Path, ...],
    calibration: Path | None,
    batches: str,
    sampling: Sampling,
) -> None:
    """Calibrate an FP32 bundle and write it in INT8.

    The ranges of activations are measured on images that BUNDLE draws. They are kept in calibration.json in the
    bundle, so that an interrupted run is resumed and both targets share them.
    """
    kinds = tuple(_assignment(text) for text in overrides)
    sizes = sorted(batch_sizes(batches))
    if weights_only and budget is not None:
        raise click.UsageError("--weights-only has no activations to plan for; give it without --budget.")
    if measure_speed and (target != "cpu" or weights_only):
        raise click.UsageError(
            "--measure-speed times INT8 layers on this CPU; give it --target cpu and no --weights-only."
        )
    if weights_only and target == "cpu":
        warn(SLOW_WEIGHTS)
    require("calibration", "onnx", "onnxscript", "onnx_ir")
    if budget is not None:
        require("--budget", "matplotlib")  # for the map of what it measured

    from calibration.make import Request, make_int8
    from calibration.plan import DEFAULT_SCALES
    from calibration.record import Settings

    scales = scales or DEFAULT_SCALES[target]
    scaled = channel_scaling or ("none" if scales == "row" else "adaln")
    top_k = TOP_K if sampling.top_k is None else sampling.top_k
    settings = Settings(seed, sampling.cfg, top_k, sampling.top_p, scaled, alpha)
    request = Request(
        target,
        scales,
        method,
        images,
        first,
        settings,
        budget,
        kinds,
        weights_only,
        tuple(sizes),
        merge,
        measure_speed,
    )
    with progress_bar() as progress:
        summary = make_int8(bundle, out, request, calibration, progress, warn)
    click.echo(f"{out}: {summary}")


def _assignment(text: str) -> tuple[str, str]:
    name, equals, kind = text.partition("=")
    if not (name and equals and kind):
        raise click.UsageError(f"--set: expected LAYER=KIND such as fc2=float, found {shown(text)}.")
    return name, kind


if __name__ == "__main__":
    main()
