"""The type Precision, which alone defines the meaning of the manifest's text for the precision."""

from __future__ import annotations

import json

import pytest

from runtime.bundle.precision import Precision

# text, kind, target, has FP16, is simulated
CASES = [
    ("fp32", "fp32", None, False, False),
    ("fp16", "fp16", None, True, False),
    ("int8 for trt", "int8", "trt", True, False),
    ("int8 for cpu", "int8", "cpu", False, False),
    ("fp16 simulated", "fp16", None, False, True),
    ("int8 for trt simulated", "int8", "trt", False, True),
]


@pytest.mark.parametrize(("text", "kind", "target", "has_fp16", "is_simulated"), CASES)
def test_what_a_text_means(text: str, kind: str, target: str | None, has_fp16: bool, is_simulated: bool) -> None:
    found = Precision(text)
    assert (found.kind, found.target, found.has_fp16, found.is_simulated) == (kind, target, has_fp16, is_simulated)
    assert f"{found}" == str(found) == found == text
    assert json.dumps({"precision": found}) == json.dumps({"precision": text})


def test_all_are_listed() -> None:
    assert [precision.value for precision in Precision] == [case[0] for case in CASES]


def test_twins() -> None:
    assert Precision.FP16.simulated is Precision.FP16_SIMULATED
    assert Precision.int8("trt").simulated is Precision.INT8_TRT_SIMULATED
