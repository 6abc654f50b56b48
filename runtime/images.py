"""Read and write image files."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from . import limits
from .errors import SettingsError
from .files.atomic import atomic_file
from .files.bounded import open_file
from .files.outputs import check_target
from .pixels import full_scale, on_paper

GAP = 4  # pixels between two images of a grid
PAPER = 255
FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF", "AVIF")  # no others: EPS would start Ghostscript
ORIENTATION = 274  # tag of EXIF
ANIMATIONS = (".webp", ".gif")
FRAME, LAST_FRAME = 400, 2000  # milliseconds that a frame of an animation is shown

logging.getLogger("PIL").addHandler(logging.NullHandler())  # else its log goes to stderr, next to our error line


def open_picture(path: Path, paper: str = "white") -> Image.Image:
    """Read an image as upright 8-bit sRGB on a background of colour `paper`. Raises SettingsError.

    A colour profile is applied. Of an animation or a file with several pages the first one is read.
    """
    Image.init()
    formats = [name for name in FORMATS if name in Image.OPEN]  # older Pillow reads no AVIF
    with open_file(path, limits.PICTURE_BYTES, SettingsError) as file, warnings.catch_warnings():
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
            raise SettingsError(f"{path}: cannot be read as an image ({reason}); {advice}") from None


def read_picture(path: Path, side: int, smallest: int = 1) -> np.ndarray:
    """Read an image file as (side, side, 3) uint8: upright, on white, with the middle square resized.

    Raises SettingsError, also if a side of the image has fewer than `smallest` pixels.
    """
    picture = open_picture(path)
    if min(picture.size) < smallest:
        raise SettingsError(f"{path}: expected {smallest} or more pixels on each side, found {_size(picture)}")
    return _fitted(picture, side)


def read_mask(path: Path, picture: Path, side: int) -> np.ndarray:
    """Read a mask for the image file `picture` as (side, side) bool, true where it is white.

    The mask is cropped and resized like the image. Raises SettingsError, also if the two sizes differ.
    """
    mask, expected = open_picture(path, "black"), open_picture(picture)
    if mask.size != expected.size:
        raise SettingsError(f"{path}: expected {_size(expected)} pixels like {picture}, found {_size(mask)}")
    result: np.ndarray = _fitted(mask, side).mean(2) > 127.5
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


def png(image: np.ndarray) -> bytes:
    """Return the content of a PNG file with this image (H, W, 3) uint8."""
    encoded = BytesIO()
    Image.fromarray(image).save(encoded, format="png")
    return encoded.getvalue()


def write_png(path: Path, image: np.ndarray) -> None:
    """Write an image (H, W, 3) uint8 as PNG, atomically."""
    content = png(image)  # writing directly to a file, Pillow would report a full disk as "encoder error"
    with atomic_file(path) as file:
        file.write(content)


def check_animation(path: Path, *sources: Path) -> None:
    """Raise SettingsError unless an animation can be written to `path`. Call it before long work."""
    check_target(path, *ANIMATIONS, sources=sources)
    Image.init()
    if path.suffix.lower() == ".webp" and "WEBP" not in Image.SAVE_ALL:
        raise SettingsError(f"{path}: this Pillow cannot write animated WebP; give a .gif file")


def write_animation(path: Path, frames: Sequence[np.ndarray]) -> None:
    """Write images (H, W, 3) uint8 as an endless animation, WebP or GIF by the suffix; the last is shown longer."""
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
    )
    with atomic_file(path) as file:
        file.write(encoded.getbuffer())


def _fitted(picture: Image.Image, side: int) -> np.ndarray:
    return np.asarray(ImageOps.fit(picture, (side, side), Image.Resampling.LANCZOS))


def _size(picture: Image.Image) -> str:
    return f"{picture.width} x {picture.height}"
