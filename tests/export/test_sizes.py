"""The sizes that are computed without an export are those of real bundles."""

from __future__ import annotations

from pathlib import Path

import pytest

from calibration.make import Request, make_int8
from calibration.record import Settings
from export import sizes
from export.checkpoint.recipe import Recipe
from export.checkpoint.weights import empty_models
from export.sizes import FP16, FP32, INT8_CPU, INT8_MIXED, Kind
from runtime.bundle.manifest import FILE_NAME, Manifest
from runtime.bundle.weight_file import loaded_weights, read_header, weight_bytes
from tests.conftest import Shared
from tests.export.test_variants import exported

SHIPPED = ("var_d16", "var_d20", "var_d24", "var_d30", "var_d36", "var_demo", "var_demo_small")


def assert_sizes(bundle: Path, kind: Kind, units: int = 0) -> None:
    """Assert that the weights are those of the bundle, byte for byte, and its files within 1 %."""
    manifest = Manifest.load(bundle, verify=False)
    model = manifest.model
    for name, size in sizes.graph_weights(model, kind).items():
        assert size == weight_bytes(bundle, [manifest.graphs[name].file]), name
    stored = read_header(bundle / "weights.safetensors").values()
    assert sizes.weight_file(model, kind) == sum(tensor.end - tensor.start for tensor in stored)
    # The same tensors in two graphs are loaded twice: the scale 1 and the zero point.
    in_graphs = loaded_weights(bundle, manifest) - sizes.resizes(model)
    assert 0 <= sizes.loaded_weights(model, kind) - in_graphs < 16
    files = sum(file.size for file in manifest.files.values()) + (bundle / FILE_NAME).stat().st_size
    assert sizes.bundle(model, kind) == pytest.approx(files, rel=0.01)


def test_demo_bundle(demo_bundle: Path) -> None:
    assert_sizes(demo_bundle, FP32)


def test_fp16_demo_bundle(fp16_demo_bundle: Path) -> None:
    assert_sizes(fp16_demo_bundle, FP16)


@pytest.mark.parametrize(("name", "kind"), [("trt-row", INT8_MIXED), ("cpu-row", INT8_CPU)])
def test_int8_demo_bundles(name: str, kind: Kind, int8_bundles: dict[str, Path]) -> None:
    assert_sizes(int8_bundles[name], kind)


def test_default_int8_bundle(demo_bundle: Path, shared: Shared) -> None:
    bundle = shared(
        "int8_default",
        lambda out: make_int8(demo_bundle, out, Request("trt", settings=Settings(channel_scaling="none"))),
    )
    assert_sizes(bundle, sizes.INT8)


@pytest.mark.parametrize("name", ["shared_bundle", "tiny_bundle"])
def test_other_models(name: str, request: pytest.FixtureRequest) -> None:
    """Shared AdaLN and the 512-pixel grid of d36; q and k without norm."""
    bundle: Path = request.getfixturevalue(name)
    model = Manifest.load(bundle, verify=False).model
    stored = read_header(bundle / "weights.safetensors").values()
    assert sizes.weight_file(model, FP32) == sum(tensor.end - tensor.start for tensor in stored)


@pytest.mark.parametrize("name", ["no phi", "five phis of 7 scales", "quant_conv_ks 5", "many at once"])
def test_variants(name: str, shared: Shared) -> None:
    bundle = exported(name, shared)
    manifest = Manifest.load(bundle, verify=False)
    for graph, size in sizes.graph_weights(manifest.model, FP32).items():
        assert size == weight_bytes(bundle, [manifest.graphs[graph].file]), graph


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_models_have_the_weights_of_their_checkpoints(name: str) -> None:
    """Within what folding and the constants add and leave out."""
    recipe = Recipe.load(name)
    checkpoint = sum(4 * t.numel() for model in empty_models(recipe) for t in model.state_dict().values())
    assert sizes.weight_file(recipe.model, FP32) - sizes.resizes(recipe.model) == pytest.approx(checkpoint, rel=0.025)


@pytest.mark.parametrize("kind", [FP32, FP16, sizes.INT8, INT8_MIXED, INT8_CPU])
def test_smaller_than_fp32(kind: Kind) -> None:
    for name in SHIPPED:
        model = Recipe.load(name).model
        assert sizes.weight_file(model, kind) <= sizes.weight_file(model, FP32)
