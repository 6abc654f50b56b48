"""One product of a graph, rewritten as its plan says."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from calibration.plan import DIGITS, INT8, WEIGHTS
from calibration.sites import Site, modulated_by
from calibration.target import BYTE, FLOAT32, SCALES, UNSIGNED, ZERO_POINTS, step_input
from calibration.weight import integers, weight_scale

if TYPE_CHECKING:
    from calibration.quantize import Quantizer

SECOND_DIGIT = 254.0  # the rest after rounding is at most half a step: as many finer steps


class Product:
    """The rewriting of one product of data with a weight."""

    def __init__(self, quantizer: Quantizer, graph: ir.Graph, node: ir.Node, site: Site, kind: str) -> None:
        self._q, self._graph, self._node, self._site, self._kind = quantizer, graph, node, site, kind
        self._target = quantizer.target

    def rewrite(self) -> None:
        """The result keeps its name, whatever now stands behind the product: graphs stay comparable."""
        original = self._node.outputs[0]
        name = original.name
        readers = list(original.uses())
        self._rewrite()
        result = next(reader.inputs[index] for reader, index in readers)
        assert result is not None
        if result is not original:
            original.name, result.name = f"{self._site.name}.product", name

    def _rewrite(self) -> None:
        if self._site.op == "Gemm":
            self._to_matmul()
        operand, product = self._node.inputs[0], self._node.outputs[0]
        assert operand is not None
        if self._site.op == "Conv":
            self._convolution(operand)
            return
        vector = self._q.smoothing.get(self._site.key)
        if vector is not None and not (self._q.fold and modulated_by(self._site.key)):  # else `condition` has done it
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
        steps = self._before(
            "Mul", [x, self._before("Reciprocal", [scale], FLOAT32, "inverse_scale")], FLOAT32, "steps"
        )
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
            value.name, value.type = f"{split.name}.{name}", product.type
        finer = self._after(
            split, "Mul", [split.outputs[1], self._constant(1 / SECOND_DIGIT, "coarser")], "second_digit"
        )
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
        self._node.replace_input_with(
            2, self._before("DequantizeLinear", [whole, steps], FLOAT32, "bias.float", axis=0)
        )
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
        if self._site.key in self._q.places:
            index = self._constant_index(self._q.places[self._site.key])
            picked = {str(v.name): v for v in self._graph.inputs}
            scale = self._before("Gather", [picked[step_input(SCALES, self._site)], index], FLOAT32, "scale", axis=0)
            zero_type = UNSIGNED if self._target.unsigned else FLOAT32
            shifts = self._target.unsigned or self._q.activations[f"{self._site.key} input"].zero.any()
            zero = (
                self._before("Gather", [picked[step_input(ZERO_POINTS, self._site)], index], zero_type, "zero", axis=0)
                if shifts
                else None
            )
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

    def _float_weight(self) -> np.ndarray:
        """As stored, the rows multiplied by the smoothing."""
        weight = self._q.read(self._site.weight).astype(np.float32)
        vector = self._q.smoothing.get(self._site.key)
        return weight if vector is None else weight * vector[:, None]

    def _integers(self) -> np.ndarray:
        weight, axis = self._float_weight(), self._site.out_axis
        whole = integers(weight, weight_scale(weight, axis, self._target), axis, self._target)
        return whole.T if self._site.op == "Gemm" else whole

    def _weight_scale(self) -> np.ndarray:
        return weight_scale(self._float_weight(), self._site.out_axis, self._target)

    def _column_sums(self) -> np.ndarray:
        result: np.ndarray = self._integers().sum(0, dtype=np.int64) * self._weight_scale()
        return result

    def _bias_scale(self) -> np.ndarray:
        result: np.ndarray = self._q.activations[f"{self._site.key} input"].scale[0] * self._weight_scale()
        return result

    def _bias(self, bias: ir.Value) -> np.ndarray:
        return np.round(self._q.read(str(bias.name)) / self._bias_scale().astype(np.float64)).astype(np.int32)

    def _to_matmul(self) -> None:
        """Gemm with its weight (out, in) becomes MatMul and Add: what INT8 kernels take."""
        gemm = self._node
        bias, result = gemm.inputs[2], gemm.outputs[0]
        uses = list(result.uses())
        matmul = ir.node("MatMul", [gemm.inputs[0], gemm.inputs[1]])
        matmul.name, matmul.outputs[0].name = f"{self._site.name}.product", f"{self._site.name}.product"
        matmul.outputs[0].type, matmul.outputs[0].shape = result.type, result.shape
        self._graph.insert_before(gemm, matmul)
        add = self._after(matmul, "Add", [matmul.outputs[0], bias], "with_bias")
        for user, index in uses:
            user.replace_input_with(index, add.outputs[0])
        self._graph.remove(gemm, safe=True)
        self._node = matmul

    def _weight(
        self, name: str, dtype: ir.DataType, shape: tuple[int, ...], compute: Callable[[], np.ndarray]
    ) -> ir.Value:
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

    def _before(
        self, op: str, inputs: Sequence[ir.Value | None], dtype: ir.DataType, name: str, **attributes: int
    ) -> ir.Value:
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
