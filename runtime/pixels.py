"""Convert an image of any mode that Pillow decodes to 8-bit sRGB, or refuse it if its colours are not defined."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, ImageCms

GAMMA = 1 / 2.2  # the value in PNG files for sRGB
BITS_PER_SAMPLE, PHOTOMETRIC, WHITE_IS_ZERO = 258, 262, 0  # tags of TIFF
PROFILED = {"L": "GRAY", "RGB": "RGB", "CMYK": "CMYK"}  # mode -> colour space of its profiles


def full_scale(picture: Image.Image) -> tuple[float, bool] | None:
    """Return the largest value of an image with more than 8 bits, and whether the scale is inverted (0 is white).

    Returns None for an image of 8 bits. Raises ValueError if the format does not define which value is white.
    """
    tags = getattr(picture, "tag_v2", {})
    inverted = tags.get(PHOTOMETRIC) == WHITE_IS_ZERO
    if picture.mode == "F":
        return 1.0, inverted
    if picture.mode == "I" and picture.format != "PNG":  # older Pillow reads 16-bit PNG as I
        raise ValueError("32-bit or signed integers do not define which value is white; save 8 or 16 bits")
    if picture.mode.startswith("I"):
        return 2.0 ** tags.get(BITS_PER_SAMPLE, (16,))[0] - 1, inverted
    return None


def on_paper(picture: Image.Image, paper: str, scale: tuple[float, bool] | None = None) -> Image.Image:
    """Convert an image to 8-bit sRGB on a background of colour `paper`; `scale` is its `full_scale`.

    Raises ValueError.
    """
    gamma = None if {"srgb", "icc_profile"} & picture.info.keys() else picture.info.get("gamma")
    profile = picture.info.get("icc_profile")
    if scale:
        if "transparency" in picture.info:
            raise ValueError("transparency in an image of more than 8 bits is not supported")
        picture = Image.fromarray(_eight_bits(np.asarray(picture, np.float32), *scale))
    elif picture.mode in ("La", "RGBa"):  # colours multiplied by their opacity
        picture = picture.convert({"La": "LA", "RGBa": "RGBA"}[picture.mode])
    if "A" in picture.getbands() or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        opacity = picture.getchannel("A")
        colours = _in_srgb(picture.convert("RGB"), profile, gamma)
        return Image.composite(colours, Image.new("RGB", picture.size, paper), opacity)
    return _in_srgb(picture, profile, gamma)


def _eight_bits(values: np.ndarray, white: float, inverted: bool) -> np.ndarray:
    low, high = float(values.min()), float(values.max())
    if not (low >= 0 and high <= white):  # also true for not-a-number
        raise ValueError(f"expected values of 0 to {white:g}, found {low:g} to {high:g}")
    shares = values / np.float32(white)
    result: np.ndarray = ((1 - shares if inverted else shares) * 255).round().astype(np.uint8)
    return result


def _in_srgb(picture: Image.Image, profile: bytes | None, gamma: float | None) -> Image.Image:
    """Convert to sRGB: apply the colour profile, or the gamma of a PNG file."""
    if picture.mode == "P":
        picture = picture.convert("RGB")
    if profile:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        same = "srgb" in (source.profile.profile_description or "").lower()
        if not same and source.profile.xcolor_space.strip() == PROFILED.get(picture.mode):
            converted = ImageCms.profileToProfile(picture, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
            assert converted is not None  # only conversions in place return nothing
            return converted
    picture = picture if picture.mode == "RGB" else picture.convert("RGB")
    if gamma and abs(gamma - GAMMA) > 0.01:
        table = [round(255 * (value / 255) ** (GAMMA / gamma)) for value in range(256)]
        return picture.point(table * 3)
    return picture
