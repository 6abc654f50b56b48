"""Layers are timed in the forms that run, and a layer that INT8 slows down stays float."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest

from calibration import make, speed
from calibration.make import Request, make_int8
from calibration.plan import DIGITS_ROWS, FLOAT, INT8, INT8_ROWS, MIXED, ROW, SCALE, Plan, default_plan, overridden
from calibration.record import Settings
from calibration.sites import Site, all_sites
from calibration.speed import Run, Speed, _runs, measure_speed, slower
from runtime.bundle.manifest import Manifest
from tests.calibration.test_command import run

FC1, FC2 = "transformer: blocks.0.ffn.fc1", "transformer: blocks.0.ffn.fc2"


@pytest.mark.parametrize("scales", [MIXED, SCALE])
@pytest.mark.parametrize("fc2", [INT8_ROWS, None])
def test_both_forms_compute_the_layer(demo_bundle: Path, scales: str, fc2: str | None) -> None:
    """A form that computes something else would be timed for nothing."""
    manifest = Manifest.load(demo_bundle)
    sites = all_sites(demo_bundle, manifest)
    plan = default_plan(sites, scales) | overridden(sites, {"fc2": fc2} if fc2 else {})
    shapes = set()
    for site in sites:
        kind = site.graph, site.op, site.weight_shape, plan[site.key]
        if plan[site.key] == FLOAT or kind in shapes:
            continue
        shapes.add(kind)
        pairs = list(_runs(demo_bundle, manifest, site, plan, 1))
        assert len(pairs) == (len(manifest.scales) if site.graph == "transformer" else 1)
        for planned, float32 in pairs:
            (found,), (expected,) = (list(run().values()) for run in (planned, float32))
            assert found.shape == expected.shape
            assert 0 < np.sqrt(np.mean((found - expected) ** 2)) < 0.05 * np.sqrt(np.mean(expected**2)), site.key
    assert {kind for *_, kind in shapes} >= {INT8}


def test_each_planned_layer_has_a_time(tiny_bundle: Path) -> None:
    sites = all_sites(tiny_bundle, Manifest.load(tiny_bundle))
    plan = default_plan(sites, ROW)
    found = measure_speed(tiny_bundle, sites, plan, rounds=2)
    assert sorted(key for speed in found for key in speed.keys) == sorted(k for k in plan if plan[k] != FLOAT)
    assert all(min(speed.planned + speed.float32) > 0 and len(speed.planned) == 2 for speed in found)
    assert all({plan[key] for key in speed.keys} == {speed.kind} for speed in found)


def test_the_times_are_of_the_forms_and_each_comes_first_in_turn(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The layer fc1 takes 3 ms as planned and 1 ms in FP32; the others take no time."""
    order: list[str] = []

    def form(site: Site, name: str, seconds: float) -> Run:
        def run() -> dict[str, np.ndarray]:
            if site.key == FC1:
                order.append(name)
                time.sleep(seconds)
            return {}

        return run

    def runs(bundle: Path, manifest: Manifest, site: Site, plan: Plan, batch: int) -> list[tuple[Run, Run]]:
        assert batch == 3
        return [(form(site, "planned", 0.003), form(site, "float", 0.001))]

    monkeypatch.setattr(speed, "_runs", runs)
    sites = all_sites(tiny_bundle, Manifest.load(tiny_bundle))
    found = measure_speed(tiny_bundle, sites, default_plan(sites, ROW), batch=3, rounds=4)
    (fc1,) = (each for each in found if FC1 in each.keys)
    assert min(fc1.planned) >= 0.003 > 0.002 > np.median(fc1.float32) >= 0.001
    firsts = order[2::2]  # without the first round
    assert sorted(firsts) == ["float", "float", "planned", "planned"]
    assert FC1 in slower(found)


def of(keys: tuple[str, ...], kind: str, planned: float, float32: float, noise: float = 0.0) -> Speed:
    """Return four rounds; in one of them planned takes `noise` seconds more, and in another less."""
    return Speed(keys, kind, (planned, planned + noise, planned, planned - noise), (float32,) * 4)


def test_noise_and_trifles_keep_a_layer_int8() -> None:
    large = of(("large",), INT8_ROWS, 1.0, 2.0)
    assert slower([large, of(("a",), INT8_ROWS, 0.2, 0.1)]) == ["a"]
    assert slower([large, of(("a",), INT8_ROWS, 0.2, 0.196)]) == []  # within the margin
    assert slower([large, of(("a",), INT8_ROWS, 0.11, 0.1, noise=0.03)]) == []  # faster in a quarter of the rounds
    assert slower([large, of(("a",), INT8_ROWS, 0.002, 0.001)]) == []  # saves 1 ms of a second
    assert slower([large, of(tuple("abcdefghijkl"), INT8_ROWS, 0.002, 0.001)]) == list("abcdefghijkl")


def test_a_slower_layer_stays_float(tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    speeds = [of((FC1,), INT8_ROWS, 0.002, 0.001), of((FC2,), DIGITS_ROWS, 0.001, 0.002)]
    monkeypatch.setattr(make, "measure_speed", lambda *_: speeds)
    for overrides, kind in ((), FLOAT), ((("fc1", INT8_ROWS),), INT8_ROWS):
        request = Request("cpu", ROW, settings=Settings(channel_scaling="none"), overrides=overrides, with_speed=True)
        out, warnings = tmp_path / kind, []
        make_int8(tiny_bundle, out, request, warn=warnings.append)
        assert FC1 in Manifest.load(out).provenance.options["plan"][kind]
        count, named = ("1", FC1) if kind == FLOAT else ("0", "none")
        assert warnings == [f"{count} layer(s) stay float, because INT8 is slower here: {named}"]
        report = (out / "report.md").read_text()
        assert f"| {FC1} | 1 | int8-row | 2.00 | 1.00 | 0.50x (0.50 to 0.50) | yes |" in report
        assert "instruction sets of the processor: " in report


def test_the_command_measures_only_what_runs_here(tiny_bundle: Path, tmp_path: Path) -> None:
    for arguments in (["--measure-speed"], ["--measure-speed", "--target", "cpu", "--weights-only"]):
        result = run(str(tiny_bundle), "--out", str(tmp_path / "out"), *arguments)
        assert result.returncode == 2
        assert "--measure-speed times INT8 layers on this CPU; give it --target cpu" in result.stderr


def test_weights_only_on_a_cpu_warns(tiny_bundle: Path, tmp_path: Path) -> None:
    for target, warned in (("cpu", True), ("trt", False)):
        result = run(str(tiny_bundle), "--out", str(tmp_path / target), "--target", target, "--weights-only")
        assert result.returncode == 0, result.stderr
        assert (
            "Warning: --weights-only on a CPU is slower than FP32; without it INT8 is smaller and faster"
            in result.stderr
        ) is warned
