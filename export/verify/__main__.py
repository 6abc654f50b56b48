"""The command python -m export.verify: compare bundles and engines with the PyTorch model."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from runtime import limits
from runtime.cli import BOTH, FILE, Number, command, reports_errors
from runtime.files.outputs import REPORT, check_directory
from runtime.progress import progress_bar


@command()
@click.argument("directories", metavar="DIR…", nargs=-1, required=True, type=FILE)
@click.option("--var-checkpoint", type=FILE, help="File of the transformer weights that the bundles were made from.")
@click.option("--vae-checkpoint", type=FILE, help="File of the VQVAE weights that the bundles were made from.")
@click.option("--tiny-decoder", type=FILE, help="File of the tiny decoder of the bundles, if it is not a shipped one.")
@click.option("--against", type=FILE, help="Compare with this FP32 bundle instead; needs no PyTorch.")
@click.option(
    "--images",
    "--pictures",
    type=Number(int, limits.VERIFIED),
    default=8,
    help="Number of images to compare, of classes from the whole range.",
)
@click.option(
    "--guidance-scales",
    type=Number(int, limits.GUIDANCE_SCALES),
    metavar="M",
    help="Also compare guidance at the first M scales with guidance at all.",
)
@click.option("--draft", type=FILE, help="Also check drafting by this bundle; needs --draft-scales.")
@click.option(
    "--draft-scales", type=Number(int, limits.DRAFT_SCALES), metavar="N", help="Number of scales that --draft draws."
)
@click.option("--bisect", "with_bisect", is_flag=True, help="Where a stage fails, find the first node that is wrong.")
@click.option("--report", type=FILE, help="Directory to write report.html and report.json to.")
@reports_errors
def main(
    directories: tuple[Path, ...],
    var_checkpoint: Path | None,
    vae_checkpoint: Path | None,
    tiny_decoder: Path | None,
    against: Path | None,
    images: int,
    guidance_scales: int | None,
    draft: Path | None,
    draft_scales: int | None,
    with_bisect: bool,
    report: Path | None,
) -> None:
    """Compare bundles and engines with the PyTorch model, stage by stage.

    DIR is a bundle, a directory of engines, or a folder of bundles such as build/var_d16. Without --var-checkpoint and
    --vae-checkpoint the weights are those that the bundles name. Exit code 1: something is out of tolerance.
    """
    from export.verify.html import HTML, write
    from export.verify.run import verify
    from export.verify.shortcuts import Shortcuts

    if report is not None:
        check_directory(report, REPORT, *directories)
    if against is not None and (var_checkpoint or vae_checkpoint or tiny_decoder):
        raise click.UsageError(
            "--against takes the place of the checkpoints and --tiny-decoder; give one or the other."
        )
    if (draft is None) != (draft_scales is None):
        raise click.UsageError(BOTH)
    shortcuts = Shortcuts(guidance_scales, draft, draft_scales)
    with progress_bar() as progress:
        result = verify(
            directories,
            (var_checkpoint, vae_checkpoint),
            against,
            images,
            with_bisect,
            progress,
            shortcuts,
            tiny_decoder,
        )
    result.print()
    if report is not None:
        write(result, report)
        click.echo(f"{report / HTML}: {result.summary}")
    sys.exit(not result.passed)


if __name__ == "__main__":
    main()
