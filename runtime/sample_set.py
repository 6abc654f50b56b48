"""python -m runtime.sample_set: draw the images that FID and IS are computed from."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from . import limits
from .cli import FILE, Number, command, reports_errors
from .drawing import Loading, loading_options, metadata_option, sampling_options
from .files.outputs import SET, check_folder
from .limits import shown
from .progress import Progress, counter, progress_bar
from .sampling import BATCH, EVALUATION

if TYPE_CHECKING:
    from .cluster import Job
    from .evaluation_set import EvaluationSet


@command()
@click.option("--bundle", type=FILE, required=True, help="Bundle to draw with.")
@click.option("--out", type=FILE, required=True, help="Folder of the set. A set that was begun there is resumed.")
@click.option("--per-class", type=Number(int, limits.PICTURES), default=50, help="Number of images of each class.")
@click.option("--classes", multiple=True, help="Classes to draw, as numbers or names such as 207,980.  [default: all]")
@click.option(
    "--seed",
    type=Number(int, limits.SET_SEED),
    default=0,
    help="Seed of the whole set: another seed gives other images.",
)
@click.option(
    "--shard",
    default="1/1",
    metavar="I/N",
    help="Draw only the I-th of N parts, to share the work among N machines or processes.",
)
@sampling_options(EVALUATION)
@click.option("--batch", type=Number(int, limits.BATCH), default=BATCH, help="Number of images drawn together.")
@loading_options
@metadata_option
@click.option(
    "--ray",
    metavar="HOST:PORT",
    help="Draw with the workers of this Ray cluster; local starts workers on this machine.",
)
@reports_errors
def main(
    bundle: Path,
    out: Path,
    classes: tuple[str, ...],
    shard: str,
    loading: Loading,
    ray: str | None,
    **settings: Any,
) -> None:
    """Draw the images that FID and IS are computed from.

    They are PNG files named by class and index. When all are there, the .npz of the usual FID toolkit is written too.
    A run that was interrupted is resumed by the same command.
    """
    part = _part(shard)

    check_folder(out, SET, *loading.sources(bundle))

    from .cluster import Job, draw_with_ray
    from .evaluation_set import SAMPLES

    job = Job(loading, bundle, classes, settings)
    with progress_bar("images") as progress:
        if ray is not None:
            wanted, todo, drawn_with = draw_with_ray(ray, job, out, part, progress)
        else:
            wanted, todo, drawn_with = _draw(job, out, part, progress)
        complete = not wanted.missing(out)
        if complete and not (out / SAMPLES).exists():
            wanted.write_samples(out, counter(progress, f"writing {SAMPLES}", len(wanted.pictures)))
    state = f"complete, with {SAMPLES}" if complete else "the other shards draw the rest"
    click.echo(f"{out}: {todo} of {len(wanted.pictures)} image(s) drawn with {drawn_with}; {state}")


def _draw(job: Job, out: Path, part: tuple[int, int], progress: Progress) -> tuple[EvaluationSet, int, str]:
    """Draw what `out` lacks of this part. Return the set, the number of images, and what drew them."""
    pipeline, wanted = job.load()
    wanted.claim(out)
    todo = sum(map(len, wanted.missing(out, *part)))
    wanted.draw(pipeline, out, *part, counter(progress, "drawing", todo))
    return wanted, todo, pipeline.drawn_with


def _part(text: str) -> tuple[int, int]:
    """Parse the value of --shard, such as "2/8", into (2, 8)."""
    found = re.fullmatch("([0-9]{1,7})/([0-9]{1,7})", text)
    shard, shards = map(int, found.groups()) if found else (0, 0)
    if not 1 <= shard <= shards:
        raise click.UsageError(f"--shard: expected I/N with I from 1 to N, such as 2/8, found {shown(text)}.")
    return shard, shards


if __name__ == "__main__":
    main()
