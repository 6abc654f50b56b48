"""PyTorch module -> ONNX graph: traced once with symbolic sizes and without weights, then freed of shape arithmetic.

The result has no Shape, Expand or sequence operations. Every Reshape is either static or copies axes of its input, so a
graph for fixed sizes differs from the symbolic one only in the shapes of its inputs.
"""

from __future__ import annotations

import logging
import warnings

import onnx_ir as ir
import onnx_ir.passes.common as common_passes
import onnxscript.optimizer
import torch

from export.graphs.definitions import Graph

OPSET = 20  # the newest opset that TensorRT 10.3 (JetPack 6) parses completely
IR_VERSION = 10  # device-side runtimes refuse newer ones
EXAMPLE_SIZES = {"B": 3, "2B": 6, "L": 5, "L_next": 7, "S": 11}  # distinct; tracing would turn 0 and 1 into constants


def trace(graph: Graph) -> ir.Model:
    """Return the ONNX model of `graph`; its weights have names, dtypes and shapes, but no values yet."""
    weights = {name.removeprefix("var.").removeprefix("vqvae.") for name in graph.module.state_dict()}
    with warnings.catch_warnings(), _quiet("torch.onnx", "torch.export", "onnxscript", "onnx_ir"):
        warnings.simplefilter("ignore")
        examples, shapes = _examples(graph)
        program = torch.export.export(graph.module.eval(), examples, dynamic_shapes=shapes, strict=False)  # type: ignore[arg-type]
        exported = torch.onnx.export(program, (), dynamo=True, opset_version=OPSET, optimize=False, verbose=False)
    assert exported is not None
    model = exported.model
    model.ir_version = IR_VERSION
    model.graph.name = graph.name
    _name_values(model.graph, graph)
    held_back = _weights_to_inputs(model.graph, weights)
    common_passes.InlinePass()(model)
    onnxscript.optimizer.optimize(model, onnx_shape_inference=True)
    static_reshapes(model.graph)
    drop_expands(model.graph)
    onnxscript.optimizer.optimize(model, onnx_shape_inference=False)
    _inputs_to_weights(model.graph, held_back)
    common_passes.RemoveUnusedNodesPass()(model)
    common_passes.ClearMetadataAndDocStringPass()(model)  # stack traces of this machine
    return model


def _examples(graph: Graph) -> tuple[tuple[torch.Tensor, ...], torch.export.ShapesCollection]:
    """Return example inputs, and which of their axes are symbolic."""
    batch = torch.export.Dim("B")
    dims = {"B": batch, "2B": 2 * batch} | {name: torch.export.Dim(name) for name in ("L", "L_next", "S")}
    shapes = torch.export.ShapesCollection()
    examples = []
    for spec in graph.inputs:
        size = [axis if isinstance(axis, int) else EXAMPLE_SIZES[axis] for axis in spec.shape]
        examples.append(torch.zeros(size, dtype=getattr(torch, spec.dtype)))
        shapes[examples[-1]] = {i: dims[axis] for i, axis in enumerate(spec.shape) if isinstance(axis, str)}
    return tuple(examples), shapes


def _name_values(onnx_graph: ir.Graph, graph: Graph) -> None:
    """Give inputs and outputs the names that `graph` declares, and use its symbols for the sizes of all values."""
    symbols: dict[str, str] = {}
    for values, specs in ((onnx_graph.inputs, graph.inputs), (onnx_graph.outputs, graph.outputs)):
        for value, spec in zip(values, specs, strict=True):
            assert value is not None and value.shape is not None
            axes = zip(value.shape, spec.shape, strict=True)
            symbols |= {str(traced): axis for traced, axis in axes if isinstance(axis, str)}
            value.name = spec.name
    for inner in [value for node in onnx_graph for value in (*node.inputs, *node.outputs) if value is not None]:
        if inner.shape is not None:
            inner.shape = ir.Shape(a if isinstance(a, int) else symbols.get(str(a), str(a)) for a in inner.shape)
    for weight in list(onnx_graph.initializers.values()):
        weight.name = str(weight.name).removeprefix("var.").removeprefix("vqvae.")


def _weights_to_inputs(graph: ir.Graph, weights: set[str]) -> list[ir.Value]:
    """Turn the weights into inputs, so that no optimisation looks for their values; return them."""
    held_back = [value for name, value in graph.initializers.items() if name in weights]
    for value in held_back:
        del graph.initializers[str(value.name)]
        value.const_value = None
        graph.inputs.append(value)
    return held_back


def _inputs_to_weights(graph: ir.Graph, held_back: list[ir.Value]) -> None:
    for value in held_back:
        graph.inputs.remove(value)
        if value.uses():
            graph.initializers.add(value)


def static_reshapes(graph: ir.Graph) -> None:
    """Replace computed Reshape targets by constants: 0 copies an axis of the input, -1 stands for one unknown axis."""
    for node in graph:
        if node.op_type != "Reshape":
            continue
        source, asked = node.inputs
        assert source is not None and asked is not None
        if asked.const_value is not None:
            continue
        maker = asked.producer()
        like = maker.inputs[0] if maker is not None and maker.op_type == "Shape" else node.outputs[0]
        result = like.shape if like is not None else None
        if source.shape is None or result is None or None in [getattr(axis, "value", 0) for axis in result]:
            raise ValueError(f"{graph.name}: {node.name}: a Reshape to an unknown shape cannot be made static")
        target = [
            axis if isinstance(axis, int) else 0 if i < len(source.shape) and axis == source.shape[i] else -1
            for i, axis in enumerate(result)
        ]
        if target.count(-1) > 1:
            raise ValueError(f"{graph.name}: {node.name}: {source.shape} to {result} has more than one free axis")
        shape = ir.node("Constant", [], attributes={"value": ir.tensor(target, dtype=ir.DataType.INT64)})
        shape.outputs[0].name = f"{node.name}.shape"
        graph.insert_before(node, shape)
        node.replace_input_with(1, shape.outputs[0])
        node.attributes.pop("allowzero", None)
        node.outputs[0].shape = result


def drop_expands(graph: ir.Graph) -> None:
    """Remove each Expand that only feeds elementwise operations, which broadcast by themselves."""
    broadcasting = {"Add", "Sub", "Mul", "Div", "Where", "Greater", "GreaterOrEqual", "Min", "Max"}
    for node in graph:
        if node.op_type == "Expand" and all(user.op_type in broadcasting for user, _ in node.outputs[0].uses()):
            source = node.inputs[0]
            assert source is not None
            node.outputs[0].replace_all_uses_with(source)
            graph.remove(node, safe=True)


class _quiet:
    """Silences the logs of these libraries: they warn about packages and versions that do not matter here."""

    def __init__(self, *names: str):
        self.loggers = [logging.getLogger(name) for name in names]

    def __enter__(self) -> None:
        self.levels = [logger.level for logger in self.loggers]
        for logger in self.loggers:
            logger.setLevel(logging.ERROR)

    def __exit__(self, *exc: object) -> None:
        for logger, level in zip(self.loggers, self.levels, strict=True):
            logger.setLevel(level)
