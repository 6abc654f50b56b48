"""Choose the inference engine that runs a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import limits
from ..bundle import engine_record
from ..bundle.manifest import Manifest
from ..errors import BundleError, SettingsError
from ..limits import shown

if TYPE_CHECKING:
    from .wired import WiredBackend

BACKENDS = ("auto", "onnxruntime", "onnxruntime-cuda", "tensorrt")


def create(name: str, bundle: Path, manifest: Manifest, threads: int | None, verify: bool = True) -> WiredBackend[Any]:
    """Return the backend called `name`, never another one; "auto" is the fastest that can run this bundle here.

    `threads` are CPU threads, None: `usable_cpus()`. Raises BundleError, SettingsError.
    """
    if name not in BACKENDS:
        raise SettingsError(f"backend: expected one of {', '.join(BACKENDS)}, found {shown(name)}")
    if threads is not None and threads not in limits.THREADS:
        raise SettingsError(f"threads: expected {limits.THREADS}, found {shown(threads)}")
    if name == "auto":
        return _best(bundle, manifest, threads, verify)
    if name == "tensorrt":
        from .tensorrt import TensorRTBackend

        return TensorRTBackend(bundle, manifest, verify)
    from .onnxruntime import OnnxRuntimeBackend

    if name == "onnxruntime":
        return OnnxRuntimeBackend(bundle, manifest, threads)
    from .cuda import Cuda
    from .ort_session import require_cuda

    require_cuda()
    return OnnxRuntimeBackend(bundle, manifest, threads, Cuda())


def _best(bundle: Path, manifest: Manifest, threads: int | None, verify: bool) -> WiredBackend[Any]:
    """Return TensorRT if there are engines, else ONNX Runtime on the GPU, else on the CPU.

    The name of the backend says why engines that exist, or an ONNX Runtime for GPUs, are not used.
    """
    own = (bundle / engine_record.FILE_NAME).is_file()
    unused = ""
    if own or any(bundle.glob(f"{engine_record.FOLDER}/*/{engine_record.FILE_NAME}")):
        try:
            return create("tensorrt", bundle, manifest, threads, verify)
        except (BundleError, SettingsError) as error:
            if own:
                raise
            unused = f" (engines not used: {error})"
    from .ort_session import has_cuda

    backend = None
    if has_cuda():
        try:
            backend = create("onnxruntime-cuda", bundle, manifest, threads, verify)
        except (BundleError, SettingsError) as error:
            unused += f" (GPU not used: {error})"
    backend = backend or create("onnxruntime", bundle, manifest, threads, verify)
    backend.name += unused
    return backend
