"""Which packages a device installs: the extras for CUDA 12 and CUDA 13, and the choice that make setup makes."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from export.engine import cuda_extra
from export.engine.cuda_extra import extra, installed_cuda

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
# Ubuntu 22.04 and 24.04 of JetPack 6 and 7 run wheels for older glibc too.
PLATFORMS = ("manylinux_2_17_aarch64", "manylinux2014_aarch64", "manylinux_2_28_aarch64", "manylinux_2_34_aarch64")
CUDA_PYTHON = {"trt-cu12": "12", "trt-cu13": "13", "ort-cu12": "12", "ort-cu13": "13"}


def jetson(name: str, python: str) -> list[str]:
    """Return the requirements of an extra that hold on a Jetson, without their markers."""
    place = {"platform_machine": "aarch64", "sys_platform": "linux", "python_version": python}
    wanted = map(Requirement, PROJECT["optional-dependencies"][name])
    held = [requirement for requirement in wanted if not requirement.marker or requirement.marker.evaluate(place)]
    for requirement in held:
        requirement.marker = None
    return list(map(str, held))


@pytest.mark.parametrize("name", CUDA_PYTHON)
def test_each_extra_has_the_cuda_python_of_its_driver(name: str) -> None:
    """cuda-python 13 needs driver 580; with that of JetPack 6 every call would fail."""
    wanted = {r.name: r.specifier for r in map(Requirement, PROJECT["optional-dependencies"][name])}["cuda-python"]
    releases = {"12": ["12.6.0", "12.9.10"], "13": ["13.0.0", "13.4.4"]}
    for major, versions in releases.items():
        assert [version in wanted for version in versions] == [major == CUDA_PYTHON[name]] * 2


@pytest.mark.parametrize(("name", "python"), [("trt-cu12", "3.10"), ("trt-cu13", "3.12")])
def test_a_jetson_gets_what_building_and_running_need(name: str, python: str) -> None:
    """Also from the extra dev, which make setup installs beside: it must not limit a package to x86-64."""
    together = {Requirement(text).name for text in jetson("dev", python)}
    assert {"polygraphy", "cuda-python"} <= {Requirement(text).name for text in jetson(name, python)}
    assert {"polygraphy", "cuda-python"} <= together
    assert "tensorrt-rtx-cu13" not in together  # it has no wheel for a Jetson; TensorRT is part of JetPack


@pytest.mark.slow
def reaches_an_index(folder: Path) -> bool:
    """Return whether pip finds a package that every index has: without one, a failure says nothing of ours."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--retries=1", f"--dest={folder}"]
    return subprocess.run([*command, "click"], capture_output=True, timeout=300).returncode == 0


@pytest.mark.parametrize(
    ("name", "python", "expected"), [("trt-cu12", "3.10", "12"), ("trt-cu12", "3.12", "12"), ("trt-cu13", "3.12", "13")]
)
def test_pip_resolves_it_for_a_jetson(name: str, python: str, expected: str, tmp_path: Path) -> None:
    """With wheels only: JetPack 6 has Python 3.10, JetPack 7 has Python 3.12."""
    # Without torch: pip evaluates the markers of its dependencies for this machine, not for a Jetson.
    wanted = [*PROJECT["dependencies"], *jetson("dev", python), *jetson(name, python)]
    version = python.replace(".", "")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed", "--report", "-"]
    command += [f"--platform={platform}" for platform in PLATFORMS]
    command += [f"--python-version={version}", "--only-binary=:all:", f"--target={tmp_path}", "--retries=1", *wanted]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    if result.returncode and not reaches_an_index(tmp_path):
        pytest.skip("NOT CHECKED: pip reaches no package index, so nothing was resolved for a Jetson")
    assert result.returncode == 0, result.stderr
    found = {item["metadata"]["name"]: item["metadata"]["version"] for item in json.loads(result.stdout)["install"]}
    assert found["cuda-bindings"].split(".")[0] == found["cuda-python"].split(".")[0] == expected
    assert "polygraphy" in found


@pytest.fixture
def no_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_extra, "_of_driver", lambda: None)


@pytest.mark.usefixtures("no_driver")
@pytest.mark.parametrize(
    ("file", "text", "expected"),
    [
        ("etc/nv_tegra_release", "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64\n", 12),
        ("etc/nv_tegra_release", "# R38 (release), REVISION: 2.0, GCID: 41844464, BOARD: generic, EABI: aarch64\n", 13),
        ("etc/nv_tegra_release", "# R35 (release), REVISION: 4.1, GCID: 33958178, BOARD: t186ref\n", None),
        ("usr/local/cuda/version.json", '{"cuda": {"name": "CUDA SDK", "version": "12.6.11"}}', 12),
        ("usr/local/cuda/version.json", '{"cuda": {"name": "CUDA SDK", "version": "13.0.1"}}', 13),
        ("usr/local/cuda/version.json", "{", None),
        ("usr/local/cuda/version.json", "[]", None),
        ("other", "", None),
    ],
)
def test_cuda_is_found_without_a_driver(tmp_path: Path, file: str, text: str, expected: int | None) -> None:
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / file).write_text(text)
    assert installed_cuda(tmp_path) == expected


def test_the_driver_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc" / "nv_tegra_release").write_text("# R36 (release)")
    monkeypatch.setattr(cuda_extra, "_of_driver", lambda: 13)
    assert installed_cuda(tmp_path) == 13


def test_every_cuda_has_an_extra_or_none() -> None:
    found = [extra(cuda) for cuda in (None, 11, 12, 13, 14)]
    assert found == ["", "", "trt-cu12", "trt-cu13", "trt-cu13"]
    assert set(found) - {""} <= PROJECT["optional-dependencies"].keys()


@pytest.mark.skipif(not shutil.which("make"), reason="make is not installed")
@pytest.mark.parametrize(
    ("said", "installed"), [("trt-cu12", ".[export,dev,trt-cu12]"), ("", ".[export,dev]")], ids=["cuda", "no cuda"]
)
def test_make_setup_installs_it(tmp_path: Path, said: str, installed: str) -> None:
    """It asks the real file, which runs before anything is installed."""
    python = tmp_path / "python3"
    python.write_text(f'#!/bin/sh\n[ -f "$2" ] && {sys.executable} "$@" > /dev/null && echo {said}\n')
    python.chmod(0o755)
    command = ["make", "--dry-run", "setup", f"PYTHON3={python}", f"INSTALLED={tmp_path / 'none'}"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert f"--editable '{installed}'" in result.stdout
