"""Sensitivity: the bundle loses as much as was measured, and a budget is kept or refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from calibration.make import Request, make_int8
from calibration.plan import DIGITS, FLOAT, INT8, SCALE, default_plan
from calibration.record import Calibration
from calibration.sensitivity import ALL_DIGITS, Layer, Sensitivity, measure, within_budget
from calibration.sites import Site, all_sites
from export.verify.fidelity import compare
from runtime.bundle.manifest import Manifest
from runtime.errors import BundleError
from runtime.pipeline import Pipeline

BUDGET = 0.011


@pytest.fixture(scope="module")
def planned(demo_bundle: Path, calibration_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("planned") / "int8"
    make_int8(demo_bundle, out, Request("trt", SCALE, images=32, budget=BUDGET), calibration_file)
    return out


@pytest.fixture(scope="module")
def sensitivity(planned: Path, demo_bundle: Path, calibration_file: Path) -> Sensitivity:
    """The measurement in the file that `planned` wrote: nothing is measured again."""
    seen: list[str] = []
    found = measure(
        demo_bundle,
        calibration_file.with_name("trt-scale-mse-sensitivity.json"),
        Calibration.load(calibration_file),
        "trt",
        SCALE,
        "mse",
        lambda stage, done, total: seen.append(stage),
    )
    assert not seen
    return found


def test_the_bundle_keeps_the_budget(planned: Path, demo_bundle: Path) -> None:
    found = compare(Pipeline(demo_bundle), Pipeline(planned), tokens=400)
    kl = np.mean([scale.kl for scale in found.scales])  # as the budget counts: every scale alike
    assert 0.3 * BUDGET < kl < 1.15 * BUDGET  # measured on other images than the plan
    assert found.psnr > 39


def test_every_layer_is_measured_and_reported(planned: Path, demo_bundle: Path, sensitivity: Sensitivity) -> None:
    sites = all_sites(demo_bundle, Manifest.load(demo_bundle))
    assert set(sensitivity.layers) == {ALL_DIGITS, *(site.key for site in sites)}
    report = (planned / "report.md").read_text()
    assert all(f"| {site.key} |" in report for site in sites)
    assert "condition: blocks.0.ada_lin.1" in report  # a third of the weights
    with Image.open(planned / "sensitivity.png") as picture:
        assert len(np.unique(picture.convert("L").resize((40, 40)))) > 20
    assert {"report.md", "sensitivity.png"} < Manifest.load(planned).files.keys()


def test_layers_differ_as_they_should(sensitivity: Sensitivity) -> None:
    layers = sensitivity.layers
    worst = max(layer.mean_kl for layer in layers.values())
    assert layers["condition: blocks.3.ada_lin.1"].mean_kl < worst / 50
    assert layers["transformer: blocks.0.ffn.fc1"].mean_kl > worst / 5
    last, first = layers["decoder: decoder.conv_out"].psnr, layers["decoder: decoder.mid.block_1.conv1"].psnr
    assert last is not None and first is not None
    assert last < first - 10  # the last convolution's result is the image


def test_plans_follow_the_budget(demo_bundle: Path, sensitivity: Sensitivity) -> None:
    sites = all_sites(demo_bundle, Manifest.load(demo_bundle))
    plan = default_plan(sites, SCALE)
    counts = []
    for budget in (0.05, 0.012, 0.006, 0.003):
        changed, expected = within_budget(sites, plan, sensitivity, budget)
        assert expected <= budget
        counts.append(sum(kind == DIGITS for kind in changed.values()))
    assert counts == sorted(counts)
    assert counts[0] < counts[-1]
    with pytest.raises(BundleError, match="--budget 1e-05: two digits for every layer still cost a KL of"):
        within_budget(sites, plan, sensitivity, 1e-5)


def test_the_worst_convolutions_stay_float() -> None:
    def convolution(psnr: float) -> Layer:
        return Layer((), (), (), psnr)

    layers = {ALL_DIGITS: Layer((0.0,), (0.0,), (1.0,), None), "decoder: a": convolution(35.0)}
    layers |= {"decoder: b": convolution(45.0), "decoder: c": convolution(46.0)}
    plan = {key: INT8 for key in layers if key != ALL_DIGITS}
    sites = [Site("decoder", key[-1], "Conv", "", (), "", (), "", (8, 8, 3, 3)) for key in plan]
    changed, _ = within_budget(sites, plan, Sensitivity(2, {}, "trt", SCALE, "mse", {}, layers), 0.01)
    assert changed == {"decoder: a": FLOAT, "decoder: b": INT8, "decoder: c": INT8}
