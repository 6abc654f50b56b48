"""Build the wheels: var-edge, pure Python, and var-edge-native, the C and C++ library for each architecture.

    python -m packages.wheels FOLDER [--architecture x86_64 --architecture aarch64]

auditwheel reads which symbols of the system's libraries the native wheel needs, and names the oldest platform that has
them. docs/packages.md says what is in each wheel.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

from .library import ROOT, Architecture, arguments, compiled, run
from .release_notes import current

# What the pure wheel is built from.
SOURCES = ("calibration", "export", "runtime", "var_edge", "pyproject.toml", "README.md", "LICENSE")
NATIVE = Path(__file__).parent / "native"
AUDITWHEEL = (sys.executable, "-m", "auditwheel")
PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check", "-qq")
PIP_WHEEL = (*PIP, "wheel", "--no-deps", "--no-build-isolation", "--no-index")


def main() -> None:
    folder, architectures = arguments((__doc__ or "").splitlines()[0])
    wheels = [pure_wheel(folder), *(native_wheel(compiled(a), a, folder) for a in architectures)]
    for wheel in wheels:
        print(f"{wheel} ({wheel.stat().st_size / 1e6:.1f} MB)")


def pure_wheel(out: Path) -> Path:
    """Build the wheel of the Python packages."""
    with tempfile.TemporaryDirectory() as scratch:
        for name in SOURCES:  # setuptools writes beside what it packs
            copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
            copy(ROOT / name, Path(scratch) / name)
        return _built(Path(scratch), out)


def native_wheel(build: Path, architecture: Architecture, out: Path) -> Path:
    """Build the wheel of a compiled library, tagged with the oldest platform that auditwheel finds it runs on."""
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch) / "source"
        shutil.copytree(NATIVE, source)
        (source / "VERSION").write_text(current())
        prefix = source / "var_edge_native"
        run("cmake", f"-DCMAKE_INSTALL_PREFIX={prefix}", "-DCMAKE_INSTALL_LIBDIR=lib", build)
        run("cmake", "--install", build, "--strip")
        shutil.move(prefix / "share" / "doc" / "var_edge" / "copyright", source)
        wheel = _built(source, Path(scratch), f"--config-settings=--build-option=--plat-name=linux_{architecture.name}")
        repaired_folder = Path(scratch) / "repaired"
        run(*AUDITWHEEL, "repair", "--only-plat", "--wheel-dir", repaired_folder, wheel)
        (repaired,) = repaired_folder.glob("*.whl")
        return Path(shutil.move(repaired, out / repaired.name))


def _built(source: Path, out: Path, *options: str) -> Path:
    with tempfile.TemporaryDirectory() as scratch:
        run(*PIP_WHEEL, "--wheel-dir", scratch, *options, source)
        (wheel,) = Path(scratch).glob("*.whl")
        return Path(shutil.move(wheel, out / wheel.name))


if __name__ == "__main__":
    main()
