"""python -m runtime.bench: how fast a bundle draws here, and what it takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .. import limits
from ..bundle.manifest import Manifest
from ..cli import FILE, Number, batch_sizes, command, reports_errors
from ..drawing import Loading, loading_options, sampling_options
from ..files.outputs import check_apart, check_target
from ..progress import progress_bar
from ..sampling import Sampling


@command()
@click.option("--bundle", type=FILE, required=True, help="Bundle to measure.")
@loading_options
@click.option("--batches", default="1", help="Batch sizes to measure, such as 1,4.")
@click.option("--runs", type=Number(int, limits.RUNS), default=9, help="Number of timed runs for each batch size.")
@click.option("--label", default="0", help="Class of all images, as number or name.")
@click.option(
    "--seed", type=Number(int, limits.SEED), default=0, help="Seed of the first image. Image i is drawn with SEED + i."
)
@sampling_options(Sampling())
@click.option("--json", "json_file", type=FILE, help="Write all results to this .json file.")
@click.option("--plot", "plot_file", type=FILE, help="Plot the times into this .png file.")
@click.option(
    "--compare",
    type=click.Choice(["pytorch", "cpp"]),
    help="Also measure this, in alternation with the runtime: eager PyTorch, or the C++ runtime.",
)
@click.option("--var-checkpoint", type=FILE, help="Transformer weights of the bundle, for --compare pytorch.")
@click.option("--vae-checkpoint", type=FILE, help="VQVAE weights of the bundle, for --compare pytorch.")
@reports_errors
def main(
    bundle: Path,
    batches: str,
    json_file: Path | None,
    plot_file: Path | None,
    var_checkpoint: Path | None,
    vae_checkpoint: Path | None,
    sampling: Sampling,
    loading: Loading,
    **options: Any,
) -> None:
    """Measure the time, memory and energy of drawing with a bundle. Energy is measured on a Jetson only."""
    sizes = batch_sizes(batches)
    if (var_checkpoint or vae_checkpoint) and not options["compare"]:
        raise click.UsageError("--var-checkpoint and --vae-checkpoint need --compare.")

    if options["compare"] and (
        sampling.guidance_scales is not None or loading.draft or sampling.decoder != Sampling.decoder
    ):
        raise click.UsageError("--compare draws without shortcuts; leave out --guidance-scales, --draft and --decoder.")

    from .benchmark import benchmark, check_libraries
    from .jetson import Jetson
    from .plot import write_plot
    from .report import Settings, write_json
    from .tables import print_report

    manifest = _checked(bundle, json_file, plot_file)
    drawn = sampling.fitted(manifest.model.vocab_size, len(manifest.scales))
    settings = Settings(
        backend=loading.backend,
        threads=loading.threads,
        batches=sizes,
        cfg=drawn.cfg,
        top_k=drawn.tokens_kept,
        top_p=drawn.top_p,
        verify=loading.verify,
        guidance_scales=drawn.guidance_scales,
        decoder=drawn.decoder,
        draft=str(loading.draft) if loading.draft else None,
        draft_scales=loading.draft_scales,
        **options,
    )
    check_libraries(plot_file is not None, settings.compare == "pytorch")
    with progress_bar() as progress:
        report = benchmark(bundle, settings, (var_checkpoint, vae_checkpoint), Jetson.find(), progress)
    if json_file:
        write_json(json_file, report)
    print_report(report)
    if plot_file:
        write_plot(plot_file, report)
    for file in filter(None, (json_file, plot_file)):
        click.echo(f"wrote {file}")


def _checked(bundle: Path, json_file: Path | None, plot_file: Path | None) -> Manifest:
    """Return the manifest of the bundle. Check bundle and outputs before the work, so that it does not fail later."""
    manifest = Manifest.load(bundle, verify=False)
    for file, suffix in ((json_file, ".json"), (plot_file, ".png")):
        if file:
            check_target(file, suffix, sources=(bundle,))
    check_apart(json_file, plot_file)
    return manifest


if __name__ == "__main__":
    main()
