"""The C++ library with ONNX Runtime's CUDA provider: on runtime/cpp/tests/fake_cuda_provider.cpp, without a GPU.

There the memory of the device can be accessed only while a session runs, is not set to 0, and what lies in the host's
memory is copied between its binding and the run, if somebody waits for that. So tokens that equal Python's show that
every array is where it must be.
"""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from runtime.bundle.manifest import Manifest
from runtime.errors import tells_out_of_memory
from tests.cpp.conftest import DEPENDENCIES, SOURCE, run
from tests.cpp.dumps import Case, Drawn, assert_equal, drawn_by_cpp, drawn_by_python
from tests.cpp.test_api import FEATURES
from tests.cpp.test_core import AUTO, FAILED, OK, ONNXRUNTIME_CUDA, OUT_OF_MEMORY, UNSUPPORTED, Live
from tests.cpp.test_parity import check_edit
from tests.runtime.toy import write_bundle

ONNXRUNTIME = DEPENDENCIES / "onnxruntime"


@pytest.fixture(scope="module")
def gpu(release: Path, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, str]:
    """The environment in which programs of `release` find a GPU."""
    folder = tmp_path_factory.mktemp("provider")
    version = importlib.metadata.version("onnxruntime")
    (folder / "versions").write_text(f"VERS_{version} {{ global: OrtGetApiBase; local: *; }};")
    run(
        *("g++", "-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"),
        *("-isystem", ONNXRUNTIME / "include", SOURCE / "tests" / "fake_cuda_provider.cpp"),
        *("-Wl,-soname,libonnxruntime.so.1", f"-Wl,--version-script={folder / 'versions'}", "-ldl"),
        *("-o", folder / "libonnxruntime.so.1"),
    )
    real = ONNXRUNTIME / "lib" / "libonnxruntime.so.1"
    return {"LD_LIBRARY_PATH": str(folder), "FAKE_CUDA_REAL": str(real), "FAKE_CUDA_LOG": str(folder / "log")}


@pytest.fixture
def log(gpu: Mapping[str, str]) -> Path:
    """What the provider was asked for, one line each."""
    path = Path(gpu["FAKE_CUDA_LOG"])
    path.write_text("")
    return path


def drawn_on_gpu(release: Path, gpu: Mapping[str, str], bundle: Path, cases: list[Case], out: Path) -> list[Drawn]:
    program = ["env", *(f"{name}={value}" for name, value in gpu.items()), release / "tests" / "dump"]
    return drawn_by_cpp(program, bundle, cases, out)


def test_it_draws_what_the_cpu_draws(
    release: Path, gpu: Mapping[str, str], log: Path, smooth_demo_bundle: Path, tmp_path: Path
) -> None:
    """Batches that change and come back, kept tokens of the last picture, smooth sampling between plain."""
    cases = [
        Case((3,), 5, 3.5, 200, 0.8),
        Case(tuple(range(5)), 11, 3.0, 600, 0.96, 2),
        Case((7,), 2**64 - 1, 0.0, 1, 0.0),
    ]
    found = drawn_on_gpu(release, gpu, smooth_demo_bundle, cases, tmp_path / "out")
    assert_equal(drawn_by_python(smooth_demo_bundle, cases), found, cases)
    smooth = [Case((3, 12), 5, 3.5, 200, 0.8, 8, True)]
    found = drawn_on_gpu(release, gpu, smooth_demo_bundle, smooth, tmp_path / "out")
    expected = drawn_by_python(smooth_demo_bundle, smooth)
    np.testing.assert_array_equal(expected[0].tokens, found[0].tokens)
    assert "memory of GPU 0" in log.read_text().splitlines()


def test_guidance_at_the_first_scales(
    release: Path,
    gpu: Mapping[str, str],
    log: Path,
    smooth_demo_bundle: Path,
    fp16_demo_bundle: Path,
    tmp_path: Path,
) -> None:
    """ONNX Runtime copies the columns with label on the GPU, also those of keys and values in FP16."""
    cases = [Case((3, 12, 7), 5, 3.5, 200, 0.8, 2, guidance_scales=scales) for scales in (1, 4, None)]
    for bundle in (smooth_demo_bundle, fp16_demo_bundle):
        found = drawn_on_gpu(release, gpu, bundle, cases, tmp_path / "out")
        assert_equal(drawn_by_python(bundle, cases), found, cases)
    assert not {"copy source", "copy target"} & set(log.read_text().splitlines())
    smooth = [Case((3,), 5, 3.5, 200, 0.8, 8, True, guidance_scales=4)]
    found = drawn_on_gpu(release, gpu, smooth_demo_bundle, smooth, tmp_path / "out")
    np.testing.assert_array_equal(drawn_by_python(smooth_demo_bundle, smooth)[0].tokens, found[0].tokens)


def test_the_tiny_decoder(release: Path, gpu: Mapping[str, str], tmp_path: Path) -> None:
    write_bundle(tmp_path / "bundle", tiny=True)
    cases = [Case((0, 1, 5), 7, 2.0, 3, 0.5, batch, decoder=which) for batch in (1, 2) for which in ("full", "tiny")]
    found = drawn_on_gpu(release, gpu, tmp_path / "bundle", cases, tmp_path / "out")
    assert_equal(drawn_by_python(tmp_path / "bundle", cases), found, cases)


def test_fp16(release: Path, gpu: Mapping[str, str], fp16_demo_bundle: Path, tmp_path: Path) -> None:
    cases = [Case((3, 12), 5, 3.5, 200, 0.8)]
    found = drawn_on_gpu(release, gpu, fp16_demo_bundle, cases, tmp_path / "out")
    assert_equal(drawn_by_python(fp16_demo_bundle, cases), found, cases)


def test_an_edit(
    release: Path, gpu: Mapping[str, str], smooth_demo_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in gpu.items():
        monkeypatch.setenv(name, value)
    check_edit(release, smooth_demo_bundle, (0.25, 0.25, 0.75, 0.75), "inpaint", 12, tmp_path)


@pytest.mark.parametrize("feature", sorted({*FEATURES} - {"provider"}))  # which expects that there is none
def test_features(feature: str, release: Path, gpu: Mapping[str, str], log: Path, toy: Path) -> None:
    """Among them what somebody asks for between scales: previews, tokens, logits."""
    assert run(release / "tests" / "features", toy, feature, timeout=60, env=os.environ | gpu).stdout == ""
    assert (feature == "version") != ("memory of GPU 0" in log.read_text())


def test_what_stages_pass_on_stays_on_the_gpu(
    release: Path, gpu: Mapping[str, str], log: Path, demo_bundle: Path, tmp_path: Path
) -> None:
    """Keys and values, logits, hidden states, modulation and f_hat: nothing of them is in the host's memory."""
    drawn_on_gpu(release, gpu, demo_bundle, [Case((3,), 5, 3.5, 200, 0.8)], tmp_path / "out")
    model, scales = Manifest.load(demo_bundle).model, Manifest.load(demo_bundle).scales
    caches = 2 * model.depth * [model.tokens * 2 * model.width]
    logits, x = (scales[-1].tokens * 2 * size for size in (model.vocab_size, model.width))
    modulation, head = model.depth * 6 * 2 * model.width, 2 * 2 * model.width
    f_hats = 2 * [model.code_size * model.grid**2]
    expected = [4 * count for count in (*caches, logits, x, modulation, head, *f_hats)]  # FP32
    found = [int(line.split()[1]) for line in log.read_text().splitlines() if line.startswith("allocate")]
    assert sorted(found) == sorted(expected)


@pytest.mark.parametrize(("feature", "copied"), [("stages", False), ("scales", True)])
def test_logits_stay_on_the_gpu_unless_somebody_may_ask(
    feature: str, copied: bool, release: Path, gpu: Mapping[str, str], log: Path, toy: Path
) -> None:
    """The times of the stages are without copies that nobody asked for."""
    run(release / "tests" / "features", toy, feature, timeout=60, env=os.environ | gpu)
    assert ("copy logits" in log.read_text().splitlines()) == copied


def test_smooth_sampling_copies_no_logits(
    release: Path, gpu: Mapping[str, str], log: Path, smooth_demo_bundle: Path, tmp_path: Path
) -> None:
    drawn_on_gpu(release, gpu, smooth_demo_bundle, [Case((3,), 5, 3.5, 200, 0.8, 8, True)], tmp_path / "out")
    found = log.read_text().splitlines()
    assert "copy noise" in found and "copy logits" not in found


@pytest.mark.parametrize(
    ("option", "ours", "another"),
    [("use_tf32", "0", "1"), ("arena_extend_strategy", "kSameAsRequested", "kNextPowerOfTwo")],
)
def test_options_of_the_provider(
    option: str, ours: str, another: str, release: Path, gpu: Mapping[str, str], log: Path, toy: Path
) -> None:
    """No TF32, with its 10 bits of mantissa; memory as large as the arrays. The application may choose otherwise."""
    assert Live(release, toy, backend=ONNXRUNTIME_CUDA, **gpu).created == (OK, "")
    assert f"option {option}={ours}" in log.read_text().splitlines()
    log.write_text("")
    live = Live(release, toy, backend=ONNXRUNTIME_CUDA, provider=(option, another), **gpu)
    assert live.created == (OK, "")
    assert f"option {option}={another}" in log.read_text().splitlines()


def test_the_memory_is_of_the_gpu_that_was_chosen(release: Path, gpu: Mapping[str, str], log: Path, toy: Path) -> None:
    assert Live(release, toy, backend=ONNXRUNTIME_CUDA, provider=("device_id", "3"), **gpu).created == (OK, "")
    assert {"option device_id=3", "memory of GPU 3"} <= set(log.read_text().splitlines())


OLD_DRIVER = "CUDA failure 35: CUDA driver version is insufficient for CUDA runtime version ; GPU=-1"


@pytest.mark.parametrize("missing, says", [("cudnn", "libcudnn.so.9"), (OLD_DRIVER, "driver version is insufficient")])
def test_a_provider_that_does_not_start(
    missing: str, says: str, release: Path, gpu: Mapping[str, str], toy: Path
) -> None:
    """Asked for: unsupported, with the reason. AUTO: the CPU, and the log has the reason."""
    status, message = Live(release, toy, backend=ONNXRUNTIME_CUDA, FAKE_CUDA=missing, **gpu).created
    assert status == UNSUPPORTED
    assert says in message
    live = Live(release, toy, backend=AUTO, FAKE_CUDA=missing, **gpu)
    assert live.created == (OK, "")
    assert live.ask("generate") == (OK, "")
    logged = live.end()
    assert "GPU not used: " in logged
    assert says in logged


@pytest.mark.parametrize(
    "reason",
    [
        "CUDA failure 2: out of memory ; GPU=0",
        "CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED ; GPU=0",
        "CUDNN failure 4: CUDNN_STATUS_ALLOC_FAILED ; GPU=0",
        "BFCArena::AllocateRawInternal Available memory of 0 is smaller than requested bytes of 4096",
        "BFCArena::Extend: Failed to allocate memory for requested buffer of size 4096",
    ],
)
def test_auto_does_not_hide_that_memory_ran_out(reason: str, release: Path, gpu: Mapping[str, str], toy: Path) -> None:
    assert tells_out_of_memory(reason)  # in Python
    status, message = Live(release, toy, backend=AUTO, FAKE_CUDA=reason, **gpu).created
    assert status == OUT_OF_MEMORY
    assert reason in message
    assert message.endswith("; draw fewer pictures at once (batch 1) or close other programs")


def test_an_allocation_that_fails_for_another_reason(release: Path, gpu: Mapping[str, str], toy: Path) -> None:
    broken = "CUDA failure 700: an illegal memory access was encountered ; GPU=0"
    status, message = Live(release, toy, **gpu, FAKE_CUDA_ALLOCATION=broken).ask("generate")
    assert status == FAILED
    assert "bytes are needed" in message and message.endswith(broken)


def test_memory_that_runs_out_while_a_batch_is_prepared(release: Path, gpu: Mapping[str, str], toy: Path) -> None:
    """One line, and what was allocated is freed: a smaller batch is drawn afterwards, and again."""
    live = Live(release, toy, **gpu, FAKE_CUDA_BYTES="90000")
    assert live.created == (OK, "")
    for _ in range(3):
        assert live.ask("generate") == (OK, "")
        status, message = live.ask("generate 8")
        assert status == OUT_OF_MEMORY
        assert "draw fewer pictures at once" in message
    live.end()
