"""Read the weight file of a bundle: its header, its tensors, and which of them a graph uses."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import limits
from ..errors import BundleError
from ..files.bounded import Kind, open_file, parse_json, read_bytes
from ..limits import shown
from .manifest import WEIGHTS, Manifest
from .names import REQUIRED_GRAPHS, TINY_DECODER

if TYPE_CHECKING:
    import numpy as np

DTYPES = {"F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I8": "i1", "U8": "u1"}  # safetensors -> numpy


def loaded_weights(bundle: Path, manifest: Manifest) -> int:
    """Return the bytes of all weights that drawing loads: all but encoder and smooth bridge, each tensor counted once.

    An engine counts with its file size. Raises BundleError.
    """
    files = [manifest.graphs[name].file for name in (*REQUIRED_GRAPHS, TINY_DECODER) if name in manifest.graphs]
    graphs = [file for file in files if file.endswith(".onnx")]
    engines = sum(manifest.files[file].size for file in files if file not in graphs)
    return engines + weight_bytes(bundle, graphs, manifest.runtime_tensors)


def weight_bytes(bundle: Path, graphs: Iterable[str], others: Iterable[str] = ()) -> int:
    """Return the bytes of the tensors that these ONNX files use, and of the tensors named in `others`, each once.

    Raises BundleError.
    """
    texts, wanted = [read_bytes(bundle / graph, limits.GRAPH_BYTES) for graph in graphs], set(others)
    header = read_header(bundle / WEIGHTS)
    return sum(
        tensor.end - tensor.start
        for name, tensor in header.items()
        if name in wanted or any(_names(text, name) for text in texts)
    )


def mapped_weights(bundle: Path, graph: bytes) -> dict[str, np.ndarray]:
    """Return the tensors that an ONNX file uses, memory-mapped and not yet read. Raises BundleError."""
    import numpy as np

    header = read_header(bundle / WEIGHTS)
    content = np.memmap(bundle / WEIGHTS, np.uint8, "r")
    start = len(content) - max((tensor.end for tensor in header.values()), default=0)
    return {
        name: content[start + at.start : start + at.end].view(DTYPES[at.dtype]).reshape(at.shape)
        for name, at in header.items()
        if _names(graph, name)
    }


@dataclass(frozen=True)
class Stored:
    """The dtype and shape of a tensor in a safetensors file, and its bytes, counted from the end of the header."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


BITS = {"BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "U16": 16, "I16": 16, "F16": 16, "BF16": 16}
BITS |= {"U32": 32, "I32": 32, "F32": 32, "U64": 64, "I64": 64, "F64": 64}


def read_header(path: Path, error: Kind = BundleError) -> dict[str, Stored]:
    """Read and check the header of a safetensors file.

    Returns the tensors by name in the order of their data, which has no gaps. Raises `error`.
    """
    with open_file(path, error=error) as file:
        size = file.seek(0, 2)
        file.seek(0)
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(limits.HEADER_BYTES, size - 8):
            raise error(
                f"{path}: not a safetensors file: its header is longer than the file"
                f" or than {limits.HEADER_BYTES} bytes"
            )
        document = parse_json(file.read(length), f"{path}: header", error)
    if not isinstance(document, dict):
        raise error(f"{path}: header: expected an object, found {shown(document)}")
    metadata = document.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(text, str) for text in metadata.values()):
        raise error(f"{path}: header: __metadata__: expected an object of strings")
    found = {}
    for name, entry in document.items():
        try:
            found[name] = _stored(name, entry)
        except ValueError as reason:
            raise error(f"{path}: header: {reason}") from None
    ordered = sorted(found.items(), key=lambda item: (item[1].start, item[1].end))
    end = 0
    for name, tensor in ordered:
        if tensor.start != end:
            raise error(f"{path}: header: {shown(name)}: expected to begin at byte {end}, found {tensor.start}")
        end = tensor.end
    if 8 + length + end != size:
        raise error(f"{path}: expected {8 + length + end} bytes, as its header says, found {size}; copy it again")
    return dict(ordered)


@contextmanager
def open_weights(bundle: Path) -> Iterator[Any]:
    """Check the header of a bundle's weight file, then open the file with safetensors. Raises BundleError."""
    from safetensors import safe_open

    read_header(bundle / WEIGHTS)
    with safe_open(bundle / WEIGHTS, framework="numpy") as weights:
        yield weights


def _stored(name: str, entry: Any) -> Stored:
    """Parse one entry of the header. Raises ValueError with the reason."""
    if fault := limits.name_fault(name):
        raise ValueError(fault)
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"{name}: expected dtype, shape and data_offsets, found {shown(entry)}")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in BITS:
        raise ValueError(f"{name}: expected a dtype out of {', '.join(BITS)}, found {shown(dtype)}")
    if not isinstance(shape, list) or len(shape) > limits.RANK or not all(map(_is_size, shape)):
        raise ValueError(f"{name}: expected a shape of at most {limits.RANK} sizes {limits.SIZE}, found {shown(shape)}")
    if not isinstance(offsets, list) or len(offsets) != 2 or any(type(value) is not int for value in offsets):
        raise ValueError(f"{name}: expected two data_offsets, found {shown(offsets)}")
    expected = prod(shape) * BITS[dtype] // 8
    if offsets[0] < 0 or offsets[1] - offsets[0] != expected:
        raise ValueError(f"{name}: expected {expected} bytes, as its shape says, found data_offsets {offsets}")
    return Stored(dtype, tuple(shape), *offsets)


def _is_size(value: object) -> bool:
    return type(value) is int and value in limits.SIZE


def _names(graph: bytes, tensor: str) -> bool:
    """Return whether an ONNX file has an initializer of this name: TensorProto's field 8, the length, the text."""
    text = tensor.encode()
    length, size = b"", len(text)
    while size > 127:  # protobuf writes integers in groups of seven bits, lowest first
        length, size = length + bytes([size & 127 | 128]), size >> 7
    return b"\x42" + length + bytes([size]) + text in graph
