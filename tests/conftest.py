"""Bundles that many tests share, each exported once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import runtime.backends.ort  # noqa: F401  before any import of onnxruntime: its telemetry is off
from calibration.collect import collect
from calibration.make import Request, make_int8
from calibration.record import Calibration, Settings
from export.bundle import export_bundle
from export.checkpoint.recipe import Recipe
from export.checkpoint.weights import checkpoint_weights, formula_weights

DATA = Path(__file__).parent / "data"
IMAGES = 32  # that INT8 fixtures are calibrated on


@pytest.hookimpl(optionalhook=True)  # of pytest-xdist
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Two processes share the suite: a file stays in one, and so does tests/cpp, which shares its builds."""
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            return "tests/cpp" if file.startswith("tests/cpp/") else file

    return ByFile(config, log)


def _export(factory: pytest.TempPathFactory, name: str) -> Path:
    recipe = Recipe.load(str(DATA / f"{name}.toml"))
    out = factory.mktemp(name) / "bundle"
    export_bundle(recipe, formula_weights(recipe, 0), out)
    return out


@pytest.fixture(scope="session")
def golden_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Depth 2, 256 pixels: the model of the golden cases."""
    return _export(tmp_path_factory, "golden_d2")


@pytest.fixture(scope="session")
def shared_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Depth 2 with shared AdaLN and the 512-pixel grid."""
    return _export(tmp_path_factory, "shared_d2")


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Depth 1, three scales, no L2 norm of q and k."""
    return _export(tmp_path_factory, "tiny")


@pytest.fixture(scope="session")
def demo_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trained demo model."""
    recipe = Recipe.load("var_demo")
    out = tmp_path_factory.mktemp("var_demo") / "bundle"
    export_bundle(recipe, checkpoint_weights(recipe, None, None), out)
    return out


@pytest.fixture(scope="session")
def fp16_demo_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trained demo model in FP16."""
    recipe = Recipe.load("var_demo")
    out = tmp_path_factory.mktemp("var_demo_fp16") / "bundle"
    export_bundle(recipe, checkpoint_weights(recipe, None, None), out, "fp16")
    return out


@pytest.fixture(scope="session")
def calibration_file(demo_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("calibration") / "calibration.json"
    collect(demo_bundle, path, IMAGES, Settings())
    return path


@pytest.fixture(scope="session")
def calibration(calibration_file: Path) -> Calibration:
    return Calibration.load(calibration_file)


@pytest.fixture(scope="session")
def int8_bundles(
    demo_bundle: Path, calibration_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """By target, with the default plan."""
    folder = tmp_path_factory.mktemp("int8")
    for target in ("trt", "cpu"):
        make_int8(demo_bundle, folder / target, Request(target, images=IMAGES), calibration_file)
    return {target: folder / target for target in ("trt", "cpu")}
