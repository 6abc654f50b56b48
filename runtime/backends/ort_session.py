"""Open one ONNX Runtime session, check it against the manifest and bind it to arrays."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

import numpy as np

from ..bundle.manifest import WEIGHTS, Graph
from ..bundle.weight_file import mapped_weights
from ..errors import BundleError, OutOfMemoryError, SettingsError, VarEdgeError, engine_error, tells_out_of_memory
from .arrays import Array, DeviceArray
from .ort import onnxruntime as ort

ORT_TYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(int64)": "int64",
    "tensor(int32)": "int32",
    "tensor(uint8)": "uint8",
    "tensor(bool)": "bool",
}

CUDA = "CUDAExecutionProvider"
WEIGHTS_FOLDER = "session.model_external_initializers_file_folder_path"
# Q/DQ stays what it says, rounding around FP32 products. On AVX2 without VNNI, the INT8 kernels add products of UINT8
# and INT8 in pairs, in 16 bits, which saturates with 8-bit weights. ("session.x64quantprecision" takes other kernels
# there, but ONNX Runtime 1.32 then gives weights with FP16 scales a zero point of the wrong shape.)
EXACT_INT8 = ("session.disable_quant_qdq", "1")


@dataclass(frozen=True)
class Device:
    """GPU 0, and the address of the CUDA stream to run on."""

    stream: int

    @property
    def provider(self) -> tuple[str, dict[str, str]]:
        # With TF32, FP32 products have 10-bit factors: 0.1 to 3 % of the draws would differ.
        return CUDA, {"device_id": "0", "user_compute_stream": str(self.stream), "use_tf32": "0"}


class Session:
    """A graph of a bundle, ready to run on the CPU or on `device`. If given, `content` replaces the graph's file.

    With `exact`, INT8 products are exact on every processor, at the speed of FP32.

    Raises BundleError if the graph cannot be loaded or its inputs or outputs differ from `graph`, SettingsError if
    ONNX Runtime cannot use the device, OutOfMemoryError.
    """

    def __init__(
        self,
        bundle: Path,
        graph: Graph,
        threads: int,
        device: Device | None = None,
        content: bytes | None = None,
        exact: bool = False,
    ) -> None:
        self._path = bundle / graph.file
        try:
            providers = [device.provider] if device else ["CPUExecutionProvider"]
            options = _options(threads, exact)
            if content is not None:
                options.add_session_config_entry(WEIGHTS_FOLDER, str(bundle))
            if (bundle / WEIGHTS).is_symlink():  # in a hub's cache; ONNX Runtime reads no file outside the folder
                weights = mapped_weights(bundle, content or self._path.read_bytes())
                values = [ort.OrtValue.ortvalue_from_numpy(values) for values in weights.values()]
                options.add_external_initializers(list(weights), values)
            self._session = ort.InferenceSession(content or self._path, options, providers=providers, enable_fallback=0)
        except Exception as error:  # ONNX Runtime's own exceptions share no base class
            reason = f"{self._path}: ONNX Runtime {ort.__version__} cannot load it: {_one_line(error)}"
            raise (OutOfMemoryError if tells_out_of_memory(reason) else BundleError)(reason) from None
        if device and (used := self._session.get_providers()[0]) != CUDA:
            raise SettingsError(_fallback_reason(used))
        self._inputs = {tensor.name: ORT_TYPES.get(tensor.type) for tensor in self._session.get_inputs()}
        self._outputs = {tensor.name: ORT_TYPES.get(tensor.type) for tensor in self._session.get_outputs()}
        self._agree("manifest", {tensor.name: tensor.dtype for tensor in graph.inputs}, self._inputs)
        self._agree("manifest", {tensor.name: tensor.dtype for tensor in graph.outputs}, self._outputs)

    def bind(self, inputs: Mapping[str, Array], outputs: Mapping[str, Array]) -> Callable[[], None]:
        """Return a function that runs the graph in place on these C-contiguous arrays.

        Raises BundleError if the graph has other inputs or outputs. The function raises VarEdgeError.
        """
        self._agree("runtime", {name: array.dtype.name for name, array in inputs.items()}, self._inputs)
        self._agree("runtime", {name: array.dtype.name for name, array in outputs.items()}, self._outputs)
        binding, values = self._session.io_binding(), []
        for arrays, on_device, on_host in (
            (inputs, binding.bind_input, binding.bind_ortvalue_input),
            (outputs, binding.bind_output, binding.bind_ortvalue_output),
        ):
            for name, array in arrays.items():
                if isinstance(array, DeviceArray):
                    on_device(name, "cuda", 0, array.dtype, array.shape, array.address)
                else:
                    values.append(_in_place(array))
                    on_host(name, values[-1])
        return partial(self._run, binding, values)

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run the graph once and return its outputs by name. Raises VarEdgeError."""
        names = list(self._outputs)
        try:
            return dict(zip(names, self._session.run(names, dict(inputs)), strict=True))
        except RuntimeError as error:
            raise self._failed(error) from None

    def _run(self, binding: ort.IOBinding, values: list[ort.OrtValue]) -> None:
        # This call must hold `values`: ONNX Runtime before 1.30 does not keep the bound arrays alive.
        try:
            self._session.run_with_iobinding(binding)
        except RuntimeError as error:
            raise self._failed(error) from None

    def _failed(self, error: Exception) -> VarEdgeError:
        return engine_error(f"{self._path}: ONNX Runtime failed: {_one_line(error)}")

    def _agree(self, other: str, expected: Mapping[str, str], found: Mapping[str, str | None]) -> None:
        if differing := sorted(dict(expected.items() ^ found.items())):
            raise BundleError(
                f"{self._path}: {', '.join(differing)}: the graph and the {other} differ in name or dtype;"
                " export the bundle again"
            )


def has_cuda() -> bool:
    """Return whether this ONNX Runtime was built for GPUs; its CUDA libraries may still be missing."""
    return CUDA in ort.get_available_providers()


def require_cuda() -> None:
    """Load the CUDA libraries that pip installed. Raises SettingsError unless this ONNX Runtime is built for GPUs."""
    if not has_cuda():
        raise SettingsError(
            f"onnxruntime-cuda: this ONNX Runtime {ort.__version__} has no CUDA provider; pip uninstall -y onnxruntime,"
            " then pip install --force-reinstall --no-deps onnxruntime-gpu"
        )
    _preload()


@lru_cache(maxsize=1)
def _preload() -> str:
    """Load CUDA and cuDNN, before the first session; return the first complaint.

    Without this ONNX Runtime finds libraries on the system's path, but not those of pip's nvidia-* packages.
    """
    said = io.StringIO()
    if hasattr(ort, "preload_dlls"):  # ONNX Runtime 1.21 and later
        with redirect_stdout(said):
            ort.preload_dlls()
    return next(iter(said.getvalue().splitlines()), "")


def _fallback_reason(used: str) -> str:
    """Return why a session runs on `used`, which ONNX Runtime only logs: libraries that it needs are missing."""
    major = getattr(ort, "cuda_version", "").split(".")[0]
    missing = _preload() or "libraries of CUDA or cuDNN are missing"
    return (
        f"onnxruntime-cuda: ONNX Runtime {ort.__version__} uses {used} instead of the GPU: {missing}; it needs"
        f" CUDA {major} and cuDNN 9: pip install 'onnxruntime-gpu[cuda,cudnn]=={ort.__version__}'"
    )


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _in_place(array: np.ndarray) -> ort.OrtValue:
    # ONNX Runtime would copy an array that is not contiguous, and write its results into the copy.
    assert array.flags.c_contiguous
    return ort.OrtValue.ortvalue_from_numpy(array)


def _options(threads: int, exact: bool) -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    # The graphs run in turn: spinning idle threads of one session would take the cores from the next.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # ONNX Runtime stores a memory pattern for every shape, here for every scale; this costs memory and saves no time.
    options.enable_mem_pattern = False
    # Only the weights are INT8: by default ONNX Runtime would also round the activations to 8 bits.
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    if exact:
        options.add_session_config_entry(*EXACT_INT8)
    options.log_severity_level = 4  # errors come back as exceptions
    return options
