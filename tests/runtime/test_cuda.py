"""The messages of the CUDA wrapper when the driver refuses. The driver is replaced by made-up answers."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from runtime import SettingsError, VarEdgeError
from runtime.backends import cuda as module
from runtime.backends.arrays import DeviceArray
from runtime.backends.cuda import Cuda, gpu

PROPERTIES = SimpleNamespace(name=b"Orin\0", major=8, minor=7, totalGlobalMem=8_000_000_000)


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
    gpu = Cuda().gpu
    assert (gpu.name, gpu.capability, gpu.total_bytes) == ("Orin", "8.7", 8_000_000_000)


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ({"cudaGetDeviceCount": (100, 0)}, "no CUDA GPU on this machine"),
        ({"cudaGetDeviceCount": (35, 0), "cudaDriverGetVersion": (0, 0)}, "no NVIDIA driver on this machine"),
        ({"cudaGetDeviceCount": (35, 0)}, r"knows CUDA 12\.2, cuda-python needs 13\.0; update the driver"),
    ],
)
def test_no_gpu_and_old_drivers(monkeypatch: pytest.MonkeyPatch, answers: dict[str, Any], message: str) -> None:
    use(monkeypatch, **answers)
    with pytest.raises(SettingsError, match=message):
        Cuda()


def test_without_cuda_python(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(module, "importlib", SimpleNamespace(import_module=missing))
    with pytest.raises(SettingsError, match=r"pip install 'var-edge\[trt\]'"):
        Cuda()


def test_out_of_memory_says_how_much(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, cudaMalloc=(2, 0))
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
