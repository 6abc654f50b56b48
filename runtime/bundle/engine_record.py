"""`engine.json`: from which bundle, with which TensorRT and for which device the engines of a directory were built."""

from __future__ import annotations

import dataclasses
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import limits
from ..errors import BundleError
from ..files.atomic import atomic_file
from .manifest import WEIGHTS, Manifest, Scale
from .names import CONDITION, DECODER, ENCODER, GRAPHS, TINY_DECODER, TRANSFORMER
from .schema import load

SCHEMA_VERSION = 3
FILE_NAME = "engine.json"
FOLDER = "engines"  # in a bundle; it has one directory of engines for each kind of device
FLAVOURS = ("tensorrt", "tensorrt_rtx")  # names of the Python modules


@dataclass(frozen=True)
class Built:
    """The TensorRT and the GPU that an engine was built for. It runs on no other unless it says it is compatible."""

    flavour: str  # one of FLAVOURS
    version: str  # of TensorRT
    compute_capabilities: tuple[str, ...]  # such as "8.6"
    gpu: str | None  # name; None if it was built ahead of time, without a GPU
    hardware_compatible: bool  # with later GPUs of the same kind
    version_compatible: bool  # with later TensorRT of the same major version

    @property
    def tag(self) -> str:
        """The name of the directory of these engines, such as `tensorrt_rtx-1.7.1.116-sm86`."""
        return "-".join((self.flavour, self.version, *(f"sm{c.replace('.', '')}" for c in self.compute_capabilities)))


@dataclass(frozen=True)
class Engine:
    """One engine file. A profile gives the fixed shape of every input by name."""

    file: str
    source_sha256: str  # of the ONNX file
    profiles: tuple[dict[str, tuple[int, ...]], ...]
    build_seconds: float
    weight_bytes: int  # of the graph's weights, as they are stored in the weight file
    layers: dict[str, int]  # count by kind such as "gemm Half", over all profiles; empty if the builder did not say
    int8_planned: int  # matrix products that are INT8 in the graph
    int8_built: tuple[int, ...]  # matrix products with INT8 inputs in each profile; empty if the builder did not say


@dataclass(frozen=True)
class EngineRecord:
    """`engine.json` of a directory of engines."""

    schema_version: int
    built: Built
    weights_sha256: str  # of the bundle's weight file
    batches: tuple[int, ...]
    guidance_scales: int  # they draw with guidance at this number of scales, or at more
    options: dict[str, Any]
    engines: dict[str, Engine]
    peak_bytes: int  # of the building process
    created: str

    @classmethod
    def load(cls, folder: Path) -> EngineRecord:
        """Read and check the record in `folder`. Raises BundleError."""
        absent = f"{folder}: no {FILE_NAME}, so no engines; make engine builds them"
        path = folder / FILE_NAME
        record = load(cls, path, SCHEMA_VERSION, absent, "run make engine again")
        built, sizes = record.built, record.batches
        for key, holds, expected in (
            ("built.flavour", built.flavour in FLAVOURS, " or ".join(FLAVOURS)),
            ("built.version", _is_version(built.version), "numbers such as 10.3.0"),
            ("built.compute_capabilities", _are_capabilities(built.compute_capabilities), "numbers such as 8.6"),
            ("batches", 0 < len(sizes) <= limits.BATCHES and all(size in limits.BATCH for size in sizes), "sizes"),
            ("guidance_scales", record.guidance_scales in limits.GUIDANCE_SCALES, f"{limits.GUIDANCE_SCALES}"),
            ("engines", record.engines.keys() <= set(GRAPHS), f"graphs out of {', '.join(GRAPHS)}"),
            (
                "profiles",
                all(map(_are_shapes, record.engines.values())),
                f"shapes of {limits.RANK} sizes {limits.SIZE}",
            ),
        ):
            if not holds:
                raise BundleError(f"{path}: {key}: expected {expected}; run make engine again")
        return record

    def write(self, folder: Path) -> None:
        """Write `engine.json` into `folder`, atomically."""
        with atomic_file(folder / FILE_NAME) as file:
            file.write((json.dumps(dataclasses.asdict(self), indent=1) + "\n").encode())

    def fits(self, manifest: Manifest) -> bool:
        """Return whether the engines were built from the bundle with this manifest."""
        return self.weights_sha256 == manifest.files[WEIGHTS].sha256 and all(
            name in manifest.graphs and engine.source_sha256 == manifest.files[manifest.graphs[name].file].sha256
            for name, engine in self.engines.items()
        )

    def profile(self, batch: int, scale: int, scales: int) -> int:
        """Return the index of the profile of transformer and bridge for a batch size and a scale."""
        return self.batches.index(batch) * scales + scale

    def unguided_profile(self, batch: int, scale: int, scales: int) -> int:
        """Return the index of the transformer's profile without guidance, for a scale from `guidance_scales` on."""
        first, count = len(self.batches) * scales, scales - self.guidance_scales
        return first + self.batches.index(batch) * count + scale - self.guidance_scales


def _are_shapes(engine: Engine) -> bool:
    inputs = [entry for profile in engine.profiles for entry in profile.items()]
    return all(
        limits.name_fault(name) is None and len(shape) <= limits.RANK and all(size in limits.SIZE for size in shape)
        for name, shape in inputs
    )


def _is_version(text: str) -> bool:
    return re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})*", text) is not None


def _are_capabilities(texts: tuple[str, ...]) -> bool:
    return bool(texts) and all(re.fullmatch(r"[0-9]{1,3}\.[0-9]", text) for text in texts)


def profiles(
    graph: str, manifest: Manifest, batches: tuple[int, ...], guidance_scales: int
) -> tuple[dict[str, tuple[int, ...]], ...]:
    """Return the profiles of a graph: the fixed shape of each input for every batch size and, within it, every scale.

    Decoders and encoder take one image at a time: several images would not use the GPU better and need more memory.
    The transformer has more profiles behind these: for every batch size, the scales from `guidance_scales` on without
    guidance.
    """
    scales = manifest.scales
    if graph in (DECODER, TINY_DECODER, ENCODER):
        sizes = [{"B": 1}]
    elif graph == CONDITION:
        sizes = [{"B": batch, "2B": 2 * batch} for batch in batches]
    else:
        sizes = [scale_sizes(scales, k, batch) for batch in batches for k in range(len(scales))]
    if graph == TRANSFORMER:
        unguided = range(guidance_scales, len(scales))
        sizes += [scale_sizes(scales, k, batch) | {"2B": batch} for batch in batches for k in unguided]
    inputs = manifest.graphs[graph].inputs
    return tuple(
        {spec.name: tuple(size[axis] if isinstance(axis, str) else axis for axis in spec.shape) for spec in inputs}
        for size in sizes
    )


def scale_sizes(scales: tuple[Scale, ...], k: int, batch: int) -> dict[str, int]:
    """Return the sizes of the symbolic axes at scale k.

    The last scale has no next scale; there the bridge computes the input of scale 1 again, and it is not used.
    """
    following = scales[(k + 1) % len(scales) or 1]
    scale = scales[k]
    return {"B": batch, "2B": 2 * batch, "L": scale.tokens, "S": scale.offset, "L_next": following.tokens}
