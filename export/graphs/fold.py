"""Constant folding that never holds all weights in memory: it cuts expressions over weights alone out of a graph.

Each expression (a transpose, a bias joined from parts, position plus scale embeddings) becomes one new weight. It is
computed later, when the weight file is written, from only those tensors that it names.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from onnx.reference import ReferenceEvaluator


@dataclass(frozen=True)
class Expression:
    """How to compute a tensor of the weight file: a small ONNX graph over weights of the checkpoint (`operands`).

    Without a model the tensor is its operand, unchanged.
    """

    operands: tuple[str, ...]
    model: ir.Model | None = None

    def evaluate(self, read: Callable[[str], np.ndarray]) -> np.ndarray:
        values = {name: read(name) for name in self.operands}
        if self.model is None:
            return values[self.operands[0]]
        (result,) = ReferenceEvaluator(ir.to_proto(self.model)).run(None, values)
        return np.ascontiguousarray(result)

    def key(self) -> bytes:
        """Return bytes that are equal for equal expressions, whichever graph they were cut from."""
        return b"" if self.model is None else ir.to_proto(self.model).SerializeToString(deterministic=True)


def fold(model: ir.Model) -> dict[str, Expression]:
    """Cut every maximal expression over initializers without values out of `model`.

    Returns the expression of each remaining initializer without a value, by name. A cut expression is named after its
    largest weight and its last operation, such as `head.weight.transpose`.
    """
    graph = model.graph
    weights = {value for value in graph.initializers.values() if value.const_value is None}
    foldable = set(weights)
    for node in graph:
        operands = [value for value in node.inputs if value is not None]
        if any(value in foldable for value in operands) and all(
            value in foldable or value.const_value is not None for value in operands
        ):
            foldable.update(node.outputs)
    cuts = {}
    for value in [value for node in graph for value in node.outputs if value in foldable]:
        if any(user.outputs[0] not in foldable for user, _ in value.uses()):
            cuts[value] = _cut(value, weights)
    for value, (name, _) in cuts.items():
        folded = ir.Value(name=name, type=value.type, shape=value.shape)
        value.replace_all_uses_with(folded)
        graph.initializers.add(folded)
    expressions = dict(cuts.values())
    assert len(expressions) == len(cuts), f"{graph.name}: two expressions share a name"
    _remove_unused(graph)
    left = [name for name, value in graph.initializers.items() if value.const_value is None]
    return {name: expressions.get(name, Expression((name,))) for name in left}


def _cut(value: ir.Value, weights: set[ir.Value]) -> tuple[str, Expression]:
    """Return a name for the expression that computes `value`, and the expression: its own graph with neutral names."""
    nodes: list[ir.Node] = []
    operands: list[ir.Value] = []
    copies: dict[ir.Value, ir.Value] = {}
    constants: list[ir.Value] = []

    def copy(original: ir.Value) -> ir.Value:
        if original in copies:
            return copies[original]
        if original in weights:
            operands.append(original)
            copied = ir.Value(name=original.name, type=original.type, shape=original.shape)
        elif original.const_value is not None:
            tensor = ir.tensor(original.const_value.numpy())
            copied = ir.Value(name=f"constant_{len(constants)}", const_value=tensor, type=original.type)
            copied.shape = original.shape
            constants.append(copied)
        else:
            node = original.producer()
            assert node is not None
            inputs = [None if operand is None else copy(operand) for operand in node.inputs]
            clone = ir.Node(node.domain, node.op_type, inputs, node.attributes.values(), num_outputs=len(node.outputs))
            nodes.append(clone)
            clone.name = f"node_{len(nodes)}"
            copied = clone.outputs[original.index() or 0]
            copied.name = f"value_{len(nodes)}"
        copies[original] = copied
        return copied

    result = copy(value)
    result.type, result.shape = value.type, value.shape
    inputs = [copies[operand] for operand in operands]
    graph = ir.Graph(inputs, [result], nodes=nodes, initializers=constants, opset_imports={"": 20}, name="expression")
    largest = max(operands, key=lambda operand: math.prod(operand.shape.numpy() if operand.shape else ()))
    last = nodes[-1].op_type.lower()
    names = tuple(str(operand.name) for operand in operands)
    return f"{largest.name}.{last}", Expression(names, ir.Model(graph, ir_version=10))


def _remove_unused(graph: ir.Graph) -> None:
    for node in reversed(list(graph)):
        if not any(value.uses() or value.is_graph_output() for value in node.outputs):
            graph.remove(node, safe=True)
    for name, value in list(graph.initializers.items()):
        if not value.uses():
            del graph.initializers[name]
