"""`report.md`: the engines that were built, their sizes, build times, layers and kernels."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

from export.engine import kernels as kernel_counts
from export.engine.build_log import table
from export.engine.kernels import Kernels
from runtime.bundle.engine_record import Engine, EngineRecord

REPORT = "report.md"


def report(record: EngineRecord, kernels: Mapping[str, Kernels], folder: Path) -> str:
    """Return `report.md`: the engines that were built, their sizes, build times, layers and kernels."""
    built = record.built
    lines = [
        f"# Engines for {built.tag}",
        "",
        f"GPU: {built.gpu or 'none, built ahead of time'}; batches {', '.join(map(str, record.batches))};"
        f" guidance at {record.guidance_scales} scales or more;"
        f" the building process held {record.peak_bytes / 1e9:.2f} GB at most; {record.created}",
        "",
        "| graph | profiles | seconds | weights | engine | rest | ratio | INT8 products: planned, in each profile |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, engine in record.engines.items():
        size = (folder / engine.file).stat().st_size
        ratio = f"{size / engine.weight_bytes:.2f}x"
        cells = f"{engine.build_seconds:.1f} | {engine.weight_bytes / 1e6:.1f} MB | {size / 1e6:.1f} MB"
        cells += f" | {(size - engine.weight_bytes) / 1e6:.1f} MB | {ratio}"
        lines.append(f"| {name} | {len(engine.profiles)} | {cells} | {_int8(engine)} |")
    layers = table({name: engine.layers for name, engine in record.engines.items()})
    lines += ["", "Layers by the dtype of their first input, all profiles together:", "", layers]
    if all(any(counted.profiles) for counted in kernels.values()):  # else the builder did not list them
        lines += ["", kernel_counts.table(kernels, record)]
    return "\n".join([*lines, ""])


def _int8(engine: Engine) -> str:
    if not engine.int8_planned:
        return ""
    return f"{engine.int8_planned}, {' '.join(map(str, engine.int8_built)) or 'unknown'}"


def inspected(graph: Path) -> str:
    """Return the output of `polygraphy inspect model` for an ONNX file as Markdown; "" if onnx is not installed."""
    polygraphy = str(Path(sys.executable).with_name("polygraphy"))
    command = [polygraphy, "inspect", "model", "--ignore-external-data", str(graph)]
    if not find_spec("onnx"):
        return ""
    result = subprocess.run(command, capture_output=True, text=True)
    lines = [line.removeprefix("[I] ").rstrip() for line in result.stdout.splitlines()]
    lines = [line for line in lines if not line.startswith(("[W]", "Loading model"))]
    return f"\n## polygraphy inspect model {graph.name}\n\n```\n" + "\n".join(lines).strip() + "\n```\n"
