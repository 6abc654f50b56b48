"""make gpu-check: without a GPU it says so; engines are verified through the backend that runs them."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from export.gpu_check import NO_GPU
from export.verify.artifacts import Artifact
from export.verify.gpu_check import candidates
from export.verify.run import bundle_reference, verified
from runtime import Pipeline
from runtime.backends.cuda import gpu
from runtime.bundle.engine_record import EngineRecord
from runtime.bundle.manifest import Manifest
from tests.runtime.fake_gpu import FakeGpu, use
from tests.runtime.fake_tensorrt import write_engines


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
    found = dict(candidates(bundle))
    assert EngineRecord.load(found["tensorrt"]).batches == (1, 8)


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
