"""python -m runtime.generate: draw images from labels and a seed into one PNG."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click

from .cli import FILE, command, reports_errors
from .drawing import Files, Loading, drawing_options, file_options, loading_options
from .progress import counter, progress_bar


@command()
@click.option("--bundle", type=FILE, required=True, help="Bundle to draw with.")
@click.option(
    "--label", "labels", multiple=True, help="Class to draw, as number or name. Give several as 207,980 or repeat it."
)
@drawing_options
@loading_options
@file_options
@click.option("--dump-logits", is_flag=True, help="Add the logits, after guidance, to the file of --dump.")
@click.option("--list-classes", is_flag=True, help="Print the classes of the bundle and exit.")
@reports_errors
def main(
    bundle: Path,
    labels: tuple[str, ...],
    loading: Loading,
    files: Files,
    dump_logits: bool,
    list_classes: bool,
    **settings: Any,
) -> None:
    """Draw one image for each label. Several images become a grid in one PNG."""
    from .bundle.classes import ClassNames
    from .bundle.manifest import Manifest
    from .images import grid

    if list_classes:
        click.echo(ClassNames.load(bundle, Manifest.load(bundle, verify=False)).listing())
        return
    if not labels:
        raise click.UsageError("Missing option '--label'.")
    if dump_logits and not files.dump:
        raise click.UsageError("--dump-logits needs --dump.")
    files.check(*loading.sources(bundle))
    with progress_bar() as progress:
        pipeline = loading.pipeline(bundle)
        wanted = pipeline.classes.listed(labels)
        watch = files.watch(counter(progress, "drawing", len(wanted) * pipeline.manifest.model.tokens), dump_logits)
        start = time.perf_counter()
        result = pipeline.generate(wanted, on_scale=watch.of(pipeline), **settings)
        seconds = time.perf_counter() - start
    files.write(grid(result.images), result, watch)
    click.echo(f"{files.out}: {len(wanted)} picture(s) in {seconds:.1f} s with {pipeline.drawn_with}")


if __name__ == "__main__":
    main()
