"""What a bundle computes in."""

from __future__ import annotations

from enum import Enum


class Precision(str, Enum):
    """The precision of a bundle; as text it is what its manifest says."""

    FP32 = "fp32"
    FP16 = "fp16"
    INT8_TRT = "int8 for trt"
    INT8_CPU = "int8 for cpu"
    FP16_SIMULATED = "fp16 simulated"  # FP32 that rounds as FP16 hardware does: for checking on a CPU
    INT8_TRT_SIMULATED = "int8 for trt simulated"

    def __str__(self) -> str:
        return self.value

    def __format__(self, spec: str) -> str:
        return format(self.value, spec)

    @property
    def kind(self) -> str:
        """fp32, fp16 or int8: what its tolerances depend on."""
        return self.value.split()[0]

    @property
    def target(self) -> str | None:
        """Who INT8 is for, "trt" or "cpu"; None for others."""
        return {Precision.INT8_CPU: "cpu"}.get(self, "trt") if self.kind == "int8" else None

    @property
    def has_fp16(self) -> bool:
        """Whether tensors are FP16, which ONNX Runtime's CPU computes in FP32."""
        return self in (Precision.FP16, Precision.INT8_TRT)

    @property
    def is_simulated(self) -> bool:
        return self in (Precision.FP16_SIMULATED, Precision.INT8_TRT_SIMULATED)

    @property
    def simulated(self) -> Precision:
        """What the simulated twin of a bundle with FP16 says."""
        return Precision(f"{self.value} simulated")

    @classmethod
    def int8(cls, target: str) -> Precision:
        """INT8 for "trt" or "cpu"."""
        return cls(f"int8 for {target}")
