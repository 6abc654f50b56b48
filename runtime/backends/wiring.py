"""Assign an array to every input and output of every stage, the same for all engines and all kinds of memory."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from ..bundle import names
from ..bundle.engine_record import scale_sizes
from ..bundle.manifest import WEIGHTS, Manifest, Scale
from ..bundle.weight_file import open_weights
from ..errors import BundleError
from ..sampling import Sampling
from .arrays import Array, Arrays

ALIGNMENT = 256  # bytes; TensorRT requires it of an address


@dataclass(frozen=True)
class ColumnCopy:
    """A copy of the columns with label between an array (R, 2B, …) and one without the other half, (R, B, …)."""

    target: Array
    source: Array


@dataclass(frozen=True)
class Stage:
    """One run of a graph on fixed arrays."""

    graph: str
    scale: int | None  # None for condition and decoder
    inputs: dict[str, Array]
    outputs: dict[str, Array]
    copies: tuple[ColumnCopy, ...] = ()  # made before it runs

    @property
    def tensors(self) -> dict[str, Array]:
        return {**self.inputs, **self.outputs}


Specs = Mapping[str, tuple[tuple[int, ...], Any]]  # shape and dtype by name


class SharedBlock:
    """Small arrays that the host sets or reads, in one block of memory, so that one copy moves several of them.

    They are in parts, such as one for each scale. `host[i]` and `stages[i]` are the arrays of part i by name.
    """

    def __init__(self, arrays: Arrays, parts: Sequence[Specs]) -> None:
        """Allocate the block."""
        spans: list[dict[str, slice]] = []
        ends = [0]
        for part in parts:
            spans.append({})
            end = ends[-1]
            for name, (shape, dtype) in part.items():
                size = math.prod(shape) * np.dtype(dtype).itemsize
                spans[-1][name] = slice(end, end + size)
                end += -(-size // ALIGNMENT) * ALIGNMENT
            ends.append(end)
        self._arrays = arrays
        self._parts = [slice(start, end) for start, end in pairwise(ends)]
        self._host, self._stages = arrays.shared(ends[-1])
        self.host, self.stages = (
            [
                {name: block[span[name]].view(dtype).reshape(shape) for name, (shape, dtype) in part.items()}
                for part, span in zip(parts, spans, strict=True)
            ]
            for block in (self._host, self._stages)
        )

    def upload(self, part: int | None = None) -> None:
        """Queue the copy of one part, or of all, from the host to the stages."""
        span = slice(None) if part is None else self._parts[part]
        self._arrays.upload(self._stages[span], self._host[span])

    def fetch(self) -> None:
        """Queue the copy of all parts to the host; they are there after `wait` of the arrays."""
        self._arrays.fetch(self._host, self._stages)


@dataclass(frozen=True)
class ScaleConstants:
    """Inputs of transformer and bridge that depend on the scale only."""

    transformer: dict[str, Array]
    bridge: dict[str, Array]


class _Columns:
    """The transformer's arrays for a number of columns: 2B with guidance, B with the label only.

    Token-major arrays are as long as the largest scale needs; a smaller scale uses the first rows. The caches of keys
    and values have rows for `tokens` tokens: the past ones are the first rows, and the new ones follow directly.
    """

    def __init__(self, columns: int, tokens: int, manifest: Manifest, arrays: Arrays) -> None:
        model, rows = manifest.model, manifest.scales[-1].tokens
        dtypes = {spec.name: spec.dtype for spec in manifest.graphs[names.TRANSFORMER].inputs}
        cache_shape = (tokens, columns, model.heads, model.width // model.heads)  # (T, 2B, H, 64)
        self.x = arrays.zeros((rows, columns, model.width), np.float32)  # (L, 2B, C)
        self.logits = arrays.zeros((rows, columns, model.vocab_size), np.float32)  # (L, 2B, V)
        self.modulation = arrays.zeros((model.depth, 6, columns, model.width), np.float32)
        self.head_modulation = arrays.zeros((2, columns, model.width), np.float32)
        self.caches = {
            cache: arrays.zeros(cache_shape, dtypes[names.past(*cache)]) for cache in names.caches(model.depth)
        }

    def transformer(self, k: int, scale: Scale, constants: dict[str, Array], copies: Sequence[ColumnCopy]) -> Stage:
        start, end = scale.offset, scale.offset + scale.tokens
        _, parts, columns, width = self.modulation.shape
        by_block = {
            names.modulation_of(i): self.modulation[i : i + 1].reshape((parts, columns, width))
            for i in range(len(self.modulation))
        } | {names.HEAD_MODULATION: self.head_modulation}
        past = {names.past(*cache): array[:start] for cache, array in self.caches.items()}
        new = {names.new(*cache): array[start:end] for cache, array in self.caches.items()}
        inputs = {names.X: self.x[: scale.tokens], **by_block, **past, **constants}
        return Stage(names.TRANSFORMER, k, inputs, {names.LOGITS: self.logits[: scale.tokens], **new}, tuple(copies))

    def taken_over(self, other: _Columns, tokens: int) -> Iterator[ColumnCopy]:
        """Yield the copies of what `other` holds after `tokens` tokens, except x."""
        depth, parts, columns, width = self.modulation.shape
        theirs = other.modulation.reshape((depth * parts, other.modulation.shape[2], width))
        yield ColumnCopy(self.modulation.reshape((depth * parts, columns, width)), theirs)
        yield ColumnCopy(self.head_modulation, other.head_modulation)
        for cache, array in self.caches.items():
            yield ColumnCopy(array[:tokens], other.caches[cache][:tokens])


class Wiring:
    """All arrays of one batch size, and the stages on them. They are allocated once; drawing allocates nothing.

    The first `guidance_scales` scales (None: all) run with 2B columns. The others run the same transformer on the B
    columns with label, for which there is a second set of arrays. The bridge always reads and writes 2B columns; there
    its guidance is 0.
    """

    def __init__(
        self,
        size: int,
        manifest: Manifest,
        constants: list[ScaleConstants],
        arrays: Arrays,
        smooth: bool = False,
        guidance_scales: int | None = None,
    ) -> None:
        model, scales = manifest.model, manifest.scales
        self.size, self.smooth = size, smooth
        self.guidance_scales = len(scales) if guidance_scales is None else guidance_scales
        self._arrays, self._scales = arrays, len(scales)
        self.settings = SharedBlock(  # the labels, then what each scale is drawn with
            arrays,
            [
                {names.LABELS: ((size,), np.int64)},
                *(
                    {
                        **_drawing(smooth, size, scale.tokens, model.vocab_size),
                        names.GUIDANCE: ((1,), np.float32),
                        names.TOP_K: ((1,), np.int64),
                        names.TOP_P: ((1,), np.float32),
                        names.KEEP: ((size, scale.tokens), np.bool_),
                        names.KEPT_TOKENS: ((size, scale.tokens), np.int32),
                    }
                    for scale in scales
                ),
            ],
        )
        self.results = SharedBlock(  # the tokens of each scale, then the images
            arrays,
            [
                *({name: ((size, scale.tokens), np.int32) for name in (names.DRAWN, names.TOKENS)} for scale in scales),
                {
                    names.IMAGE: ((size, model.image_size, model.image_size, 3), np.uint8),
                    names.FINITE: ((size, ALIGNMENT), np.bool_),  # image i has the first element of row i
                },
            ],
        )
        # Two buffers in alternation: a graph may write an output before it has read all of its input.
        f_hat_shape = (size, model.code_size, model.grid, model.grid)  # (B, Z, P, P)
        self._f_hat = [arrays.zeros(f_hat_shape, np.float32) for _ in range(2)]

        last_guided = scales[self.guidance_scales - 1]
        both = _Columns(2 * size, last_guided.offset + last_guided.tokens, manifest, arrays)
        labelled = both if self.guidance_scales == len(scales) else _Columns(size, model.tokens, manifest, arrays)
        self.logits = both.logits  # (L, 2B, V)
        first = {
            names.MODULATION: both.modulation,
            names.HEAD_MODULATION: both.head_modulation,
            names.X: both.x[: scales[0].tokens],
        }
        self.condition = Stage(names.CONDITION, None, self.settings.stages[0], first)
        self.steps = []
        for k, scale in enumerate(scales):
            columns = both if k < self.guidance_scales else labelled
            before: list[ColumnCopy] = []  # of the transformer
            after: list[ColumnCopy] = []
            if k == self.guidance_scales:
                before += labelled.taken_over(both, scale.offset)
            if k >= self.guidance_scales:
                before.append(ColumnCopy(labelled.x[: scale.tokens], both.x[: scale.tokens]))
                after.append(ColumnCopy(both.logits[: scale.tokens], labelled.logits[: scale.tokens]))
            bridge = Stage(
                names.SMOOTH_BRIDGE if smooth else names.BRIDGE,
                k,
                {
                    names.LOGITS: both.logits[: scale.tokens],
                    names.F_HAT: self._f_hat[k % 2],
                    **self.settings.stages[k + 1],
                    **constants[k].bridge,
                },
                {
                    **self.results.stages[k],
                    names.F_HAT_OUT: self.f_hat_after(k),
                    names.X_NEXT: both.x[: scale_sizes(scales, k, size)["L_next"]],
                },
                tuple(after),
            )
            self.steps.append((columns.transformer(k, scale, constants[k].transformer, before), bridge))

    def set_labels(self, labels: np.ndarray) -> None:
        """Write the labels (B,) on the host."""
        self.settings.host[0][names.LABELS][:] = labels

    def set_scale(
        self, k: int, randoms: np.ndarray, sampling: Sampling, keep: np.ndarray | None, kept_tokens: np.ndarray | None
    ) -> None:
        """Write the settings and random numbers of scale k on the host."""
        host = self.settings.host[k + 1]
        host[names.NOISE if self.smooth else names.UNIFORMS][:] = randoms
        host[names.GUIDANCE][:] = sampling.guidance(k, self._scales)
        if self.smooth:
            host[names.SHARPNESS][:] = sampling.sharpness(k, self._scales)
            host[names.TEMPERATURE][:] = sampling.temperature(k, self._scales)
        host[names.TOP_K][:], host[names.TOP_P][:] = sampling.tokens_kept, sampling.top_p
        host[names.KEEP][:] = False if keep is None else keep
        host[names.KEPT_TOKENS][:] = 0 if kept_tokens is None else kept_tokens

    def upload_labels(self) -> None:
        self.settings.upload(0)

    def upload_scale(self, k: int) -> None:
        self.settings.upload(k + 1)

    def clear_f_hat(self) -> None:
        """Queue setting f_hat to 0, as it is before scale 0."""
        self._arrays.clear(self._f_hat[0])

    def f_hat_after(self, k: int) -> Array:
        """Return the array f_hat (B, Z, P, P) that holds the result of scale k."""
        return self._f_hat[(k + 1) % 2]

    def decoders(self, graph: str, k: int) -> list[Stage]:
        """Return the runs of a decoder's graph after scale k, one for each image.

        One run for all would hold the activations of all images at once.
        """
        f_hat, results = self.f_hat_after(k), self.results.stages[-1]
        rows = [slice(i, i + 1) for i in range(self.size)]
        return [
            Stage(
                graph,
                None,
                {names.F_HAT: f_hat[row]},
                {
                    names.IMAGE: results[names.IMAGE][row],
                    names.FINITE: results[names.FINITE][row].reshape((ALIGNMENT,))[:1],
                },
            )
            for row in rows
        ]


def _drawing(smooth: bool, size: int, tokens: int, vocab_size: int) -> dict[str, tuple[tuple[int, ...], Any]]:
    """Return shape and dtype of the bridge's inputs for one scale, without guidance and filters."""
    if not smooth:
        return {names.UNIFORMS: ((size, tokens), np.float32)}
    noise = ((size, tokens, vocab_size), np.float32)
    return {names.NOISE: noise, names.SHARPNESS: ((1,), np.float32), names.TEMPERATURE: ((1,), np.float32)}


def scale_constants(bundle: Path, manifest: Manifest, arrays: Arrays) -> list[ScaleConstants]:
    """Return the constant inputs of each scale's graphs. Raises BundleError if the weight file lacks a tensor."""
    placed: dict[str, Array] = {}

    def place(name: str, values: np.ndarray) -> Array:
        if name not in placed:
            placed[name] = arrays.zeros(values.shape, values.dtype)
            arrays.upload(placed[name], values)
            arrays.download(placed[name][:1])  # waits for the copy, because `values` is freed afterwards
        return placed[name]

    constants = []
    with open_weights(bundle) as weights:
        if missing := manifest.runtime_tensors - set(weights.keys()):
            raise BundleError(f"{bundle / WEIGHTS}: has no tensor {min(missing)}; export the bundle again")
        by_step = {name: weights.get_tensor(name) for name in manifest.step_constants}  # (K, …) each
        for k, scale in enumerate(manifest.scales):
            following = manifest.scales[(k + 1) % len(manifest.scales) or 1]
            wanted = {names.UPSAMPLE: scale.upsample, names.DOWNSAMPLE: following.downsample}
            positions = following.offset + np.arange(following.tokens, dtype=np.int64)
            bridge = {key: place(str(name), weights.get_tensor(name)) for key, name in wanted.items()} | {
                names.PHI: place(f"phi {k}", np.array([scale.phi], np.int64)),
                names.NEXT_POSITIONS: place(f"positions {k}", positions),
            }
            constants.append(ScaleConstants({name: place(f"{name} {k}", t[k]) for name, t in by_step.items()}, bridge))
    return constants
