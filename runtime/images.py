"""Pictures from files, and to files."""

from __future__ import annotations

import math
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from .errors import SettingsError
from .files import whole_file
from .outputs import check_target

GAP = 4  # pixels between two pictures of a grid
PAPER = 255
ANIMATIONS = (".webp", ".gif")
FRAME, LAST_FRAME = 400, 2000  # milliseconds that a frame of an animation is shown


def open_picture(path: Path) -> Image.Image:
    """The decoded picture, upright. Raises SettingsError."""
    try:
        with Image.open(path) as picture:
            return ImageOps.exif_transpose(picture)
    except FileNotFoundError:
        raise SettingsError(f"{path}: there is no such file") from None
    except MemoryError:
        raise
    except Exception as error:  # decoders of broken files raise many kinds
        reason = "no picture format" if isinstance(error, Image.UnidentifiedImageError) else str(error)
        raise SettingsError(f"{path}: cannot be read as a picture ({reason}); give a PNG, JPEG or WebP file") from None


def read_picture(path: Path, side: int, smallest: int = 1) -> np.ndarray:
    """Any picture file as (side, side, 3) uint8: turned upright, on white, its middle square resized.

    Raises SettingsError, also if the picture has fewer than `smallest` pixels on a side.
    """
    picture = open_picture(path)
    if min(picture.size) < smallest:
        raise SettingsError(f"{path}: expected {smallest} or more pixels on each side, found {_size(picture)}")
    return _fitted(_on_paper(picture, "white"), side)


def read_mask(path: Path, picture: Path, side: int) -> np.ndarray:
    """A mask for the file `picture`, cut and resized like it: (side, side) bool, true where it is white.

    Raises SettingsError, also unless both have the same size.
    """
    mask, expected = open_picture(path), open_picture(picture)
    if mask.size != expected.size:
        raise SettingsError(f"{path}: expected {_size(expected)} pixels like {picture}, found {_size(mask)}")
    return _fitted(_on_paper(mask, "black"), side).mean(2) > 127.5


def grid(images: np.ndarray, columns: int | None = None) -> np.ndarray:
    """N pictures (N, H, W, 3) uint8 as one, row after row in `columns`, without them in a near-square grid."""
    count, height, width, _ = images.shape
    columns = columns or math.isqrt(count - 1) + 1
    rows = -(-count // columns)
    sheet = np.full((rows * (height + GAP) - GAP, columns * (width + GAP) - GAP, 3), PAPER, np.uint8)
    for i, image in enumerate(images):
        y, x = i // columns * (height + GAP), i % columns * (width + GAP)
        sheet[y : y + height, x : x + width] = image
    return sheet


def write_png(path: Path, image: np.ndarray) -> None:
    """Writes (H, W, 3) uint8."""
    encoded = BytesIO()  # to a file Pillow would report a full disk as "encoder error"
    Image.fromarray(image).save(encoded, format="png")
    with whole_file(path) as file:
        file.write(encoded.getbuffer())


def check_animation(path: Path, *sources: Path) -> None:
    """Raises SettingsError unless an animation can be written to `path`. Ask before long work."""
    check_target(path, *ANIMATIONS, sources=sources)
    Image.init()
    if path.suffix.lower() == ".webp" and "WEBP" not in Image.SAVE_ALL:
        raise SettingsError(f"{path}: this Pillow writes no animated WebP; take .gif")


def write_animation(path: Path, frames: Sequence[np.ndarray]) -> None:
    """Writes pictures (H, W, 3) uint8 as an endless animation, WebP or GIF by its suffix; the last is held longer."""
    pictures = [Image.fromarray(frame) for frame in frames]
    if path.suffix.lower() == ".gif":
        pictures = [picture.quantize(256) for picture in pictures]  # 256 colours of its own for each frame
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
    with whole_file(path) as file:
        file.write(encoded.getbuffer())


def _on_paper(picture: Image.Image, paper: str) -> Image.Image:
    """8-bit RGB: 16 bits rounded, what is transparent laid on `paper`."""
    if picture.mode.startswith("I"):
        picture = Image.fromarray((np.asarray(picture) / 257).round().clip(0, 255).astype(np.uint8))
    if "A" not in picture.getbands() and "transparency" not in picture.info:
        return picture.convert("RGB")
    picture = picture.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", picture.size, paper), picture).convert("RGB")


def _fitted(picture: Image.Image, side: int) -> np.ndarray:
    return np.asarray(ImageOps.fit(picture, (side, side), Image.Resampling.LANCZOS))


def _size(picture: Image.Image) -> str:
    return f"{picture.width} x {picture.height}"
