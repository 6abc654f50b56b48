"""Rewrite one product of a graph by its plan: insert the Q/DQ operations that an engine fuses with it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from calibration.graph_editor import BYTE, FLOAT32, UNSIGNED, GraphEditor, redirect
from calibration.plan import QUANTIZED, ROWS, TWO_DIGITS, WEIGHTS
from calibration.row_scales import row_scale
from calibration.target import SCALES, ZERO_POINTS, Activation, step_input
from calibration.weight import Int8Weight

SECOND_DIGIT = 254.0  # the remainder after rounding is at most half a step; times 254 it fills the INT8 range


@dataclass(frozen=True)
class Operands:
    """How the data around a product becomes 8 bits."""

    input: Activation | None  # None: only the weight is INT8, or each row has its own scale
    output: Activation | None  # for a convolution that writes 8 bits
    place: int | None  # index in the block's inputs of scales and zero points; None: they are constants
    channels: np.ndarray | None  # (C,): the operand is divided by it here; None: not scaled, or `condition` scales it


class Product:
    """Rewrites one product of data with a weight."""

    def __init__(self, editor: GraphEditor, weight: Int8Weight, operands: Operands, kind: str) -> None:
        self._edit, self._weight, self._operands, self._kind = editor, weight, operands, kind
        self._site, self._target = weight.site, weight.target

    def rewrite(self) -> None:
        """Rewrite the product. The final result takes over its name, so that graphs stay comparable."""
        original = self._edit.node.outputs[0]
        name = original.name
        readers = list(original.uses())
        self._rewrite()
        result = next(reader.inputs[index] for reader, index in readers)
        assert result is not None
        if result is not original:
            original.name, result.name = f"{self._site.name}.product", name

    def _rewrite(self) -> None:
        edit = self._edit
        if self._site.op == "Gemm":
            edit.gemm_to_matmul()
        operand, product = edit.node.inputs[0], edit.node.outputs[0]
        assert operand is not None
        if self._site.op == "Conv":
            self._convolution(operand)
            return
        if (channels := self._operands.channels) is not None:
            inverse = edit.weight("smoothing", FLOAT32, channels.shape, lambda: 1 / channels)
            operand = edit.before("Mul", [operand, inverse], FLOAT32, "smoothed")
        edit.node.replace_input_with(1, self._dequantized_weight(axis=1))
        if self._kind in ROWS:
            operand = self._symmetric(operand, *row_scale(edit, operand, self._one_sided(operand)), product)
        elif self._kind in QUANTIZED:
            emit = self._unsigned if self._target.unsigned else self._symmetric
            operand = emit(operand, *self._scale_and_zero(), product)
        edit.node.replace_input_with(0, operand)

    def _symmetric(self, x: ir.Value, scale: ir.Value, zero: ir.Value | None, product: ir.Value) -> ir.Value:
        """Divide by the scale, round with scale 1, and multiply the product by the scale."""
        edit = self._edit
        inverse = edit.before("Reciprocal", [scale], FLOAT32, "inverse_scale")
        steps = edit.before("Mul", [x, inverse], FLOAT32, "steps")
        if zero is not None:
            steps = edit.before("Add", [steps, zero], FLOAT32, "shifted")
        digits = self._digits(steps, None, None)
        if zero is not None:
            self._correct_bias(product, scale, zero)
        last = self._sum_digits(product)
        edit.behind("Mul", last, scale, "scaled")
        return digits

    def _one_sided(self, x: ir.Value) -> bool:
        """Return whether a zero point pays for `x`: behind a GELU. Two digits are precise enough without."""
        maker = x.producer()
        return maker is not None and maker.op_type == "Gelu" and self._kind not in TWO_DIGITS

    def _unsigned(self, x: ir.Value, scale: ir.Value, zero: ir.Value | None, product: ir.Value) -> ir.Value:
        digits = self._digits(x, scale, zero)
        self._sum_digits(product)
        return digits

    def _digits(self, x: ir.Value, scale: ir.Value | None, zero: ir.Value | None) -> ir.Value:
        """Round once; for two digits, round the rows of the first digit followed by the rows of the second."""
        if self._kind in TWO_DIGITS:
            edit = self._edit
            into, zero_point = scale or self._unit("in"), zero or self._zero()
            q = edit.before("QuantizeLinear", [x, into, zero_point], self._byte, "first.quantized")
            first = edit.before("DequantizeLinear", [q, into, zero_point], FLOAT32, "first")
            rest = edit.before("Sub", [x, first], FLOAT32, "rest")
            finer = edit.before("Mul", [rest, self._number(SECOND_DIGIT, "finer")], FLOAT32, "finer_rest")
            x = edit.before("Concat", [x, finer], FLOAT32, "digits", axis=0)
        return self._rounded(x, scale, zero)

    def _sum_digits(self, product: ir.Value) -> ir.Value:
        """Add the products of both digits, the second one scaled down; without digits, return the product."""
        if self._kind not in TWO_DIGITS:
            return product
        edit, readers = self._edit, list(product.uses())
        first, second = edit.split(product, "by_digit", ("first", "second"))
        split = first.producer()
        assert split is not None
        finer = edit.after(split, "Mul", [second, self._number(1 / SECOND_DIGIT, "coarser")], "second_digit")
        total = edit.after(finer, "Add", [first, finer.outputs[0]], "both_digits")
        redirect(readers, total.outputs[0])
        return total.outputs[0]

    def _correct_bias(self, product: ir.Value, scale: ir.Value, zero: ir.Value) -> None:
        """Subtract the zero point's share from the bias: the product has multiplied it with the weight too."""
        (add, _), *others = product.uses()
        assert add.op_type == "Add" and not others
        index = 1 if add.inputs[0] is product else 0
        bias, edit = add.inputs[index], self._edit
        assert bias is not None
        sums = edit.weight("sums", FLOAT32, (self._site.weight_shape[1],), self._weight.column_sums)
        step = edit.before("Mul", [scale, zero], FLOAT32, "shift")
        share = edit.before("Mul", [sums, step], FLOAT32, "share")
        add.replace_input_with(index, edit.before("Sub", [bias, share], FLOAT32, "bias.corrected"))

    def _convolution(self, x: ir.Value) -> None:
        edit, weight = self._edit, self._weight
        edit.node.replace_input_with(1, self._dequantized_weight(axis=0))
        if self._kind == WEIGHTS:
            return
        scale, zero = self._scale_and_zero()
        edit.node.replace_input_with(0, self._rounded(x, scale, zero))
        if not self._target.unsigned:
            return
        bias, operand, out = edit.node.inputs[2], self._operands.input, (self._site.weight_shape[0],)
        assert bias is not None and operand is not None
        steps = edit.weight("bias_scale", FLOAT32, out, lambda: weight.bias_scale(operand))
        whole = edit.weight("bias.int32", ir.DataType.INT32, out, lambda: weight.bias(str(bias.name), operand))
        edit.node.replace_input_with(2, edit.before("DequantizeLinear", [whole, steps], FLOAT32, "bias.float", axis=0))
        result = edit.node.outputs[0]
        readers = list(result.uses())
        out_scale, out_zero = self._constants(self._operands.output, "output")
        q = edit.after(edit.node, "QuantizeLinear", [result, out_scale, out_zero], "result", UNSIGNED)
        dq = edit.after(q, "DequantizeLinear", [q.outputs[0], out_scale, out_zero], "result_float")
        redirect(readers, dq.outputs[0])

    def _rounded(self, x: ir.Value, scale: ir.Value | None, zero: ir.Value | None) -> ir.Value:
        """Insert Q and DQ. The default scale is 1, the default zero point 0."""
        into, out = (scale, scale) if scale is not None else (self._unit("in"), self._unit("out"))
        if scale is not None and self._target.half:  # two constants: Q takes FLOAT, DQ writes the product's dtype
            found = self._operands.input
            assert found is not None
            out = self._edit.weight("input_scale.out", FLOAT32, (), lambda: found.scale[0])
        zero_point = zero or self._zero()
        q = self._edit.before("QuantizeLinear", [x, into, zero_point], self._byte, "quantized")
        return self._edit.before("DequantizeLinear", [q, out, zero_point], FLOAT32, "dequantized")

    @property
    def _byte(self) -> ir.DataType:
        return UNSIGNED if self._target.unsigned else BYTE

    def _zero(self) -> ir.Value:
        middle = 128 if self._target.unsigned else 0
        return self._edit.shared_weight("zero_point", self._byte, (), lambda: np.array(middle))

    def _unit(self, end: str) -> ir.Value:
        return self._edit.shared_weight(f"unit_scale.{end}", FLOAT32, (), lambda: np.array(1, np.float32))

    def _number(self, number: float, name: str) -> ir.Value:
        return self._edit.constant(f"digits.{name}", np.array(number, np.float32))

    def _scale_and_zero(self) -> tuple[ir.Value, ir.Value | None]:
        """Return scale and zero point of the operand: from the transformer's inputs, or constants in other graphs."""
        place, found, edit = self._operands.place, self._operands.input, self._edit
        assert found is not None
        if place is None:
            return self._constants(found, "input")
        index = edit.constant(f"activation.{place}", np.array(place, np.int64))
        inputs = {str(value.name): value for value in edit.graph.inputs}
        scale = edit.before("Gather", [inputs[step_input(SCALES, self._site)], index], FLOAT32, "scale", axis=0)
        if not (self._target.unsigned or found.zero.any()):
            return scale, None
        zero_type = UNSIGNED if self._target.unsigned else FLOAT32
        zeros = inputs[step_input(ZERO_POINTS, self._site)]
        return scale, edit.before("Gather", [zeros, index], zero_type, "zero", axis=0)

    def _constants(self, found: Activation | None, end: str) -> tuple[ir.Value, ir.Value | None]:
        assert found is not None
        scale = self._edit.weight(f"{end}_scale", FLOAT32, (), lambda: found.scale[0])
        if not self._target.unsigned:
            return scale, None
        return scale, self._edit.weight(f"{end}_zero_point", UNSIGNED, (), lambda: found.zero[0])

    def _dequantized_weight(self, axis: int) -> ir.Value:
        shape = self._site.weight_shape
        if self._site.op == "Gemm":
            shape = shape[::-1]
        stored = self._edit.weight("weight.int8", BYTE, shape, self._weight.integers)
        scale = self._edit.weight("weight.scale", FLOAT32, (shape[axis],), self._weight.scale)
        return self._edit.before("DequantizeLinear", [stored, scale], FLOAT32, "weight.float", axis=axis)
