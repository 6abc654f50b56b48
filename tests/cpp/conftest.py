"""The C++ runtime, built once for each kind of build that tests ask for."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.runtime.toy import write_bundle

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


def require_mounts() -> None:
    """Skips the test, saying why, unless this process may mount in a view of its own. Root in a container may not."""
    require("unshare", "mount")
    command = ["unshare", "-m", "mount", "-t", "tmpfs", "tmpfs", tempfile.gettempdir()]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        reason = "needs to mount, for which root needs CAP_SYS_ADMIN (docker run --privileged)"
        pytest.skip(f"{reason}: {result.stderr.strip()}")


@pytest.fixture(scope="session")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of toy graphs. All tests share it: none may change it."""
    bundle = tmp_path_factory.mktemp("toy") / "bundle"
    write_bundle(bundle)
    return bundle


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
def standins(build: Configure) -> Path:
    """Where the stand-ins of CUDA and of each TensorRT lie, in folders that serve as their roots."""
    run(sys.executable, SOURCE / "fetch.py", DEPENDENCIES)
    folder = BUILD / "standins"
    run(
        *("cmake", "-S", SOURCE / "tests" / "standin", "-B", folder, "-G", "Ninja"),
        f"-DONNXRUNTIME_ROOT={DEPENDENCIES / 'onnxruntime'}",
        f"-DNLOHMANN_JSON_INCLUDE={DEPENDENCIES / 'include'}",
        "-DSTANDIN_SANITIZE=address,undefined",
    )
    run("ninja", "-C", folder)
    return folder


@pytest.fixture(scope="session")
def checked(build: Configure, standins: Path) -> Path:
    """Under two sanitizers, with TensorRT for RTX. Its tests/VERSION holds the library with another TensorRT."""
    return build(
        "asan",
        *("-DVAR_EDGE_SANITIZE=address,undefined", "-DCMAKE_BUILD_TYPE=Debug"),
        *("-DVAR_EDGE_TENSORRT=ON", f"-DTensorRT_ROOT={standins / 'rtx-1.7.0'}"),
        f"-DCUDAToolkit_ROOT={standins / 'cuda'}",
        f"-DVAR_EDGE_TESTS_TENSORRT={standins / '10.3.0'};{standins / '11.0.0'}",
    )


@pytest.fixture
def machine(tmp_path: Path) -> dict[str, str]:
    """The environment of a program that runs on the stand-in."""
    leaks = f"suppressions={SOURCE / 'tests' / 'lsan.supp'}:print_suppressions=0"
    caches = {"XDG_CACHE_HOME": str(tmp_path / "cache"), "STANDIN_TRACE": str(tmp_path / "trace")}
    return {"LSAN_OPTIONS": leaks, **caches}


@pytest.fixture
def trace(machine: dict[str, str]) -> Callable[[str], list[str]]:
    """trace(PATTERN): what matches in each line of what the stand-in was asked for."""

    def matching(pattern: str) -> list[str]:
        text = Path(machine["STANDIN_TRACE"]).read_text()
        return [found.group(0) for line in text.splitlines() if (found := re.search(pattern, line))]

    return matching


@pytest.fixture(scope="session")
def release(build: Configure) -> Path:
    return build("release")


@pytest.fixture(scope="session")
def arm64(build: Configure) -> Path:
    """For Linux on aarch64: the libraries, var_edge_generate and tests/dump."""
    require("aarch64-linux-gnu-g++")
    toolchain = SOURCE / "cmake" / "aarch64-linux-gnu.cmake"
    return build(
        "arm64",
        f"-DCMAKE_TOOLCHAIN_FILE={toolchain}",
        "-DCMAKE_SKIP_INSTALL_ALL_DEPENDENCY=ON",  # packing would compile what no test runs
        onnxruntime="onnxruntime-arm64",
        targets=("var_edge_shared", "var_edge_static", "var_edge_generate", "dump"),
    )


@pytest.fixture(scope="session")
def emulator(tmp_path_factory: pytest.TempPathFactory) -> list[str | Path]:
    """The command that runs a program for aarch64, after options of QEMU."""
    require("qemu-aarch64-static", "taskset")
    require_mounts()
    # ONNX Runtime asks /proc/cpuinfo what the processor is, which is this machine's own and makes it crash.
    cpuinfo = tmp_path_factory.mktemp("arm64") / "cpuinfo"
    core = "processor\t: {}\nBogoMIPS\t: 50.00\nFeatures\t: fp asimd\nCPU implementer\t: 0x41\nCPU architecture: 8\n"
    core += "CPU variant\t: 0x0\nCPU part\t: 0xd08\nCPU revision\t: 3\n\n"
    cpuinfo.write_text("".join(core.format(i) for i in range(2)))
    inside = 'mount --bind "$0" /proc/cpuinfo && exec qemu-aarch64-static -L /usr/aarch64-linux-gnu "$@"'
    one_cpu = ["taskset", "-c", str(min(os.sched_getaffinity(0)))]  # emulated threads that wait cost as much as work
    return [*one_cpu, "unshare", "-m", "bash", "-c", inside, cpuinfo]
