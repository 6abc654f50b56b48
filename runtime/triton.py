"""python -m runtime.triton: write a model repository for Triton Inference Server."""

from __future__ import annotations

from pathlib import Path

import click

from . import limits
from .cli import FILE, Number, command, reports_errors
from .drawing import Loading, loading_options
from .sampling import BATCH
from .serving.tensors import NAME


@command()
@click.argument("repository", type=FILE, metavar="DIR")
@click.option("--bundle", type=FILE, required=True, help="Bundle to serve. It is copied, as hard links on one disk.")
@click.option("--name", default=NAME, help="Name of the model in the server.")
@click.option(
    "--batch",
    type=Number(int, limits.BATCH),
    default=BATCH,
    help="Number of images, and of requests, drawn together.",
)
@loading_options
@reports_errors
def main(repository: Path, bundle: Path, name: str, batch: int, loading: Loading) -> None:
    """Write a model repository for Triton Inference Server. Start it with tritonserver --model-repository DIR."""
    from .serving.repository import write_repository
    from .serving.settings import Settings

    write_repository(repository, name, Settings(bundle, loading, batch))
    click.echo(f"{repository}: the model {name}; start it with tritonserver --model-repository {repository}")


if __name__ == "__main__":
    main()
