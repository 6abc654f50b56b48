"""What pipelines with and without a draft share: `generate` and `edit`, and the check of their arguments."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from . import limits
from .backends.base import Backend, Observe, OnStage
from .bundle.classes import NO_CLASS, ClassNames
from .bundle.manifest import Manifest
from .editing import Box, keep_masks, kept_cells
from .errors import SettingsError
from .limits import shown
from .sampling import BATCH, Sampling, guided
from .uniforms import check_seed

Maps = list[np.ndarray]  # K arrays (N, p*p), one for each scale
Kept = tuple[Maps, Maps]  # masks and tokens


@dataclass(frozen=True)
class Result:
    """N images, and the K token maps that they are decoded from."""

    images: np.ndarray  # (N, H, W, 3) uint8
    tokens: Maps  # (N, p*p) int32
    drawn: Maps  # (N, p*p) int32: the tokens before `kept_tokens` replaced them; `tokens` itself if nothing was kept


@dataclass
class ScaleView:
    """The state of a batch after a scale, for `on_scale`. Its methods compute their result when they are called.

    They raise SettingsError once the callback has returned.
    """

    index: int
    side: int
    pictures: range  # which of the N images are in this batch
    guidance: float
    last: bool  # whether the image has no more scales
    _backend: Backend | None

    @property
    def backend(self) -> Backend:
        if self._backend is None:
            raise SettingsError("view: used after on_scale returned; copy what you need before on_scale returns")
        return self._backend

    def end(self) -> None:
        """Make the view unusable, because the callback has returned."""
        self._backend = None

    def tokens(self) -> np.ndarray:
        """Return the tokens (B, p*p) int32 of this scale."""
        return self.backend.tokens(self.index)

    def logits(self) -> np.ndarray:
        """Return the logits (B, p*p, V) float32 of this scale, after guidance and before the filters."""
        return guided(self.backend.logits(), self.guidance)

    def preview(self) -> np.ndarray:
        """Return the images (B, H, W, 3) uint8 as they are after this scale.

        This runs the tiny decoder if the bundle has one. After the last scale it runs the decoder of the image.
        """
        return self.backend.decode(preview=not self.last)


@dataclass(frozen=True)
class Request:
    """What to draw, checked, and the callbacks."""

    labels: np.ndarray  # (N,) int64
    seeds: Sequence[int]
    batch: int
    sampling: Sampling  # fitted
    kept: Kept | None  # N rows each
    on_scale: Callable[[ScaleView], None] | None
    on_stage: OnStage | None
    observe: Observe | None
    make_room: Callable[[], None] | None = None  # frees memory elsewhere, called if it runs out


Own = TypeVar("Own", bound="BasePipeline")


class BasePipeline(ABC):
    """What draws, edits and encodes images with the classes of one bundle."""

    bundle: Path
    manifest: Manifest
    classes: ClassNames
    backend: Backend
    fingerprint: str  # of the bundle itself: engines differ by machine
    draft: BasePipeline | None = None  # what draws the first `draft_scales` scales of an image
    draft_scales: int = 0

    @property
    @abstractmethod
    def launches_whole(self) -> bool:
        """Whether a batch that nobody listens to is one launch, and so faster."""

    @property
    @abstractmethod
    def drawn_with(self) -> str:
        """The name of what draws."""

    @abstractmethod
    def check(self, sampling: Sampling) -> None:
        """Raise SettingsError or BundleError if `generate` would refuse these settings."""

    @abstractmethod
    def draw(self, request: Request) -> Result:
        """Return what `generate` returns for its arguments as a request. Raises what `generate` raises."""

    @abstractmethod
    def encode(self, images: np.ndarray) -> Maps:
        """Return the K token maps (N, p*p) int32 of images (N, H, W, 3) uint8.

        Raises SettingsError, NumericError if the encoder computes NaN or infinity, or BundleError if the bundle has
        no encoder.
        """

    @abstractmethod
    def close(self) -> None:
        """Wait for the calls of other threads, then release the memory. Later calls raise SettingsError."""

    def generate(
        self,
        labels: int | str | Sequence[int | str],
        seed: int | Sequence[int] = 0,
        cfg: float = Sampling.cfg,
        top_k: int | None = None,
        top_p: float = Sampling.top_p,
        keep: Sequence[np.ndarray] | None = None,
        kept_tokens: Sequence[np.ndarray] | None = None,
        batch: int = BATCH,
        on_scale: Callable[[ScaleView], None] | None = None,
        on_stage: OnStage | None = None,
        smooth: bool = False,
        sampling: Sampling | None = None,
        observe: Observe | None = None,
        guidance_scales: int | None = None,
        decoder: str = Sampling.decoder,
    ) -> Result:
        """Draw one image for each label: a number (`num_classes` means "no class") or a class name.

        Image i is drawn with `seed` + i, or with the i-th of several seeds. `batch` images are drawn together. An image
        has the same tokens as when it is drawn alone, and its pixels differ by at most 1/255.

        - `top_k` None is the default, or all tokens of a smaller vocabulary.
        - `keep` are K masks (N or 1, p*p) bool. Where they are true, `kept_tokens`, K maps (N or 1, p*p) int32, replace
          the drawn tokens.
        - `on_scale(view)` is called after every scale of every batch. To stop the generation, raise an exception in it.
        - `on_stage(graph, scale, seconds)` gets the time of every run of a graph; `scale` is None for condition and
          decoder.
        - `observe(run)` gets the inputs and outputs of every run of a graph, see `StageRun`.
        - `smooth` mixes codes, see `Sampling`. The returned tokens are then the most probable ones, and the images are
          not decoded from them.
        - `guidance_scales` is the number of scales with guidance; None: all. At the others the transformer runs with
          the label only, not also without, which takes half the work.
        - `decoder` "tiny" makes the image with the tiny decoder of the bundle, which imitates the "full" one.
        - `sampling` replaces `cfg`, `top_k`, `top_p`, `smooth`, `guidance_scales` and `decoder`.

        Raises SettingsError, NumericError if the model computes NaN or infinity, or BundleError for `smooth` or
        `decoder` if the bundle has no graph for it.
        """
        sampling = Sampling.chosen(sampling, Sampling(cfg, top_k, top_p, smooth, guidance_scales, decoder))
        kept = keep, kept_tokens
        return self.draw(self._request(labels, seed, batch, sampling, kept, on_scale, on_stage, observe))

    def edit(
        self,
        image: np.ndarray,
        region: Box | np.ndarray,
        mode: str = "inpaint",
        labels: int | str | Sequence[int | str] = NO_CLASS,
        **settings: Any,
    ) -> Result:
        """Draw a part of an image (H, W, 3) uint8 anew, once for each label. `settings` are those of `generate`.

        `region` is a box (y0, x0, y1, x1) in fractions of the image, or a mask (H, W) bool. "inpaint" draws inside it
        and keeps the rest; "outpaint" draws outside. Tokens are kept, not pixels, so the kept part is a reconstruction
        by the VQVAE. Raises SettingsError, or BundleError if the bundle has no encoder.
        """
        keep = keep_masks(kept_cells(region, mode, self.manifest.model), self.manifest.model.patch_nums)
        return self.generate(labels, keep=keep, kept_tokens=self.encode(image[None]), **settings)

    def __enter__(self: Own) -> Own:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _request(
        self,
        labels: int | str | Sequence[int | str],
        seed: int | Sequence[int],
        batch: int,
        sampling: Sampling,
        kept: tuple[Sequence[np.ndarray] | None, Sequence[np.ndarray] | None],
        on_scale: Callable[[ScaleView], None] | None,
        on_stage: OnStage | None,
        observe: Observe | None,
    ) -> Request:
        """Check these arguments of `generate` and return them. Raises SettingsError."""
        numbers = np.array(self.classes.labels(labels), np.int64)
        sampling = sampling.fitted(self.manifest.model.vocab_size, len(self.manifest.scales))
        if not len(numbers):
            raise SettingsError("labels: expected at least one")
        if len(numbers) not in limits.PICTURES:
            raise SettingsError(f"labels: expected at most {limits.PICTURES.most} for one call, found {len(numbers)}")
        if batch not in limits.BATCH:
            raise SettingsError(f"batch: expected {limits.BATCH}, found {shown(batch)}")
        seeds = image_seeds(seed, len(numbers))
        checked = self._check_kept(*kept, len(numbers))
        return Request(numbers, seeds, batch, sampling, checked, on_scale, on_stage, observe)

    def _check_kept(
        self, keep: Sequence[np.ndarray] | None, kept_tokens: Sequence[np.ndarray] | None, count: int
    ) -> Kept | None:
        """Check both arguments and return them with N rows each, or None if nothing is kept. Raises SettingsError."""
        if keep is None and kept_tokens is None:
            return None
        if keep is None or kept_tokens is None:
            raise SettingsError("keep, kept_tokens: expected both or neither")
        masks = self._rows(keep, "keep", "bool", count)
        maps = self._rows(kept_tokens, "kept_tokens", "int32", count)
        last = self.manifest.model.vocab_size - 1
        for k, tokens in enumerate(maps):
            if tokens.min() < 0 or tokens.max() > last:
                raise SettingsError(f"kept_tokens[{k}]: expected tokens from 0 to {last}")
        return masks, maps

    def _rows(self, arrays: Sequence[np.ndarray], name: str, dtype: str, count: int) -> Maps:
        scales = self.manifest.scales
        if len(arrays) != len(scales):
            raise SettingsError(f"{name}: expected {len(scales)} arrays, one per scale, found {len(arrays)}")
        for k, (array, scale) in enumerate(zip(arrays, scales, strict=True)):
            if array.dtype != dtype or array.shape not in ((count, scale.tokens), (1, scale.tokens)):
                expected = f"({count} or 1, {scale.tokens}) {dtype}"
                raise SettingsError(f"{name}[{k}]: expected {expected}, found {array.shape} {array.dtype}")
        return [array.repeat(count // len(array), axis=0) for array in arrays]


def image_seeds(seed: int | Sequence[int], count: int) -> Sequence[int]:
    """Return one seed for each of `count` images. Raises SettingsError."""
    if not isinstance(seed, Sequence):
        check_seed(seed, count)
        return range(int(seed), int(seed) + count)
    if len(seed) != count:
        raise SettingsError(f"seed: expected one seed, or {count} for {count} image(s), found {len(seed)}")
    for each in seed:
        check_seed(each, 1)
    return seed
