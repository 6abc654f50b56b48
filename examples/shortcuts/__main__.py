"""Measure what shortcuts save and what they cost: the tables of docs/shortcuts.md.

python -m examples.shortcuts build/var_demo/fp32 --refiner build/var_demo_small/fp32 --plot shortcuts.png

One run draws every point in turns, FP32 and INT8 alike. Images of the demo model are judged too; of other bundles the
time is measured only.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from datetime import date
from functools import partial
from importlib.metadata import version
from pathlib import Path

import click

from examples.demo_model.classifier import WEIGHTS
from examples.demo_model.compare import SAMPLING, settings_text
from examples.kept_rows import KeptRows
from examples.shortcuts.judge import Judge, Quality, why_not_judged
from examples.shortcuts.models import Bundles, Candidate, Models, candidates, check_same_model
from examples.shortcuts.plot import write_plot
from examples.shortcuts.point import Point
from examples.shortcuts.table import fastest_good, table
from examples.shortcuts.times import Times, in_turns, run_of
from export.verify.fidelity import SAMPLING as TEACHER_SAMPLING
from runtime import limits
from runtime.bench.machine import machine
from runtime.bench.measure import Run
from runtime.bench.tables import seconds
from runtime.bundle.manifest import FILE_NAME
from runtime.cli import FILE, Number, command, reports_errors
from runtime.files.outputs import check_target
from runtime.optional import require
from runtime.processors import usable_cpus
from runtime.progress import counter, progress_bar
from runtime.sampling import Sampling

ROWS = Path("build/shortcuts/rows.json")


@command()
@click.argument("large", type=FILE)
@click.option("--refiner", type=FILE, help="Bundle of a smaller model with the same VQVAE, which refines drafts.")
@click.option("--int8", type=FILE, help="INT8 bundle of LARGE: the same points again with it.")
@click.option("--int8-refiner", type=FILE, help="INT8 bundle of the model of --refiner.")
@click.option(
    "--points",
    default="",
    metavar="LIST",
    help="Points to measure, such as draft-4,guided-4+tiny.  [default: each shortcut alone, and combined]",
)
@click.option("--rounds", type=Number(int, limits.RUNS), default=9, help="Number of timed images of each point.")
@click.option("--per-class", type=click.IntRange(1), default=70, help="Number of judged images of each class.")
@click.option("--tokens", type=click.IntRange(1), default=2000, help="Number of tokens compared at every scale.")
@click.option(
    "--threads",
    type=Number(int, limits.THREADS),
    help="Number of CPU threads.  [default: as many CPUs as this process may use]",
)
@click.option("--plot", type=FILE, help="Plot seconds and quality into this .png file.")
@reports_errors
def main(
    large: Path,
    refiner: Path | None,
    int8: Path | None,
    int8_refiner: Path | None,
    points: str,
    rounds: int,
    per_class: int,
    tokens: int,
    threads: int | None,
    plot: Path | None,
) -> None:
    """Measure the shortcuts of the bundle LARGE against its exact path, and print a table in Markdown.

    Quality is kept in build/shortcuts until a bundle changes; only the times are measured again.
    """
    several = _bundles(large, refiner, int8, int8_refiner)
    chosen = candidates(several, [Point.parse(text.strip()) for text in points.split(",") if text.strip()])
    reason = why_not_judged(large, several[0].manifest)
    if plot:
        require("--plot", "matplotlib")
        check_target(plot, ".png", sources=tuple(path for bundles in several for path in bundles.paths))
    with Models(chosen, threads) as models:
        qualities = {} if reason else _qualities(models, chosen, per_class, tokens)
        times = _times(models, chosen, rounds, Sampling() if reason else SAMPLING, threads)
    used = {path for each in chosen for path in each.paths}
    names = " and ".join(manifest.model.name for path, manifest in several[0].manifests.items() if path in used)
    title = f"{names}, {machine().cpu}, {threads or usable_cpus()} thread(s), {date.today()}"
    click.echo(f"{title}. Medians of one image in {rounds} round(s), in turns.")
    click.echo(f"Time only: {reason}." if reason else _method(per_class, tokens))
    click.echo(f"\n{table(times, qualities)}")
    if qualities:
        click.echo(f"\n{fastest_good(times, qualities)}")
    if plot:
        write_plot(plot, times, qualities, title)
        click.echo(f"\nwrote {plot}")


def _bundles(large: Path, refiner: Path | None, int8: Path | None, int8_refiner: Path | None) -> list[Bundles]:
    """Return the bundles of each precision. Raises SettingsError, click.UsageError if they do not belong together."""
    exact = Bundles(large, refiner)
    if int8 is None:
        if int8_refiner:
            raise click.UsageError("--int8-refiner needs --int8.")
        return [exact]
    if (refiner is None) != (int8_refiner is None):
        raise click.UsageError("Expected both of '--refiner' and '--int8-refiner', or neither.")
    other = Bundles(int8, int8_refiner)
    check_same_model(exact, other)
    return [exact, other]


def _qualities(models: Models, chosen: Sequence[Candidate], per_class: int, tokens: int) -> dict[Candidate, Quality]:
    """Return the quality of each candidate: that of an earlier run, or measured now."""
    exact, found = chosen[0], {}
    judge = Judge(models.pipeline(exact), per_class, tokens)
    manifest = (exact.bundles.large / FILE_NAME).read_text()
    classifier = hashlib.sha256(WEIGHTS.read_bytes()).hexdigest()
    judged_by = classifier, per_class, tokens, SAMPLING, TEACHER_SAMPLING, version("onnxruntime")
    kept = KeptRows(ROWS, (Quality,), manifest, *judged_by)
    for each in chosen:
        measure = partial(judge.quality, models.pipeline(each), each.point)
        quality = found[each] = kept.row(Quality, measure, *each.paths, what=str(each.point))
        click.echo(f"{each}: accuracy {quality.accuracy:.1%}, Fréchet ratio {quality.frechet_ratio}", err=True)
    return found


def _times(
    models: Models, chosen: Sequence[Candidate], rounds: int, sampling: Sampling, threads: int | None
) -> dict[Candidate, Times]:
    with progress_bar() as progress:
        advance = counter(progress, "timing in turns", rounds * len(chosen))

        def show(candidate: Candidate, runs: Sequence[Run]) -> None:
            advance()
            if len(runs) == rounds:
                found = Times.of(runs).seconds
                click.echo(f"{candidate}: {seconds(found.median)} for one image", err=True)

        return in_turns(chosen, rounds, lambda each: run_of(models, each, sampling, threads), show)


def _method(per_class: int, tokens: int) -> str:
    return (
        f"Quality: {per_class} images of each class, drawn with {settings_text(SAMPLING)}; KL of {tokens} tokens of"
        f" each scale, drawn with {settings_text(TEACHER_SAMPLING)}. ± is a 95 % interval."
    )


if __name__ == "__main__":
    main()
