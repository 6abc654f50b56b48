"""Insert nodes and weights around one node of a graph: names, types and connections, but no arithmetic."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from export.graphs.weights import STORED, Entry

FLOAT32, BYTE, UNSIGNED = ir.DataType.FLOAT, ir.DataType.INT8, ir.DataType.UINT8
Compute = Callable[[], np.ndarray]


def add_weight(
    graph: ir.Graph, entries: dict[str, Entry], name: str, dtype: ir.DataType, shape: tuple[int, ...], compute: Compute
) -> ir.Value:
    """Add a tensor of the weight file to `graph`, and once for all graphs to `entries`; return the initializer."""
    if name not in graph.initializers:
        graph.initializers.add(ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(shape)))
        entries.setdefault(name, Entry(name, STORED[dtype], shape, compute))
    return graph.initializers[name]


class GraphEditor:
    """Edits a graph around `node`. New nodes and weights are named after `layer`; new weights go to `entries`."""

    def __init__(self, graph: ir.Graph, node: ir.Node, layer: str, entries: dict[str, Entry]) -> None:
        self.graph, self.node, self.layer, self._entries = graph, node, layer, entries

    def before(
        self, op: str, inputs: Sequence[ir.Value | None], dtype: ir.DataType, name: str, **attributes: int
    ) -> ir.Value:
        """Insert a new node before `node`; return its result."""
        node = self._node_of(op, inputs, dtype, name, attributes)
        self.graph.insert_before(self.node, node)
        return node.outputs[0]

    def after(
        self, place: ir.Node, op: str, inputs: Sequence[ir.Value | None], name: str, dtype: ir.DataType = FLOAT32
    ) -> ir.Node:
        """Insert a new node after `place` and return it; its result has the shape of the first input."""
        node = self._node_of(op, inputs, dtype, name, {})
        node.outputs[0].shape = inputs[0].shape if inputs[0] is not None else None
        self.graph.insert_after(place, node)
        return node

    def behind(self, op: str, value: ir.Value, other: ir.Value, name: str) -> None:
        """Replace `value` by `value` op `other` for all its readers."""
        readers = list(value.uses())
        maker = value.producer()
        assert maker is not None
        redirect(readers, self.after(maker, op, [value, other], name).outputs[0])

    def split(self, value: ir.Value, name: str, ends: Sequence[str]) -> Sequence[ir.Value]:
        """Split `value`, the result of `node`, into equal parts along its first axis; return them."""
        count = len(ends)
        node = ir.node("Split", [value], attributes={"axis": 0, "num_outputs": count}, num_outputs=count)
        node.name = f"{self.layer}.{name}"
        self.graph.insert_after(self.node, node)
        for part, end in zip(node.outputs, ends, strict=True):
            part.name, part.type = f"{node.name}.{end}", value.type
        return node.outputs

    def gemm_to_matmul(self) -> None:
        """Replace a Gemm with weight (out, in) by MatMul and Add, as INT8 kernels need; `node` is then the MatMul."""
        gemm = self.node
        bias, result = gemm.inputs[2], gemm.outputs[0]
        readers = list(result.uses())
        matmul = ir.node("MatMul", [gemm.inputs[0], gemm.inputs[1]])
        matmul.name, matmul.outputs[0].name = f"{self.layer}.product", f"{self.layer}.product"
        matmul.outputs[0].type, matmul.outputs[0].shape = result.type, result.shape
        self.graph.insert_before(gemm, matmul)
        add = self.after(matmul, "Add", [matmul.outputs[0], bias], "with_bias")
        redirect(readers, add.outputs[0])
        self.graph.remove(gemm, safe=True)
        self.node = matmul

    def weight(self, name: str, dtype: ir.DataType, shape: tuple[int, ...], compute: Compute) -> ir.Value:
        """Add a new weight of this layer; return it."""
        return self.shared_weight(f"{self.layer}.{name}", dtype, shape, compute)

    def shared_weight(self, name: str, dtype: ir.DataType, shape: tuple[int, ...], compute: Compute) -> ir.Value:
        """Add a new weight that other layers may read too; return it."""
        return add_weight(self.graph, self._entries, name, dtype, shape, lambda: np.asarray(compute()))

    def constant(self, name: str, value: np.ndarray) -> ir.Value:
        """Add a constant to the graph's own file, not to the weight file; return it."""
        if name not in self.graph.initializers:
            tensor = ir.tensor(value, name=name)
            self.graph.initializers.add(
                ir.Value(name=name, const_value=tensor, type=ir.TensorType(tensor.dtype), shape=ir.Shape(value.shape))
            )
        return self.graph.initializers[name]

    def _node_of(
        self, op: str, inputs: Sequence[ir.Value | None], dtype: ir.DataType, name: str, attributes: Mapping[str, int]
    ) -> ir.Node:
        node = ir.node(op, inputs, attributes=attributes)
        node.name = f"{self.layer}.{name}"
        node.outputs[0].name, node.outputs[0].type = node.name, ir.TensorType(dtype)
        return node


def redirect(readers: Sequence[tuple[ir.Node, int]], value: ir.Value) -> None:
    """Make these (node, input index) read `value`."""
    for reader, index in readers:
        reader.replace_input_with(index, value)
