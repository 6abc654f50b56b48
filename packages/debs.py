"""Build the Debian packages libvar-edge0, libvar-edge-dev and var-edge-tools.

    python -m packages.debs FOLDER [--architecture x86_64 --architecture aarch64]

runtime/cpp/cmake/packages.cmake says what is in each; docs/packages.md says how to use them.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path

from .library import Architecture, arguments, compiled, run

# The release of GCC that brought the symbols GLIBCXX_3.4.N: "ABI Policy and Guidelines" of the libstdc++ manual.
GCC_OF_GLIBCXX = {29: "11", 30: "12", 31: "13", 32: "13", 33: "14", 34: "15"}


def main() -> None:
    folder, architectures = arguments((__doc__ or "").splitlines()[0])
    for architecture in architectures:
        for package in debs(compiled(architecture), architecture, folder):
            print(f"{package} ({package.stat().st_size / 1e6:.1f} MB)")


def debs(build: Path, architecture: Architecture, out: Path, compression: str = "xz") -> list[Path]:
    """Build the packages of a compiled library. Compression: xz, or gzip, which takes a tenth of the time."""
    library = f"lib/{architecture.triplet}"
    options = ["-DCMAKE_INSTALL_PREFIX=/usr", f"-DCMAKE_INSTALL_LIBDIR={library}"]
    if architecture.cross:
        options.append(f"-DVAR_EDGE_DEBIAN_DEPENDS={depends(_binaries(build))}")
    run("cmake", *options, build)
    config, compress = build / "CPackConfig.cmake", f"CPACK_DEBIAN_COMPRESSION_TYPE={compression}"
    with tempfile.TemporaryDirectory() as scratch:
        run("cpack", "-G", "DEB", "--config", config, "-D", compress, "-B", scratch)
        return [Path(shutil.move(package, out / package.name)) for package in sorted(Path(scratch).glob("*.deb"))]


def depends(binaries: Iterable[Path]) -> str:
    """Return the Depends of compiled files: the system's libraries, in the versions whose symbols they use."""
    said = "".join(run("readelf", "-V", binary) for binary in binaries)
    # 2.34 moved libpthread into libc, and a file that was linked there no longer asks for libpthread.
    glibc = max((2, 34), *((int(a), int(b)) for a, b in re.findall(r"\bGLIBC_(\d+)\.(\d+)", said)))
    glibcxx = max(int(number) for number in re.findall(r"\bGLIBCXX_3\.4\.(\d+)", said))
    gcc = next(gcc for number, gcc in GCC_OF_GLIBCXX.items() if number >= glibcxx)
    return f"libc6 (>= {glibc[0]}.{glibc[1]}), libgcc-s1, libstdc++6 (>= {gcc})"


def _binaries(build: Path) -> list[Path]:
    return [build / "libvar_edge.so", build / "examples" / "var_edge_generate"]


if __name__ == "__main__":
    main()
