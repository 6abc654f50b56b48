"""The command python -m export.engine: build the TensorRT engines of a bundle. It imports no torch: devices run it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from runtime import limits
from runtime.cli import FILE, Number, batch_sizes, command, reports_errors, warn
from runtime.errors import SettingsError
from runtime.files.bounded import open_file
from runtime.files.cache import cache_directory
from runtime.files.outputs import ENGINES, check_directory, check_target
from runtime.optional import require
from runtime.progress import progress_bar

if TYPE_CHECKING:
    from runtime.bundle.engine_record import Built

TIMINGS = (".timing", ".cache")  # suffixes allowed for --timing-cache: any other file may be the user's


def timing_cache_file(built: Built) -> Path | None:
    """Return the default timing cache of this device and this TensorRT; timings of others would be wrong."""
    folder = cache_directory()
    return folder and folder / f"{built.tag}.timing"


@command()
@click.argument("bundle", type=FILE)
@click.option(
    "--trt", type=click.Choice(["auto", "tensorrt", "tensorrt-rtx"]), default="auto", help="TensorRT to build with."
)
@click.option("--out", type=FILE, help="Directory to write the engines to.  [default: BUNDLE/engines/DEVICE]")
@click.option("--batches", default="1", help="Batch sizes that the engines can draw, such as 1,8.")
@click.option(
    "--guidance-scales",
    type=Number(int, limits.GUIDANCE_SCALES),
    metavar="M",
    help="Let the engines also draw with guidance at the first M scales only, or at more.  [default: at all scales]",
)
@click.option(
    "--compute-capability", help="Build ahead of time for these GPUs, such as 8.6,8.9.  [default: this machine's]"
)
@click.option(
    "--workspace",
    type=Number(int, limits.WORKSPACE),
    metavar="MIB",
    help="Limit of the scratch memory of an engine, in MiB.  [default: none]",
)
@click.option("--hardware-compatible", is_flag=True, help="Build engines that run on later GPUs too, but slower.")
@click.option(
    "--version-compatible", is_flag=True, help="Build engines that run on later TensorRT of the same major version."
)
@click.option(
    "--timing-cache",
    type=FILE,
    help="Timing cache (.timing) to read and update.  [default: one for each device in ~/.cache/var-edge]",
)
@click.option("--force", is_flag=True, help="Build again even if nothing changed.")
@reports_errors
def main(
    bundle: Path,
    trt: str,
    out: Path | None,
    batches: str,
    guidance_scales: int | None,
    compute_capability: str | None,
    workspace: int | None,
    hardware_compatible: bool,
    version_compatible: bool,
    timing_cache: Path | None,
    force: bool,
) -> None:
    """Build the TensorRT engines of a bundle.

    Each graph becomes one engine, with a profile for each scale and batch size.
    """
    sizes = batch_sizes(batches)
    require("export.engine", "polygraphy")

    from export.engine.build import build_engines, find_tensorrt, target
    from export.engine.builder import Options
    from export.engine.report import REPORT
    from runtime.backends.cuda import gpu_or_reason

    options = Options(workspace and workspace << 20, hardware_compatible, version_compatible)
    if out is not None:
        check_directory(out, ENGINES, bundle)
    if timing_cache is not None:
        check_target(timing_cache, *TIMINGS, sources=(bundle,))
    flavour, module = find_tensorrt(trt)
    capabilities = tuple(part.strip() for part in (compute_capability or "").split(",") if part.strip())
    built = target(module, flavour, capabilities, options)
    if not capabilities and not built.gpu:
        warn(f"builds ahead of time for {', '.join(built.compute_capabilities)}, because: {gpu_or_reason()}")
    cache = timing_cache or (timing_cache_file(built) if built.gpu else None)  # ahead of time nothing is timed
    if cache:
        if os.path.lexists(cache):
            open_file(cache, error=SettingsError).close()  # TensorRT would wait for a FIFO
        cache.parent.mkdir(parents=True, exist_ok=True)
    with progress_bar() as progress:
        folder, anew = build_engines(
            bundle, out, module, built, sizes, options, guidance_scales, cache, force, progress, warn
        )
    size = sum(file.stat().st_size for file in folder.iterdir())
    click.echo(f"{folder}: {'built' if anew else 'up to date'}, {size / 1e6:.1f} MB; see {folder / REPORT}")


if __name__ == "__main__":
    main()
