"""Build the Debian packages libvar-edge0, libvar-edge-dev and var-edge-tools.

    python -m packages.debs FOLDER [--architecture x86_64 --architecture aarch64]

runtime/cpp/cmake/packages.cmake says what is in each; docs/packages.md says how to use them.
"""

from __future__ import annotations

import re
import shutil
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

from .library import Architecture, arguments, compiled, run

# The release of GCC that brought the symbols GLIBCXX_3.4.N: "ABI Policy and Guidelines" of the libstdc++ manual.
GCC_OF_GLIBCXX = {29: "11", 30: "12", 31: "13", 32: "13.2", 33: "14", 34: "15"}
PROGRAMS = {"dpkg-shlibdeps": "dpkg-dev", "file": "file"}  # what CPack reads files with, and its Debian package


def main() -> None:
    folder, architectures = arguments((__doc__ or "").splitlines()[0])
    if not architectures:
        sys.exit("no package was made: no compiler was found")
    for architecture in architectures:
        for package in debs(compiled(architecture), architecture, folder):
            print(f"{package} ({package.stat().st_size / 1e6:.1f} MB)")


def debs(build: Path, architecture: Architecture, out: Path, compression: str = "xz") -> list[Path]:
    """Build the packages of a compiled library. Compression: xz, or gzip, which takes a tenth of the time."""
    library = f"lib/{architecture.triplet}"
    options = ["-DCMAKE_INSTALL_PREFIX=/usr", f"-DCMAKE_INSTALL_LIBDIR={library}"]
    if architecture.cross:
        options.append(f"-DVAR_EDGE_DEBIAN_DEPENDS={depends(binaries(build, architecture))}")
    else:
        for program, package in PROGRAMS.items():
            if shutil.which(program) is None:
                sys.exit(f"{program}: expected this program, which finds what packages depend on; install {package}")
    run("cmake", *options, build)
    config, compress = build / "CPackConfig.cmake", f"CPACK_DEBIAN_COMPRESSION_TYPE={compression}"
    with tempfile.TemporaryDirectory() as scratch:
        run("cpack", "-G", "DEB", "--config", config, "-D", compress, "-B", scratch)
        return [Path(shutil.move(package, out / package.name)) for package in sorted(Path(scratch).glob("*.deb"))]


def depends(files: Iterable[Path]) -> str:
    """Return the Depends of compiled files: the system's libraries, in the versions whose symbols they use.

    Raise SystemExit if they use symbols of a GCC that is newer than this file.
    """
    versions = "".join(run("readelf", "-V", file) for file in files)
    # 2.34 moved libpthread into libc, and a file that was linked there no longer asks for libpthread.
    glibc = max((2, 34), *((int(a), int(b)) for a, b in re.findall(r"\bGLIBC_(\d+)\.(\d+)", versions)))
    glibcxx = max((int(number) for number in re.findall(r"\bGLIBCXX_3\.4\.(\d+)", versions)), default=0)
    gcc = next((gcc for number, gcc in GCC_OF_GLIBCXX.items() if number >= glibcxx), None)
    if gcc is None:
        known = f"GLIBCXX_3.4.{max(GCC_OF_GLIBCXX)} or older"
        sys.exit(f"compiled files: expected {known}, found GLIBCXX_3.4.{glibcxx}; add its GCC to GCC_OF_GLIBCXX")
    return f"libc6 (>= {glibc[0]}.{glibc[1]}), libgcc-s1, libstdc++6 (>= {gcc})"


def binaries(build: Path, architecture: Architecture) -> list[Path]:
    """Return all compiled files of the packages."""
    onnxruntime = architecture.onnxruntime / "lib" / "libonnxruntime.so.1"
    return [build / "libvar_edge.so", onnxruntime, build / "examples" / "var_edge_generate"]


if __name__ == "__main__":
    main()
