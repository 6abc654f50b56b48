"""The demo model's data: render emoji from the Noto Color Emoji font, then cache, split and augment them.

The first run needs the font (`apt-get install fonts-noto-color-emoji libfribidi0`) and the Unicode categories
(`npm install --prefix build/demo_model emoji-datasource`). Later runs read the cache `build/demo_model/emoji.npz`.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import defaultdict
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from examples.demo_model.classes import CLASSES, label_of

BUILD = Path("build/demo_model")
FONT = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
CATEGORIES = BUILD / "node_modules/emoji-datasource/emoji.json"
IMAGE_SIZE = 64
MASTER_SIZE = 128  # renders are stored at twice the size, so that augmented images are as sharp as plain ones
_STRIKE = 109  # the only bitmap size in the font
_HELD_OUT_SHARE = 0.1
_SPLIT = 45  # a split in which every class has held-out emoji


@dataclass(frozen=True)
class EmojiSet:
    """N rendered emoji on a white background."""

    images: NDArray[np.uint8]  # (N, 3, 128, 128)
    codepoints: NDArray[np.str_]  # (N,), e.g. "1F44B-1F3FB"
    bases: NDArray[np.str_]  # (N,), the code points without skin tone: the unit of the split
    subcategories: NDArray[np.str_]  # (N,), the subcategories of Unicode
    short_names: NDArray[np.str_]  # (N,)

    def __len__(self) -> int:
        return len(self.images)

    @cached_property
    def labels(self) -> NDArray[np.int64]:
        """The labels (N,); -1 for an emoji of no class."""
        pairs = zip(self.subcategories.tolist(), self.short_names.tolist(), strict=True)
        return np.array([label_of(subcategory, name) for subcategory, name in pairs], np.int64)

    @property
    def mirror(self) -> NDArray[np.bool_]:
        """Whether each image may be flipped, (N,)."""
        return np.array([label >= 0 and CLASSES[label].mirror for label in self.labels])

    def select(self, chosen: NDArray[np.bool_]) -> EmojiSet:
        """Return the emoji where `chosen` (N,) is true."""
        return EmojiSet(**{field.name: getattr(self, field.name)[chosen] for field in fields(self)})

    @property
    def labelled(self) -> EmojiSet:
        """The emoji that belong to a class."""
        return self.select(self.labels >= 0)


def split(emoji: EmojiSet) -> tuple[EmojiSet, EmojiSet]:
    """Return training and held-out emoji. A tenth of each subcategory is held out, by a hash of the code points.

    The unit is the base emoji, so that all skin tones of a gesture are on the same side. The split does not depend on
    the classes, so that they can change without moving a held-out emoji into the training set.
    """
    groups = defaultdict(set)
    for subcategory, base in zip(emoji.subcategories.tolist(), emoji.bases.tolist(), strict=True):
        groups[subcategory].add(base)
    held: set[str] = set()
    for group in groups.values():
        by_hash = sorted(group, key=lambda base: hashlib.sha256(f"{_SPLIT}/{base}".encode()).digest())
        held.update(by_hash[: max(round(_HELD_OUT_SHARE * len(group)), len(group) >= 5)])
    held_out = np.isin(emoji.bases, sorted(held))
    return emoji.select(~held_out), emoji.select(held_out)


def load_emoji(cache: Path = BUILD / "emoji.npz") -> EmojiSet:
    """Read the emoji from the cache; render and cache them first if there is no cache.

    Raises:
        FileNotFoundError: there is no cache, and the font or the category table is missing.
    """
    if cache.exists():
        with np.load(cache) as stored:
            return EmojiSet(**{field.name: stored[field.name] for field in fields(EmojiSet)})
    emoji = render_all()
    cache.parent.mkdir(parents=True, exist_ok=True)
    partial = cache.with_suffix(".partial.npz")
    np.savez_compressed(partial, **{field.name: getattr(emoji, field.name) for field in fields(EmojiSet)})
    partial.replace(cache)
    return emoji


def render_all(font: Path = FONT, categories: Path = CATEGORIES) -> EmojiSet:
    """Render every emoji of the font with all its skin tones, without images that are equal to an earlier one."""
    from PIL import ImageFont

    for path, remedy in (
        (font, "apt-get install fonts-noto-color-emoji libfribidi0"),
        (categories, f"npm install --prefix {BUILD} emoji-datasource"),
    ):
        if not path.exists():
            raise FileNotFoundError(f"{path}: not found; run {remedy}")
    # Raqm joins the code points of a sequence (skin tones, flags, families) into one glyph.
    typeface = ImageFont.truetype(str(font), _STRIKE, layout_engine=ImageFont.Layout.RAQM)
    images, names = [], []
    seen: set[bytes] = set()
    for entry in sorted(json.loads(categories.read_text()), key=lambda entry: entry["sort_order"]):
        tones = [tone["unified"] for tone in entry.get("skin_variations", {}).values()]
        for unified in (entry["unified"], *tones):
            image = _render(unified, typeface)
            if image is None or image.tobytes() in seen:
                continue
            seen.add(image.tobytes())
            images.append(image)
            names.append((unified, entry["unified"], entry["subcategory"], entry["short_name"]))
    return EmojiSet(np.stack(images), *(np.array(column) for column in zip(*names, strict=True)))


def _render(unified: str, typeface) -> NDArray[np.uint8] | None:  # -> (3, 128, 128)
    """Render one emoji on white; return None if the font lacks it."""
    from PIL import Image, ImageDraw

    text = "".join(chr(int(code, 16)) for code in unified.split("-"))
    left, top, right, bottom = typeface.getbbox(text)
    side = right - left
    if bottom == top or typeface.getlength(text) > side:
        return None
    canvas = Image.new("RGB", (side, side), "white")
    ImageDraw.Draw(canvas).text((-left, (side - bottom - top) // 2), text, font=typeface, embedded_color=True)
    picture = canvas.resize((MASTER_SIZE, MASTER_SIZE), Image.Resampling.LANCZOS)
    return np.asarray(picture).transpose(2, 0, 1).copy()


def plain(masters: torch.Tensor) -> torch.Tensor:
    """Resize masters (B, 3, 128, 128) uint8 to images (B, 3, 64, 64) f32 in [-1, 1], without augmentation."""
    return F.avg_pool2d(masters.float() / 127.5 - 1, MASTER_SIZE // IMAGE_SIZE)


def augment(
    masters: torch.Tensor,
    mirror: torch.Tensor,
    generator: torch.Generator,
    recolour: float = 0.0,
) -> torch.Tensor:
    """Flip, scale (0.85-1.05), shift, rotate and recolour images at random; the background stays white.

    Args:
        masters: (B, 3, 128, 128) uint8.
        mirror: (B,) bool, which images may be flipped.
        generator: a CPU generator, the only source of randomness.
        recolour: share of the images whose hue is rotated by any angle instead of a small one.

    Returns:
        (B, 3, 64, 64) f32 in [-1, 1].
    """
    batch = len(masters)

    def uniform(low: float, high: float) -> torch.Tensor:  # -> (B,)
        return torch.rand(batch, generator=generator) * (high - low) + low

    flip = torch.where(mirror.cpu() & (uniform(0, 1) < 0.5), -1.0, 1.0)
    zoom, turn = 1 / uniform(0.85, 1.05), uniform(-0.1, 0.1)
    cosine, sine = zoom * turn.cos(), zoom * turn.sin()
    shift_x, shift_y = uniform(-0.06, 0.06), uniform(-0.06, 0.06)
    theta = torch.stack([flip * cosine, -sine, shift_x, flip * sine, cosine, shift_y], 1).view(batch, 2, 3)
    small, any_angle = uniform(-0.15, 0.15), uniform(-math.pi, math.pi)
    hue = torch.where(uniform(0, 1) < recolour, any_angle, small)
    colour = _hue_matrix(hue) * uniform(0.9, 1.1).view(batch, 1, 1)  # (B, 3, 3)

    ink = 1 - masters.float() / 255  # (B, 3, 128, 128): white is 0, so zero padding and linear maps keep it white
    grid = F.affine_grid(theta.to(ink.device), list(ink.shape), align_corners=False)
    ink = F.avg_pool2d(F.grid_sample(ink, grid, align_corners=False), MASTER_SIZE // IMAGE_SIZE)
    ink = torch.einsum("bij,bjhw->bihw", colour.to(ink.device), ink)
    return 1 - 2 * ink.clamp(0, 1)


def _hue_matrix(angle: torch.Tensor) -> torch.Tensor:
    """Return rotations (B, 3, 3) of RGB about the grey axis by `angle` (B,) radians (Rodrigues' formula)."""
    third, root = 1 / 3, math.sqrt(1 / 3)
    cross = torch.tensor([[0.0, -root, root], [root, 0.0, -root], [-root, root, 0.0]])
    cosine, sine = angle.cos().view(-1, 1, 1), angle.sin().view(-1, 1, 1)
    return cosine * torch.eye(3) + (1 - cosine) * third + sine * cross
