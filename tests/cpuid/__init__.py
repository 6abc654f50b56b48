"""Run a program as on a processor with AVX2 and without VNNI, whose INT8 kernels saturate."""

from __future__ import annotations

import platform
import shutil
import subprocess
from functools import cache
from pathlib import Path

SOURCE = Path(__file__).parent / "avx2_only.c"


@cache
def flags() -> frozenset[str]:
    """Return what the processor can do, by the names in /proc/cpuinfo; nothing where Linux does not say it."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.exists() else []
    return frozenset(next((line for line in lines if line.startswith("flags")), "").split())


def reason_for_none() -> str:
    """Return why this machine cannot run AVX2 kernels without VNNI; "" if it can."""
    if platform.machine() != "x86_64" or "avx2" not in flags():
        return "the processor has no AVX2"
    if not has_vnni():
        return ""
    if "cpuid_fault" not in flags():
        return "the processor has VNNI, and Linux cannot hide it: no cpuid_fault in /proc/cpuinfo"
    return "" if shutil.which("cc") else "the processor has VNNI, and there is no cc to compile what hides it"


def has_vnni() -> bool:
    return bool({"avx_vnni", "avx512_vnni"} & flags())


def avx2_only(folder: Path) -> dict[str, str]:
    """Return the environment variables for such a program; `folder` gets the library that hides VNNI."""
    assert not reason_for_none()
    if not has_vnni():
        return {}
    library = folder / "avx2_only.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o", library, SOURCE], check=True)
    return {"LD_PRELOAD": str(library)}
