"""Print the extra to install for the CUDA of this machine, trt-cu12 or trt-cu13; nothing if there is no CUDA.

`make setup` runs this file before anything is installed, so it imports the standard library only.
"""

from __future__ import annotations

import ctypes
import json
import re
from pathlib import Path

# Jetson Linux -> CUDA: JetPack 6 is R36 with CUDA 12.6, JetPack 7 is R38 or later with CUDA 13.
JETSON_RELEASE = re.compile(r"^# R(\d+)")
FIRST_WITH_CUDA_12, FIRST_WITH_CUDA_13 = 36, 38


def installed_cuda(root: Path = Path("/")) -> int | None:
    """Return the major version of CUDA: of the driver, else of the Jetson's release, else of the toolkit.

    The driver decides, because cuda-python needs one that is at least as new as itself. The others count where the
    driver cannot be loaded, such as in a container that is being built.
    """
    jetson, toolkit = root / "etc/nv_tegra_release", root / "usr/local/cuda/version.json"
    return _of_driver() or _of_jetson(jetson) or _of_toolkit(toolkit)


def _of_driver() -> int | None:
    """Return what libcuda says, which takes no GPU and no initialization."""
    version = ctypes.c_int()
    try:
        status = ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(version))
    except (OSError, AttributeError):
        return None
    return version.value // 1000 or None if status == 0 else None


def _of_jetson(file: Path) -> int | None:
    """Return the CUDA of this release of Jetson Linux. The file starts with a line such as "# R36 (release), …"."""
    try:
        release = JETSON_RELEASE.match(file.read_text())
    except (OSError, ValueError):
        return None
    if release is None or int(release[1]) < FIRST_WITH_CUDA_12:
        return None
    return 13 if int(release[1]) >= FIRST_WITH_CUDA_13 else 12


def _of_toolkit(file: Path) -> int | None:
    """Return the version of the CUDA toolkit."""
    try:
        return int(json.loads(file.read_text())["cuda"]["version"].split(".")[0])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def extra(cuda: int | None) -> str:
    """Return the extra for this major version of CUDA; "" for none and for one that is too old."""
    return f"trt-cu{min(cuda, 13)}" if cuda and cuda >= 12 else ""  # cuda-python 13 runs on later drivers too


if __name__ == "__main__":
    print(extra(installed_cuda()))
