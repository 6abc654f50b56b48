"""A calibration of the demo model and what comes of it, made once."""

from __future__ import annotations

from pathlib import Path

import pytest

from calibration.collect import collect
from calibration.make import Request, make_int8
from calibration.record import Calibration, Settings

IMAGES = 32


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
