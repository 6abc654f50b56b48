"""Layers are timed in the forms that run, and a layer that INT8 slows down stays float."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from calibration import make
from calibration.make import Request, make_int8
from calibration.plan import DIGITS_ROWS, FLOAT, INT8, INT8_ROWS, MIXED, ROW, SCALE, default_plan, with_overrides
from calibration.record import Settings
from calibration.sites import all_sites
from calibration.speed import Speed, _runs, measure_speed, without_slower
from runtime.bundle.manifest import Manifest
from tests.calibration.test_command import run

FC1, FC2 = "transformer: blocks.0.ffn.fc1", "transformer: blocks.0.ffn.fc2"


@pytest.mark.parametrize("scales", [MIXED, SCALE])
@pytest.mark.parametrize("fc2", [INT8_ROWS, None])
def test_both_forms_compute_the_layer(demo_bundle: Path, scales: str, fc2: str | None) -> None:
    """A form that computes something else would be timed for nothing."""
    manifest = Manifest.load(demo_bundle)
    sites = all_sites(demo_bundle, manifest)
    plan = with_overrides(sites, default_plan(sites, scales), {"fc2": fc2} if fc2 else {})
    shapes = set()
    for site in sites:
        kind = site.graph, site.op, site.weight_shape, plan[site.key]
        if plan[site.key] == FLOAT or kind in shapes:
            continue
        shapes.add(kind)
        pairs = list(_runs(demo_bundle, manifest, site, plan))
        assert len(pairs) == (len(manifest.scales) if site.graph == "transformer" else 1)
        for planned, float32 in pairs:
            (found,), (expected,) = (list(run().values()) for run in (planned, float32))
            assert found.shape == expected.shape
            assert 0 < np.sqrt(np.mean((found - expected) ** 2)) < 0.05 * np.sqrt(np.mean(expected**2)), site.key
    assert {kind for *_, kind in shapes} >= {INT8}


def test_each_planned_layer_has_a_time(tiny_bundle: Path) -> None:
    sites = all_sites(tiny_bundle, Manifest.load(tiny_bundle))
    plan = default_plan(sites, ROW)
    found = measure_speed(tiny_bundle, sites, plan, rounds=1)
    assert sorted(key for speed in found for key in speed.keys) == sorted(k for k in plan if plan[k] != FLOAT)
    assert all(speed.planned > 0 and speed.float32 > 0 for speed in found)
    assert all({plan[key] for key in speed.keys} == {speed.kind} for speed in found)


def test_a_slower_layer_stays_float(tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    speeds = [Speed((FC1,), INT8_ROWS, 0.002, 0.001), Speed((FC2,), DIGITS_ROWS, 0.001, 0.002)]
    assert without_slower({FC1: INT8_ROWS, FC2: DIGITS_ROWS}, speeds) == {FC1: FLOAT, FC2: DIGITS_ROWS}
    monkeypatch.setattr(make, "measure_speed", lambda *_: speeds)
    for overrides, kind in ((), FLOAT), ((("fc1", INT8_ROWS),), INT8_ROWS):
        request = Request("cpu", ROW, settings=Settings(channel_scaling="none"), overrides=overrides)
        out = tmp_path / kind
        make_int8(tiny_bundle, out, Request(**{**vars(request), "measure_speed": True}))
        assert FC1 in Manifest.load(out).provenance.options["plan"][kind]
        report = (out / "report.md").read_text()
        assert f"| {FC1} | 1 | int8-row | 2.00 | 1.00 | 0.50x |" in report
        assert "instruction sets: " in report


def test_the_command_measures_only_what_runs_here(tiny_bundle: Path, tmp_path: Path) -> None:
    for arguments in (["--measure-speed"], ["--measure-speed", "--target", "cpu", "--weights-only"]):
        result = run(str(tiny_bundle), "--out", str(tmp_path / "out"), *arguments)
        assert result.returncode == 2
        assert "--measure-speed times INT8 layers on this CPU; give it --target cpu" in result.stderr


def test_weights_only_on_a_cpu_warns(tiny_bundle: Path, tmp_path: Path) -> None:
    for target, warned in (("cpu", True), ("trt", False)):
        result = run(str(tiny_bundle), "--out", str(tmp_path / target), "--target", target, "--weights-only")
        assert result.returncode == 0, result.stderr
        assert ("Warning: --weights-only on a CPU saves memory, not time" in result.stderr) is warned
