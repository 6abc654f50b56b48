"""Bundles that many tests share, each made once and then copied into every process that wants it."""

from __future__ import annotations

import inspect
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import runtime.backends.ort  # noqa: F401  before any import of onnxruntime: its telemetry is off
from calibration.collect import collect
from calibration.make import Request, make_int8
from calibration.plan import MIXED, SCALE
from calibration.record import Calibration, Settings
from export.bundle import export_bundle
from export.checkpoint.recipe import Recipe
from export.checkpoint.weights import Weights, checkpoint_weights, formula_weights
from runtime.files import locks

DATA = Path(__file__).parent / "data"
IMAGES = 32  # that INT8 fixtures are calibrated on
Shared = Callable[[str, Callable[[Path], object]], Path]


@pytest.hookimpl(optionalhook=True)  # of pytest-xdist
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Two processes share the suite: a file stays in one, and so does tests/cpp, which shares its builds."""
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            return "tests/cpp" if file.startswith("tests/cpp/") else file

    config.option.loadscopereorder = False  # it goes by the number of tests, which says little about their time
    return ByFile(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long ones first, so that no process is left alone with one at the end: compiling, exporting, then the rest."""
    order = ("tests/cpp/", "tests/export/", "tests/calibration/")

    def place(item: pytest.Item) -> int:
        return next((i for i, folder in enumerate(order) if item.nodeid.startswith(folder)), len(order))

    items.sort(key=place)  # which keeps the order within each
    for item in items:
        if is_fast(item):
            item.add_marker("fast")


def is_fast(item: pytest.Item) -> bool:
    """Whether a test belongs to the fast tier: it neither exports, compiles or trains, nor says that it takes long."""
    if not isinstance(item, pytest.Function):
        return False
    exports = "shared" in item.fixturenames  # every exported bundle is a fixture that uses this one
    exports |= "request" in inspect.signature(item.function).parameters  # to get a bundle by its name
    apart = item.nodeid.startswith(("tests/cpp/", "tests/demo_model/", "tests/fuzz/"))
    return not exports and not apart and not any(item.iter_markers("slow")) and not any(item.iter_markers("full"))


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Shared:
    """shared(name, make) -> this process's copy of what make(folder) wrote, in whichever process was first to want it.

    A copy, because some commands write beside what they read.
    """
    own = tmp_path_factory.getbasetemp()
    common = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "shared"
    common.mkdir(exist_ok=True)

    def get(name: str, make: Callable[[Path], object]) -> Path:
        lock = _locked(common / f"{name}.lock")
        try:
            if not (common / name).exists():
                shutil.rmtree(common / "unfinished" / name, ignore_errors=True)  # of a test that failed
                (common / "unfinished").mkdir(exist_ok=True)
                make(common / "unfinished" / name)
                (common / "unfinished" / name).rename(common / name)
        finally:
            locks.release(lock)
        copy = own / "copies" / name
        return copy if copy.exists() else shutil.copytree(common / name, copy, symlinks=True)

    return get


def _locked(path: Path) -> int | None:
    path.touch()
    while True:
        try:
            return locks.take(path)
        except BlockingIOError:
            time.sleep(0.2)


def _exported(recipe: str, smooth: bool = False, precision: str = "fp32") -> Callable[[Path], object]:
    """A function that exports a recipe of tests/data with the weights of --random-weights 0."""
    loaded = Recipe.load(str(DATA / f"{recipe}.toml"))
    return lambda out: export_bundle(loaded, formula_weights(loaded, 0), out, precision, smooth=smooth)


def _demo(smooth: bool = False, precision: str = "fp32", recipe: str = "var_demo") -> Callable[[Path], object]:
    """A function that exports a trained demo model."""
    loaded = Recipe.load(recipe)
    return lambda out: export_bundle(loaded, checkpoint_weights(loaded, None, None), out, precision, smooth=smooth)


@pytest.fixture(scope="session")
def golden_bundle(shared: Shared) -> Path:
    """Depth 2, 256 pixels, with the graph of smooth sampling: the model of the golden cases."""
    return shared("golden_d2", _exported("golden_d2", smooth=True))


@pytest.fixture(scope="session")
def shared_bundle(shared: Shared) -> Path:
    """Depth 2 with shared AdaLN and the 512-pixel grid."""
    return shared("shared_d2", _exported("shared_d2"))


@pytest.fixture(scope="session")
def tiny_bundle(shared: Shared) -> Path:
    """Depth 1, three scales, no L2 norm of q and k."""
    return shared("tiny", _exported("tiny"))


@pytest.fixture(scope="session")
def fp16_tiny_bundle(shared: Shared) -> Path:
    """The same in FP16, with the graph of smooth sampling."""
    return shared("tiny_fp16", _exported("tiny", smooth=True, precision="fp16"))


@pytest.fixture(scope="session")
def other_tiny_bundle(shared: Shared) -> Path:
    """The same as tiny_bundle but for its head, whose weights are 2 % larger."""
    recipe = Recipe.load(str(DATA / "tiny.toml"))
    weights = formula_weights(recipe, 0)

    def larger() -> np.ndarray:
        return np.asarray(weights.read("head.weight") * np.float32(1.02))

    other = Weights({**weights.readers, "head.weight": larger}, {"random_weights": 0, "head": "larger"})
    return shared("tiny_other", lambda out: export_bundle(recipe, other, out))


@pytest.fixture(scope="session")
def demo_bundle(shared: Shared) -> Path:
    """The trained demo model."""
    return shared("var_demo", _demo())


@pytest.fixture(scope="session")
def small_demo_bundle(shared: Shared) -> Path:
    """The smaller demo model, which refines what the other one drafts."""
    return shared("var_demo_small", _demo(recipe="var_demo_small"))


@pytest.fixture(scope="session")
def smooth_demo_bundle(shared: Shared) -> Path:
    """The trained demo model with the graph of smooth sampling."""
    return shared("var_demo_smooth", _demo(smooth=True))


@pytest.fixture(scope="session")
def fp16_demo_bundle(shared: Shared) -> Path:
    """The trained demo model in FP16."""
    return shared("var_demo_fp16", _demo(precision="fp16"))


@pytest.fixture(scope="session")
def fp16_engines(fp16_demo_bundle: Path, shared: Shared) -> tuple[Path, Path]:
    """A copy of fp16_demo_bundle, and the engines that the command built in it."""

    def make(folder: Path) -> None:
        shutil.copytree(fp16_demo_bundle, folder)
        command = [sys.executable, "-m", "export.engine", str(folder)]
        result = subprocess.run(command, capture_output=True, text=True, timeout=600)
        assert result.returncode == 0, result.stderr
        assert "built" in result.stdout

    bundle = shared("fp16_engines", make)
    (engines,) = (bundle / "engines").iterdir()
    return bundle, engines


@pytest.fixture(scope="session")
def calibration_file(demo_bundle: Path, shared: Shared) -> Path:
    """What `collect` saw in the demo model. A copy of this process, which measurements are written beside."""

    def make(folder: Path) -> None:
        folder.mkdir()
        collect(demo_bundle, folder / "calibration.json", IMAGES, Settings())

    return shared("calibration", make) / "calibration.json"


@pytest.fixture(scope="session")
def calibration(calibration_file: Path) -> Calibration:
    return Calibration.load(calibration_file)


@pytest.fixture(scope="session")
def int8_bundles(demo_bundle: Path, calibration_file: Path, shared: Shared) -> dict[str, Path]:
    """With the default plans: "trt" and "cpu" have calibrated scales, "trt-row" and "cpu-row" row scales.

    The convolutions of all four have calibrated scales.
    """

    def make(folder: Path) -> None:
        for target in ("trt", "cpu"):
            for name, scales in ((target, SCALE), (f"{target}-row", MIXED)):
                make_int8(demo_bundle, folder / name, Request(target, scales, images=IMAGES), calibration_file)

    folder = shared("int8", make)
    return {name: folder / name for name in ("trt", "cpu", "trt-row", "cpu-row")}
