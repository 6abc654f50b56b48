"""python -m runtime.edit: draw a part of a given image anew."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click

from .bundle.classes import NO_CLASS
from .cli import FILE, command, reports_errors
from .drawing import Files, Loading, drawing_options, file_options, loading_options
from .progress import counter, progress_bar


@command()
@click.option("--bundle", type=FILE, required=True, help="Bundle to draw with.")
@click.option("--image", type=FILE, required=True, help="Image to edit; if not square, its middle square is used.")
@click.option(
    "--box",
    metavar="Y0,X0,Y1,X1",
    help="Box to draw or keep, as fractions of that square from the top left, such as 0.25,0.25,0.75,0.75.",
)
@click.option("--mask", type=FILE, help="Mask in place of --box: an image of the same size, white inside.")
@click.option(
    "--mode",
    type=click.Choice(["inpaint", "outpaint"]),
    default="inpaint",
    help="Draw inside the box (inpaint) or outside (outpaint).",
)
@click.option(
    "--label",
    "labels",
    multiple=True,
    default=[NO_CLASS],
    help="Class to draw, as number or name, or none. Give several for several results.",
)
@click.option(
    "--compare", is_flag=True, help="Put the given image, and the part of it that is kept, before the results."
)
@drawing_options
@loading_options
@file_options
@reports_errors
def main(
    bundle: Path,
    image: Path,
    box: str | None,
    mask: Path | None,
    mode: str,
    labels: tuple[str, ...],
    compare: bool,
    loading: Loading,
    files: Files,
    **settings: Any,
) -> None:
    """Draw a part of an image anew and keep the rest. With the label "none" the model decides what fits."""
    if (box is None) == (mask is None):
        raise click.UsageError("Expected one of '--box' and '--mask'.")

    import numpy as np

    from .bundle.classes import ClassNames
    from .bundle.manifest import Manifest
    from .editing import greyed, kept_cells, read_box
    from .images import grid, read_mask, read_picture
    from .record import Record

    files.check(*loading.sources(bundle, image, mask))
    manifest = Manifest.load(bundle, verify=False)
    model, wanted = manifest.model, ClassNames.load(bundle, manifest).listed(labels)
    picture = read_picture(image, model.image_size, smallest=model.grid)
    region = read_box(box or "") if mask is None else read_mask(mask, image, model.image_size)
    kept = kept_cells(region, mode, model)
    with progress_bar() as progress:
        pipeline = loading.pipeline(bundle)
        record = files.checked(Record.of(pipeline, wanted, **settings, edit=mode))
        watch = files.watch(counter(progress, "drawing", len(wanted) * model.tokens))
        start = time.perf_counter()
        result = pipeline.edit(picture, region, mode, wanted, on_scale=watch.of(pipeline), **settings)
        seconds = time.perf_counter() - start
    before = [picture, greyed(picture, kept)] if compare else []
    images = [*before, *result.images]
    sheet = grid(np.stack(images), len(images) if compare else None)
    files.write(sheet, result, watch, record, others_shown=compare)
    click.echo(f"{files.out}: {len(wanted)} edit(s) in {seconds:.1f} s with {pipeline.drawn_with}")


if __name__ == "__main__":
    main()
