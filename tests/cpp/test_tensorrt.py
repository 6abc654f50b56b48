"""The C++ TensorRT backend draws what ONNX Runtime draws, on the stand-ins of three TensorRT, under the sanitizers.

The stand-ins (runtime/cpp/tests/standin) refuse what hardware refuses: see there.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from runtime.bundle.engine_record import Built
from runtime.bundle.manifest import Manifest
from tests.cpp.conftest import DEPENDENCIES, SOURCE, run
from tests.cpp.dumps import Case, Drawn, assert_equal, drawn_by_cpp, drawn_by_python
from tests.cpp.test_core import AUTO, BAD_BUNDLE, OK, OUT_OF_MEMORY, TENSORRT, UNSUPPORTED, Live
from tests.cpp.test_parity import check_edit
from tests.runtime.fake_tensorrt import BUILT, rewrite_manifest, write_engines

RTX = "rtx-1.7.0"
VERSIONS = {
    "10.3.0": replace(BUILT, flavour="tensorrt", version="10.3.0", gpu="Fake RTX"),
    "11.0.0": replace(BUILT, flavour="tensorrt", version="11.0.0", gpu="Fake RTX"),
    RTX: BUILT,
}
READERS = [("10.3.0", "huge"), *((version, how) for version in ("11.0.0", RTX) for how in ("short", "huge", "device"))]
CASES = [
    Case((3,), 11, 3.5, 200, 0.8),
    Case(tuple(range(9)), 2**32 + 5, 0.0, 0, 0.0),
    Case((29, 7), 1, 7.25, 1, 0.0, batch=1),
]
PIECE = 64 << 20  # bytes that the reader passes on at once; READ_BYTES of trt_engine.cpp


def engines_in(bundle: Path, folder: Path, versions: Mapping[str, Built] = VERSIONS) -> Path:
    """Return a copy of the bundle with engines of all versions, for one picture and for eight at once."""
    shutil.copytree(bundle, folder)
    for built in versions.values():
        write_engines(folder, (1, 8), built)
    return folder


def engines(bundle: Path, version: str) -> Path:
    return bundle / "engines" / VERSIONS[version].tag


@pytest.fixture(scope="module")
def bundle(smooth_demo_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return engines_in(smooth_demo_bundle, tmp_path_factory.mktemp("tensorrt") / "bundle")


@pytest.fixture
def own_engines(bundle: Path, tmp_path: Path) -> Path:
    """Engines of TensorRT for RTX, to damage."""
    return Path(shutil.copytree(engines(bundle, RTX), tmp_path / "engines"))


Machine = dict[str, str]


def library(checked: Path, version: str) -> dict[str, str]:
    """The environment in which a program has the library with this TensorRT."""
    return {} if version == RTX else {"LD_LIBRARY_PATH": str(checked / "tests" / version)}


def drawn(checked: Path, version: str, machine: Machine, folder: Path, cases: list[Case], out: Path) -> list[Drawn]:
    """What the engines in `folder` draw; another backend never takes their place."""
    variables = machine | library(checked, version)
    program = ["env", *(f"{name}={value}" for name, value in variables.items()), checked / "tests" / "dump"]
    return drawn_by_cpp(program, folder, cases, out)


@pytest.mark.parametrize(("version", "how"), READERS)
def test_images_are_those_of_python(
    version: str, how: str, checked: Path, machine: Machine, bundle: Path, tmp_path: Path
) -> None:
    """However this TensorRT reads its engines, and whichever way it makes its contexts."""
    machine |= {"STANDIN_READER": how}
    found = drawn(checked, version, machine, engines(bundle, version), CASES, tmp_path / "out")
    assert_equal(drawn_by_python(bundle, CASES), found, CASES)


@pytest.mark.parametrize("which", ["fp16", "int8"])
def test_other_precisions(
    which: str,
    checked: Path,
    machine: Machine,
    fp16_demo_bundle: Path,
    int8_bundles: dict[str, Path],
    tmp_path: Path,
) -> None:
    """Keys and values in FP16; with INT8 the scales are constants of the graph."""
    source = fp16_demo_bundle if which == "fp16" else int8_bundles["trt"]
    bundle = engines_in(source, tmp_path / "bundle", {RTX: BUILT})
    found = drawn(checked, RTX, machine, engines(bundle, RTX), CASES[:2], tmp_path / "out")
    assert_equal(drawn_by_python(bundle, CASES[:2]), found, CASES[:2])


@pytest.mark.parametrize("version", VERSIONS)
def test_smooth_sampling(version: str, checked: Path, machine: Machine, bundle: Path, tmp_path: Path) -> None:
    cases = [replace(CASES[0], smooth=True), CASES[0]]
    found = drawn(checked, version, machine, engines(bundle, version), cases, tmp_path / "out")
    for a, b in zip(drawn_by_python(bundle, cases), found, strict=True):
        np.testing.assert_array_equal(a.tokens, b.tokens)


@pytest.mark.parametrize("version", VERSIONS)
def test_edits(version: str, checked: Path, machine: Machine, bundle: Path, tmp_path: Path) -> None:
    variables = machine | library(checked, version)
    check_edit(checked, bundle, (0.25, 0.0, 1.0, 0.5), "inpaint", 12, tmp_path, engines(bundle, version), variables)


@pytest.mark.parametrize("version", VERSIONS)
def test_an_application_that_uses_cuda(version: str, checked: Path, machine: Machine, bundle: Path) -> None:
    """Its streams, its memory, its current device, its calls while the library records; previews and stops."""
    variables = machine | library(checked, version) | {"STANDIN_TRACE": ""}  # which would be long
    assert run(checked / "tests" / "device", engines(bundle, version), env=os.environ | variables).stdout == ""


@pytest.mark.parametrize(("version", "how"), [("10.3.0", "huge"), (RTX, "huge"), (RTX, "device")])
def test_all_weights_in_one_request(
    version: str, how: str, checked: Path, machine: Machine, bundle: Path, tmp_path: Path
) -> None:
    """An engine larger than a piece of the reader: nothing says that TensorRT asks again for what was not read."""
    folder = Path(shutil.copytree(engines(bundle, version), tmp_path / "engines"))
    manifest, path = Manifest.load(folder), folder / "decoder.engine"
    with path.open("ab") as file:
        file.write(b" " * (PIECE + 1))  # JSON goes on to mean the same
    rewrite_manifest(folder, manifest)
    machine |= {"STANDIN_READER": how}
    found = drawn(checked, version, machine, folder, CASES[:1], tmp_path / "out")
    assert_equal(drawn_by_python(bundle, CASES[:1]), found, CASES[:1])
    path.unlink()


def loading(checked: Path, folder: Path, machine: Machine, **variables: str) -> tuple[int, str]:
    live = Live(checked, folder, backend=TENSORRT, **(machine | variables))
    live.end()
    return live.created


@pytest.mark.parametrize(
    ("reason", "says"),
    [
        ("35", "the NVIDIA driver knows CUDA 12.6, this library needs 12.6; update the driver"),
        ("100", 'says "no CUDA-capable device is detected"; check nvidia-smi, CUDA_VISIBLE_DEVICES and'),
        ("803", 'says "system has unsupported display driver / cuda driver combination"; check nvidia-smi'),
        ("999", 'the driver (CUDA 12.6) says "unknown error"; check nvidia-smi'),
    ],
)
def test_a_gpu_that_cannot_be_used(reason: str, says: str, checked: Path, machine: Machine, bundle: Path) -> None:
    """Asked for: unsupported, with the reason. AUTO: the CPU, and the log has the reason."""
    machine |= {"STANDIN_NO_GPU": reason}
    status, message = loading(checked, bundle, machine)
    assert status == UNSUPPORTED
    assert says in message
    live = Live(checked, bundle, backend=AUTO, **machine)
    assert live.created == (OK, "")
    assert live.ask("generate") == (OK, "")
    assert f"engines not used: {message}" in live.end()


def unreadable(folder: Path) -> None:
    manifest = Manifest.load(folder)
    (folder / "bridge.engine").write_bytes(b"not an engine at all")
    rewrite_manifest(folder, manifest)


def test_an_unreadable_engine_is_not_a_lack_of_memory(checked: Path, machine: Machine, own_engines: Path) -> None:
    """On a Jetson CUDA counts the cache of files as used: all of its memory may be, and an allocation gets it."""
    unreadable(own_engines)
    full = {"STANDIN_TAKEN": str(1 << 30)}
    status, message = loading(checked, own_engines, machine, **full, STANDIN_INTEGRATED="1")
    assert status == BAD_BUNDLE
    assert "magicTag: the plan is no engine" in message
    assert message.endswith("run make engine on this machine")
    assert loading(checked, own_engines, machine)[0] == BAD_BUNDLE
    status, message = loading(checked, own_engines, machine, **full)  # a GPU with memory of its own
    assert status == OUT_OF_MEMORY
    assert "0 of 1074 MB are free" in message


@pytest.mark.parametrize("integrated", ["0", "1"])
def test_memory_that_runs_out_while_an_engine_is_read(
    integrated: str, checked: Path, machine: Machine, own_engines: Path
) -> None:
    """TensorRT's log says so, whatever CUDA counts as free."""
    status, message = loading(checked, own_engines, machine, STANDIN_MEMORY="4096", STANDIN_INTEGRATED=integrated)
    assert status == OUT_OF_MEMORY
    assert "Cuda Runtime (out of memory)" in message


def check_headers(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, SOURCE / "check_headers.py", *arguments, "--json", DEPENDENCIES / "include"]
    return subprocess.run(list(map(str, command)), capture_output=True, text=True)


def test_the_check_of_headers(standins: Path, tmp_path: Path) -> None:
    """A repository with a release, as NVIDIA/TensorRT is one, and an installed SDK, one of whose calls is gone."""
    repository, installed = tmp_path / "repository", tmp_path / "installed"
    shutil.copytree(standins / "10.3.0" / "include", repository / "include")
    shutil.copytree(standins / RTX / "include", installed / "include")
    header = installed / "include" / "NvInferRuntime.h"
    header.write_text(header.read_text().replace("setDeviceMemoryV2", "setDeviceMemoryV3"))
    identity = ("-c", "user.name=name", "-c", "user.email=name@example.org")
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "10.3"], ["tag", "v10.3.0"], ["tag", "v9.3.0"]):
        run("git", *identity, *command, cwd=repository)
    result = check_headers(repository, installed, "--cuda", standins / "cuda")
    assert result.returncode == 1
    assert result.stdout.splitlines()[2:] == ["| 10.3.0.42 | yes |", "| RTX 1.7.0.42 | no |"]
    (line,) = result.stderr.splitlines()
    assert line.startswith("TensorRT RTX 1.7.0.42, CUDA 12.6: ")
    assert "setDeviceMemoryV2" in line


def test_the_check_of_headers_without_headers(standins: Path, tmp_path: Path) -> None:
    cuda = ("--cuda", standins / "cuda")
    for arguments, says in (
        ((tmp_path, *cuda), f"{tmp_path}: neither a repository of TensorRT with tags from v10.0 on nor include/"),
        ((standins / RTX, "--cuda", tmp_path), f"{tmp_path}: no CUDA toolkit: include/cuda_runtime_api.h is missing"),
    ):
        result = check_headers(*arguments)
        assert (result.returncode, result.stderr.startswith(says)) == (1, True), result.stderr
