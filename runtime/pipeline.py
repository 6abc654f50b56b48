"""The scale loop: labels and a seed become pictures."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from . import limits
from .backends import create
from .backends.base import Backend, Observe, OnStage
from .bundle.classes import NO_CLASS, ClassNames
from .bundle.manifest import Manifest
from .bundle.precision import Precision
from .editing import Box, keep_masks, kept_cells
from .errors import NumericError, SettingsError
from .limits import shown
from .sampling import BATCH, Sampling, guided
from .uniforms import check_seed, gumbel_noise, uniforms

Maps = list[np.ndarray]  # K arrays (N, p*p), one for each scale
Kept = tuple[Maps, Maps]  # masks and tokens


@dataclass(frozen=True)
class Result:
    """N pictures, and the K token maps they are made of."""

    images: np.ndarray  # (N, H, W, 3) uint8
    tokens: Maps  # (N, p*p) int32
    drawn: Maps  # (N, p*p) int32: before `kept_tokens` were put in; `tokens` itself if nothing was kept


@dataclass
class ScaleView:
    """What `on_scale` may look at. Computed when asked for; raises SettingsError once the callback has returned."""

    index: int
    side: int
    pictures: range  # which of the N pictures this batch draws
    guidance: float
    _backend: Backend | None

    @property
    def backend(self) -> Backend:
        if self._backend is None:
            raise SettingsError("view: used after on_scale returned, when the next scale overwrites it; copy it there")
        return self._backend

    def end(self) -> None:
        """The callback has returned."""
        self._backend = None

    def tokens(self) -> np.ndarray:
        """(B, p*p) int32"""
        return self.backend.tokens(self.index)

    def logits(self) -> np.ndarray:
        """(B, p*p, V) float32, after guidance and before filtering."""
        return guided(self.backend.logits(), self.guidance)

    def preview(self) -> np.ndarray:
        """(B, H, W, 3) uint8: the pictures as they are after this scale. Costs a run of the decoder."""
        return self.backend.decode()


@dataclass(frozen=True)
class _Hooks:
    """Who wants to hear of a generation while it runs."""

    on_scale: Callable[[ScaleView], None] | None
    on_stage: OnStage | None
    observe: Observe | None


_calls: ContextVar[tuple[object, ...]] = ContextVar("calls", default=())  # that a callback runs in, also to_thread's


class Pipeline:
    """A loaded bundle.

    Threads may share it: calls take turns. A call from inside its own `on_scale` or `on_stage` is an error, and so is
    one in a forked process; there, load the bundle anew. A callback must not wait for another thread's call.
    `backend` is one of `runtime.backends.BACKENDS`, or a backend of your own. `verify=False` skips the SHA-256 of the
    bundle's files; `threads` None leaves their number to the backend. With `finite=False` pictures and tokens are
    returned even if NaN or infinity went into them, for tools that look for where it begins; tokens are then -1.
    Raises BundleError if the bundle is damaged, SettingsError.
    """

    def __init__(
        self,
        bundle: str | os.PathLike[str],
        backend: str | Backend = "auto",
        threads: int | None = None,
        verify: bool = True,
        finite: bool = True,
    ) -> None:
        path = Path(bundle)
        self._finite = finite
        self._lock, self._current, self._process = threading.Lock(), object(), os.getpid()
        self.bundle = path
        self.manifest = Manifest.load(path, verify)
        self.classes = ClassNames.load(path, self.manifest)
        if isinstance(backend, str):
            backend = created = create(backend, path, self.manifest, threads, verify)
            self.manifest = created.manifest  # of the engines, if the bundle's run
        self.backend: Backend = backend

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
    ) -> Result:
        """Draws one picture for each label: a number (`num_classes` is "no class") or a class name.

        Picture i is drawn with `seed` + i, or with the i-th of several seeds, `batch` pictures at a time, and does
        not depend on the others.
        `top_k` None is the default, or all tokens of a smaller vocabulary.
        Where `keep`, K masks (N or 1, p*p) bool, is true, `kept_tokens`, K maps (N or 1, p*p) int32, replace
        the tokens drawn. `on_scale` is called after every scale of every batch; to stop, raise from it.
        `on_stage(graph, scale, seconds)` hears how long every run of a graph took; the scale of condition and
        decoder is None. `observe(run)` is shown what every run of a graph read and wrote, see `StageRun`.
        `smooth` mixes codes, see `Sampling`; tokens are then the most probable ones, and not what the pictures are made
        of. `sampling` takes the place of `cfg`, `top_k`, `top_p` and `smooth`. Raises SettingsError, NumericError if
        the model computes NaN or infinity, or BundleError for `smooth` if the bundle has no graph for it.
        """
        numbers = np.array(self.classes.labels(labels), np.int64)  # (N,)
        vocab_size = self.manifest.model.vocab_size
        given = Sampling(cfg, top_k, top_p, smooth)
        if sampling is not None and given != Sampling():
            raise SettingsError("sampling: expected it alone, found cfg, top_k, top_p or smooth beside it; give one")
        sampling = (sampling or given).fitted(vocab_size)
        if not len(numbers):
            raise SettingsError("labels: expected at least one")
        if len(numbers) not in limits.PICTURES:
            raise SettingsError(f"labels: expected at most {limits.PICTURES.most} for one call, found {len(numbers)}")
        if batch not in limits.BATCH:
            raise SettingsError(f"batch: expected {limits.BATCH}, found {shown(batch)}")
        seeds = _seeds(seed, len(numbers))
        kept = self._check_kept(keep, kept_tokens, len(numbers))

        with self._take_turn():
            return self._draw_all(numbers, seeds, batch, sampling, kept, _Hooks(on_scale, on_stage, observe))

    def _draw_all(
        self,
        numbers: np.ndarray,
        seeds: Sequence[int],
        batch: int,
        sampling: Sampling,
        kept: Kept | None,
        hooks: _Hooks,
    ) -> Result:
        images, tokens, drawn = [], [], []
        for pictures in batches(len(numbers), batch, self.backend.batches):
            self._draw(pictures, numbers, seeds, sampling, kept, hooks)
            images.append(self.backend.decode())
            tokens.append([self.backend.tokens(k) for k in range(len(self.manifest.scales))])
            if kept:
                drawn.append([self.backend.drawn(k) for k in range(len(self.manifest.scales))])
            for k, maps in enumerate((drawn if kept else tokens)[-1]):
                self._check_finite(maps >= 0, f"logits of scale {k}")
            self._check_finite(self.backend.finite(), "pixels of the decoder")
        all_tokens = _join(tokens)
        return Result(np.concatenate(images), all_tokens, _join(drawn) if kept else all_tokens)

    def edit(
        self,
        image: np.ndarray,
        region: Box | np.ndarray,
        mode: str = "inpaint",
        labels: int | str | Sequence[int | str] = NO_CLASS,
        **settings: Any,
    ) -> Result:
        """Draws a part of a picture (H, W, 3) uint8 anew, once for each label; `settings` are those of `generate`.

        `region` is a box (y0, x0, y1, x1) in shares of the picture, or a mask (H, W) bool: "inpaint" draws what is
        inside and keeps the rest, "outpaint" the other way round. What is kept are tokens: the VQVAE reconstructs
        them. Raises SettingsError, or BundleError if the bundle has no encoder.
        """
        keep = keep_masks(kept_cells(region, mode, self.manifest.model), self.manifest.model.patch_nums)
        return self.generate(labels, keep=keep, kept_tokens=self.encode(image[None]), **settings)

    def encode(self, images: np.ndarray) -> Maps:
        """The K token maps (N, p*p) int32 of pictures (N, H, W, 3) uint8.

        Raises SettingsError, NumericError if the encoder computes NaN or infinity, or BundleError if the bundle has
        no encoder.
        """
        side = self.manifest.model.image_size
        if images.dtype != np.uint8 or images.shape[1:] != (side, side, 3) or not len(images):
            expected = f"(N, {side}, {side}, 3) uint8"
            raise SettingsError(f"images: expected {expected}, found {images.shape} {images.dtype}")
        ends = [scale.offset + scale.tokens for scale in self.manifest.scales]
        with self._take_turn():
            tokens = self.backend.encode(images)
        self._check_finite(tokens >= 0, "features of the encoder")
        return np.split(tokens, ends[:-1], axis=1)

    @contextmanager
    def _take_turn(self) -> Iterator[None]:
        """Waits for the calls of other threads. Raises SettingsError where waiting would never end."""
        if os.getpid() != self._process:
            raise SettingsError("pipeline: loaded before this process was forked; load the bundle in each process")
        if self._current in _calls.get():
            raise SettingsError("pipeline: called from its own on_scale or on_stage; call it after generate returned")
        with self._lock:
            self._current = object()
            outer = _calls.set((*_calls.get(), self._current))
            try:
                yield
            finally:
                self._current = object()
                _calls.reset(outer)

    def __reduce__(self) -> str:
        raise TypeError("a Pipeline cannot be pickled or copied; load the bundle in each process")

    def _check_finite(self, finite: np.ndarray, what: str) -> None:
        """Raises NumericError, unless the pipeline was told not to."""
        if self._finite and not finite.all():
            name, precision = self.manifest.model.name, self.manifest.precision
            reason = f"{name} overflows in {precision}; use FP32 or check with make verify"
            if precision is Precision.FP32:
                reason = f"{name} is exported in fp32, so its weights are damaged or too large; check the checkpoint"
            raise NumericError(f"{what} hold NaN or infinity: {reason}")

    def _draw(
        self,
        pictures: range,
        labels: np.ndarray,
        seeds: Sequence[int],
        sampling: Sampling,
        kept: Kept | None,
        hooks: _Hooks,
    ) -> None:
        """One batch: the scales of these pictures, coarse to fine."""
        scales = self.manifest.scales
        rows = slice(pictures.start, pictures.stop)
        counts = [scale.tokens for scale in scales]
        if sampling.smooth:
            draws = [gumbel_noise(seeds[i], counts, self.manifest.model.vocab_size) for i in pictures]
        else:
            draws = [uniforms(seeds[i], counts) for i in pictures]
        self.backend.begin(labels[rows], sampling, hooks.on_stage, hooks.observe)
        for k, (scale, *draw) in enumerate(zip(scales, *draws, strict=True)):
            keep, kept_tokens = (None, None) if kept is None else (part[k][rows] for part in kept)
            self.backend.step(k, np.stack(draw), keep, kept_tokens)
            if hooks.on_scale:
                view = ScaleView(k, scale.side, pictures, sampling.guidance(k, len(scales)), self.backend)
                try:
                    hooks.on_scale(view)
                finally:
                    view.end()

    def _check_kept(
        self, keep: Sequence[np.ndarray] | None, kept_tokens: Sequence[np.ndarray] | None, count: int
    ) -> Kept | None:
        """Both with N rows, or None. Raises SettingsError."""
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
            raise SettingsError(f"{name}: expected {len(scales)} arrays, one a scale, found {len(arrays)}")
        for k, (array, scale) in enumerate(zip(arrays, scales, strict=True)):
            if array.dtype != dtype or array.shape not in ((count, scale.tokens), (1, scale.tokens)):
                expected = f"({count} or 1, {scale.tokens}) {dtype}"
                raise SettingsError(f"{name}[{k}]: expected {expected}, found {array.shape} {array.dtype}")
        return [array.repeat(count // len(array), axis=0) for array in arrays]


def _seeds(seed: int | Sequence[int], count: int) -> Sequence[int]:
    """One for each picture. Raises SettingsError."""
    if not isinstance(seed, Sequence):
        check_seed(seed, count)
        return range(int(seed), int(seed) + count)
    if len(seed) != count:
        raise SettingsError(f"seed: expected one, or {count} for {count} picture(s), found {len(seed)}")
    for each in seed:
        check_seed(each, 1)
    return seed


def batches(count: int, batch: int, sizes: tuple[int, ...] | None) -> Iterator[range]:
    """Which pictures are drawn together: `batch` or as many as are left, and only as many at once as one of `sizes`."""
    start = 0
    while start < count:
        most = min(batch, count - start)
        size = most if sizes is None else max(size for size in sizes if size <= most)
        yield range(start, start + size)
        start += size


def _join(batches: list[Maps]) -> Maps:
    return [np.concatenate(maps) for maps in zip(*batches, strict=True)]
