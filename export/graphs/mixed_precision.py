"""Mixed precision: FP16 where it pays, FP32 where it is needed. The casts are nodes of the graph, so all engines agree.

Strongly typed engines take precision from the graph alone (TensorRT 11 has no other mode). The policy below is the one
place that decides it. Matrix products, convolutions, and what follows them (bias, GELU, data movement) are FP16. Norms,
softmax, the residual stream, logits and sampling are FP32.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import onnx_ir as ir

from export.graphs.signature import Signature
from runtime.bundle.manifest import Tensor as TensorSpec
from runtime.bundle.names import BRIDGE, CACHE_PREFIXES, DECODER, SMOOTH_BRIDGE, TINY_DECODER

COMPUTE = ("MatMul", "Gemm", "Conv")
FOLLOWING = ("Gelu",)  # elementwise after a product; its result is the operand of another product
MOVEMENT = ("Reshape", "Transpose", "Split", "Concat", "Slice", "Gather", "Squeeze", "Unsqueeze", "Resize")
# Guidance, filtering and the draw have to tell 4096 values apart, and are little work.
FLOAT32_GRAPHS = (BRIDGE, SMOOTH_BRIDGE)
# The residuals of other graphs decide tokens. Those of the decoder are a quarter of its memory traffic in FP32. The
# published demo adds them in FP16 too, under autocast. Norms read them in FP16; their statistics stay FP32.
HALF_RESIDUALS = (DECODER, TINY_DECODER)
FLOAT32_WEIGHTS = (
    "head.",  # guidance multiplies the rounding of logits by up to 1 + 2t
    "quantize.",  # nearest codes: near ties decide tokens
)

HALF, FLOAT = ir.DataType.FLOAT16, ir.DataType.FLOAT


def to_fp16(graph: Signature, model: ir.Model) -> Signature:
    """Rewrite `model`, whose weights have no values yet, in place; return its signature with the new dtypes.

    A weight that only products read becomes FLOAT16. A weight that other nodes read too is cast where products read it.
    """
    if graph.name in FLOAT32_GRAPHS:
        return graph
    declared = replace(graph, inputs=_cached_in_half(graph.inputs), outputs=_cached_in_half(graph.outputs))
    half = _half_values(model.graph, residuals=graph.name in HALF_RESIDUALS)
    _Casts(model.graph, half).insert({spec.name for spec in declared.outputs if spec.dtype == "float16"})
    return declared


def _cached_in_half(specs: Iterable[TensorSpec]) -> tuple[TensorSpec, ...]:
    """Return `specs` with keys and values in FP16: they take half the memory, and products read them."""
    return tuple(replace(spec, dtype="float16") if spec.name.startswith(CACHE_PREFIXES) else spec for spec in specs)


def _half_values(graph: ir.Graph, residuals: bool) -> set[ir.Value]:
    """Give every value that the policy makes FP16, weights included, that dtype; return them.

    With `residuals`, the sum of two FP16 values is one of them.
    """
    half = {value for value in graph.inputs if str(value.name).startswith(CACHE_PREFIXES)}
    nodes = list(graph)
    for node in nodes:
        if _computes_half(node) or _follows_half(node, half, residuals):
            half.update(node.outputs)
    for node in reversed(nodes):  # cast before movement, not after it: less data to move
        follows = node.op_type in (*MOVEMENT, "DequantizeLinear")
        if follows and all(_read_as_half(value, half) for value in node.outputs):
            half.update(node.outputs)
    for value in graph.initializers.values():
        if _is_weight(value) and value.dtype == FLOAT and _read_as_half(value, half):
            half.add(value)
    for value in half:
        value.dtype = HALF
    return half


def _computes_half(node: ir.Node) -> bool:
    """Return whether a node is a product in FP16. One with a constant operand is not: it is a resize or a sum."""
    operands = [value for value in node.inputs if value is not None]
    return node.op_type in COMPUTE and not any(
        value.const_value is not None or (_is_weight(value) and str(value.name).startswith(FLOAT32_WEIGHTS))
        for value in operands
    )


def _follows_half(node: ir.Node, half: set[ir.Value], residuals: bool) -> bool:
    operands = _operands(node)
    if node.op_type in FOLLOWING or node.op_type in MOVEMENT:
        return any(value in half for value in operands)
    if residuals and node.op_type == "Add" and all(value in half for value in operands):
        return True
    adds_bias = node.op_type == "Add" and any(_is_weight(value) for value in operands)
    return adds_bias and any(value in half and _is_product(value) for value in operands)


def _is_product(value: ir.Value) -> bool:
    maker = value.producer()
    return maker is not None and maker.op_type in COMPUTE


def _read_as_half(value: ir.Value, half: set[ir.Value]) -> bool:
    uses = list(value.uses())
    return bool(uses) and not value.is_graph_output() and all(_takes_half(node, value, half) for node, _ in uses)


def _takes_half(node: ir.Node, value: ir.Value, half: set[ir.Value]) -> bool:
    return node.outputs[0] in half and value in _operands(node)


def _operands(node: ir.Node) -> list[ir.Value]:
    """Return the inputs that hold data; the other inputs of a movement are shapes and indices."""
    if node.op_type == "DequantizeLinear":
        return [
            value for value in node.inputs[1:2] if value is not None
        ]  # the dtype of its scale is that of its result
    only_first = node.op_type in MOVEMENT and node.op_type != "Concat"
    return [value for value in (node.inputs[:1] if only_first else node.inputs) if value is not None]


def _is_weight(value: ir.Value) -> bool:
    return value.is_initializer() and value.const_value is None


class _Casts:
    """Inserts a Cast wherever a node reads a value of the other type; nodes share the Cast of a value."""

    def __init__(self, graph: ir.Graph, half: set[ir.Value]):
        self._graph, self._half = graph, half
        self._done: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}

    def insert(self, half_outputs: set[str]) -> None:
        for node in list(self._graph):
            wanted = HALF if node.outputs[0] in self._half else FLOAT
            for i, value in enumerate(node.inputs):
                if value is not None and value in _operands(node) and value.dtype in (HALF, FLOAT):
                    node.replace_input_with(i, self._as(value, wanted))
        for i, value in enumerate(list(self._graph.outputs)):
            wanted = HALF if value.name in half_outputs else FLOAT
            if value.dtype in (HALF, FLOAT) and value.dtype != wanted:
                name, cast = value.name, self._as(value, wanted)
                value.name, cast.name = f"{name}.before_cast", name
                self._graph.outputs[i] = cast

    def _as(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        if value.dtype == dtype:
            return value
        if (value, dtype) not in self._done:
            node = ir.node("Cast", [value], attributes={"to": dtype})
            cast = node.outputs[0]
            node.name = f"{value.name}.to_{dtype.name.lower()}"
            cast.name, cast.dtype, cast.shape = node.name, dtype, value.shape
            maker = value.producer()
            if maker is None:  # an input or a weight
                self._graph.insert_before(self._graph[0], node)
            else:
                self._graph.insert_after(maker, node)
            self._done[value, dtype] = cast
        return self._done[value, dtype]
