"""python -m runtime.client: draw or edit images on a Triton Inference Server."""

from __future__ import annotations

import time
from dataclasses import asdict
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from . import limits
from .bundle.classes import NO_CLASS
from .cli import FILE, Number, command, reports_errors
from .drawing import Files, sampling_options
from .errors import SettingsError
from .files.bounded import read_bytes
from .optional import require
from .sampling import Sampling
from .serving.tensors import NAME

if TYPE_CHECKING:
    import numpy as np


@command()
@click.option("--url", default="127.0.0.1:8001", help="Address of the server's gRPC port.")
@click.option("--model", default=NAME, help="Name of the model in the server.")
@click.option("--label", default=NO_CLASS, help="Class to draw, as number or name, or none.")
@click.option("--count", type=Number(int, limits.SERVED), default=1, help="Number of images.")
@click.option(
    "--seed", type=Number(int, limits.SEED), default=0, help="Seed of the first image. Image i is drawn with SEED + i."
)
@sampling_options(Sampling())
@click.option("--smooth", is_flag=True, help="Mix codes instead of drawing tokens, which gives smoother images.")
@click.option("--image", type=FILE, help="Image to edit; if not square, its middle square is used.")
@click.option("--box", metavar="Y0,X0,Y1,X1", help="Box to draw or keep, as fractions of that square.")
@click.option("--mask", type=FILE, help="Mask in place of --box: an image of the same size, white inside.")
@click.option(
    "--mode",
    type=click.Choice(["inpaint", "outpaint"]),
    help="Draw inside the box or outside.  [default: inpaint]",
)
@click.option("--timeout", type=Number(float, limits.TIMEOUT), default=600.0, help="Seconds to wait for a response.")
@click.option("--preview-dir", type=FILE, help="Also write the image after each scale to this folder, as it is drawn.")
@click.option("--out", type=FILE, default=Path("image.png"), help="PNG file to write.")
@reports_errors
def main(
    url: str, model: str, sampling: Sampling, timeout: float, preview_dir: Path | None, out: Path, **given: Any
) -> None:
    """Draw or edit images on a Triton Inference Server. Several images become a grid in one PNG."""
    require("client", "tritonclient")
    files = Files(out, preview_dir)
    files.check(*(given[name] for name in ("image", "mask") if given[name]))

    from .files.atomic import atomic_file
    from .serving.client import Client

    inputs = _inputs(given) | {name: value for name, value in asdict(sampling).items() if value is not None}
    start, seconds = time.perf_counter(), 0.0
    with Client(url, model, timeout) as client:
        for outputs in client.responses(inputs | {"previews": preview_dir is not None}):
            seconds = time.perf_counter() - start
            sheet = _sheet(outputs["png"], url)
            if preview_dir is not None:
                preview_dir.mkdir(exist_ok=True)
                with atomic_file(preview_dir / f"scale_{int(outputs['scale'].item()):02}.png") as file:
                    file.write(sheet)
    with atomic_file(out) as file:
        file.write(sheet)
    click.echo(f"{out}: {given['count']} image(s) in {seconds:.1f} s from {url}")


def _inputs(given: dict[str, Any]) -> dict[str, Any]:
    """Return the tensors of these options."""
    from .editing import read_box

    inputs = {name: value for name, value in given.items() if value is not None}
    for name in {"image", "mask"} & inputs.keys():
        inputs[name] = read_bytes(inputs[name], limits.PICTURE_BYTES, SettingsError)
    if "box" in inputs:
        inputs["box"] = read_box(inputs["box"])
    return inputs


def _sheet(files: np.ndarray, url: str) -> bytes:
    """Return one PNG of PNGs (N, 1), with the settings that drew them: a single one unchanged, several as a grid."""
    import numpy as np

    from .images import decoded, encoded_png, grid
    from .record import Record

    contents: list[bytes] = files.ravel().tolist()
    if len(contents) == 1:
        return contents[0]
    images = np.stack([np.asarray(decoded(BytesIO(content), f"{url}: an image")) for content in contents])
    records = [Record.decoded(BytesIO(content), f"{url}: an image") for content in contents]
    return encoded_png(grid(images), Record.joined(records))


if __name__ == "__main__":
    main()
