"""python -m runtime.bench: how fast a bundle draws here, and what it takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ..backends import BACKENDS
from ..cli import batch_sizes, progress_bar, reports_errors
from ..manifest import Manifest
from ..outputs import check_apart, check_target
from ..sampling import Sampling


@click.command(context_settings={"show_default": True})
@click.option("--bundle", type=click.Path(path_type=Path), required=True, help="Directory to measure.")
@click.option("--backend", type=click.Choice(BACKENDS), default="auto", help="Inference engine.")
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads.  [default: the backend's choice]")
@click.option("--batches", default="1", help="Numbers of pictures drawn together: 1,4")
@click.option("--runs", type=click.IntRange(min=1), default=9, help="Timed runs of each batch size.")
@click.option("--label", default="0", help="Class number or name of all pictures.")
@click.option("--seed", default=0, help="Picture i is drawn with SEED + i.")
@click.option("--cfg", default=Sampling.cfg, help="Guidance: 0 is none, more is closer to the class.")
@click.option("--top-k", default=Sampling.top_k, help="Draw from the K likeliest tokens; 0: all.")
@click.option("--top-p", default=Sampling.top_p, help="Draw from the likeliest tokens of mass P; 0: all.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write everything to this .json.")
@click.option("--plot", "plot_file", type=click.Path(path_type=Path), help="Draw the times into this .png.")
@click.option("--compare", type=click.Choice(["pytorch", "cpp"]), help="Time this in turns with the runtime.")
@click.option("--var-checkpoint", type=click.Path(path_type=Path), help="The bundle's, for --compare.")
@click.option("--vae-checkpoint", type=click.Path(path_type=Path), help="The bundle's, for --compare.")
@click.option("--verify/--no-verify", default=True, help="Check the SHA-256 of the bundle's files.")
@reports_errors
def main(
    bundle: Path,
    batches: str,
    json_file: Path | None,
    plot_file: Path | None,
    var_checkpoint: Path | None,
    vae_checkpoint: Path | None,
    **options: Any,
) -> None:
    """Measure time, memory and, on a Jetson, energy of drawing with a bundle."""
    sizes = batch_sizes(batches)
    if (var_checkpoint or vae_checkpoint) and not options["compare"]:
        raise click.UsageError("--var-checkpoint and --vae-checkpoint need --compare.")

    from ..jetson import Jetson
    from .benchmark import benchmark, check_libraries
    from .plot import write_plot
    from .report import Settings, write_json
    from .tables import print_report

    settings = Settings(batches=sizes, **options)
    _check(bundle, json_file, plot_file)
    check_libraries(plot_file is not None, settings.compare == "pytorch")
    with progress_bar() as bar:
        task = bar.add_task("loading", total=None)

        def progress(stage: str, done: int, total: int) -> None:
            bar.update(task, description=stage, completed=done, total=total)

        report = benchmark(bundle, settings, (var_checkpoint, vae_checkpoint), Jetson.find(), progress)
    if json_file:
        write_json(json_file, report)
    print_report(report)
    if plot_file:
        write_plot(plot_file, report)
    for file in filter(None, (json_file, plot_file)):
        click.echo(f"wrote {file}")


def _check(bundle: Path, json_file: Path | None, plot_file: Path | None) -> None:
    """Raises before the work what would be raised in its course, or when it is done."""
    Manifest.load(bundle, verify=False)
    for file, suffix in ((json_file, ".json"), (plot_file, ".png")):
        if file:
            check_target(file, suffix, sources=(bundle,))
    check_apart(json_file, plot_file)


if __name__ == "__main__":
    main()
