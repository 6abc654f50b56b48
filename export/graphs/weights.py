"""The weight file: one `.safetensors` file, written tensor by tensor. All graphs of a bundle refer to it by offset."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir

from runtime.errors import SettingsError
from runtime.files.atomic import atomic_file

ALIGNMENT = 4096  # of the first tensor, so that the file can be mapped page by page
LARGEST_FLOAT16 = float(np.finfo(np.float16).max)
NUMPY_DTYPES: dict[str, np.dtype] = {
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I8": np.dtype("i1"),
    "U8": np.dtype("u1"),
}
STORED = {  # ONNX dtype -> its name in the safetensors format
    ir.DataType.FLOAT: "F32",
    ir.DataType.FLOAT16: "F16",
    ir.DataType.INT32: "I32",
    ir.DataType.INT8: "I8",
    ir.DataType.UINT8: "U8",
}


@dataclass(frozen=True)
class Entry:
    """A tensor to write: its name, dtype and shape, and the function that computes it when it is written."""

    name: str
    dtype: str  # of the safetensors format
    shape: tuple[int, ...]
    compute: Callable[[], np.ndarray]

    @property
    def numpy_dtype(self) -> np.dtype:
        return NUMPY_DTYPES[self.dtype]

    @property
    def size(self) -> int:
        """The size of the tensor in bytes."""
        return math.prod(self.shape) * NUMPY_DTYPES[self.dtype].itemsize


def _stored(entry: Entry) -> np.ndarray:
    computed = entry.compute()
    assert computed.shape == entry.shape, f"{entry.name}: expected {entry.shape}, computed {computed.shape}"
    if entry.dtype == "F16" and (largest := np.abs(computed).max()) > LARGEST_FLOAT16:
        limit = f"FP16 ends at {LARGEST_FLOAT16:.0f}"
        raise SettingsError(f"{entry.name}: holds {largest:.3g}, {limit}; use --precision fp32")
    return np.ascontiguousarray(computed, dtype=NUMPY_DTYPES[entry.dtype])


class WeightFile:
    """The layout of the file: which tensors it holds, and the offset of each."""

    def __init__(self, entries: Iterable[Entry]):
        # Sorted by descending item size, so that every tensor is aligned to its item size without gaps.
        self.entries = sorted(entries, key=lambda entry: -NUMPY_DTYPES[entry.dtype].itemsize)
        header: dict[str, object] = {"__metadata__": {"format": "pt"}}
        end = 0
        for entry in self.entries:
            assert entry.name not in header, f"{entry.name} is there twice"
            span = [end, end + entry.size]
            header[entry.name] = {"dtype": entry.dtype, "shape": list(entry.shape), "data_offsets": span}
            end += entry.size
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-(8 + len(text)) % ALIGNMENT)
        self.header = len(text).to_bytes(8, "little") + text
        self.size = len(self.header) + end

    def write(self, path: Path, on_tensor: Callable[[Entry], None]) -> None:
        """Compute and write every tensor, one in memory at a time. Raises SettingsError if a value exceeds FP16."""
        with atomic_file(path) as file:
            file.write(self.header)
            for entry in self.entries:
                file.write(_stored(entry).data)
                on_tensor(entry)

    def external(self, path: Path) -> dict[str, ir.ExternalTensor]:
        """Return every tensor by name, as external data of ONNX graphs in the folder of the file at `path`."""
        tensors, offset = {}, len(self.header)
        for entry in self.entries:
            dtype = ir.DataType.from_numpy(NUMPY_DTYPES[entry.dtype])
            tensors[entry.name] = ir.ExternalTensor(
                path.name, offset, entry.size, dtype, shape=ir.Shape(entry.shape), name=entry.name, base_dir=path.parent
            )
            offset += entry.size
        return tensors
