"""ONNX Runtime on a GPU, which no machine of the tests has: sessions that fall back to the CPU are imitated."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

from runtime import OutOfMemoryError, Pipeline, SettingsError
from runtime.backends import cuda as cuda_module
from runtime.backends import ort_session
from runtime.backends.ort import onnxruntime as real
from runtime.backends.ort_session import Device, Session
from runtime.bundle.manifest import Manifest
from tests.runtime.fake_gpu import FakeGpu

COMPLAINT = "Failed to load libcudnn.so.9: cannot open shared object file"
REASON = (
    f"onnxruntime-cuda: ONNX Runtime {real.__version__} uses CPUExecutionProvider instead of the GPU: {COMPLAINT};"
    f" it needs CUDA 13 and cuDNN 9: pip install 'onnxruntime-gpu[cuda,cudnn]=={real.__version__}'"
)


class OnnxRuntime:
    """An ONNX Runtime built for GPUs that lacks cuDNN: sessions run on the CPU without a word."""

    cuda_version = "13.0"

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.asked: list[Any] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(real, name)

    def get_available_providers(self) -> list[str]:
        return ["CUDAExecutionProvider", "CPUExecutionProvider"]

    def preload_dlls(self) -> None:
        self.calls.append("preload")
        print(COMPLAINT)
        print("Please follow the instructions")

    def InferenceSession(self, model: object, options: object, providers: Any, **others: Any) -> Any:
        self.calls.append("session")
        self.asked.append((providers[0], others))
        return real.InferenceSession(model, options, providers=["CPUExecutionProvider"])


@pytest.fixture
def ort(monkeypatch: pytest.MonkeyPatch) -> Iterator[OnnxRuntime]:
    fake = OnnxRuntime()
    monkeypatch.setattr(ort_session, "ort", fake)
    monkeypatch.setattr(cuda_module, "_bindings", FakeGpu)
    ort_session._preload.cache_clear()
    yield fake
    ort_session._preload.cache_clear()


def test_a_session_on_the_cpu_is_refused(
    demo_bundle: Path, ort: OnnxRuntime, capsys: pytest.CaptureFixture[str]
) -> None:
    """It would read addresses of the GPU as those of the host."""
    with pytest.raises(SettingsError) as error:
        Pipeline(demo_bundle, "onnxruntime-cuda")
    assert str(error.value) == REASON
    assert ort.calls == ["preload", "session"]  # libraries are loaded before the first session
    assert capsys.readouterr().out == ""


def test_auto_goes_on_and_says_why(demo_bundle: Path, ort: OnnxRuntime) -> None:
    pipeline = Pipeline(demo_bundle, "auto")
    assert pipeline.backend.name == f"onnxruntime (GPU not used: {REASON})"
    assert pipeline.generate([0], seed=1).images.shape == (1, 64, 64, 3)


def test_auto_says_nothing_of_a_gpu_without_an_onnx_runtime_for_it(demo_bundle: Path) -> None:
    assert "CUDAExecutionProvider" not in real.get_available_providers()
    assert Pipeline(demo_bundle, "auto").backend.name == "onnxruntime"


def test_older_releases_cannot_preload(demo_bundle: Path, monkeypatch: pytest.MonkeyPatch, ort: OnnxRuntime) -> None:
    older = SimpleNamespace(get_available_providers=ort.get_available_providers)
    monkeypatch.setattr(ort_session, "ort", older)
    ort_session.require_cuda()
    assert ort.calls == []


def test_tf32_is_off_and_a_failing_provider_is_an_error(demo_bundle: Path, ort: OnnxRuntime) -> None:
    """TF32 changes 0.1 to 3 % of the draws, so images on a GPU would differ from those of a CPU."""
    graph = Manifest.load(demo_bundle).graphs["condition"]
    with pytest.raises(SettingsError):
        Session(demo_bundle, graph, 1, Device(7))
    ((provider, options), others), *_ = ort.asked
    assert provider == "CUDAExecutionProvider"
    assert options == {"device_id": "0", "user_compute_stream": "7", "use_tf32": "0"}
    assert others == {"enable_fallback": 0}


class Bound:
    """A session on the GPU: it keeps the addresses that are bound."""

    addresses: ClassVar[list[tuple[int, tuple[int, ...], Any]]] = []

    def __init__(self, session: Any) -> None:
        self.session = session

    def __getattr__(self, name: str) -> Any:
        return getattr(self.session, name)

    def get_providers(self) -> list[str]:
        return ["CUDAExecutionProvider"]

    def io_binding(self) -> Any:
        return self

    def bind_input(self, name: str, device: str, number: int, dtype: Any, shape: tuple[int, ...], address: int) -> None:
        assert device == "cuda"
        self.addresses.append((address, shape, dtype))

    bind_output = bind_input
    bind_ortvalue_input = bind_ortvalue_output = None  # for arrays in host memory, of which there is none

    def run_with_iobinding(self, binding: object) -> None: ...


def test_arrays_on_the_gpu_live_as_long_as_the_pipeline(
    demo_bundle: Path, monkeypatch: pytest.MonkeyPatch, ort: OnnxRuntime
) -> None:
    """Constants too: the addresses are all that ONNX Runtime keeps of them."""
    gpu, session = FakeGpu(), ort.InferenceSession
    monkeypatch.setattr(cuda_module, "_bindings", lambda: gpu)
    monkeypatch.setattr(ort, "InferenceSession", lambda *a, **k: Bound(session(*a, **k)), raising=False)
    pipeline = Pipeline(demo_bundle, "onnxruntime-cuda", finite=False)
    Bound.addresses.clear()
    pipeline.generate([1], seed=1)
    assert len(Bound.addresses) > 100
    gc.collect()
    for where in Bound.addresses:
        gpu.at(*where)  # fails if nothing is allocated there
    pipeline.close()
    assert gpu.used == 0


def test_memory_that_runs_out_is_no_reason_to_use_the_cpu(
    demo_bundle: Path, monkeypatch: pytest.MonkeyPatch, ort: OnnxRuntime
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("CUDA failure 2: out of memory ; GPU=0")

    monkeypatch.setattr(ort, "InferenceSession", refuse, raising=False)
    with pytest.raises(OutOfMemoryError, match="cannot load it: CUDA failure 2: out of memory"):
        Pipeline(demo_bundle, "auto")
