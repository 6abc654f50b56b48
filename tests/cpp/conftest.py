"""The C++ runtime, built once for each kind of build that tests ask for."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "runtime" / "cpp"
BUILD = ROOT / "build" / "cpp"
os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # its cmake and ninja
DEPENDENCIES = BUILD / "deps"

Configure = Callable[..., Path]


def require(*programs: str) -> None:
    """Skips the test, saying what to install, unless these programs are there."""
    missing = [program for program in programs if shutil.which(program) is None]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}; .ci/run says which packages they are in")


def run(*command: str | Path, **options: object) -> subprocess.CompletedProcess[str]:
    """Fails with what the command said if it fails."""
    result = subprocess.run(list(map(str, command)), capture_output=True, text=True, **options)  # type: ignore[call-overload]
    assert result.returncode == 0, f"{command}\n{result.stdout[-4000:]}\n{result.stderr[-4000:]}"
    return result


@pytest.fixture(scope="session")
def build() -> Configure:
    """build(name, *cmake options, dependencies="onnxruntime", targets=()) -> the directory of that build."""
    require("cmake", "ninja", "g++", "npm")

    def configure(name: str, *options: str, onnxruntime: str = "onnxruntime", targets: tuple[str, ...] = ()) -> Path:
        arm64 = ["--arm64"] if onnxruntime.endswith("arm64") else []
        run(sys.executable, SOURCE / "fetch.py", DEPENDENCIES, *arm64)
        folder = BUILD / name
        run(
            *("cmake", "-S", SOURCE, "-B", folder, "-G", "Ninja", "-DVAR_EDGE_TESTS=ON"),
            f"-DONNXRUNTIME_ROOT={DEPENDENCIES / onnxruntime}",
            f"-DNLOHMANN_JSON_INCLUDE={DEPENDENCIES / 'include'}",
            *options,
        )
        run("ninja", "-C", folder, *targets)
        return folder

    return configure


@pytest.fixture(scope="session")
def release(build: Configure) -> Path:
    return build("release")
