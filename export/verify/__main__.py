"""The command python -m export.verify: compare bundles and engines with the PyTorch model."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from runtime import limits
from runtime.cli import FILE, Number, command, progress_bar, reports_errors
from runtime.files.outputs import REPORT, check_directory


@command()
@click.argument("directories", metavar="DIR…", nargs=-1, required=True, type=FILE)
@click.option("--var-checkpoint", type=FILE, help="Transformer weights the bundles were made of.")
@click.option("--vae-checkpoint", type=FILE, help="VQVAE weights the bundles were made of.")
@click.option("--against", type=FILE, help="FP32 bundle to compare with; needs no PyTorch.")
@click.option("--pictures", type=Number(int, limits.VERIFIED), default=8, help="Pictures to draw, of labels all over.")
@click.option("--bisect", "with_bisect", is_flag=True, help="Where a stage fails, name the node inside.")
@click.option("--report", type=FILE, help="Directory for report.html and report.json.")
@reports_errors
def main(
    directories: tuple[Path, ...],
    var_checkpoint: Path | None,
    vae_checkpoint: Path | None,
    against: Path | None,
    pictures: int,
    with_bisect: bool,
    report: Path | None,
) -> None:
    """Compare every stage of every bundle and engine in DIR with the PyTorch model.

    DIR is a bundle, a directory of engines, or a folder of bundles such as build/var_d16. The weights are those that
    the bundles name. Exit code 1 if anything is out of tolerance.
    """
    from export.verify.html import HTML, write
    from export.verify.run import verify

    if report is not None:
        check_directory(report, REPORT, *directories)
    if against is not None and (var_checkpoint or vae_checkpoint):
        raise click.UsageError("--against takes the place of both checkpoints; give one or the other.")
    with progress_bar() as bar:
        task = bar.add_task("starting", total=None)

        def progress(stage: str, done: int, total: int) -> None:
            bar.update(task, description=stage, completed=done, total=total)

        result = verify(directories, (var_checkpoint, vae_checkpoint), against, pictures, with_bisect, progress)
    result.print()
    if report is not None:
        write(result, report)
        click.echo(f"{report / HTML}: {result.summary}")
    sys.exit(not result.passed)


if __name__ == "__main__":
    main()
