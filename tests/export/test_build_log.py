"""The layers of engines, as TensorRT 10 and 11 write them: in the builder's log and from the engine inspector."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from export.engine.build_log import Layer, counted, inspected, int8_fault, int8_products, logged
from export.engine.kernels import count
from runtime.bundle.engine_record import Engine

SAMPLES = Path(__file__).parents[1] / "data" / "engine_layers"


def sample(name: str) -> list[Layer]:
    text = (SAMPLES / name).read_text()
    return inspected(text) if name.endswith(".json") else logged([("VERBOSE", text)])


def engine(planned: int, built: tuple[int, ...], layers: dict[str, int]) -> Engine:
    return Engine("transformer.engine", "", ({}, {}), 1.0, 1, layers, planned, built)


@pytest.mark.parametrize("name", ["tensorrt10.log", "tensorrt11.log", "tensorrt11.json"])
def test_both_generations_are_read(name: str) -> None:
    """If one was not, an INT8 engine that computes in FP16 would pass for one in INT8."""
    layers = sample(name)
    assert counted(layers) == {"attention Half": 1, "gemm Half": 2, "gemm Int8": 2, "other Half": 2}
    assert [layer.profile for layer in layers] == [0, 0, 0, 0, 1, 1, 1]
    assert int8_products(layers, profiles=2) == (1, 1)


def test_tensorrt_10_names_dtypes_in_sentences() -> None:
    """A reformat is no product, whatever layer it is for."""
    assert sample("tensorrt10.json")[:2] == [Layer("other", "Half", 0), Layer("convolution", "Int8", 0)]
    assert int8_products(sample("tensorrt10.json"), profiles=2) == (2, 1)


@pytest.mark.parametrize(
    "document", ["", "{", "[]", "null", '{"Layers": ["conv + relu"]}', '{"Layers": [{"Name": "x"}]}', '{"Layers": []}']
)
def test_an_inspector_without_details_says_nothing(document: str) -> None:
    assert inspected(document) == []


def test_layers_that_do_not_tell_their_profile_are_no_answer() -> None:
    layers = sample("tensorrt11.log")
    assert int8_products([], profiles=2) == ()
    assert int8_products([layer for layer in layers if layer.profile == 0], profiles=2) == ()
    assert int8_products(layers, profiles=3) == ()
    assert int8_products(layers, profiles=1) == (2,)  # with one profile, a number is that of a part of the graph


def test_kernels_of_parts_are_not_those_of_profiles() -> None:
    """TensorRT 10 may number the parts of a graph: this ended the build with an IndexError."""
    log = [("VERBOSE", (SAMPLES / "tensorrt10.log").read_text())]
    assert count(log, profiles=2).profiles == (4, 3)
    assert count(log, profiles=1).profiles == (7,)
    more = [("VERBOSE", log[0][1].replace("_myl1_", "_myl5_").replace(" [profile 1]_", "_"))]
    assert count(more, profiles=2).profiles == (0, 0)


def test_an_engine_that_does_not_show_its_layers_is_no_pass() -> None:
    assert int8_fault("transformer", engine(0, (), {})) is None
    assert int8_fault("transformer", engine(2, (2, 2), {"gemm Half": 3, "gemm Int8": 4})) is None
    assert int8_fault("transformer", engine(2, (1, 1), {"gemm Int8": 2})) is None  # merged
    unknown = int8_fault("transformer", engine(2, (), {}))
    assert unknown == ("transformer: cannot tell which of 2 INT8 products are INT8: TensorRT does not show its layers")
    fewer = int8_fault("transformer", engine(2, (2, 1), {"gemm Half": 3, "gemm Int8": 3}))
    assert fewer == "transformer: TensorRT computes only 1 of 2 INT8 products in INT8, the others in FP16"


def test_samples_are_what_they_claim() -> None:
    assert '"Format/Datatype"' in (SAMPLES / "tensorrt10.json").read_text()
    assert "Constants" not in (SAMPLES / "tensorrt10.log").read_text()
    assert all("Constants" in layer for layer in json.loads((SAMPLES / "tensorrt11.json").read_text())["Layers"])
