"""How near an FP16 bundle comes to overflow: the largest magnitude of every FP16 tensor in real generations."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir

from export.simulate import round_to_half, simulate, typed
from runtime.backends.arrays import Array
from runtime.backends.onnxruntime import OnnxRuntimeBackend
from runtime.backends.ort_session import Session
from runtime.errors import VarEdgeError
from runtime.manifest import File, Manifest, Tensor
from runtime.pipeline import Pipeline

LIMIT = 32_000.0  # half of where FP16 ends
LARGEST = "largest"  # output of an observed graph: one number for each FP16 tensor


def largest_magnitudes(bundle: Path, labels: Sequence[int], seed: int = 0) -> dict[str, float]:
    """Draws a picture per label with the simulated twin of the FP16 `bundle`.

    Returns "graph: tensor" -> the largest magnitude that went into its rounding, over all scales.
    """
    with tempfile.TemporaryDirectory(dir=bundle.parent) as scratch:
        twin = Path(scratch) / "bundle"
        simulate(bundle, twin)
        manifest = Manifest.load(twin, verify=False)
        names = {graph: _observe(bundle, twin, manifest, graph) for graph in ("condition", "transformer", "decoder")}
        manifest.write(twin)
        backend = _ObservingBackend(twin, manifest, names)
        Pipeline(twin, backend, verify=False).generate(list(labels), seed)
        return {f"{graph}: {name}": float(x) for graph, found in backend.largest.items() for name, x in found.items()}


def check(magnitudes: Mapping[str, float]) -> None:
    """Raises VarEdgeError if a tensor comes nearer to the end of FP16 than LIMIT, or is no number."""
    for tensor, magnitude in magnitudes.items():  # in the order they are computed: the first is the cause
        if not magnitude < LIMIT:
            found = f"expected below {LIMIT:.0f}, found {magnitude:.3g}"
            raise VarEdgeError(f"{tensor}: FP16 would overflow: {found}; keep it in FP32 (export/mixed_precision.py)")


def _observe(bundle: Path, twin: Path, manifest: Manifest, graph: str) -> list[str]:
    """Gives a graph of the twin the output LARGEST; returns the names of the tensors in it."""
    model = typed(bundle / manifest.graphs[graph].file)
    values = round_to_half(model.graph)
    scalars = []
    for value in values:
        magnitude = ir.node("Abs", [value])
        largest = ir.node("ReduceMax", magnitude.outputs, attributes={"keepdims": 0})
        flat = ir.node("Unsqueeze", [largest.outputs[0], _axis(model.graph)])
        for node, suffix in ((magnitude, "magnitude"), (largest, LARGEST), (flat, "row")):
            node.name = node.outputs[0].name = f"{value.name}.{suffix}"
            model.graph.append(node)
        scalars.append(flat.outputs[0])
    joined = ir.node("Concat", scalars, attributes={"axis": 0})
    joined.name = joined.outputs[0].name = LARGEST
    joined.outputs[0].type, joined.outputs[0].shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape([len(values)])
    model.graph.append(joined)
    model.graph.outputs.append(joined.outputs[0])
    path = twin / manifest.graphs[graph].file
    onnx.save_model(ir.to_proto(model), path)
    outputs = (*manifest.graphs[graph].outputs, Tensor(LARGEST, "float32", (len(values),)))
    manifest.graphs[graph] = replace(manifest.graphs[graph], outputs=outputs)
    manifest.files[path.name] = File.of(path)
    return [str(value.name).removesuffix(".exact") for value in values]


def _axis(graph: ir.Graph) -> ir.Value:
    """The constant [0]."""
    if f"{LARGEST}.axis" not in graph.initializers:
        tensor = ir.tensor([0], dtype=ir.DataType.INT64, name=f"{LARGEST}.axis")
        graph.initializers.add(ir.Value(name=tensor.name, const_value=tensor, type=ir.TensorType(ir.DataType.INT64)))
    return graph.initializers[f"{LARGEST}.axis"]


class _ObservingBackend(OnnxRuntimeBackend):
    """ONNX Runtime on the CPU that also keeps, for every tensor, the largest magnitude of all runs."""

    def __init__(self, bundle: Path, manifest: Manifest, names: dict[str, list[str]]) -> None:
        self._names = names
        self.largest = {graph: dict.fromkeys(tensors, np.float32(0)) for graph, tensors in names.items()}
        super().__init__(bundle, manifest)

    def _open(self, graph: str) -> Session:
        session = super()._open(graph)
        if graph not in self._names:
            return session
        plain, largest = session.bind, self.largest[graph]

        def bind(inputs: Mapping[str, Array], outputs: Mapping[str, Array]) -> Callable[[], None]:
            found = np.zeros(len(largest), np.float32)
            run = plain(inputs, {**outputs, LARGEST: found})

            def run_and_keep() -> None:
                run()
                for name, value in zip(largest, found, strict=True):
                    largest[name] = np.maximum(largest[name], value)  # NaN stays

            return run_and_keep

        session.bind = bind  # type: ignore[method-assign]
        return session
