"""The scale loop, which draws images from labels and a seed."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
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
class _Request:
    """What to draw, checked, and the callbacks."""

    labels: np.ndarray  # (N,) int64
    seeds: Sequence[int]
    batch: int
    sampling: Sampling
    kept: Kept | None
    on_scale: Callable[[ScaleView], None] | None
    on_stage: OnStage | None
    observe: Observe | None


# The calls that the current code runs inside of. asyncio.to_thread copies a ContextVar to its thread.
_calls: ContextVar[tuple[object, ...]] = ContextVar("calls", default=())


class Pipeline:
    """A loaded bundle, which draws, edits and encodes images.

    Threads may share a pipeline: their calls run one after the other. A call from inside its own `on_scale` or
    `on_stage` is an error, and a callback must not wait for the call of another thread. A call in a forked process is
    an error too; load the bundle in each process.

    `backend` is one of `runtime.backends.BACKENDS`, or an object with the interface `Backend`. `threads` are CPU
    threads; with None the backend chooses. `verify=False` skips the SHA-256 of the bundle's files. With `finite=False`
    results that contain NaN or infinity are returned instead of raising NumericError, and such tokens are -1; tools use
    it to find where NaN begins. Raises BundleError if the bundle is damaged, SettingsError.

    `close` releases the memory, on a GPU too; so does the end of a `with` block and the garbage collector.
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
        self._closed = False
        self.bundle = path
        self.manifest = Manifest.load(path, verify)
        self.classes = ClassNames.load(path, self.manifest)
        if isinstance(backend, str):
            backend = created = create(backend, path, self.manifest, threads, verify)
            self.manifest = created.manifest  # with TensorRT, that of the engines
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
        request = self._request(labels, seed, batch, sampling, kept, on_scale, on_stage, observe)
        with self._take_turn():
            return self._draw_all(request)

    def check(self, sampling: Sampling) -> None:
        """Raise SettingsError or BundleError if `generate` would refuse these settings."""
        self.backend.check(sampling.fitted(self.manifest.model.vocab_size, len(self.manifest.scales)))

    def draw_tokens(
        self,
        labels: int | str | Sequence[int | str],
        seed: int | Sequence[int] = 0,
        scales: int | None = None,
        keep: Sequence[np.ndarray] | None = None,
        kept_tokens: Sequence[np.ndarray] | None = None,
        batch: int = BATCH,
        on_scale: Callable[[ScaleView], None] | None = None,
        on_stage: OnStage | None = None,
        sampling: Sampling | None = None,
        observe: Observe | None = None,
    ) -> tuple[Maps, Maps]:
        """Draw only the first `scales` scales (None: all) and decode nothing.

        Returns `tokens` and `drawn` of the `Result` that `generate` would return, up to there. The other arguments are
        those of `generate`. Raises SettingsError, NumericError.
        """
        count = len(self.manifest.scales) if scales is None else scales
        if count not in limits.Integers(1, len(self.manifest.scales)):
            raise SettingsError(f"scales: expected 1 to {len(self.manifest.scales)}, found {shown(count)}")
        kept = keep, kept_tokens
        request = self._request(labels, seed, batch, sampling or Sampling(), kept, on_scale, on_stage, observe)
        tokens, drawn = [], []
        with self._take_turn():
            for pictures in batches(len(request.labels), batch, self.backend.batches):
                self._draw(request, pictures, count, whole=False)
                found = self._tokens(request, count)
                tokens.append(found[0])
                drawn.append(found[1])
        joined = _join(tokens)
        return joined, _join(drawn) if request.kept else joined

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
    ) -> _Request:
        """Check these arguments of `generate` and return them. Raises SettingsError."""
        numbers = np.array(self.classes.labels(labels), np.int64)
        sampling = sampling.fitted(self.manifest.model.vocab_size, len(self.manifest.scales))
        if not len(numbers):
            raise SettingsError("labels: expected at least one")
        if len(numbers) not in limits.PICTURES:
            raise SettingsError(f"labels: expected at most {limits.PICTURES.most} for one call, found {len(numbers)}")
        if batch not in limits.BATCH:
            raise SettingsError(f"batch: expected {limits.BATCH}, found {shown(batch)}")
        seeds = _seeds(seed, len(numbers))
        checked = self._check_kept(*kept, len(numbers))
        return _Request(numbers, seeds, batch, sampling, checked, on_scale, on_stage, observe)

    def _draw_all(self, request: _Request) -> Result:
        images, tokens, drawn = [], [], []
        scales = len(self.manifest.scales)
        # The noise of smooth sampling is large: it is made for one scale while the backend draws the scale before.
        whole = request.on_scale is None and not request.sampling.smooth
        for pictures in batches(len(request.labels), request.batch, self.backend.batches):
            self._draw(request, pictures, scales, whole)
            images.append(self.backend.decode())
            found = self._tokens(request, scales)
            tokens.append(found[0])
            drawn.append(found[1])
            self._check_finite(self.backend.finite(), "pixels of the decoder")
        joined = _join(tokens)
        return Result(np.concatenate(images), joined, _join(drawn) if request.kept else joined)

    def _tokens(self, request: _Request, count: int) -> tuple[Maps, Maps]:
        """Return the tokens of the first `count` scales of a batch, after and before kept ones replaced them.

        Raises NumericError.
        """
        tokens = [self.backend.tokens(k) for k in range(count)]
        drawn = [self.backend.drawn(k) for k in range(count)] if request.kept else tokens
        for k, maps in enumerate(drawn):
            self._check_finite(maps >= 0, f"logits of scale {k}")
        return tokens, drawn

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

    def encode(self, images: np.ndarray) -> Maps:
        """Return the K token maps (N, p*p) int32 of images (N, H, W, 3) uint8.

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

    @property
    def launches_whole(self) -> bool:
        """Whether a batch that nobody listens to is one launch, and so faster."""
        return self.backend.launches_whole

    @property
    def drawn_with(self) -> str:
        """The name of the backend."""
        return self.backend.name

    def close(self) -> None:
        """Wait for the calls of other threads, then release the memory. Later calls raise SettingsError."""
        if os.getpid() != self._process:  # a forked child, whose memory is not on the GPU
            return
        with self._take_turn(closing=True):
            if not self._closed:
                self._closed = True
                self.backend.close()

    def __enter__(self) -> Pipeline:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextmanager
    def _take_turn(self, closing: bool = False) -> Iterator[None]:
        """Wait for the calls of other threads. Raises SettingsError where this would be for ever, and after `close`."""
        if os.getpid() != self._process:
            raise SettingsError("pipeline: loaded before this process was forked; load the bundle in each process")
        if self._current in _calls.get():
            inside = "called from its own on_scale, on_stage or observe"
            raise SettingsError(f"pipeline: {inside}; call it after generate returned")
        with self._lock:
            if self._closed and not closing:
                raise SettingsError("pipeline: closed; load the bundle again")
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
        """Raise NumericError unless `finite` is all true or the pipeline has `finite=False`."""
        if self._finite and not finite.all():
            name, precision = self.manifest.model.name, self.manifest.precision
            reason = f"{name} overflows in {precision}; use FP32 or check with make verify"
            if precision is Precision.FP32:
                reason = f"{name} is exported in fp32, so its weights are damaged or too large; check the checkpoint"
            raise NumericError(f"{what} hold NaN or infinity: {reason}")

    def _draw(self, request: _Request, pictures: range, count: int, whole: bool) -> None:
        """Draw one batch: the first `count` scales of these images, from coarse to fine.

        `whole` is that of `Backend.begin`.
        """
        scales, sampling, kept, seeds = self.manifest.scales, request.sampling, request.kept, request.seeds
        rows = slice(pictures.start, pictures.stop)
        counts = [scale.tokens for scale in scales]
        draws: list[Iterable[np.ndarray]]
        if sampling.smooth:
            draws = [gumbel_noise(seeds[i], counts, self.manifest.model.vocab_size) for i in pictures]
        else:
            draws = [uniforms(seeds[i], counts) for i in pictures]
        self.backend.begin(request.labels[rows], sampling, request.on_stage, request.observe, whole)
        for k, (scale, *draw) in enumerate(zip(scales[:count], *draws, strict=False)):
            keep, kept_tokens = (None, None) if kept is None else (part[k][rows] for part in kept)
            self.backend.step(k, np.stack(draw), keep, kept_tokens)
            if request.on_scale:
                guidance, last = sampling.guidance(k, len(scales)), k == len(scales) - 1
                view = ScaleView(k, scale.side, pictures, guidance, last, self.backend)
                try:
                    request.on_scale(view)
                finally:
                    view.end()

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


def _seeds(seed: int | Sequence[int], count: int) -> Sequence[int]:
    """Return one seed for each image. Raises SettingsError."""
    if not isinstance(seed, Sequence):
        check_seed(seed, count)
        return range(int(seed), int(seed) + count)
    if len(seed) != count:
        raise SettingsError(f"seed: expected one seed, or {count} for {count} image(s), found {len(seed)}")
    for each in seed:
        check_seed(each, 1)
    return seed


def batches(count: int, batch: int, sizes: tuple[int, ...] | None) -> Iterator[range]:
    """Yield the images of each batch: at most `batch`; if `sizes` is given, each batch has one of these sizes."""
    start = 0
    while start < count:
        most = min(batch, count - start)
        size = most if sizes is None else max(size for size in sizes if size <= most)
        yield range(start, start + size)
        start += size


def _join(batches: list[Maps]) -> Maps:
    return [np.concatenate(maps) for maps in zip(*batches, strict=True)]
