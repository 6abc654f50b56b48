"""Quantise one ONNX file with one tool, in the tools' environment. This file imports nothing of the project.

python tools.py TOOL GRAPH.onnx INPUTS OUT.onnx    where INPUTS is a folder of .npz files, one for each run of the graph
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

TORCH = "torch>=2.6,<2.14"  # as the project has it; other releases bring CUDA


class Inputs:
    """The recorded inputs of a graph, as every tool's calibration reads them: one run after the other, repeatedly."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.files = folder, sorted(folder.glob("*.npz"))
        self.rewind()

    def rewind(self) -> None:
        self._left: Iterator[Path] = iter(self.files)

    set_range = reset_iter = rewind

    def get_next(self) -> dict[str, np.ndarray] | None:
        file = next(self._left, None)
        return None if file is None else _read(file)

    def get_first(self) -> dict[str, np.ndarray]:
        return _read(self.files[0])

    def __len__(self) -> int:
        return len(self.files)


def _read(file: Path) -> dict[str, np.ndarray]:
    with np.load(file) as arrays:
        return dict(arrays)


def _reader(base: type, inputs: Inputs) -> Any:
    """Return the inputs as an instance of the tool's own class."""
    return type("Reader", (Inputs, base), {})(inputs.folder)


def ort_static(graph: Path, inputs: Inputs, out: Path) -> None:
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static

    quantize_static(
        str(graph),
        str(out),
        _reader(CalibrationDataReader, inputs),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        op_types_to_quantize=["MatMul", "Gemm", "Conv"],
    )


def ort_dynamic(graph: Path, inputs: Inputs, out: Path) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(str(graph), str(out), per_channel=True, weight_type=QuantType.QInt8)


def modelopt(graph: Path, inputs: Inputs, out: Path) -> None:
    from modelopt.onnx.quantization import quantize
    from onnxruntime.quantization import CalibrationDataReader

    quantize(
        str(graph),
        quantize_mode="int8",
        calibration_method="max",
        calibration_data_reader=_reader(CalibrationDataReader, inputs),
        calibration_eps=["cpu"],
        high_precision_dtype="fp32",
        output_path=str(out),
        log_level="WARNING",
    )


def quark(graph: Path, inputs: Inputs, out: Path) -> None:
    from onnxruntime.quantization import CalibrationDataReader
    from quark.onnx import ModelQuantizer
    from quark.onnx.quantization.config import Config, get_default_config

    config = Config(global_quant_config=get_default_config("INT8_TRANSFORMER_DEFAULT"))
    ModelQuantizer(config).quantize_model(str(graph), str(out), _reader(CalibrationDataReader, inputs))


def smoothquant(graph: Path, inputs: Inputs, out: Path) -> None:
    from onnx_neural_compressor.data_reader import CalibrationDataReader
    from onnx_neural_compressor.quantization import QuantFormat, QuantType, config, quantize

    settings = config.SmoothQuantConfig(
        alpha=0.5,
        folding=False,
        calibration_data_reader=_reader(CalibrationDataReader, inputs),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        op_types_to_quantize=["MatMul"],
        calib_iter=len(inputs),
        calibration_sampling_size=len(inputs),
    )
    quantize(str(graph), str(out), settings)


# The tool's name -> what pip installs, first the tool itself, and the function that quantises a graph with it.
TOOLS: dict[str, tuple[tuple[str, ...], Callable[[Path, Inputs, Path], None]]] = {
    "ort-static": (("onnxruntime", "onnx"), ort_static),
    "ort-dynamic": (("onnxruntime", "onnx"), ort_dynamic),
    "modelopt": (("nvidia-modelopt[onnx]", TORCH), modelopt),
    "quark": (("amd-quark", "onnxruntime", TORCH), quark),
    "smoothquant": (("onnx-neural-compressor", "onnxruntime", "onnx", "prettytable", "scipy"), smoothquant),
}


def _embed(path: Path) -> None:
    """Put the weights that a tool wrote beside the graph into the graph."""
    import onnx

    model = onnx.load(path)
    for tensor in model.graph.initializer:
        del tensor.external_data[:]
        tensor.data_location = onnx.TensorProto.DEFAULT
    onnx.save(model, path)


def main(tool: str, graph: Path, inputs: Path, out: Path) -> None:
    packages, quantise = TOOLS[tool]
    quantise(graph, Inputs(inputs), out)
    _embed(out)
    package = packages[0].partition("[")[0]
    print(f"{package} {version(package)}")


if __name__ == "__main__":
    main(sys.argv[1], *map(Path, sys.argv[2:5]))
