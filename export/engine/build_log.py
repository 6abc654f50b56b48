"""The layers of a built engine: counted from the builder's detailed log, and as a table."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

LAYER = re.compile(r"^Name: (?P<name>[^,]+), LayerType: (?P<kind>\w+), Inputs: \[(?P<inputs>.*?)\], Constants: ", re.M)
DTYPE = re.compile(r"Datatype: (\w+)")
# Kind of kernel -> pattern of its name; the first match counts.
KERNELS = {"attention": r"mha", "convolution": r"[Cc]onv(?!ert)", "gemm": r"[Gg]emm|Fc(?=[A-Z_])"}
DTYPES = ("Int8", "Half", "Float")
PRODUCTS = ("gemm", "convolution")
PROFILE = re.compile(r"_myl(\d+)_\d+$")  # a layer's profile, at the end of its name


def counted(log: Iterable[tuple[str, str]]) -> dict[str, int]:
    """Count layers by kind and dtype, such as "gemm Half", over all profiles.

    `log` are the (severity, text) of a build with detailed verbosity. The dtype is that of the first input: an INT8
    product reads Int8, whatever it writes.
    """
    return dict(sorted(Counter(f"{kind} {dtype}" for kind, dtype, _ in _layers(log)).items()))


def int8_products(log: Iterable[tuple[str, str]], profiles: int) -> tuple[int, ...]:
    """Count the products of each profile that read INT8. The others were not fused: their Q/DQ only costs time."""
    counts = Counter(profile for kind, dtype, profile in _layers(log) if kind in PRODUCTS and dtype == "Int8")
    return tuple(counts[i] for i in range(profiles))


def has_other_products(counts: Mapping[str, int]) -> bool:
    """Return whether any product reads another dtype than INT8. `counts` are those that `counted` returns."""
    return any(key.startswith(PRODUCTS) and not key.endswith(" Int8") for key in counts)


def _layers(log: Iterable[tuple[str, str]]) -> Iterator[tuple[str, str, int]]:
    """Yield the kind, the dtype of the first input and the profile of each layer in the log."""
    for _, text in log:
        for layer in LAYER.finditer(text):
            dtypes = DTYPE.findall(layer["inputs"])
            profile = PROFILE.search(layer["name"])
            kind = _kind(layer["name"], layer["kind"])
            yield kind, dtypes[0] if dtypes else "none", int(profile[1]) if profile else 0


def _kind(name: str, kind: str) -> str:
    """Return the kind of a layer, by its type and its name: a generated kernel's name says what it fuses.

    Such a name is `__myl_FcAddMul…`.
    """
    return next((kernel for kernel, pattern in KERNELS.items() if re.search(pattern, f"{kind} {name}")), "other")


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
