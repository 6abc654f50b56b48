"""The engines launch no more kernels than they did: a change of a graph that adds some has to be meant."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from export.engine.kernels import Kernels, count, for_a_batch, table
from runtime.bundle.engine_record import EngineRecord

pytest.importorskip(
    "tensorrt_rtx", reason="TensorRT for RTX has no package for this machine: pip install tensorrt-rtx-cu13"
)

# Counted in the FP16 engines of the demo model: kernels in each profile, and of a block, as report.md writes them.
# A newer TensorRT may fuse more or less. Then count again: make engine MODEL=var_demo, "kernels" in its report.md.
COUNTED_WITH = "1.7.1.116"  # TensorRT for RTX, for sm_86
BUDGET = {
    "condition": ("4", ""),
    "transformer": ("54, 5 x 39", "13, 5 x 9"),
    "bridge": ("19, 24, 2 x 25, 2 x 24", ""),
    "decoder": ("95", ""),
}
BUDGET_OF_AN_IMAGE = 489


def layer(name: str, output: str = "t") -> str:
    tensors = f"[ {{ Name: {output}, Dimensions: [1], Datatype: Half, Format: (Linear) x }}]"
    return (
        f"Name: {name}, LayerType: kgen, Inputs: {tensors}, Constants: [], Outputs: {tensors}, TacticName: x,"
        f" StreamId: 0, Metadata: [ONNX Layer: node]"
    )


def test_kernels_are_counted_by_profile_and_block() -> None:
    log = [
        ("VERBOSE", "\n".join([layer("__myl_Norm_myl0_0"), layer("__myl_K_myl0_1", "new_k_00 [profile 0]")])),
        ("VERBOSE", "\n".join([layer("gemm_myl0_2"), layer("__myl_K_myl0_3", "new_k_01"), layer("head_myl0_4")])),
        ("VERBOSE", "\n".join([layer("__myl_K_myl1_0", "new_k_00"), layer("__myl_K_myl1_1", "new_k_01")])),
        ("INFO", "Name of no layer"),
    ]
    assert count(log, 2) == Kernels((5, 2), (2, 1))
    assert count([], 2) == Kernels((0, 0), (0, 0))  # the builder does not list its layers


def test_an_image_needs_the_kernels_of_all_its_stages(fp16_engines: tuple[Path, Path]) -> None:
    record = EngineRecord.load(fp16_engines[1])
    steps = Kernels((10, 20, 20, 20, 20, 20), (2, 4, 4, 4, 4, 4))
    kernels = {name: Kernels((3,), (0,)) for name in record.engines} | {"transformer": steps, "bridge": steps}
    assert for_a_batch(kernels, record) == {1: 3 + 110 + 110 + 3}
    assert "| transformer | 10, 5 x 20 | 2, 5 x 4 |" in table(kernels, record)


def test_no_graph_launches_more_kernels_than_its_budget(fp16_engines: tuple[Path, Path]) -> None:
    folder = fp16_engines[1]
    if (found := EngineRecord.load(folder).built.version) != COUNTED_WITH:
        pytest.skip(f"the budget of kernels was counted with TensorRT for RTX {COUNTED_WITH}, this is {found}")
    report = (folder / "report.md").read_text()
    section = report.partition("kernels in each profile")[2].partition("## ")[0]
    rows = {name: cells for name, *cells in re.findall(r"^\| (\w+) \| (.+?) \| (.*?) ?\|$", section, re.M)}
    for graph, budget in BUDGET.items():
        for kernels, allowed in zip(map(_numbers, rows[graph]), map(_numbers, budget), strict=True):
            assert len(kernels) == len(allowed)
            assert all(a <= b for a, b in zip(kernels, allowed, strict=True)), f"{graph}: {kernels}, budget {allowed}"
    (image,) = re.findall(r"(\d+) for a batch of 1\b", section)
    assert int(image) <= BUDGET_OF_AN_IMAGE


def _numbers(text: str) -> list[int]:
    """Return the numbers that a cell such as "54, 5 x 39" stands for."""
    runs = re.findall(r"(?:(\d+) x )?(\d+)", text)
    return [int(number) for times, number in runs for _ in range(int(times or 1))]
