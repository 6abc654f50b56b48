"""python -m runtime.generate: draw images from labels and a seed into one PNG."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from .cli import FILE, command, reports_errors, warn
from .drawing import Files, Loading, drawing_options, file_options, loading_options
from .progress import counter, progress_bar

if TYPE_CHECKING:
    from .record import Record

# Parameters whose values --from takes from the file.
RECORDED = ("labels", "seed", "cfg", "top_k", "top_p", "smooth", "guidance_scales", "decoder", "batch")


@command()
@click.option("--bundle", type=FILE, required=True, help="Bundle to draw with.")
@click.option(
    "--label", "labels", multiple=True, help="Class to draw, as number or name. Give several as 207,980 or repeat it."
)
@click.option(
    "--from",
    "repeated",
    type=FILE,
    metavar="PICTURE",
    help="Draw the images of this file again: with the labels, seeds and settings that are stored in it.",
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
    repeated: Path | None,
    loading: Loading,
    files: Files,
    dump_logits: bool,
    list_classes: bool,
    **settings: Any,
) -> None:
    """Draw one image for each label. Several images become a grid in one PNG.

    The file holds the settings that drew it, and --from repeats it.
    """
    from .bundle.classes import ClassNames
    from .bundle.manifest import Manifest
    from .images import grid
    from .record import Record

    if list_classes:
        click.echo(ClassNames.load(bundle, Manifest.load(bundle, verify=False)).listing())
        return
    if not labels and not repeated:
        raise click.UsageError("Missing option '--label'.")
    if dump_logits and not files.dump:
        raise click.UsageError("--dump-logits needs --dump.")
    files.check(*loading.sources(bundle, repeated))
    found = _recorded(repeated, bundle, loading) if repeated else None
    with progress_bar() as progress:
        pipeline = loading.pipeline(bundle)
        if found and repeated:
            found.check_drawable(repeated, pipeline)
        arguments = found.settings if found else {"labels": pipeline.classes.listed(labels), **settings}
        record = files.checked(Record.of(pipeline, **arguments))
        count = len(record.labels)
        watch = files.watch(counter(progress, "drawing", count * pipeline.manifest.model.tokens), dump_logits)
        start = time.perf_counter()
        result = pipeline.generate(**arguments, on_scale=watch.of(pipeline))
        seconds = time.perf_counter() - start
    files.write(grid(result.images), result, watch, record)
    if found and (note := record.difference(found)):
        warn(f"{repeated}: {note}")
    click.echo(f"{files.out}: {count} image(s) in {seconds:.1f} s with {pipeline.drawn_with}")


def _recorded(path: Path, bundle: Path, loading: Loading) -> Record:
    """Return the record in an image file, which these bundles can repeat.

    Raises SettingsError, BundleError, or click.UsageError for an option that the record decides.
    """
    from .record import Record

    context = click.get_current_context()
    for option in context.command.params:
        name = str(option.name)
        if name in RECORDED and context.get_parameter_source(name) is not ParameterSource.DEFAULT:
            raise click.UsageError(f"--from draws with the settings in {path}; remove {option.opts[-1]}.")
    record = Record.read(path)
    record.check_repeatable(path, bundle, loading.draft, loading.draft_scales)
    return record


if __name__ == "__main__":
    main()
