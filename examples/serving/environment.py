"""The environment of the server: the PyPI package nvidia-pytriton has a Triton Inference Server for the CPU.

It is 2.51, for x86-64 Linux, and needs numpy before 2. So it gets an environment of its own in build/serving, which
borrows this checkout and all other packages from the environment that runs here.
"""

from __future__ import annotations

import fcntl
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from runtime.errors import SettingsError
from runtime.files.atomic import atomic_file

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = ROOT / "build" / "serving"
PACKAGES = ("nvidia-pytriton==0.7.0", "numpy<2")  # its stub crashes with numpy 2
VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"


def environment(folder: Path = ENVIRONMENT) -> Path:
    """Return the folder of tritonserver in this environment, which is installed first if it is not there.

    Of several processes one installs, and the others wait for it. Raises SettingsError.
    """
    if sys.platform != "linux" or platform.machine() != "x86_64":
        raise SettingsError("nvidia-pytriton: there is none for this platform; use NVIDIA's container")
    if not shutil.which("setpriv"):
        raise SettingsError("setpriv: not found; install util-linux")
    with _locked(folder):
        complete = folder / f"complete-{VERSION}"
        if not complete.exists():
            _install(folder)
            complete.touch()
        site = next(folder.glob("lib/python*/site-packages"))
        # Written anew every time: an environment may have been made for another checkout, or before it was moved.
        with atomic_file(site / "others.pth") as file:
            file.write(f"{ROOT}\n{sysconfig.get_path('purelib')}\n".encode())
        server = site / "pytriton" / "tritonserver"
        _link_stub(server)
    return server


def libraries() -> str:
    """Return where the loader finds libpython: a Python that is not the system's has its own."""
    return os.pathsep.join(filter(None, (sysconfig.get_config_var("LIBDIR"), os.environ.get("LD_LIBRARY_PATH"))))


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Wait until no other process works on the environment, and keep others waiting until the block ends."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_name(f"{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _install(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    venv.create(folder, symlinks=True)
    pip = [sys.executable, "-m", "pip", "--python", str(folder / "bin" / "python"), "--disable-pip-version-check"]
    arguments = ["install", "-qq", "--no-deps", "--no-compile", "--only-binary", ":all:", *PACKAGES]
    result = subprocess.run([*pip, *arguments], capture_output=True, text=True)
    if result.returncode != 0:
        raise SettingsError(f"{' '.join(PACKAGES)}: cannot be installed: {result.stderr}")


def _link_stub(server: Path) -> None:
    """Give Triton's Python backend the stub for this Python. Raises SettingsError."""
    stub = server / "python_backend_stubs" / VERSION / "triton_python_backend_stub"
    if not stub.exists():
        raise SettingsError(f"nvidia-pytriton: has no Python backend for Python {VERSION}")
    linked = subprocess.run(
        ["ldd", stub], capture_output=True, text=True, env={**os.environ, "LD_LIBRARY_PATH": libraries()}
    ).stdout
    if missing := [line.split()[0] for line in linked.splitlines() if "not found" in line]:
        raise SettingsError(f"{', '.join(missing)}: not found; install the shared library of Python {VERSION}")
    link = server / "backends" / "python" / stub.name
    link.unlink(missing_ok=True)
    link.symlink_to(stub)  # it finds its libraries beside its real place
