"""What this process holds in memory, and what a bundle's weights come to."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from ..errors import BundleError
from ..manifest import REQUIRED_GRAPHS, WEIGHTS, Manifest

STATUS = Path("/proc/self/status")


@dataclass(frozen=True)
class Memory:
    """Bytes of this process: in memory now, and the most since it started."""

    resident: int
    peak: int


def memory(status: Path = STATUS) -> Memory | None:
    """The kernel's VmRSS and VmHWM; None on a system that does not tell."""
    if not status.is_file():
        return None
    fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
    resident, peak = (int(fields[name].split()[0]) * 1024 for name in ("VmRSS", "VmHWM"))  # "12345 kB"
    return Memory(resident, peak)


def loaded_weights(bundle: Path, manifest: Manifest) -> int:
    """Bytes of the tensors that drawing loads: all but the encoder's, each counted once. Raises BundleError."""
    path = bundle / WEIGHTS
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        try:
            header = json.loads(file.read(length))
        except ValueError as error:
            raise BundleError(f"{path}: no safetensors file: {error}; export the bundle again") from None
    header.pop("__metadata__", None)
    graphs = [(bundle / manifest.graphs[name].file).read_bytes() for name in REQUIRED_GRAPHS]
    by_runtime = {name for scale in manifest.scales for name in (scale.upsample, scale.downsample)}
    used = (name for name in header if name in by_runtime or any(_names(graph, name) for graph in graphs))
    return sum(end - start for start, end in (header[name]["data_offsets"] for name in used))


def _names(graph: bytes, tensor: str) -> bool:
    """Whether an ONNX file has an initializer of this name: TensorProto's field 8, its length, its text."""
    text = tensor.encode()
    length, size = b"", len(text)
    while size > 127:  # protobuf writes numbers in groups of seven bits, low ones first
        length, size = length + bytes([size & 127 | 128]), size >> 7
    return b"\x42" + length + bytes([size]) + text in graph
