"""Packages that only some commands need, and the command that installs each: looked for before any work."""

from __future__ import annotations

from importlib.util import find_spec

from .errors import SettingsError
from .shadowing import shadowing


def _extra(name: str) -> str:
    return f"pip install 'var-edge[{name}]'"


_OF_CUDA = f"{_extra('trt-cu12')} (CUDA 12, as on JetPack 6) or {_extra('trt-cu13')} (CUDA 13, JetPack 7)"
INSTALL = {
    **dict.fromkeys(("torch", "onnx", "onnxscript", "onnx_ir", "huggingface_hub", "tomli"), _extra("export")),
    **dict.fromkeys(("polygraphy", "cuda"), _OF_CUDA),
    "tensorrt": "on a server pip install tensorrt-cu12, or tensorrt-cu13 for driver 580 and newer; on a Jetson it is"
    " part of JetPack (sudo apt install nvidia-jetpack) and visible in a .venv made with --system-site-packages",
    "tensorrt_rtx": _extra("trt-rtx"),
    "matplotlib": _extra("bench"),
    **dict.fromkeys(("gradio", "starlette"), _extra("web")),
    "tritonclient": _extra("serve"),
    "triton_python_backend_utils": "it is part of Triton Inference Server, which imports this module itself",
    "ray": _extra("ray"),
    "scipy": "pip install scipy",
}


def require(purpose: str, *modules: str) -> None:
    """Raises SettingsError, naming what installs it, for the first of these modules that is missing; imports none."""
    for module in modules:
        if find_spec(module) is None:
            raise SettingsError(f"{purpose}: needs {module}, which is not installed; {INSTALL[module]}")


def advice(error: ModuleNotFoundError) -> str:
    """One line about a module that was missing after all."""
    module = str(error.name or error).split(".")[0]
    return shadowing() or f"{error}; {INSTALL.get(module, f'pip install {module}')}"
