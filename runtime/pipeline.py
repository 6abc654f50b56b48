"""The scale loop, which draws images from labels and a seed."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

import numpy as np

from .backends import create
from .backends.base import Backend, Plan
from .base_pipeline import BasePipeline, Maps, Request, Result, ScaleView
from .bundle.classes import ClassNames
from .bundle.manifest import Manifest
from .bundle.precision import Precision
from .errors import NumericError, SettingsError, with_room
from .sampling import Sampling
from .uniforms import gumbel_noise, uniforms

# The calls that the current code runs inside of. asyncio.to_thread copies a ContextVar to its thread.
_calls: ContextVar[tuple[object, ...]] = ContextVar("calls", default=())


class Pipeline(BasePipeline):
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
        self.fingerprint = self.manifest.fingerprint
        self.classes = ClassNames.load(path, self.manifest)
        if isinstance(backend, str):
            backend = created = create(backend, path, self.manifest, threads, verify)
            self.manifest = created.manifest  # with TensorRT, that of the engines
        self.backend: Backend = backend

    def check(self, sampling: Sampling) -> None:
        self.backend.check(sampling.fitted(self.manifest.model.vocab_size, len(self.manifest.scales)))

    def draw(self, request: Request) -> Result:
        images, tokens, drawn = [], [], []
        plan = Plan(len(self.manifest.scales), image=True, asked=request.on_scale is not None)
        with self._take_turn():
            for pictures in batches(len(request.labels), request.batch, self.backend.batches):
                self._draw(request, pictures, plan)
                images.append(self.backend.decode())
                found = self._tokens(request, plan.scales)
                tokens.append(found[0])
                drawn.append(found[1])
                self._check_finite(self.backend.finite(), "pixels of the decoder")
        joined = _join(tokens)
        return Result(np.concatenate(images), joined, _join(drawn) if request.kept else joined)

    def draw_tokens(self, request: Request, scales: int) -> tuple[Maps, Maps]:
        """Draw only the first `scales` scales, at least one, and decode nothing.

        Returns `tokens` and `drawn` of the `Result` that `draw` would return, up to there. Raises SettingsError,
        NumericError.
        """
        tokens, drawn = [], []
        plan = Plan(scales, image=False, asked=request.on_scale is not None)
        with self._take_turn():
            for pictures in batches(len(request.labels), request.batch, self.backend.batches):
                self._draw(request, pictures, plan)
                found = self._tokens(request, scales)
                tokens.append(found[0])
                drawn.append(found[1])
        joined = _join(tokens)
        return joined, _join(drawn) if request.kept else joined

    def _tokens(self, request: Request, count: int) -> tuple[Maps, Maps]:
        """Return the tokens of the first `count` scales of a batch, after and before kept ones replaced them.

        Raises NumericError.
        """
        tokens = [self.backend.tokens(k) for k in range(count)]
        drawn = [self.backend.drawn(k) for k in range(count)] if request.kept else tokens
        self.check_tokens(drawn)
        return tokens, drawn

    def check_tokens(self, tokens: Maps) -> None:
        """Raise NumericError if one of the tokens is -1, unless this pipeline was loaded to return them."""
        for k, maps in enumerate(tokens):
            self._check_finite(maps >= 0, f"logits of scale {k}")

    def encode(self, images: np.ndarray) -> Maps:
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
        return self.backend.launches_whole

    @property
    def drawn_with(self) -> str:
        return self.backend.name

    def free_batches(self) -> None:
        """Free what is prepared for batch sizes, unless another call draws with it. Later calls prepare it again.

        It does not wait for that call, which may wait for the caller.
        """
        if os.getpid() == self._process and self._lock.acquire(blocking=False):
            try:
                if not self._closed:
                    self.backend.free_batches()
            finally:
                self._lock.release()

    def close(self) -> None:
        if os.getpid() != self._process:  # a forked child, whose memory is not on the GPU
            return
        with self._take_turn(closing=True):
            if not self._closed:
                self._closed = True
                self.backend.close()

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

    def _draw(self, request: Request, pictures: range, plan: Plan) -> None:
        """Draw one batch: the scales of the plan of these images, from coarse to fine."""
        scales, sampling, kept, seeds = self.manifest.scales, request.sampling, request.kept, request.seeds
        rows = slice(pictures.start, pictures.stop)
        counts = [scale.tokens for scale in scales]
        draws: list[Iterable[np.ndarray]]
        if sampling.smooth:
            draws = [gumbel_noise(seeds[i], counts, self.manifest.model.vocab_size) for i in pictures]
        else:
            draws = [uniforms(seeds[i], counts) for i in pictures]
        self._begin(request, rows, plan)
        for k, (scale, *draw) in enumerate(zip(scales[: plan.scales], *draws, strict=False)):
            keep, kept_tokens = (None, None) if kept is None else (part[k][rows] for part in kept)
            self.backend.step(k, np.stack(draw), keep, kept_tokens)
            if request.on_scale:
                guidance, last = sampling.guidance(k, len(scales)), k == len(scales) - 1
                view = ScaleView(k, scale.side, pictures, guidance, last, self.backend)
                try:
                    request.on_scale(view)
                finally:
                    view.end()

    def _begin(self, request: Request, rows: slice, plan: Plan) -> None:
        """Begin a batch. If memory runs out, make room and try again. Raises OutOfMemoryError."""
        arguments = request.labels[rows], request.sampling, request.on_stage, request.observe, plan
        with_room(request.make_room, lambda: self.backend.begin(*arguments))


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
