"""make gpu-check: it says that there is no GPU, and its comparison passes what is equal and fails what is not."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from export.gpu_check import NO_GPU, candidates, compared, stage_errors
from runtime import Pipeline
from runtime.backends import tensorrt as backend_module
from runtime.backends.cuda import gpu
from runtime.engine_record import EngineRecord
from tests.runtime.fake_gpu import FakeCuda, fake_tensorrt, write_engines


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
    """The part before a GPU is needed, with the TensorRT for RTX that is here."""
    pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX has no package for this machine")
    bundle = tmp_path / "bundle"
    shutil.copytree(fp16_demo_bundle, bundle)
    found = dict(candidates(bundle))
    assert EngineRecord.load(found["tensorrt"]).batches == (1, 8)


def test_every_output_is_compared(
    demo_bundle: Path, fp16_demo_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cuda = FakeCuda()
    monkeypatch.setattr(backend_module, "Cuda", lambda: cuda)
    monkeypatch.setattr(backend_module, "load_tensorrt", lambda flavour: fake_tensorrt(cuda))
    bundle = tmp_path / "bundle"
    shutil.copytree(fp16_demo_bundle, bundle)
    write_engines(bundle, (1, 8))
    reference, engines = Pipeline(demo_bundle, "onnxruntime"), Pipeline(bundle, "tensorrt")
    lines, failed = compared(reference, engines, tokens=1000)
    assert failed == []
    for output in ("modulation", "logits", "new_k_00", "new_v_03", "f_hat_out", "x_next", "image", "encoder tokens"):
        assert any(line.startswith(f"| {output} |") for line in lines), output

    logits = engines.backend.logits
    monkeypatch.setattr(engines.backend, "logits", lambda: np.flip(logits(), axis=-1))
    assert any("agreement" in text for text in compared(reference, engines, tokens=64)[1])
    list(stage_errors(reference, engines))  # so that the arrays are those of one picture
    outputs = engines.backend.batch.wiring.steps[2][0].outputs  # type: ignore[attr-defined]
    outputs["new_k_00"], outputs["new_k_01"] = outputs["new_k_01"], outputs["new_k_00"]
    errors = [error for error in stage_errors(reference, engines) if error.tensor == "new_k_00"]
    assert min(errors, key=lambda error: error.cosine).scale == 2
