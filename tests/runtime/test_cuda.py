"""The messages of the CUDA wrapper when the driver refuses. The driver is replaced by made-up answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from runtime import SettingsError, VarEdgeError
from runtime.backends import cuda as module
from runtime.backends.arrays import DeviceArray
from runtime.backends.cuda import Cuda, Gpu, gpu, gpu_or_reason

PROPERTIES = SimpleNamespace(name=b"Orin\0", major=8, minor=7, totalGlobalMem=8_000_000_000, integrated=1)


def driver(**answers: Any) -> SimpleNamespace:
    """Return a fake of cuda-python's functions, each of which returns a status and values."""
    known = {
        "cudaGetDeviceCount": (0, 1),
        "cudaGetDeviceProperties": (0, PROPERTIES),
        "cudaSetDevice": (0,),
        "cudaStreamCreateWithFlags": (0, 5),
        "cudaStreamDestroy": (0,),
        "cudaMemGetInfo": (0, (3_000_000, 8_000_000)),
        "cudaMemsetAsync": (0,),
        "cudaMalloc": (0, 512),
        "cudaGetErrorString": (0, b"an illegal memory access was encountered"),
        "cudaDriverGetVersion": (0, 12020),
        "cudaRuntimeGetVersion": (0, 13000),
    }
    constants = {"cudaStreamNonBlocking": 1}
    return SimpleNamespace(
        **constants, **{name: lambda *_, answer=answer: answer for name, answer in (known | answers).items()}
    )


def use(monkeypatch: pytest.MonkeyPatch, **answers: Any) -> None:
    monkeypatch.setattr(module, "_bindings", lambda: driver(**answers))


def test_the_gpu_is_described(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch)
    assert Cuda().gpu == Gpu("Orin", "8.7", 8_000_000_000, integrated=True)


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ({"cudaGetDeviceCount": (100, 0)}, "no CUDA GPU for this process: the driver (CUDA 12.2) says"),
        ({"cudaGetDeviceCount": (999, None)}, "no CUDA GPU for this process: the driver (CUDA 12.2) says"),
        (
            {"cudaGetDeviceCount": (35, None), "cudaDriverGetVersion": (0, 0)},
            "no NVIDIA driver on this machine (libcuda.so.1 is missing); install one from nvidia.com/drivers,"
            " or use --backend onnxruntime",
        ),
        (
            {"cudaGetDeviceCount": (35, None)},
            "the NVIDIA driver has CUDA 12.2, this cuda-python needs CUDA 13.0; pip install 'cuda-python>=12.6,<13', or"
            " update the driver to 580 or newer",
        ),
        (
            {
                "cudaGetDeviceCount": (35, None),
                "cudaDriverGetVersion": (0, 11040),
                "cudaRuntimeGetVersion": (0, 12060),
            },
            "the NVIDIA driver has CUDA 11.4, this cuda-python needs CUDA 12.6; update the driver to 525 or newer",
        ),
    ],
)
def test_why_there_is_no_gpu(monkeypatch: pytest.MonkeyPatch, answers: dict[str, Any], message: str) -> None:
    use(monkeypatch, **answers)
    with pytest.raises(SettingsError) as error:
        Cuda()
    assert str(error.value).startswith(message)
    assert len(str(error.value)) <= 300


@pytest.fixture
def uncached() -> Iterator[None]:
    gpu_or_reason.cache_clear()
    yield
    gpu_or_reason.cache_clear()


@pytest.mark.usefixtures("uncached")
def test_the_reason_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, cudaGetDeviceCount=(35, None))
    assert "cuda-python needs CUDA 13.0" in str(gpu_or_reason())
    assert gpu() is None
    gpu_or_reason.cache_clear()
    use(monkeypatch)
    assert gpu() == gpu_or_reason() == Gpu("Orin", "8.7", 8_000_000_000, integrated=True)


def raising(error: Exception) -> Callable[..., Any]:
    def call(*_: object) -> None:
        raise error

    return call


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            ImportError("No module named 'cuda'"),
            r"cuda-python 12\.6 or newer cannot be imported \(No module named 'cuda'\)",
        ),
        (ImportError("No module named 'cuda'"), r"pip install 'var-edge\[trt-cu12\]' \(CUDA 12, as on JetPack 6\) or"),
        (RuntimeError('Function "cuDriverGetVersion" not found'), "no NVIDIA driver on this machine"),
    ],
)
def test_cuda_python_that_cannot_be_imported(monkeypatch: pytest.MonkeyPatch, error: Exception, message: str) -> None:
    monkeypatch.setattr(module, "importlib", SimpleNamespace(import_module=raising(error)))
    with pytest.raises(SettingsError, match=message):
        Cuda()


def test_cuda_python_12_raises_in_the_first_call_without_a_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    """Releases up to 12.6 do; they return no status."""
    fake = driver()
    fake.cudaGetDeviceCount = raising(RuntimeError("Failed to dlopen libcuda.so.1"))
    monkeypatch.setattr(module, "_bindings", lambda: fake)
    with pytest.raises(SettingsError, match="no NVIDIA driver on this machine"):
        Cuda()


def test_memory_of_a_jetson_is_that_of_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """There CUDA counts the page cache as used, which holds the bundle that was just read."""
    use(monkeypatch, cudaMalloc=(2, 0))
    monkeypatch.setattr(module, "available_memory", lambda: 6_000_000)
    with pytest.raises(VarEdgeError, match=r"50 MB are needed, 6 of 8 MB are free"):
        Cuda().malloc(50_000_000)


def test_out_of_memory_says_how_much(monkeypatch: pytest.MonkeyPatch) -> None:
    discrete = SimpleNamespace(**vars(PROPERTIES) | {"integrated": 0})
    use(monkeypatch, cudaMalloc=(2, 0), cudaGetDeviceProperties=(0, discrete))
    with pytest.raises(VarEdgeError, match=r"5 MB are needed, 3 of 8 MB are free; draw fewer pictures at once"):
        Cuda().malloc(5_000_000)


def test_a_failing_call_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, cudaStreamSynchronize=(700,))
    with pytest.raises(VarEdgeError, match="CUDA: cudaStreamSynchronize: an illegal memory access"):
        Cuda().synchronize()


def test_slices_of_device_arrays_are_those_of_numpy() -> None:
    array, host = DeviceArray(1000, (5, 2, 3), np.dtype(np.float16)), np.zeros((5, 2, 3), np.float16)
    for rows in (slice(0, 0), slice(2, None), slice(1, 4), slice(None, 3)):
        assert array[rows].shape == host[rows].shape
        assert array[rows].address - 1000 == host[rows].ctypes.data - host.ctypes.data
    flat = array.reshape((30,)).view(np.uint8)
    assert (flat.shape, flat.nbytes, len(flat)) == ((60,), host.nbytes, 60)


@pytest.mark.skipif(gpu() is not None, reason="this machine has a GPU: make gpu-check makes these calls for real")
def test_cuda_python_takes_every_call() -> None:
    """Without a driver CUDA refuses every call, but a call with wrong arguments raises TypeError before that."""
    runtime = pytest.importorskip("cuda.bindings.runtime", reason="cuda-python has no package for this machine")
    cuda, host = object.__new__(Cuda), np.zeros(8, np.uint8)
    cuda._runtime, cuda.stream, cuda._events, cuda._unused = runtime, 7, [], []
    event, graph = runtime.cudaEvent_t(), runtime.cudaGraphExec_t()
    calls: list[Callable[[], Any]] = [
        lambda: cuda.malloc(8),
        lambda: cuda.free(256),
        lambda: cuda.pinned(8),
        lambda: cuda.unpin(host),
        lambda: cuda.upload(512, host),
        lambda: cuda.download(host, 512),
        lambda: cuda.zero(512, 8),
        lambda: cuda.synchronize(),
        lambda: cuda.recorded(lambda: None),
        lambda: cuda.launch(SimpleNamespace(graph=graph)),  # type: ignore[arg-type]
        lambda: cuda.mark(),
        lambda: cuda.seconds(event, event),
    ]
    calls += [
        partial(cuda._call, name, *arguments)
        for name, arguments in {
            "cudaGetDeviceProperties": (0,),
            "cudaSetDevice": (0,),
            "cudaStreamCreateWithFlags": (runtime.cudaStreamNonBlocking,),
            "cudaStreamDestroy": (7,),
            "cudaMemGetInfo": (),
            "cudaStreamEndCapture": (7,),
            "cudaGraphInstantiate": (runtime.cudaGraph_t(), 0),
            "cudaGraphDestroy": (runtime.cudaGraph_t(),),
            "cudaGraphExecDestroy": (graph,),
            "cudaEventRecord": (event, 7),
            "cudaEventDestroy": (event,),
        }.items()
    ]
    for call in calls:
        with pytest.raises(VarEdgeError, match="driver"):
            call()
