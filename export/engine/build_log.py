"""What a builder made of a graph: its layers, counted from the detailed log, and as a table."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

LAYER = re.compile(r"^Name: (?P<name>[^,]+), LayerType: (?P<kind>\w+), Inputs: \[(?P<inputs>.*?)\], Constants: ", re.M)
DTYPE = re.compile(r"Datatype: (\w+)")
# What a kernel computes, by its name; the first that fits counts.
KERNELS = {"attention": r"mha", "convolution": r"[Cc]onv(?!ert)", "gemm": r"[Gg]emm|Fc(?=[A-Z_])"}
DTYPES = ("Int8", "Half", "Float")
PRODUCTS = ("gemm", "convolution")
PROFILE = re.compile(r"_myl(\d+)_\d+$")  # of a layer, behind its name


def counted(log: Iterable[tuple[str, str]]) -> dict[str, int]:
    """ "gemm Half" -> how many, over all profiles. `log` are (severity, text) of a build with detailed verbosity.

    The dtype is that of the first input: an INT8 product reads Int8, whatever it writes.
    """
    return dict(sorted(Counter(f"{kind} {dtype}" for kind, dtype, _ in _layers(log)).items()))


def int8_products(log: Iterable[tuple[str, str]], profiles: int) -> tuple[int, ...]:
    """How many products of each profile read INT8: what was fused, where Q/DQ around FP16 would only cost time."""
    counts = Counter(profile for kind, dtype, profile in _layers(log) if kind in PRODUCTS and dtype == "Int8")
    return tuple(counts[i] for i in range(profiles))


def has_other_products(counts: Mapping[str, int]) -> bool:
    """Whether some product reads something else than INT8. `counts` as `counted` makes them."""
    return any(key.startswith(PRODUCTS) and not key.endswith(" Int8") for key in counts)


def _layers(log: Iterable[tuple[str, str]]) -> Iterator[tuple[str, str, int]]:
    """Kind, dtype of the first input, profile."""
    for _, text in log:
        for layer in LAYER.finditer(text):
            dtypes = DTYPE.findall(layer["inputs"])
            profile = PROFILE.search(layer["name"])
            kind = _kind(layer["name"], layer["kind"])
            yield kind, dtypes[0] if dtypes else "none", int(profile[1]) if profile else 0


def _kind(name: str, kind: str) -> str:
    """Generated kernels are called after what they fuse, `__myl_FcAddMul…`; the others have a type that says it."""
    return next((kernel for kernel, pattern in KERNELS.items() if re.search(pattern, f"{kind} {name}")), "other")


def table(engines: Mapping[str, Mapping[str, int]]) -> str:
    """Markdown: a row for each graph and kind of layer, a column for each dtype. `engines` are counts by graph."""
    lines = [f"| graph | layers | {' | '.join(DTYPES)} | other |", "|---|---|---|---|---|---|"]
    for graph, counts in engines.items():
        for kind in sorted({key.rsplit(" ", 1)[0] for key in counts}):
            of_kind = {key.rsplit(" ", 1)[1]: count for key, count in counts.items() if key.rsplit(" ", 1)[0] == kind}
            others = sum(count for dtype, count in of_kind.items() if dtype not in DTYPES)
            cells = [*(of_kind.get(dtype, 0) for dtype in DTYPES), others]
            lines.append(f"| {graph} | {kind} | {' | '.join(map(str, cells))} |")
    return "\n".join(lines)
