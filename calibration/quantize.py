"""Writes a plan into a graph, as Q/DQ operations that inference engines fuse into INT8 products.

There are two emissions of one plan, because no graph serves all engines (docs/int8.md):

- "trt": TensorRT wants constant scales and symmetric INT8, so the operand is divided by its scale before a Q/DQ of scale 1
  and the product multiplied by it. A zero point is added before, and its share taken off the bias.
- "cpu": ONNX Runtime takes scales and zero points as data, and UINT8 operands. Its INT8 convolutions write UINT8 too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from calibration.plan import DIGITS, FLOAT, INT8, WEIGHTS, Plan
from calibration.sites import Site
from export.signature import Signature
from export.weights import Entry
from runtime.manifest import Tensor

SCALES, ZERO_POINTS = "activation_scales", "activation_zero_points"  # inputs of the transformer: (sites,)
SECOND_DIGIT = 254.0  # the rest after rounding is at most half a step: as many finer steps
FLOAT32, HALF, BYTE, UNSIGNED = ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.INT8, ir.DataType.UINT8

Read = Callable[[str], np.ndarray]


@dataclass(frozen=True)
class Target:
    """What an engine wants of the same plan."""

    name: str
    weight_levels: int  # largest magnitude of an INT8 weight
    unsigned: bool  # operands are UINT8 with a zero point
    half: bool  # everything else is FP16


TARGETS = {
    # 7 bits: products of UINT8 and INT8 are added in pairs in 16 bits on AVX2, where 8-bit weights would saturate.
    "cpu": Target("cpu", 64, unsigned=True, half=False),
    "trt": Target("trt", 127, unsigned=False, half=True),
}


@dataclass(frozen=True)
class Activation:
    """How a tensor becomes 8 bits: `scale` (K,) or (1,), `zero` of the same shape, whole numbers."""

    scale: np.ndarray
    zero: np.ndarray


class Quantizer:
    """Rewrites the graphs of one bundle; `entries` are the tensors that this adds to its weight file."""

    def __init__(
        self, target: Target, plan: Plan, activations: Mapping[str, Activation], smoothing: Mapping[str, np.ndarray], read: Read,
        fold: bool = True,
    ) -> None:
        """`fold`: modulated operands are smoothed by `condition`, so that it has to be rewritten too; else by the product."""
        self.entries: dict[str, Entry] = {}
        self.target, self.activations, self.read = target, activations, read
        self.fold, self._plan = fold, plan
        self.smoothing = {key: vector for key, vector in smoothing.items() if plan[key] in (INT8, DIGITS)}

    def rewrite(self, graph: Signature, model: ir.Model, sites: Sequence[Site]) -> Signature:
        """Changes `model` in place; returns its signature with the inputs that this adds."""
        by_step = [site.key for site in sites if self._plan[site.key] in (INT8, DIGITS) and graph.name == "transformer"]
        inputs = graph.inputs
        if by_step:
            kind = "uint8" if self.target.unsigned else "float32"
            inputs += (Tensor(SCALES, "float32", (len(by_step),)), Tensor(ZERO_POINTS, kind, (len(by_step),)))
            self._inputs(model.graph, len(by_step))
            for name, rows in ((SCALES, "scale"), (ZERO_POINTS, "zero")):
                values = np.stack([getattr(self.activations[f"{key} input"], rows) for key in by_step], 1)  # (K, sites)
                dtype = "F32" if name == SCALES or not self.target.unsigned else "U8"
                self._add_entry(name, dtype, values.shape, lambda values=values: values)
        nodes = {str(node.outputs[0].name): node for node in model.graph}
        for site in sites:
            if self._plan[site.key] != FLOAT:
                row = by_step.index(site.key) if site.key in by_step else None
                _Site(self, model.graph, nodes[site.result], site, self._plan[site.key], row).rewrite()
        if graph.name == "condition" and self.fold:
            self._fold_smoothing(model.graph)
        return Signature(graph.name, inputs, graph.outputs)

    def _inputs(self, graph: ir.Graph, count: int) -> None:
        zero = UNSIGNED if self.target.unsigned else FLOAT32
        for name, dtype in ((SCALES, FLOAT32), (ZERO_POINTS, zero)):
            graph.inputs.append(ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape([count])))

    def _add_entry(self, name: str, dtype: str, shape: tuple[int, ...], compute: Callable[[], np.ndarray]) -> None:
        self.entries.setdefault(name, Entry(name, dtype, shape, compute))

    def _fold_smoothing(self, graph: ir.Graph) -> None:
        """Divides what modulates an operand by the operand's smoothing: `condition` computes it once a picture."""
        for i, output in enumerate(list(graph.outputs)):
            if output.name not in ("modulation", "head_modulation"):
                continue
            assert output.shape is not None
            shape = tuple(1 if isinstance(axis, ir.SymbolicDim) else axis for axis in output.shape)
            factors = np.ones(shape, np.float32)  # (depth, 6, 1, C) or (2, 1, C)
            for key, vector in self.smoothing.items():
                found = Site("transformer", key.removeprefix("transformer: "), "", "", (), "", (), "", ()).modulation
                if found is None or (found[0] is None) != (output.name == "head_modulation"):
                    continue
                for row in found[1]:
                    factors[(row, 0) if found[0] is None else (found[0], row, 0)] /= vector
            if (factors == 1).all():
                continue
            name = str(output.name)
            output.name = f"{name}.before_smoothing"
            weight = self.weight(graph, f"{name}.smoothing", FLOAT32, shape, lambda factors=factors: factors)
            node = ir.node("Mul", [output, weight])
            node.name = f"{name}.smoothed"
            smoothed = node.outputs[0]
            smoothed.name, smoothed.type, smoothed.shape = name, output.type, output.shape
            graph.append(node)
            graph.outputs[i] = smoothed

    def weight(
        self, graph: ir.Graph, name: str, dtype: ir.DataType, shape: tuple[int, ...], compute: Callable[[], np.ndarray]
    ) -> ir.Value:
        """A new tensor of the weight file, as an initializer of `graph`."""
        if name not in graph.initializers:
            graph.initializers.add(ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(shape)))
            names = {FLOAT32: "F32", BYTE: "I8", UNSIGNED: "U8", ir.DataType.INT32: "I32"}
            self._add_entry(name, names[dtype], shape, compute)
        return graph.initializers[name]

    def weight_scale(self, site: Site, weight: np.ndarray) -> np.ndarray:
        """(out,) float32: one step of each output channel of a weight that is already smoothed."""
        axes = tuple(i for i in range(weight.ndim) if i != _out_axis(site))
        scale = np.maximum(np.abs(weight).max(axes), 1e-30) / self.target.weight_levels
        if self.target.half:  # kept in FP16, so the weights are rounded to multiples of what that holds
            scale = np.maximum(scale, np.finfo(np.float16).tiny).astype(np.float16)
        return scale.astype(np.float32)

    def smoothed(self, site: Site) -> np.ndarray:
        """The float weight, its rows multiplied by the smoothing."""
        weight = self.read(site.weight).astype(np.float32)
        vector = self.smoothing.get(site.key)
        return weight if vector is None else weight * vector[:, None]


class _Site:
    """The rewriting of one product."""

    def __init__(self, quantizer: Quantizer, graph: ir.Graph, node: ir.Node, site: Site, kind: str, row: int | None) -> None:
        self._q, self._graph, self._node, self._site, self._kind, self._row = quantizer, graph, node, site, kind, row
        self._target = quantizer.target

    def rewrite(self) -> None:
        if self._site.op == "Gemm":
            self._to_matmul()
        operand, product = self._node.inputs[0], self._node.outputs[0]
        assert operand is not None
        if self._site.op == "Conv":
            self._convolution(operand)
            return
        vector = self._q.smoothing.get(self._site.key)
        if vector is not None and not (self._q.fold and self._site.modulation):  # else `condition` has done it
            inverse = self._weight("smoothing", FLOAT32, vector.shape, lambda: 1 / vector)
            operand = self._before("Mul", [operand, inverse], FLOAT32, "smoothed")
        self._node.replace_input_with(1, self._dequantized_weight(axis=1))
        if self._kind in (INT8, DIGITS):
            scale, zero = self._scale_and_zero()
            emit = self._unsigned if self._target.unsigned else self._symmetric
            operand = emit(operand, scale, zero, product)
        self._node.replace_input_with(0, operand)

    def _symmetric(self, x: ir.Value, scale: ir.Value, zero: ir.Value | None, product: ir.Value) -> ir.Value:
        """Divided by the scale, rounded with scale 1, and multiplied back behind the product."""
        steps = self._before("Mul", [x, self._before("Reciprocal", [scale], FLOAT32, "inverse_scale")], FLOAT32, "steps")
        if zero is not None:
            steps = self._before("Add", [steps, zero], FLOAT32, "shifted")
        digits = self._digits(steps, None, None)
        if zero is not None:
            self._correct_bias(product, scale, zero)
        last = self._sum_digits(product)
        self._behind("Mul", last, scale, "scaled")
        return digits

    def _unsigned(self, x: ir.Value, scale: ir.Value, zero: ir.Value | None, product: ir.Value) -> ir.Value:
        digits = self._digits(x, scale, zero)
        self._sum_digits(product)
        return digits

    def _digits(self, x: ir.Value, scale: ir.Value | None, zero: ir.Value | None) -> ir.Value:
        """Rounded once, or the first digit's rows and behind them the second's."""
        if self._kind == DIGITS:
            into, zero_point = scale or self._unit("in"), zero if self._target.unsigned else self._zero()
            q = self._before("QuantizeLinear", [x, into, zero_point], self._byte, "first.quantized")
            first = self._before("DequantizeLinear", [q, into, zero_point], FLOAT32, "first")
            rest = self._before("Sub", [x, first], FLOAT32, "rest")
            finer = self._before("Mul", [rest, self._constant(SECOND_DIGIT, "finer")], FLOAT32, "finer_rest")
            x = self._before("Concat", [x, finer], FLOAT32, "digits", axis=0)
        return self._rounded(x, scale, zero)

    def _sum_digits(self, product: ir.Value) -> ir.Value:
        """Behind the product: first digit plus finer second one."""
        if self._kind != DIGITS:
            return product
        uses = list(product.uses())
        split = ir.node("Split", [product], attributes={"axis": 0, "num_outputs": 2}, num_outputs=2)
        split.name = f"{self._site.name}.by_digit"
        self._graph.insert_after(self._node, split)
        for value, name in zip(split.outputs, ("first", "second"), strict=True):
            value.name, value.dtype = f"{split.name}.{name}", product.dtype
        finer = self._after(split, "Mul", [split.outputs[1], self._constant(1 / SECOND_DIGIT, "coarser")], "second_digit")
        total = self._after(finer, "Add", [split.outputs[0], finer.outputs[0]], "both_digits")
        for user, index in uses:
            user.replace_input_with(index, total.outputs[0])
        return total.outputs[0]

    def _correct_bias(self, product: ir.Value, scale: ir.Value, zero: ir.Value) -> None:
        """The zero point went through the weight as well: its share comes off the bias."""
        (add, _), *others = product.uses()
        assert add.op_type == "Add" and not others
        index = 1 if add.inputs[0] is product else 0
        bias = add.inputs[index]
        assert bias is not None
        sums = self._weight("sums", FLOAT32, (self._site.weight_shape[1],), self._column_sums)
        step = self._before("Mul", [scale, zero], FLOAT32, "shift")
        share = self._before("Mul", [sums, step], FLOAT32, "share")
        add.replace_input_with(index, self._before("Sub", [bias, share], FLOAT32, "bias.corrected"))

    def _convolution(self, x: ir.Value) -> None:
        self._node.replace_input_with(1, self._dequantized_weight(axis=0))
        if self._kind == WEIGHTS:
            return
        scale, zero = self._scale_and_zero()
        self._node.replace_input_with(0, self._rounded(x, scale, zero))
        if not self._target.unsigned:
            return
        bias = self._node.inputs[2]
        assert bias is not None
        steps = self._weight("bias_scale", FLOAT32, (self._site.weight_shape[0],), self._bias_scale)
        whole = self._weight("bias.int32", ir.DataType.INT32, (self._site.weight_shape[0],), lambda: self._bias(bias))
        self._node.replace_input_with(2, self._before("DequantizeLinear", [whole, steps], FLOAT32, "bias.float", axis=0))
        result = self._node.outputs[0]
        uses = list(result.uses())
        out_scale, out_zero = self._scale_and_zero("output")
        q = self._after(self._node, "QuantizeLinear", [result, out_scale, out_zero], "result", UNSIGNED)
        dq = self._after(q, "DequantizeLinear", [q.outputs[0], out_scale, out_zero], "result_float")
        for user, index in uses:
            user.replace_input_with(index, dq.outputs[0])

    def _rounded(self, x: ir.Value, scale: ir.Value | None, zero: ir.Value | None) -> ir.Value:
        """Q and DQ. Without a scale it is 1, without a zero point 0."""
        into, out = (scale, scale) if scale is not None else (self._unit("in"), self._unit("out"))
        if scale is not None and self._target.half:  # two constants: Q reads FLOAT, and DQ writes what a product reads
            found = self._q.activations[f"{self._site.key} input"]
            out = self._weight("input_scale.out", FLOAT32, (), lambda: found.scale[0])
        zero_point = zero if self._target.unsigned else self._zero()
        q = self._before("QuantizeLinear", [x, into, zero_point], self._byte, "quantized")
        return self._before("DequantizeLinear", [q, out, zero_point], FLOAT32, "dequantized")

    @property
    def _byte(self) -> ir.DataType:
        return UNSIGNED if self._target.unsigned else BYTE

    def _zero(self) -> ir.Value:
        return self._named_weight("zero_point", BYTE, (), lambda: np.array(0))

    def _scale_and_zero(self, end: str = "input") -> tuple[ir.Value, ir.Value | None]:
        """From the transformer's inputs, or constants of the other graphs."""
        if self._row is not None:
            index = self._constant_index(self._row)
            picked = {str(v.name): v for v in self._graph.inputs}
            scale = self._before("Gather", [picked[SCALES], index], FLOAT32, "scale", axis=0)
            zero_type = UNSIGNED if self._target.unsigned else FLOAT32
            shifts = self._target.unsigned or self._q.activations[f"{self._site.key} input"].zero.any()
            zero = self._before("Gather", [picked[ZERO_POINTS], index], zero_type, "zero", axis=0) if shifts else None
            return scale, zero
        found = self._q.activations[f"{self._site.key} {end}"]
        scale = self._weight(f"{end}_scale", FLOAT32, (), lambda: found.scale[0])
        if not self._target.unsigned:
            return scale, None
        return scale, self._weight(f"{end}_zero_point", UNSIGNED, (), lambda: found.zero[0])

    def _dequantized_weight(self, axis: int) -> ir.Value:
        shape = self._site.weight_shape
        if self._site.op == "Gemm":
            shape = shape[::-1]
        stored = self._weight("weight.int8", BYTE, shape, self._integers)
        scale = self._weight("weight.scale", FLOAT32, (shape[axis],), self._weight_scale)
        return self._before("DequantizeLinear", [stored, scale], FLOAT32, "weight.float", axis=axis)

    def _integers(self) -> np.ndarray:
        weight = self._q.smoothed(self._site)
        scale, axis = self._weight_scale(), _out_axis(self._site)
        levels = self._target.weight_levels
        steps = weight / np.expand_dims(scale, [i for i in range(weight.ndim) if i != axis])
        whole = np.clip(np.round(steps), -levels, levels).astype(np.int8)
        return whole.T if self._site.op == "Gemm" else whole

    def _weight_scale(self) -> np.ndarray:
        return self._q.weight_scale(self._site, self._q.smoothed(self._site))

    def _column_sums(self) -> np.ndarray:
        return self._integers().sum(0, dtype=np.int64) * self._weight_scale()

    def _bias_scale(self) -> np.ndarray:
        return self._q.activations[f"{self._site.key} input"].scale[0] * self._weight_scale()

    def _bias(self, bias: ir.Value) -> np.ndarray:
        return np.round(self._q.read(str(bias.name)) / self._bias_scale().astype(np.float64)).astype(np.int32)

    def _to_matmul(self) -> None:
        """Gemm with its weight (out, in) becomes MatMul and Add: what INT8 kernels take."""
        gemm = self._node
        bias, result = gemm.inputs[2], gemm.outputs[0]
        uses = list(result.uses())
        matmul = ir.node("MatMul", [gemm.inputs[0], gemm.inputs[1]])
        matmul.name, matmul.outputs[0].name = f"{self._site.name}.product", f"{self._site.name}.product"
        matmul.outputs[0].dtype, matmul.outputs[0].shape = result.dtype, result.shape
        self._graph.insert_before(gemm, matmul)
        add = self._after(matmul, "Add", [matmul.outputs[0], bias], "with_bias")
        for user, index in uses:
            user.replace_input_with(index, add.outputs[0])
        self._graph.remove(gemm, safe=True)
        self._node = matmul

    def _weight(self, name: str, dtype: ir.DataType, shape: tuple[int, ...], compute: Callable[[], np.ndarray]) -> ir.Value:
        return self._named_weight(f"{self._site.name}.{name}", dtype, shape, compute)

    def _named_weight(
        self, name: str, dtype: ir.DataType, shape: tuple[int, ...], compute: Callable[[], np.ndarray]
    ) -> ir.Value:
        return self._q.weight(self._graph, name, dtype, shape, lambda: np.asarray(compute()))

    def _unit(self, end: str) -> ir.Value:
        return self._named_weight(f"unit_scale.{end}", FLOAT32, (), lambda: np.float32(1))

    def _constant(self, number: float, name: str) -> ir.Value:
        return self._inline(f"digits.{name}", np.array(number, np.float32))

    def _constant_index(self, index: int) -> ir.Value:
        return self._inline(f"activation.{index}", np.array(index, np.int64))

    def _inline(self, name: str, value: np.ndarray) -> ir.Value:
        if name not in self._graph.initializers:
            tensor = ir.tensor(value, name=name)
            self._graph.initializers.add(
                ir.Value(name=name, const_value=tensor, type=ir.TensorType(tensor.dtype), shape=ir.Shape(value.shape))
            )
        return self._graph.initializers[name]

    def _before(self, op: str, inputs: Sequence[ir.Value | None], dtype: ir.DataType, name: str, **attributes: int) -> ir.Value:
        """A node before the product."""
        node = self._node_of(op, inputs, dtype, name, attributes)
        self._graph.insert_before(self._node, node)
        return node.outputs[0]

    def _after(
        self, place: ir.Node, op: str, inputs: Sequence[ir.Value | None], name: str, dtype: ir.DataType = FLOAT32
    ) -> ir.Node:
        node = self._node_of(op, inputs, dtype, name, {})
        node.outputs[0].shape = inputs[0].shape if inputs[0] is not None else None
        self._graph.insert_after(place, node)
        return node

    def _behind(self, op: str, value: ir.Value, other: ir.Value, name: str) -> None:
        """`value` op `other`, for all that read `value`."""
        uses = list(value.uses())
        maker = value.producer()
        assert maker is not None
        node = self._after(maker, op, [value, other], name)
        for user, index in uses:
            user.replace_input_with(index, node.outputs[0])

    def _node_of(
        self, op: str, inputs: Sequence[ir.Value | None], dtype: ir.DataType, name: str, attributes: Mapping[str, int]
    ) -> ir.Node:
        node = ir.node(op, inputs, attributes=attributes)
        node.name = f"{self._site.name}.{name}"
        node.outputs[0].name, node.outputs[0].type = node.name, ir.TensorType(dtype)
        return node


def _out_axis(site: Site) -> int:
    return 1 if site.op == "MatMul" else 0
