"""Read a text of a PNG file, or the EXIF of a WebP file, without decoding the image or reading other parts of the file.

All functions raise ValueError for a damaged file.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator
from typing import BinaryIO, Literal

SIGNATURE = b"\x89PNG\r\n\x1a\n"
TEXTS = (b"tEXt", b"zTXt", b"iTXt")
KEYWORD_BYTES = 80  # with the NUL after it
CHUNKS = 4096  # that are looked at; an animation has one for each frame


def kind_of_image(file: BinaryIO) -> str | None:
    """Return "PNG", "WEBP" or None, with the file at its first chunk."""
    start = file.read(12)
    if start.startswith(SIGNATURE):
        file.seek(len(SIGNATURE))
        return "PNG"
    return "WEBP" if start[:4] == b"RIFF" and start[8:] == b"WEBP" else None


def png_text(file: BinaryIO, keyword: str, most: int) -> bytes | None:
    """Return the text with this keyword, in UTF-8, or None if there is none before the pixels.

    Raises ValueError for a text chunk of more than `most` bytes.
    """
    wanted = keyword.encode("latin-1") + b"\0"
    for kind, size in _chunks(file, "big"):
        if kind == b"IDAT":
            break
        if kind not in TEXTS:
            continue
        start = file.read(min(size, KEYWORD_BYTES))
        if not start.startswith(wanted):
            continue
        data = start + file.read(_checked(size, most) - len(start))
        if int.from_bytes(file.read(4), "big") != zlib.crc32(kind + data):
            raise ValueError("wrong checksum")
        return _text(kind, data[len(wanted) :], most)
    return None


def webp_exif(file: BinaryIO, most: int) -> bytes | None:
    """Return the EXIF, or None. Raises ValueError for one of more than `most` bytes."""
    return next((file.read(_checked(size, most)) for kind, size in _chunks(file, "little") if kind == b"EXIF"), None)


def _text(kind: bytes, data: bytes, most: int) -> bytes:
    """Return the text of a chunk from what follows its keyword."""
    compressed = kind == b"zTXt" or (kind == b"iTXt" and data[:1] == b"\1")
    if kind == b"zTXt":
        data = data[1:]  # the method, of which there is one
    elif kind == b"iTXt":  # flag and method, then language, translated keyword and text
        *_, data = data[2:].split(b"\0", 2)
    if compressed:
        try:
            data = zlib.decompressobj().decompress(data, most + 1)
        except zlib.error as error:
            raise ValueError(str(error)) from None
        _checked(len(data), most)
    return data if kind == b"iTXt" else data.decode("latin-1").encode()


def _chunks(file: BinaryIO, order: Literal["big", "little"]) -> Iterator[tuple[bytes, int]]:
    """Yield type and size of each chunk, with the file at its data. `order` is big in PNG, little in WebP."""
    start = file.tell()
    end = file.seek(0, os.SEEK_END)
    file.seek(start)
    for _ in range(CHUNKS):
        header = file.read(8)
        if not header:
            return
        kind, size = (header[4:], header[:4]) if order == "big" else (header[:4], header[4:])
        length = int.from_bytes(size, order)
        following = file.tell() + length + (4 if order == "big" else length % 2)  # a checksum, or an even number
        if following > end:
            raise ValueError("the file ends early")
        yield kind, length
        file.seek(following)
    raise ValueError(f"more than {CHUNKS} chunks")


def _checked(size: int, most: int) -> int:
    if size > most:
        raise ValueError(f"expected settings of at most {most} bytes, found {size}")
    return size
