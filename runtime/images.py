"""Read and write image files."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from . import limits
from .errors import SettingsError
from .files.atomic import atomic_file
from .files.bounded import open_file
from .files.outputs import check_target
from .pixels import full_scale, on_paper

if TYPE_CHECKING:
    from .record import Record

GAP = 4  # pixels between two images of a grid
PAPER = 255
FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF", "AVIF")  # no others: EPS would start Ghostscript
ORIENTATION = 274  # tag of EXIF
ANIMATIONS = (".webp", ".gif")
FRAME, LAST_FRAME = 400, 2000  # milliseconds that a frame of an animation is shown

logging.getLogger("PIL").addHandler(logging.NullHandler())  # else its log goes to stderr, next to our error line


def open_picture(path: Path, paper: str = "white") -> Image.Image:
    """Read an image file, see `decoded`. Raises SettingsError."""
    with open_file(path, limits.PICTURE_BYTES, SettingsError) as file:
        return decoded(file, str(path), paper)


def decoded(file: BinaryIO, name: str, paper: str = "white") -> Image.Image:
    """Read an image as upright 8-bit sRGB on a background of colour `paper`. Raises SettingsError, which begins `name`.

    A colour profile is applied. Of an animation or a file with several pages the first one is read.
    """
    Image.init()
    formats = [each for each in FORMATS if each in Image.OPEN]  # older Pillow reads no AVIF
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns about large and slightly damaged files
        try:
            with Image.open(file, formats=formats) as picture:
                if picture.width * picture.height > limits.PIXELS:
                    raise ValueError(f"{_size(picture)} pixels are more than {limits.PIXELS / 1e6:.0f} megapixels")
                picture.load()
                turned = picture.getexif().get(ORIENTATION, 1) != 1  # else no copy is made of a large picture
                upright = ImageOps.exif_transpose(picture) if turned else picture
                return on_paper(upright, paper, full_scale(picture))
        except MemoryError:
            raise
        except Exception as error:  # decoders raise errors of many types for broken files
            reason = "unknown format" if isinstance(error, UnidentifiedImageError) else str(error)
            advice = "give a PNG, JPEG or WebP file"
            raise SettingsError(f"{name}: cannot be read as an image ({reason}); {advice}") from None


def read_picture(path: Path, side: int, smallest: int = 1) -> np.ndarray:
    """Read an image file as `fitted_picture`. Raises SettingsError."""
    return fitted_picture(open_picture(path), str(path), side, smallest)


def fitted_picture(picture: Image.Image, name: str, side: int, smallest: int = 1) -> np.ndarray:
    """Return the middle square of an image, resized: (side, side, 3) uint8.

    Raises SettingsError if a side of the image has fewer than `smallest` pixels.
    """
    if min(picture.size) < smallest:
        raise SettingsError(f"{name}: expected {smallest} or more pixels on each side, found {_size(picture)}")
    return fitted(picture, side)


def read_mask(path: Path, picture: Path, side: int) -> np.ndarray:
    """Read a mask for the image file `picture` as `fitted_mask`. Raises SettingsError."""
    return fitted_mask(open_picture(path, "black"), str(path), open_picture(picture), str(picture), side)


def fitted_mask(mask: Image.Image, name: str, picture: Image.Image, picture_name: str, side: int) -> np.ndarray:
    """Return a mask as (side, side) bool, true where it is white, cropped and resized like the image `picture`.

    Raises SettingsError if the two sizes differ.
    """
    if mask.size != picture.size:
        raise SettingsError(f"{name}: expected {_size(picture)} pixels like {picture_name}, found {_size(mask)}")
    result: np.ndarray = fitted(mask, side).mean(2) > 127.5
    return result


def grid(images: np.ndarray, columns: int | None = None) -> np.ndarray:
    """Arrange N images (N, H, W, 3) uint8 in a grid, row by row; by default it is nearly square."""
    count, height, width, _ = images.shape
    columns = columns or math.isqrt(count - 1) + 1
    rows = -(-count // columns)
    sheet = np.full((rows * (height + GAP) - GAP, columns * (width + GAP) - GAP, 3), PAPER, np.uint8)
    for i, image in enumerate(images):
        y, x = i // columns * (height + GAP), i % columns * (width + GAP)
        sheet[y : y + height, x : x + width] = image
    return sheet


def encoded_png(image: np.ndarray, record: Record | None = None) -> bytes:
    """Return the PNG file of an image (H, W, 3) uint8, with the record of the settings that drew it."""
    encoded = BytesIO()
    Image.fromarray(image).save(encoded, format="png", pnginfo=record and record.png)
    return encoded.getvalue()


def write_png(path: Path, image: np.ndarray, record: Record | None = None) -> None:
    """Write an image (H, W, 3) uint8 as PNG, atomically; see `encoded_png`."""
    encoded = encoded_png(image, record)  # writing directly to a file, Pillow reports a full disk as "encoder error"
    with atomic_file(path) as file:
        file.write(encoded)


def check_animation(path: Path, *sources: Path) -> None:
    """Raise SettingsError unless an animation can be written to `path`. Call it before long work."""
    check_target(path, *ANIMATIONS, sources=sources)
    Image.init()
    if path.suffix.lower() == ".webp" and "WEBP" not in Image.SAVE_ALL:
        raise SettingsError(f"{path}: this Pillow cannot write animated WebP; give a .gif file")


def write_animation(path: Path, frames: Sequence[np.ndarray], record: Record | None = None) -> None:
    """Write images (H, W, 3) uint8 as an endless animation, WebP or GIF by the suffix; the last is shown longer.

    A WebP file gets the record of the settings that drew it. A GIF file has no place for it.
    """
    pictures = [Image.fromarray(frame) for frame in frames]
    if path.suffix.lower() == ".gif":
        pictures = [picture.quantize(256) for picture in pictures]  # each frame has its own 256 colours
    durations = [FRAME] * (len(frames) - 1) + [LAST_FRAME]
    encoded = BytesIO()
    pictures[0].save(
        encoded,
        format=path.suffix[1:].lower(),
        save_all=True,
        append_images=pictures[1:],
        duration=durations,
        loop=0,
        quality=90,
        **({"exif": record.exif} if record and path.suffix.lower() == ".webp" else {}),
    )
    with atomic_file(path) as file:
        file.write(encoded.getbuffer())


def fitted(picture: Image.Image, side: int) -> np.ndarray:
    """Return the middle square of an image, resized to (side, side, 3) uint8."""
    return np.asarray(ImageOps.fit(picture, (side, side), Image.Resampling.LANCZOS))


def _size(picture: Image.Image) -> str:
    return f"{picture.width} x {picture.height}"
