"""The layers of a built engine: from the builder's detailed log or the engine inspector, counted, and as a table.

TensorRT 10 and 11 write them differently; TensorRT for RTX writes them as 11 does. `tests/data/engine_layers/` has
samples of both.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from runtime.bundle.engine_record import Engine

LAYER = re.compile(
    r"^Name: (?P<name>.+?), LayerType: (?P<kind>\w+), Inputs: \[(?P<inputs>.*?)\], (?:Constants|Outputs): \[", re.M
)
DATATYPE = re.compile(r"Datatype: ([^,}]+)")  # "Format/Datatype" in TensorRT 10
# A dtype in the inspector's text, such as "Half" or "Thirty-two wide channel vectorized row major Int8 format".
DTYPE = re.compile(r"\b(Float|FP32|Half|FP16|BFloat16|BF16|U?Int\d+|Bool|FP8|FP4)\b", re.I)
NAMES = {"float": "Float", "fp32": "Float", "half": "Half", "fp16": "Half", "int8": "Int8"}
# Kind of kernel -> pattern of its name; the first match counts.
KERNELS = {"attention": r"mha", "convolution": r"[Cc]onv(?!ert)", "gemm": r"[Gg]emm|MatrixMultiply|Fc(?=[A-Z_])"}
DTYPES = ("Int8", "Half", "Float")
PRODUCTS = ("gemm", "convolution")
PROFILE = re.compile(r"_myl(\d+)_\d+$|\[profile (\d+)\]$")  # a layer's profile, at the end of its name


@dataclass(frozen=True)
class Layer:
    """A layer of an engine. An INT8 product reads Int8, whatever it writes."""

    kind: str  # a key of KERNELS, or "other"
    dtype: str  # of its first input, such as "Half"; "none" without inputs
    profile: int


def logged(log: Iterable[tuple[str, str]]) -> list[Layer]:
    """Return the layers in the (severity, text) of a build with detailed verbosity; [] if it has none."""
    found = (layer for _, text in log for layer in LAYER.finditer(text))
    return [_layer(layer["name"], layer["kind"], DATATYPE.findall(layer["inputs"])) for layer in found]


def inspected(document: str) -> list[Layer]:
    """Return the layers in the JSON of an engine inspector; [] if it has no details or is damaged."""
    try:
        layers = json.loads(document)["Layers"]
        return [_layer(layer["Name"], layer["LayerType"], list(_datatypes(layer["Inputs"]))) for layer in layers]
    except (ValueError, LookupError, TypeError, AttributeError):  # without detailed verbosity a layer is only its name
        return []


def _datatypes(tensors: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    for tensor in tensors:
        yield str(tensor.get("Datatype") or tensor["Format/Datatype"])


def _layer(name: str, kind: str, datatypes: list[str]) -> Layer:
    return Layer(_kind(name, kind), _dtype(datatypes[0]) if datatypes else "none", profile_of(name))


def profile_of(layer: str) -> int:
    """Return the profile of the layer with this name."""
    found = PROFILE.search(layer)
    return int(found[1] or found[2]) if found else 0


def _kind(name: str, kind: str) -> str:
    """Return the kind of a layer. TensorRT's own layers have a capitalized type, such as Reformat, that says it all.

    A generated kernel has a type such as "kgen", and a name that says what it fuses: `__myl_FcAddMul…`.
    """
    text = kind if kind[:1].isupper() else f"{kind} {name}"
    return next((kernel for kernel, pattern in KERNELS.items() if re.search(pattern, text)), "other")


def _dtype(text: str) -> str:
    found = DTYPE.search(text)
    return NAMES.get(found[1].lower(), found[1]) if found else text.split()[0]


def counted(layers: Iterable[Layer]) -> dict[str, int]:
    """Count layers by kind and dtype, such as "gemm Half", over all profiles."""
    return dict(sorted(Counter(f"{layer.kind} {layer.dtype}" for layer in layers).items()))


def int8_products(layers: Iterable[Layer], profiles: int) -> tuple[int, ...]:
    """Count the products of each profile that read INT8. The others were not fused: their Q/DQ only costs time.

    Returns () if the layers do not tell: there are none, or they are not numbered by profile.
    """
    known = [(0 if profiles == 1 else layer.profile, layer) for layer in layers]
    if {profile for profile, _ in known} != set(range(profiles)):
        return ()
    counts = Counter(profile for profile, layer in known if layer.kind in PRODUCTS and layer.dtype == "Int8")
    return tuple(counts[i] for i in range(profiles))


def int8_fault(graph: str, engine: Engine) -> str | None:
    """Return why the engine of this graph may not compute all in INT8 that is planned so; None if it does."""
    planned, built = engine.int8_planned, engine.int8_built
    if planned and not built:
        return f"{graph}: cannot tell which of {planned} INT8 products are INT8: TensorRT does not show its layers"
    # If all products read INT8, TensorRT may have merged some: fewer is then no fault.
    if planned and min(built) < planned and _has_other_products(engine.layers):
        return f"{graph}: TensorRT computes only {min(built)} of {planned} INT8 products in INT8, the others in FP16"
    return None


def _has_other_products(counts: Mapping[str, int]) -> bool:
    """Return whether any product reads another dtype than INT8."""
    return any(key.startswith(PRODUCTS) and not key.endswith(" Int8") for key in counts)


def table(engines: Mapping[str, Mapping[str, int]]) -> str:
    """Return a Markdown table with a row for each graph and kind, a column for each dtype; `engines` are the counts."""
    lines = [f"| graph | layers | {' | '.join(DTYPES)} | other |", "|---|---|---|---|---|---|"]
    for graph, counts in engines.items():
        for kind in sorted({key.rsplit(" ", 1)[0] for key in counts}):
            of_kind = {key.rsplit(" ", 1)[1]: count for key, count in counts.items() if key.rsplit(" ", 1)[0] == kind}
            others = sum(count for dtype, count in of_kind.items() if dtype not in DTYPES)
            cells = [*(of_kind.get(dtype, 0) for dtype in DTYPES), others]
            lines.append(f"| {graph} | {kind} | {' | '.join(map(str, cells))} |")
    return "\n".join(lines)
