"""The environment of the server is installed once, and knows the packages of the checkout that starts it."""

from __future__ import annotations

import shutil
import sys
import sysconfig
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

if sys.platform != "linux":
    pytest.skip("the server without a container is for Linux only", allow_module_level=True)

from examples.serving import environment as module
from examples.serving.environment import ROOT, VERSION, environment


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The folders that were installed, slowly, with files in place of the package."""
    folders: list[Path] = []

    def install(folder: Path) -> None:
        folders.append(folder)
        shutil.rmtree(folder, ignore_errors=True)
        server = folder / "lib" / f"python{VERSION}" / "site-packages" / "pytriton" / "tritonserver"
        (server / "backends" / "python").mkdir(parents=True)
        (server / "python_backend_stubs" / VERSION).mkdir(parents=True)
        (server / "python_backend_stubs" / VERSION / "triton_python_backend_stub").touch()
        time.sleep(0.2)

    monkeypatch.setattr(module, "_install", install)
    monkeypatch.setattr(module.platform, "machine", lambda: "x86_64")
    return folders


def test_two_launchers_install_once(installed: list[Path], tmp_path: Path) -> None:
    folder = tmp_path / "build" / "serving"
    with ThreadPoolExecutor(4) as threads:
        servers = list(threads.map(lambda _: environment(folder), range(4)))
    assert installed == [folder]
    assert len(set(servers)) == 1
    assert (servers[0] / "backends" / "python" / "triton_python_backend_stub").exists()


def test_an_environment_that_exists_knows_this_checkout(installed: list[Path], tmp_path: Path) -> None:
    packages = environment(tmp_path / "serving").parents[1]
    (packages / "others.pth").write_text("/moved/away/site-packages\n")
    environment(tmp_path / "serving")
    assert (packages / "others.pth").read_text().splitlines() == [str(ROOT), sysconfig.get_path("purelib")]
    assert len(installed) == 1
