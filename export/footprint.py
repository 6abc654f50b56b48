"""The memory that drawing takes, computed from the sizes of the model: nothing has to be exported or loaded.

Weights are those of `export.sizes`, arrays those that the runtime's own `Wiring` allocates. What an engine takes
besides is a formula in the sizes of a stage, with measured constants (docs/memory.md has the errors). The letters are
those of docs/how-it-works.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from export import sizes
from export.sizes import Kind
from runtime.backends.arrays import DeviceArray
from runtime.backends.wiring import ScaleConstants, Wiring
from runtime.bundle import names
from runtime.bundle.manifest import SCHEMA_VERSION, Graph, Manifest, Model, Provenance, Scale, Tensor
from runtime.bundle.precision import Precision


@dataclass(frozen=True)
class Footprint:
    """Bytes that a process holds while it draws."""

    weights: float
    cache: float  # keys and values
    scratch: float  # all other arrays, and what the engine allocates while it runs
    host: float  # the process itself: Python, libraries, kernels

    @property
    def total(self) -> float:
        return self.weights + self.cache + self.scratch + self.host


# Constants of ONNX Runtime 1.32 on a CPU and of TensorRT for RTX 1.7, in the units that the functions below say.
CPU_PROCESS = 77e6  # bytes: Python, numpy, ONNX Runtime
CPU_COPIES = 0.19  # of the decoder's weights: convolutions are stored in another order besides
CPU_LOGITS = 10.4  # arrays (L, B, V) that a bridge keeps at once
CPU_MAPS = {4: 6, 1: 4}  # maps of the image's size that a decoder keeps at once, by bytes of a weight
CPU_WIDTHS = {4: 18, 1: 2}  # arrays (L, 2B, C) that a transformer keeps at once
GPU_PROCESS = 77e6 + 400e6  # bytes: of the 477 MB, 400 for CUDA and TensorRT are an allowance, not measured
GPU_WORKSPACE = 8.2e6  # bytes that products may split their sums in, whatever their size
GPU_WIDTHS = {4: (12, 14), 2: (10, 15), 1: (12, 19)}  # bytes for a row and channel, in the head and in a block
GPU_BRIDGE_CODE = 3.9e6  # bytes of kernels for each profile
GPU_DECODER_CODE = 5e6


class CountedArrays:
    """`Arrays` without memory. Counts the bytes of a `Wiring`: `host` is what the host shares with the stages."""

    def __init__(self) -> None:
        self.bytes = self.host = 0

    def zeros(self, shape: tuple[int, ...], dtype: Any) -> DeviceArray:
        array = DeviceArray(0, shape, np.dtype(dtype))
        self.bytes += array.nbytes
        return array

    def shared(self, size: int) -> tuple[Any, DeviceArray]:
        self.host += size
        block = self.zeros((size,), np.uint8)
        return block, block


@dataclass(frozen=True)
class Wired:
    """Bytes of the arrays of one batch size."""

    cache: int
    others: int
    host: int  # of the others, those of which a GPU keeps a second copy for the host


def wired(model: Model, kind: Kind, batch: int) -> Wired:
    """Return the bytes of the arrays that the runtime allocates to draw `batch` images at once."""
    arrays: Any = CountedArrays()
    constants = [ScaleConstants({}, {}) for _ in model.patch_nums]
    wiring = Wiring(batch, _manifest(model, kind), constants, arrays)
    last = wiring.steps[-1][0].tensors  # past and new of the last scale are all keys and values
    cache = sum(array.nbytes for name, array in last.items() if name.startswith(names.CACHE_PREFIXES))
    return Wired(cache, arrays.bytes - cache + sizes.resizes(model), arrays.host)


def on_cpu(model: Model, kind: Kind, batch: int) -> Footprint:
    """Return the peak of a process that draws `batch` images at once with ONNX Runtime on the CPU.

    Each graph has an arena that keeps what its largest run took.
    """
    arrays, tokens, last = wired(model, kind, batch), model.tokens, model.grid**2
    row, rows = 4 * model.width, 2 * batch * last
    widths = CPU_WIDTHS[kind.linear.weight]
    transformer = 2 * 4 * rows * model.heads * tokens  # scores before and after the softmax
    transformer += 4 * row * 2 * batch * tokens  # keys and values joined with those before, and transposed
    transformer += rows * (widths * row + 4 * model.vocab_size)  # feed-forward, qkv, residuals; logits without bias
    bridge = CPU_LOGITS * 4 * model.vocab_size * batch * last
    decoder = CPU_MAPS[kind.linear.weight] * 4 * model.ch * model.image_size**2  # of one image
    host = CPU_PROCESS + CPU_COPIES * sizes.decoder(model, kind)
    scratch = arrays.others + transformer + bridge + decoder
    return Footprint(sizes.loaded_weights(model, kind), arrays.cache, scratch, host)


def on_tensorrt(model: Model, kind: Kind, batch: int) -> Footprint:
    """Return the peak of a process that draws `batch` images at once with engines, on a GPU that shares the memory.

    The engines share one scratch memory, because they run one after the other.
    """
    arrays = wired(model, kind, batch)
    scratch = arrays.others + arrays.host + GPU_WORKSPACE + max(engine_scratch(model, kind, batch).values())
    host = GPU_PROCESS + engine_code(model, kind, batch)
    return Footprint(sizes.loaded_weights(model, kind), arrays.cache, scratch, host)


def engine_scratch(model: Model, kind: Kind, batch: int) -> dict[str, float]:
    """Return the activation memory of the largest engines in their largest profile, without GPU_WORKSPACE.

    The bridge takes less than the transformer.
    """
    last, columns, width = model.grid**2, 2 * batch, model.width
    in_head, in_block = GPU_WIDTHS[kind.linear.weight]
    if kind.cache == "float16":  # attention is one kernel; keys and values are joined with those before
        attention = 2 * 2 * columns * width * model.tokens
    else:  # scores before and after the softmax
        attention = 2 * 4 * columns * last * model.heads * model.tokens
    head = columns * last * (4 * model.vocab_size + in_head * width)  # logits without bias, and what makes them
    block = columns * last * in_block * width + attention
    return {
        names.TRANSFORMER: max(head, block),
        names.DECODER: max(_maps(model, kind)),
    }


def _maps(model: Model, kind: Kind) -> Iterator[int]:
    """Yield the bytes of the maps around each convolution: what it reads, the residual, what it writes."""
    one = 4 if kind.convolution.weight == 1 else kind.delicate.weight  # INT8 convolutions write FP32
    for layer in sizes.decoder_layers(model):
        yield layer.side**2 * (2 * layer.inputs + layer.outputs) * one


def engine_code(model: Model, kind: Kind, batch: int) -> float:
    """Return the bytes of the engines that are kernels, for batches of 1 and `batch`."""
    a_profile = {4: 2.3e6, 2: 4.9e6, 1: 3.6e6 + 0.25e6 * model.depth}[kind.linear.weight] + GPU_BRIDGE_CODE
    return len({1, batch}) * len(model.patch_nums) * a_profile + GPU_DECODER_CODE


def _manifest(model: Model, kind: Kind) -> Manifest:
    """Return a manifest with what a `Wiring` reads: the sizes, and the dtypes of keys and values."""
    offsets = [sum(side**2 for side in model.patch_nums[:k]) for k in range(len(model.patch_nums))]
    scales = [Scale(p, p * p, offsets[k], 0, "", None) for k, p in enumerate(model.patch_nums)]
    past = [Tensor(names.past(*cache), kind.cache, ()) for cache in names.caches(model.depth)]
    graphs = {names.TRANSFORMER: Graph("", tuple(past), ())}
    unknown = Provenance("", {}, {}, {})
    return Manifest(SCHEMA_VERSION, model, Precision.FP32, None, tuple(scales), (), graphs, {}, unknown)
