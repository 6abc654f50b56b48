"""What engines are built for, and the refusals: the GPU, the options and TensorRT have to fit. No GPU is needed."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from export.engine import build
from export.engine.build import find_tensorrt, target
from export.engine.builder import Options
from runtime import SettingsError
from runtime.backends.cuda import Gpu

ORIN = Gpu("Orin", "8.7", 8 << 30, integrated=True)
ADA = Gpu("NVIDIA GeForce RTX 4090", "8.9", 24 << 30)
HOPPER = Gpu("NVIDIA H100 80GB HBM3", "9.0", 80 << 30)
TURING = Gpu("Tesla T4", "7.5", 16 << 30)
MEMBERS = dict.fromkeys(["NONE", "CURRENT", "SM75", "SM80", "SM86", "SM89", "SM120", "SM121"])
RTX = SimpleNamespace(__version__="1.7.1.116", ComputeCapability=SimpleNamespace(__members__=MEMBERS))
TENSORRT = SimpleNamespace(__version__="10.3.0")


def use(monkeypatch: pytest.MonkeyPatch, found: Gpu | str) -> None:
    monkeypatch.setattr(build, "gpu_or_reason", lambda: found)


def target_of(flavour: str, capabilities: tuple[str, ...] = (), **options: Any) -> Any:
    trt: Any = TENSORRT if flavour == "tensorrt" else RTX
    return target(trt, flavour, capabilities, Options(**options))


def test_this_machines_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, ORIN)
    built = target_of("tensorrt")
    assert (built.gpu, built.compute_capabilities, built.tag) == ("Orin", ("8.7",), "tensorrt-10.3.0-sm87")
    use(monkeypatch, ADA)
    assert target_of("tensorrt_rtx").tag == "tensorrt_rtx-1.7.1.116-sm89"
    assert target_of("tensorrt_rtx", ("12.0", "8.6")).compute_capabilities == ("12.0", "8.6")
    assert target_of("tensorrt", hardware_compatible=True).hardware_compatible


def test_ahead_of_time_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, "no NVIDIA driver")
    built = target_of("tensorrt_rtx")
    assert (built.gpu, built.compute_capabilities) == (None, ("8.6",))


@pytest.mark.parametrize(
    "reason", ["cuda-python 12.6 or newer cannot be imported", "no NVIDIA driver", "the NVIDIA driver has CUDA 12.6"]
)
def test_why_there_is_no_gpu(monkeypatch: pytest.MonkeyPatch, reason: str) -> None:
    use(monkeypatch, reason)
    with pytest.raises(SettingsError, match=f"tensorrt: builds for the GPU of this machine, but: {reason}"):
        target_of("tensorrt")


@pytest.mark.parametrize("gpu", [HOPPER, ORIN])
def test_tensorrt_for_rtx_supports_some_gpus(monkeypatch: pytest.MonkeyPatch, gpu: Gpu) -> None:
    use(monkeypatch, gpu)
    with pytest.raises(SettingsError) as error:
        target_of("tensorrt_rtx")
    assert str(error.value).startswith(
        f"{gpu.name}: has compute capability {gpu.capability}, TensorRT for RTX 1.7.1.116 supports 7.5, 8.0, 8.6, 8.9,"
        " 12.0, 12.1; use --trt tensorrt"
    )
    assert target_of("tensorrt_rtx", ("8.6",)).gpu is None  # ahead of time, for another machine


@pytest.mark.parametrize(
    ("gpu", "flavour", "options", "message"),
    [
        (ADA, "tensorrt_rtx", {"version_compatible": True}, "--version-compatible: TensorRT for RTX 1.7.1.116 cannot"),
        (
            ADA,
            "tensorrt_rtx",
            {"hardware_compatible": True},
            "--hardware-compatible: TensorRT for RTX 1.7.1.116 runs only on the GPUs that it is built for; name every",
        ),
        (
            ORIN,
            "tensorrt",
            {"hardware_compatible": True},
            "--hardware-compatible: Orin has compute capability 8.7, a Jetson, where TensorRT does not support it",
        ),
        (
            TURING,
            "tensorrt",
            {"hardware_compatible": True},
            "--hardware-compatible: Tesla T4 has compute capability 7.5, TensorRT needs 8.0 (Ampere) or later",
        ),
    ],
)
def test_options_that_cannot_work(
    monkeypatch: pytest.MonkeyPatch, gpu: Gpu, flavour: str, options: dict[str, bool], message: str
) -> None:
    """TensorRT would fail after minutes, or ignore the option and build an engine that runs nowhere else."""
    use(monkeypatch, gpu)
    with pytest.raises(SettingsError) as error:
        target_of(flavour, **options)
    assert str(error.value).startswith(message)
    assert len(str(error.value)) <= 300


def test_no_tensorrt_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "find_spec", lambda name: None)
    with pytest.raises(SettingsError, match=r"no TensorRT is installed; .*JetPack.*'var-edge\[trt-rtx\]'"):
        find_tensorrt("auto")
