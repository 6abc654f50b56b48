"""FP16 as hardware computes it, on any CPU: a float32 bundle that rounds each FP16 tensor to FP16 where it is computed.

On a CPU, ONNX Runtime drops the casts around FP16 nodes and computes in float32. An FP16 bundle that works there proves
nothing about FP16. The simulated bundle does: it has the same graphs and weights, and rounds every result to FP16.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import onnx
import onnx_ir as ir

from export.graphs.mixed_precision import FLOAT, HALF, MOVEMENT
from runtime.bundle import manifest
from runtime.bundle.names import STEP_PREFIX
from runtime.bundle.precision import Precision
from runtime.errors import SettingsError
from runtime.files.atomic import atomic_directory
from runtime.files.outputs import BUNDLE


def simulate(bundle: Path, out: Path) -> None:
    """Write the simulated twin of `bundle`, which holds FP16, to `out`. Raises BundleError, SettingsError."""
    source = manifest.Manifest.load(bundle)
    if not source.precision.has_fp16:
        expected = " or ".join(precision for precision in Precision if precision.has_fp16)
        raise SettingsError(f"{bundle}: expected a bundle in {expected}, found {source.precision}")
    graphs = {name: graph for name, graph in source.graphs.items() if not name.startswith(STEP_PREFIX)}
    with atomic_directory(out, BUNDLE, bundle) as folder:
        for name in filter(None, (manifest.WEIGHTS, source.classes)):
            shutil.copyfile(bundle / name, folder / name)  # the ONNX checker refuses links
        for name, graph in graphs.items():
            model = typed(bundle / graph.file)
            round_to_half(model.graph)
            onnx.save_model(ir.to_proto(model), folder / graph.file)
            graphs[name] = replace(graph, inputs=_in_float(graph.inputs), outputs=_in_float(graph.outputs))
        files = {path.name: manifest.File.of(path) for path in sorted(folder.iterdir())}
        replace(source, precision=source.precision.simulated, graphs=graphs, files=files).write(folder)


def typed(path: Path) -> ir.Model:
    """Load the graph in this file and infer the dtype of every value; the weights stay in their own file."""
    return ir.from_proto(onnx.shape_inference.infer_shapes(onnx.load(path, load_external_data=False)))


def round_to_half(graph: ir.Graph) -> list[ir.Value]:
    """Make every FP16 tensor FLOAT, rounded to FP16 where it is computed; return the values before rounding."""
    computed = []
    for node in list(graph):
        for value in node.outputs:
            if value.dtype == HALF and node.op_type not in MOVEMENT:
                computed.append(_rounded(graph, node, value))
    for weight in list(graph.initializers.values()):
        if weight.dtype == HALF:
            cast = _cast(weight, FLOAT, f"{weight.name}.widened")
            graph.insert_before(graph[0], cast)
            weight.replace_all_uses_with(cast.outputs[0])
            cast.replace_input_with(0, weight)
    for value in (*graph.inputs, *(value for node in graph for value in node.outputs)):
        if value.dtype == HALF and not str(value.name).endswith(".half"):
            value.dtype = FLOAT
    return computed


def _rounded(graph: ir.Graph, node: ir.Node, value: ir.Value) -> ir.Value:
    """Round the output `value` of `node` to FP16; its readers read the rounded value, which takes over its name.

    Returns the value before rounding.
    """
    name, uses = str(value.name), list(value.uses())
    if node.op_type == "Cast":
        narrow, exact = node, node.inputs[0]
        value.name = f"{name}.half"
    else:
        value.name, value.dtype, exact = f"{name}.exact", FLOAT, value
        narrow = _cast(value, HALF, f"{name}.half")
        graph.insert_after(node, narrow)
    wide = _cast(narrow.outputs[0], FLOAT, name)
    wide.outputs[0].shape = value.shape
    graph.insert_after(narrow, wide)
    for user, index in uses:
        user.replace_input_with(index, wide.outputs[0])
    for i, output in enumerate(graph.outputs):
        if output is value:
            graph.outputs[i] = wide.outputs[0]
    assert exact is not None
    return exact


def _cast(value: ir.Value, dtype: ir.DataType, name: str) -> ir.Node:
    node = ir.node("Cast", [value], attributes={"to": dtype})
    node.name, node.outputs[0].name = f"{name}.cast", name
    node.outputs[0].dtype = dtype
    return node


def _in_float(specs: tuple[manifest.Tensor, ...]) -> tuple[manifest.Tensor, ...]:
    return tuple(replace(spec, dtype="float32") if spec.dtype == "float16" else spec for spec in specs)
