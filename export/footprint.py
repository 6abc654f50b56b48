"""The memory that drawing takes, computed from the sizes of the model: nothing has to be exported or loaded.

Weights are those of `export.sizes`; the arrays are those that the runtime's own `Wiring` allocates. What an engine takes
besides is a formula in the sizes of a stage, whose constants were measured (docs/memory.md has the errors). The letters
are those of docs/how-it-works.md.
"""

from __future__ import annotations

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


def _manifest(model: Model, kind: Kind) -> Manifest:
    """Return a manifest with what a `Wiring` reads: the sizes, and the dtypes of keys and values."""
    offsets = [sum(side**2 for side in model.patch_nums[:k]) for k in range(len(model.patch_nums))]
    scales = [Scale(p, p * p, offsets[k], 0, "", None) for k, p in enumerate(model.patch_nums)]
    past = [Tensor(names.past(*cache), kind.cache, ()) for cache in names.caches(model.depth)]
    graphs = {names.TRANSFORMER: Graph("", tuple(past), ())}
    unknown = Provenance("", {}, {}, {})
    return Manifest(SCHEMA_VERSION, model, Precision.FP32, None, tuple(scales), (), graphs, {}, unknown)
