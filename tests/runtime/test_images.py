"""Image files: no pixel value changes, and every image is on the sheet."""

import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms

from runtime import SettingsError
from runtime.images import GAP, grid, open_picture, read_picture, write_png
from runtime.pixels import on_paper


@pytest.mark.parametrize(("count", "rows", "columns"), [(1, 1, 1), (2, 1, 2), (5, 2, 3), (8, 3, 3), (9, 3, 3)])
def test_grid_holds_every_picture(count: int, rows: int, columns: int) -> None:
    images = np.arange(count * 4 * 6 * 3, dtype=np.uint8).reshape(count, 4, 6, 3)
    sheet = grid(images)
    assert sheet.shape == (rows * (4 + GAP) - GAP, columns * (6 + GAP) - GAP, 3)
    for i, image in enumerate(images):
        y, x = i // columns * (4 + GAP), i % columns * (6 + GAP)
        assert np.array_equal(sheet[y : y + 4, x : x + 6], image)


def test_png_keeps_every_value(tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    write_png(tmp_path / "picture.png", image)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "picture.png")), image)


GREY = np.tile(np.arange(0, 256, 2, dtype=np.uint8), (128, 1))  # (128, 128)


def saved(path: Path, picture: Image.Image, **options: Any) -> Path:
    picture.save(path, **options)
    return path


@pytest.mark.parametrize(
    ("name", "array"),
    [
        ("uint8.tif", GREY),
        ("float.tif", (GREY / 255).astype(np.float32)),
        ("uint16.tif", GREY.astype(np.uint16) * 257),
        ("uint16.png", GREY.astype(np.uint16) * 257),
        ("rgb.webp", np.stack([GREY] * 3, 2)),
    ],
)
def test_grey_is_the_same_in_every_depth(name: str, array: np.ndarray, tmp_path: Path) -> None:
    picture = Image.fromarray(array)
    path = saved(tmp_path / name, picture, **({"lossless": True} if name.endswith("webp") else {}))
    assert np.abs(np.asarray(open_picture(path))[..., 1].astype(int) - GREY).max() <= 1


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "I;16"])
@pytest.mark.parametrize("suffix", ["png", "tif", "jpg", "bmp", "gif", "webp"])
def test_every_mode_that_pillow_writes_looks_the_same(mode: str, suffix: str, tmp_path: Path) -> None:
    steps = np.repeat(GREY[:, ::16], 16, axis=1)  # broad bars: chroma and compression blur little
    bars = Image.fromarray(np.where(steps > 127, 255, 0).astype(np.uint8))
    if mode == "I;16":
        picture = Image.fromarray(np.asarray(bars).astype(np.uint16) * 257)
    else:
        picture = (bars.convert("P") if mode == "PA" else bars).convert(mode)
    try:
        path = saved(tmp_path / f"bars.{suffix}", picture)
    except (OSError, ValueError, KeyError):
        assert (mode, suffix) not in [("RGB", "png"), ("L", "tif"), ("CMYK", "jpg")]
        return
    found = np.asarray(open_picture(path)).astype(int)
    assert np.abs(found - np.asarray(bars)[..., None]).mean() < 4


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (GREY.astype(np.int32), "do not define which value is white"),
        (GREY.astype(np.float32), "expected values of 0 to 1, found 0 to 254"),
        (GREY.astype(np.float32) / -255, "expected values of 0 to 1, found -0.996"),
        (np.full((4, 4), np.nan, np.float32), "found nan to nan"),
    ],
)
def test_numbers_without_a_white_are_refused(array: np.ndarray, message: str, tmp_path: Path) -> None:
    path = saved(tmp_path / "picture.tif", Image.fromarray(array))
    with pytest.raises(SettingsError, match=message):
        read_picture(path, 8)


@pytest.mark.parametrize(
    ("tag", "value", "stored", "expected"),
    [(258, 12, 0xFFFF, 255), (262, 0, 4095, 239), (262, 1, 4095, 16)],
    ids=["twelve bits", "white is zero", "as usual"],
)
def test_tiff_says_which_number_is_white(tag: int, value: int, stored: int, expected: int, tmp_path: Path) -> None:
    path = saved(tmp_path / "picture.tif", Image.fromarray(np.full((4, 4), stored, np.uint16)))
    data = path.read_bytes()
    entry = data.index(tag.to_bytes(2, "little") + b"\3\0\1\0\0\0")  # one 16-bit number
    path.write_bytes(data[: entry + 8] + value.to_bytes(2, "little") + data[entry + 10 :])
    assert set(np.asarray(open_picture(path)).flat) == {expected}


def test_premultiplied_colours() -> None:
    half = Image.new("RGBA", (2, 2), (200, 100, 0, 128))
    expected = np.asarray(on_paper(half, "black")).astype(int)
    assert np.abs(np.asarray(on_paper(half.convert("RGBa"), "black")) - expected).max() <= 2


def test_colour_profiles_and_gamma_are_applied(tmp_path: Path) -> None:
    picture = Image.new("RGB", (4, 4), (180, 60, 60))
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    path = saved(tmp_path / "same.png", picture, icc_profile=srgb)
    assert np.asarray(open_picture(path))[0, 0].tolist() == [180, 60, 60]
    picture.info["gamma"] = 1.0  # linear light
    assert np.abs(np.asarray(on_paper(picture, "white"))[0, 0].astype(int) - [218, 132, 132]).max() <= 1
    path = saved(tmp_path / "broken.png", picture, icc_profile=b"no profile")
    with pytest.raises(SettingsError, match="cannot be read as an image"):
        open_picture(path)


def test_other_formats_start_no_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow would run Ghostscript from PATH for this file."""
    ghostscript = tmp_path / "gs"
    ghostscript.write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")
    ghostscript.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "x.png").write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n"
    )
    Image.new("RGB", (8, 8)).save(tmp_path / "x.ppm")
    for name in ("x.png", "x.ppm"):
        with pytest.raises(SettingsError, match="unknown format"):
            read_picture(tmp_path / name, 8)
    assert not (tmp_path / "ran").exists()


def test_too_many_pixels_are_refused_before_they_are_decoded(tmp_path: Path) -> None:
    path = saved(tmp_path / "picture.png", Image.new("1", (8, 8)))
    data = bytearray(path.read_bytes())
    for width in (9_500, 60_000):  # squared: just above, and where Pillow itself refuses
        data[16:24] = width.to_bytes(4, "big") * 2
        data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
        path.write_bytes(data)
        with pytest.raises(SettingsError, match=r"megapixels|exceeds limit"):
            read_picture(path, 8)


def test_the_first_of_several_frames_upright(tmp_path: Path) -> None:
    frames = [Image.fromarray(np.full((8, 8), value, np.uint8)) for value in (10, 200)]
    for name in ("a.gif", "a.webp", "a.tif", "a.png"):
        path = saved(tmp_path / name, frames[0], save_all=True, append_images=frames[1:])
        assert abs(int(read_picture(path, 8).mean()) - 10) <= 1
    exif = Image.Exif()
    exif[274] = 6  # the camera was turned
    path = saved(tmp_path / "a.jpg", Image.new("RGB", (16, 8)), exif=exif)
    assert open_picture(path).size == (8, 16)
