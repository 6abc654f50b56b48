"""python -m export.gpu_check: build, verify and measure on this machine's GPU."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from runtime import limits
from runtime.cli import FILE, Number, command, reports_errors
from runtime.files.outputs import REPORT, check_directory
from runtime.progress import progress_bar

NO_GPU = 3  # exit code, so that a script can tell it from a failed check


@command()
@click.argument("fp32", type=FILE)
@click.argument("bundles", metavar="BUNDLE…", nargs=-1, required=True, type=FILE)
@click.option("--report", type=FILE, default=Path("build/gpu-check"), help="Directory to write the report to.")
@click.option(
    "--images", "--pictures", type=Number(int, limits.VERIFIED), default=32, help="Number of images to verify with."
)
@reports_errors
def main(fp32: Path, bundles: tuple[Path, ...], report: Path, images: int) -> None:
    """Build, verify and measure engines on this machine's GPU.

    The engines of each BUNDLE are compared with the bundle FP32, which is drawn on the CPU.

    What cannot be built or run is a failed row of the report; the rest is checked. Exit code 1: something failed or is
    out of tolerance. Exit code 3: there is no GPU, and nothing was checked.
    """
    check_directory(report, REPORT, fp32, *bundles)

    from export.verify.gpu_check import BENCHMARKS, gpu_check
    from export.verify.html import HTML
    from runtime.backends.cuda import gpu_or_reason

    gpu = gpu_or_reason()
    if isinstance(gpu, str):
        click.echo(f"gpu-check: {gpu}; nothing was checked", err=True)
        sys.exit(NO_GPU)
    with progress_bar() as progress:
        result = gpu_check(gpu, fp32, bundles, report, images, progress)
    result.print()
    click.echo(f"{report / HTML}: {result.summary}; {report / BENCHMARKS}")
    sys.exit(not result.passed)


if __name__ == "__main__":
    main()
