"""python -m runtime.generate: labels and a seed become a PNG."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .backends import BACKENDS
from .cli import progress_bar, reports_errors
from .files import check_target
from .sampling import BATCH, Sampling

if TYPE_CHECKING:
    import numpy as np

    from .pipeline import Pipeline, Result, ScaleView


@click.command(context_settings={"show_default": True})
@click.option("--bundle", type=click.Path(path_type=Path), required=True, help="Directory to run.")
@click.option("--label", "labels", multiple=True, help="Class number or name; several: 207,980 or repeated.")
@click.option("--seed", default=0, help="Picture i is drawn with SEED + i.")
@click.option("--cfg", default=Sampling.cfg, help="Guidance: 0 is none, more is closer to the class.")
@click.option("--top-k", default=Sampling.top_k, help="Draw from the K likeliest tokens; 0: all.")
@click.option("--top-p", default=Sampling.top_p, help="Draw from the likeliest tokens of mass P; 0: all.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("picture.png"), help="PNG to write.")
@click.option("--batch", default=BATCH, help="Pictures drawn together.")
@click.option("--threads", type=int, help="CPU threads.  [default: the backend's choice]")
@click.option("--backend", type=click.Choice(BACKENDS), default="auto", help="Inference engine.")
@click.option("--dump", type=click.Path(path_type=Path), help="Also write tokens and pictures to this .npz.")
@click.option("--dump-logits", is_flag=True, help="Add the logits after guidance to the dump.")
@click.option("--verify/--no-verify", default=True, help="Check the SHA-256 of the bundle's files.")
@click.option("--list-classes", is_flag=True, help="Print the bundle's classes and stop.")
@reports_errors
def main(
    bundle: Path,
    labels: tuple[str, ...],
    out: Path,
    threads: int | None,
    backend: str,
    dump: Path | None,
    dump_logits: bool,
    verify: bool,
    list_classes: bool,
    **settings: Any,
) -> None:
    """Draw one picture for each label. Several pictures become a grid in one PNG."""
    from .classes import ClassNames
    from .images import grid, write_png
    from .manifest import Manifest
    from .pipeline import Pipeline
    from .trace import write_trace

    if list_classes:
        click.echo(ClassNames.load(bundle, Manifest.load(bundle, verify=False)).listing())
        return
    if not labels:
        raise click.UsageError("Missing option '--label'.")
    if dump_logits and not dump:
        raise click.UsageError("--dump-logits needs --dump.")
    check_target(out, ".png")
    if dump:
        check_target(dump, ".npz")
    wanted = [label.strip() for group in labels for label in group.split(",")]
    with progress_bar() as bar:
        task = bar.add_task("loading", total=None)
        pipeline = Pipeline(bundle, backend, threads, verify)
        bar.update(task, description="drawing", total=len(wanted) * pipeline.manifest.model.tokens)
        start = time.perf_counter()
        result, logits = _generate(pipeline, wanted, settings, dump_logits, partial(bar.advance, task))
        seconds = time.perf_counter() - start
    write_png(out, grid(result.images))
    if dump:
        write_trace(dump, result, logits)
    click.echo(f"{out}: {len(wanted)} picture(s) in {seconds:.1f} s with {pipeline.backend.name}")


def _generate(
    pipeline: Pipeline,
    labels: list[str],
    settings: dict[str, Any],
    with_logits: bool,
    advance: Callable[[float], None],
) -> tuple[Result, list[np.ndarray]]:
    """The pictures and, if wanted, K arrays of logits (N, p*p, V). `advance` hears of every token drawn."""
    import numpy as np

    logits: list[list[np.ndarray]] = [[] for _ in pipeline.manifest.scales]  # per scale, per turn

    def on_scale(view: ScaleView) -> None:
        if with_logits:
            logits[view.index].append(view.logits())
        advance(len(view.pictures) * view.side**2)

    result = pipeline.generate(labels, on_scale=on_scale, **settings)
    return result, [np.concatenate(turns) for turns in logits] if with_logits else []


if __name__ == "__main__":
    main()
