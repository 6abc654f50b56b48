"""The number formats that a bundle computes in."""

from __future__ import annotations

from enum import Enum


class Precision(str, Enum):
    """The precision of a bundle. Its value is the text in the manifest."""

    FP32 = "fp32"
    FP16 = "fp16"
    INT8_TRT = "int8 for trt"
    INT8_CPU = "int8 for cpu"
    FP16_SIMULATED = "fp16 simulated"  # FP32 that rounds like FP16 hardware, for checks on a CPU
    INT8_TRT_SIMULATED = "int8 for trt simulated"

    def __str__(self) -> str:
        return self.value

    def __format__(self, spec: str) -> str:
        return format(self.value, spec)

    @property
    def kind(self) -> str:
        """The kind of the precision, fp32, fp16 or int8, which selects the tolerances."""
        return self.value.split()[0]

    @property
    def target(self) -> str | None:
        """The target of an INT8 bundle, "trt" or "cpu"; None for other precisions."""
        return self.value.split()[2] if self.kind == "int8" else None  # "int8 for TARGET"

    @property
    def has_fp16(self) -> bool:
        """Whether tensors are FP16. ONNX Runtime computes FP16 in FP32 on the CPU."""
        return self in (Precision.FP16, Precision.INT8_TRT)

    @property
    def is_simulated(self) -> bool:
        return self in (Precision.FP16_SIMULATED, Precision.INT8_TRT_SIMULATED)

    @property
    def simulated(self) -> Precision:
        """The precision of the simulated twin of a bundle with FP16."""
        return Precision(f"{self.value} simulated")

    @classmethod
    def int8(cls, target: str) -> Precision:
        """Return the INT8 precision for the target "trt" or "cpu"."""
        return cls(f"int8 for {target}")
