"""Describe the machine that a benchmark ran on."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

ROOT = Path("/")
LIBRARIES = ("onnxruntime", "onnxruntime-gpu", "tensorrt", "numpy", "torch")

# Instruction sets that speed up matrix products: name in the kernel -> usual name.
INSTRUCTION_SETS = {
    "fma": "fma",
    "avx2": "avx2",
    "avx_vnni": "avx-vnni",
    "avx512f": "avx512",
    "avx512_vnni": "avx512-vnni",
    "avx512_bf16": "avx512-bf16",
    "avx512_fp16": "avx512-fp16",
    "amx_bf16": "amx-bf16",
    "amx_int8": "amx-int8",
    "asimd": "neon",
    "asimdhp": "neon-fp16",
    "asimddp": "neon-dotprod",
    "i8mm": "i8mm",
    "bf16": "bf16",
    "sve": "sve",
}


@dataclass(frozen=True)
class Machine:
    """Processor, memory and software. `cores` counts the physical cores that this process may use."""

    cpu: str
    cores: int
    logical_cpus: int
    instruction_sets: tuple[str, ...]
    memory_bytes: int | None
    system: str
    python: str
    libraries: dict[str, str]


def machine(root: Path = ROOT) -> Machine:
    """Return this machine, described from the files below `root` if the system has them."""
    info = _fields(root / "proc/cpuinfo")
    flags = info.get("flags", info.get("Features", "")).split()  # x86, ARM
    total = _fields(root / "proc/meminfo").get("MemTotal")
    return Machine(
        cpu=info.get("model name") or platform.processor() or platform.machine(),
        cores=physical_cores(root),
        logical_cpus=os.cpu_count() or 1,
        instruction_sets=tuple(name for flag, name in INSTRUCTION_SETS.items() if flag in flags),
        memory_bytes=int(total.split()[0]) * 1024 if total else None,
        system=platform.platform(),
        python=platform.python_version(),
        libraries={name: number for name in LIBRARIES if (number := _version(name))},
    )


def physical_cores(root: Path = ROOT) -> int:
    """Return the number of physical cores that this process may use; two threads of one core count once."""
    cpus = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    siblings = (root / f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list" for cpu in cpus)
    return len({path.read_text() if path.is_file() else str(path) for path in siblings})


def _fields(path: Path) -> dict[str, str]:
    """Return the values in `name : value` lines, the first of each name; none if the file is missing."""
    lines = path.read_text().splitlines() if path.is_file() else []
    pairs = [line.split(":", 1) for line in lines if ":" in line]
    return {name.strip(): value.strip() for name, value in reversed(pairs)}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
