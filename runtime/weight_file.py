"""The weight file of a bundle: what it holds, and which tensors a graph takes from it. Nothing is loaded."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from .errors import BundleError
from .manifest import REQUIRED_GRAPHS, WEIGHTS, Manifest

DTYPES = {"F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I8": "i1", "U8": "u1"}  # of numpy


def loaded_weights(bundle: Path, manifest: Manifest) -> int:
    """Bytes of the tensors that drawing loads: all but the encoder's, each counted once; engines count whole.

    Raises BundleError.
    """
    files = [manifest.graphs[name].file for name in REQUIRED_GRAPHS]
    graphs = [file for file in files if file.endswith(".onnx")]
    engines = sum(manifest.files[file].size for file in files if file not in graphs)
    return engines + weight_bytes(bundle, graphs, manifest.runtime_tensors)


def weight_bytes(bundle: Path, graphs: Iterable[str], others: Iterable[str] = ()) -> int:
    """Bytes of the tensors that these ONNX files of the bundle use, and of `others`, each once. Raises BundleError."""
    header, _ = _header(bundle / WEIGHTS)
    texts, wanted = [(bundle / graph).read_bytes() for graph in graphs], set(others)
    used = (name for name in header if name in wanted or any(_names(text, name) for text in texts))
    return sum(end - start for start, end in (header[name]["data_offsets"] for name in used))


def mapped_weights(bundle: Path, graph: bytes) -> dict[str, np.ndarray]:
    """The tensors that an ONNX file uses, mapped into memory and not read. Raises BundleError."""
    header, start = _header(bundle / WEIGHTS)
    content = np.memmap(bundle / WEIGHTS, np.uint8, "r")

    def mapped(dtype: str, shape: list[int], data_offsets: list[int]) -> np.ndarray:
        first, end = (start + offset for offset in data_offsets)
        return content[first:end].view(DTYPES[dtype]).reshape(shape)

    return {name: mapped(**spec) for name, spec in header.items() if _names(graph, name)}


def _header(path: Path) -> tuple[dict[str, Any], int]:
    """What a safetensors file says of each tensor, and where the first begins. Raises BundleError."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        try:
            header = json.loads(file.read(length))
        except ValueError as error:
            raise BundleError(f"{path}: no safetensors file: {error}; export the bundle again") from None
    header.pop("__metadata__", None)
    return header, 8 + length


def _names(graph: bytes, tensor: str) -> bool:
    """Whether an ONNX file has an initializer of this name: TensorProto's field 8, its length, its text."""
    text = tensor.encode()
    length, size = b"", len(text)
    while size > 127:  # protobuf writes numbers in groups of seven bits, low ones first
        length, size = length + bytes([size & 127 | 128]), size >> 7
    return b"\x42" + length + bytes([size]) + text in graph
