"""make gpu-check: without a GPU it says so; engines are verified through the backend that runs them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from export.gpu_check import NO_GPU
from export.verify import gpu_check as module
from export.verify.artifacts import Artifact
from export.verify.check import Row
from export.verify.gpu_check import candidates
from export.verify.recording import Reference
from export.verify.report import Entry, Report
from export.verify.run import bundle_reference, verified
from runtime import Pipeline, SettingsError, VarEdgeError
from runtime.backends.cuda import Gpu, gpu
from runtime.backends.wiring import SharedBlock
from runtime.bundle.engine_record import EngineRecord
from runtime.bundle.manifest import Manifest
from tests.runtime.fake_gpu import FakeGpu, use
from tests.runtime.fake_tensorrt import BUILT, write_engines


@pytest.mark.skipif(gpu() is not None, reason="this machine has a GPU: run make gpu-check itself")
def test_without_a_gpu(demo_bundle: Path, fp16_demo_bundle: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "export.gpu_check", str(demo_bundle), str(fp16_demo_bundle)]
    result = subprocess.run([*command, "--report", str(tmp_path / "report")], capture_output=True, text=True)
    assert result.returncode == NO_GPU
    assert result.stderr.startswith("gpu-check: ")
    assert result.stderr.strip().endswith("nothing was checked")
    assert not (tmp_path / "report").exists()


@pytest.mark.skipif(gpu() is not None, reason="this machine has a GPU: run make gpu-check itself")
def test_engines_of_what_is_installed_are_built(fp16_demo_bundle: Path, tmp_path: Path) -> None:
    """Only the part that needs no GPU, with the installed TensorRT for RTX."""
    pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX has no package for this machine")
    bundle = tmp_path / "bundle"
    shutil.copytree(fp16_demo_bundle, bundle)
    (built,) = (found for found in candidates(bundle) if found.backend == "tensorrt")
    assert built.fault is None
    assert EngineRecord.load(built.directory).batches == (1, 8)


class Machine:
    """A GPU with both flavours of TensorRT, whose commands and engines do what a test says: by default they pass."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, reference: Reference) -> None:
        self.ends: dict[str, tuple[int, str]] = {}  # a word of a command -> its exit code and its message
        self.raises: dict[str, BaseException] = {}  # a part of an artifact's name -> what running it raises
        monkeypatch.setattr(module, "load_tensorrt", lambda flavour: None)
        monkeypatch.setattr(module, "target", lambda trt, flavour, *_: replace(BUILT, flavour=flavour))
        monkeypatch.setattr(module, "find_spec", lambda name: name)
        # Not the function in the module `subprocess` itself, which other libraries call.
        monkeypatch.setattr(module, "subprocess", SimpleNamespace(**{**vars(subprocess), "run": self.run}))
        monkeypatch.setattr(module, "_apart", self.verified)
        monkeypatch.setattr(module, "bundle_reference", lambda *_: reference)

    def verified(self, _: object, candidate: module.Candidate, __: object) -> Entry:
        artifact = candidate.artifact
        for name, error in self.raises.items():
            if name in artifact.name:
                raise error
        return Entry(artifact, None, "TensorRT", [Row("decoder", None, {"psnr": 60.0}, [])])

    def run(self, command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        for word, (code, message) in self.ends.items():
            if word in command:
                return subprocess.CompletedProcess(command, code, "", message)
        if "export.engine" in command:
            write_engines(Path(command[3]), (1, 8), replace(BUILT, flavour=command[5].replace("-", "_")))
        else:
            report = {"batches": [{"batch": 1, "seconds": {"median": 0.01}, "pictures_per_second": 100.0}]}
            Path(command[-1]).write_text(json.dumps(report))
        return subprocess.CompletedProcess(command, 0, "", "")


@pytest.fixture(scope="module")
def reference(demo_bundle: Path, fp16_demo_bundle: Path) -> Reference:
    first = Artifact(fp16_demo_bundle, Manifest.load(fp16_demo_bundle))
    return bundle_reference(demo_bundle, first, 2, lambda stage, done, total: None)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, reference: Reference) -> Machine:
    return Machine(monkeypatch, reference)


def check(demo_bundle: Path, fp16_demo_bundle: Path, tmp_path: Path) -> tuple[Report, str, Any]:
    """Return the result, benchmarks.md and report.json."""
    bundle = shutil.copytree(fp16_demo_bundle, tmp_path / "fp16", ignore=shutil.ignore_patterns("engines"))
    result = module.gpu_check(
        Gpu("Fake RTX", "8.6", 1 << 30), demo_bundle, [bundle], tmp_path / "report", 2, lambda stage, done, total: None
    )
    assert (tmp_path / "report" / "report.html").stat().st_size > 1000
    document = json.loads((tmp_path / "report" / "report.json").read_text())
    return result, (tmp_path / "report" / "benchmarks.md").read_text(), document


def test_all_parts_are_in_the_report(
    demo_bundle: Path, fp16_demo_bundle: Path, tmp_path: Path, machine: Machine
) -> None:
    result, benchmarks, document = check(demo_bundle, fp16_demo_bundle, tmp_path)
    assert result.passed
    assert [entry.status for entry in result.entries] == ["passed", "passed"]
    assert benchmarks.count("| 1 | 0.0100 s | 100.00 |") == 2
    assert len(document["artifacts"]) == 2
    assert len(list((tmp_path / "report").glob("bench-tensorrt-*.json"))) == 2


@pytest.mark.parametrize(
    ("word", "end", "said"),
    [
        (
            "tensorrt-rtx",
            (1, "Warning: w\nError: NVIDIA H100: has compute capability 9.0\n"),
            "tensorrt_rtx: NVIDIA H100",
        ),
        ("tensorrt-rtx", (-9, ""), "tensorrt_rtx: export.engine: ended by SIGKILL; if it was SIGKILL, memory ran out"),
        ("tensorrt-rtx", (7, ""), "tensorrt_rtx: export.engine: exit code 7 without a message"),
    ],
)
def test_what_cannot_be_built_is_a_row_beside_what_can(
    word: str,
    end: tuple[int, str],
    said: str,
    demo_bundle: Path,
    fp16_demo_bundle: Path,
    tmp_path: Path,
    machine: Machine,
) -> None:
    """The finished results of an hour are not lost, and the command still fails."""
    machine.ends[word] = end
    result, benchmarks, document = check(demo_bundle, fp16_demo_bundle, tmp_path)
    assert not result.passed
    assert [entry.status for entry in result.entries] == ["passed", "FAILED"]
    assert str(result.entries[1].reason).startswith(f"FAILED: {said}")
    assert "| 1 | 0.0100 s | 100.00 |" in benchmarks
    assert f"FAILED: {said}" in benchmarks
    assert [artifact["status"] for artifact in document["artifacts"]] == ["passed", "FAILED"]


def test_nothing_can_be_built(demo_bundle: Path, fp16_demo_bundle: Path, tmp_path: Path, machine: Machine) -> None:
    machine.ends["export.engine"] = (1, "Error: the NVIDIA driver has CUDA 12.2")
    result, benchmarks, _ = check(demo_bundle, fp16_demo_bundle, tmp_path)
    assert (result.passed, result.summary) == (False, "2 FAILED")
    assert benchmarks.count("the NVIDIA driver has CUDA 12.2") == 2


def test_a_benchmark_that_fails_keeps_the_verification(
    demo_bundle: Path, fp16_demo_bundle: Path, tmp_path: Path, machine: Machine
) -> None:
    machine.ends["runtime.bench"] = (-11, "")
    result, _, _ = check(demo_bundle, fp16_demo_bundle, tmp_path)
    assert [entry.status for entry in result.entries] == ["passed", "FAILED", "passed", "FAILED"]
    assert str(result.entries[1].reason).startswith("FAILED: benchmark: runtime.bench: ended by SIGSEGV")


def test_engines_that_cannot_run_are_a_row(
    demo_bundle: Path, fp16_demo_bundle: Path, tmp_path: Path, machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever a first run on a GPU raises, also what is no error of this project."""
    machine.raises["tensorrt-"] = SettingsError("no memory")
    machine.raises["tensorrt_rtx-"] = RuntimeError("an illegal memory access was encountered")
    result, _, _ = check(demo_bundle, fp16_demo_bundle, tmp_path)
    assert [entry.reason for entry in result.entries] == [
        "FAILED: tensorrt: no memory",
        "FAILED: tensorrt: an illegal memory access was encountered",
    ]
    assert capsys.readouterr().err.count("Traceback") == 1  # for the bug report


def test_the_report_is_there_after_each_part(
    demo_bundle: Path, fp16_demo_bundle: Path, tmp_path: Path, machine: Machine
) -> None:
    """A part that takes the whole process with it leaves the results of those before."""
    machine.raises["tensorrt_rtx-"] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        check(demo_bundle, fp16_demo_bundle, tmp_path)
    document = json.loads((tmp_path / "report" / "report.json").read_text())
    assert [artifact["status"] for artifact in document["artifacts"]] == ["passed"]


def test_int8_that_nothing_shows_fails(
    demo_bundle: Path, fp16_demo_bundle: Path, tmp_path: Path, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "int8_fault", lambda name, engine: f"{name}: cannot tell" if name == "bridge" else None)
    result, benchmarks, _ = check(demo_bundle, fp16_demo_bundle, tmp_path)
    assert not result.passed
    assert [entry.status for entry in result.entries] == ["passed", "FAILED"] * 2
    assert result.entries[1].reason == "FAILED: bridge: cannot tell"
    assert "FAILED: bridge: cannot tell" in benchmarks


def test_no_tensorrt_is_a_failure(
    demo_bundle: Path, fp16_demo_bundle: Path, tmp_path: Path, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    result, _, _ = check(demo_bundle, fp16_demo_bundle, tmp_path)
    assert [str(entry.reason)[:35] for entry in result.entries] == ["FAILED: no TensorRT is installed; o"]


@pytest.mark.parametrize(("batches", "pictures"), [((1,), 2), ((1, 4), 4), ((1, 8), 9)])
def test_engines_are_verified(
    batches: tuple[int, ...],
    pictures: int,
    demo_bundle: Path,
    fp16_demo_bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """They run through the TensorRT backend, on a fake driver that computes with ONNX Runtime."""
    use(monkeypatch, FakeGpu())
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    bundle = tmp_path / "bundle"
    shutil.copytree(fp16_demo_bundle, bundle)
    write_engines(bundle, batches)
    (engines,) = (bundle / "engines").iterdir()
    artifact = Artifact(engines, Manifest.load(engines), engines=True)

    def progress(stage: str, done: int, total: int) -> None: ...

    reference = bundle_reference(demo_bundle, artifact, pictures, progress)
    pipeline = Pipeline(engines, "tensorrt")
    entry = verified(artifact, pipeline, reference, progress)
    assert entry.status == "passed"
    assert {"condition", "transformer", "keys and values", "bridge", "decoder", "encoder", "generation"} == {
        row.stage for row in entry.rows if row.metrics
    }

    # Keys of scale 2 in the place of another block: scale 3 reads them.
    outputs = pipeline.backend._batch.wiring.steps[2][0].outputs  # type: ignore[attr-defined]
    outputs["new_k_00"], outputs["new_k_01"] = outputs["new_k_01"], outputs["new_k_00"]
    assert (
        verified(artifact, pipeline, reference, progress).failed[0].name == "transformer, scale 3"
    )  # which reads them


def dies() -> None:
    os.abort()


def fails() -> None:
    raise SettingsError("of the other process")


def test_a_crash_is_that_of_a_process_of_its_own() -> None:
    """An illegal access would leave the GPU useless to every later candidate, and a segmentation fault ends all."""
    assert module._apart(abs, -3) == 3
    with pytest.raises(SettingsError, match="of the other process"):
        module._apart(fails)
    with pytest.raises(VarEdgeError, match="dies: its process crashed"):
        module._apart(dies)


def test_one_launch_draws_what_its_stages_draw(
    demo_bundle: Path, fp16_demo_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stages are verified one by one, but a batch is drawn with one launch."""
    use(monkeypatch, FakeGpu())
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    bundle = tmp_path / "bundle"
    shutil.copytree(fp16_demo_bundle, bundle)
    engines = write_engines(bundle, (1, 8))
    candidate = module.Candidate("tensorrt", engines)
    reference = bundle_reference(demo_bundle, candidate.artifact, 2, lambda stage, done, total: None)
    assert module.verify_candidate(candidate, reference).status == "passed"
    upload = SharedBlock.upload
    monkeypatch.setattr(SharedBlock, "upload", lambda block, part=None: None if part is None else upload(block, part))
    assert module.verify_candidate(candidate, reference).status == "FAILED"
