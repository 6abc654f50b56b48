"""Sensitivity: the bundle loses as much as was measured, and a budget is kept or refused."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from calibration import bench as benches
from calibration.bench import FEWEST, PILOT, Bench
from calibration.budget import expected, within_budget
from calibration.make import Request, make_int8
from calibration.plan import DIGITS, FLOAT, INT8, INT8_ROWS, ROW, SCALE, default_plan, overridden
from calibration.record import Calibration, Settings, fingerprint
from calibration.sensitivity import ALL_DIGITS, Layer, Sensitivity, measure
from calibration.sites import Site, all_sites
from export.verify.fidelity import compare
from export.verify.interval import Estimate
from runtime.bundle.manifest import Manifest
from runtime.errors import BundleError
from runtime.pipeline import Pipeline

BUDGET = 0.011


@pytest.fixture(scope="module", autouse=True)
def few_images() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(benches, "WITHIN", 0.3)
        yield


@pytest.fixture(scope="module")
def planned(demo_bundle: Path, calibration_file: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The bundle, and what the command says of it. One layer is set by the user."""
    out = tmp_path_factory.mktemp("planned") / "int8"
    request = Request("trt", SCALE, images=32, budget=BUDGET, overrides=(("blocks.1.attn.proj", FLOAT),))
    return out, make_int8(demo_bundle, out, request, calibration_file)


@pytest.fixture(scope="module")
def sensitivity(planned: tuple[Path, str], demo_bundle: Path, calibration_file: Path) -> Sensitivity:
    """The measurement in the file that `planned` wrote: nothing is measured again."""
    seen: list[str] = []
    found = measure(
        Bench(
            demo_bundle,
            all_sites(demo_bundle, Manifest.load(demo_bundle)),
            Calibration.load(calibration_file),
            "trt",
            SCALE,
            "mse",
        ),
        calibration_file.with_name("trt-scale-mse-sensitivity.json"),
        lambda stage, done, total: seen.append(stage),
    )
    assert not [stage for stage in seen if stage.startswith("measuring")]
    return found


def test_the_bundle_keeps_the_budget(planned: tuple[Path, str], demo_bundle: Path) -> None:
    found = compare(Pipeline(demo_bundle), Pipeline(planned[0]), tokens=400)
    assert 0.3 * BUDGET < found.kl_of_scales < 1.15 * BUDGET  # measured on other images than the plan
    assert found.psnr > 39


def test_expected_and_measured_kl_are_said(
    planned: tuple[Path, str], demo_bundle: Path, sensitivity: Sensitivity
) -> None:
    out, sentence = planned
    kinds = Manifest.load(out).provenance.options["plan"]
    plan = {key: kind for kind, keys in kinds.items() for key in keys}
    assert plan["transformer: blocks.1.attn.proj"] == FLOAT
    said = f"mean KL of the scales {expected(plan, sensitivity)} expected, "
    assert said in sentence
    report = (out / "report.md").read_text()
    assert f"| expected: the sum of its layers | {expected(plan, sensitivity)} | {sensitivity.images} |" in report
    measured = sentence.split("expected, ")[1].split(" measured")[0]
    assert f"| measured, on other images | {measured} | 16 |" in report
    assert "for cfg 4, top-k 900, top-p 0.95" in report
    value, margin = map(float, measured.split(" ± "))
    again = compare(Pipeline(demo_bundle), Pipeline(out), tokens=400, seed=9000)
    assert abs(again.kl_of_scales - value) < 2 * margin + again.estimate.margin
    assert Manifest.load(out).provenance.options["budget"] == BUDGET


def test_every_layer_is_measured_and_reported(
    planned: tuple[Path, str], demo_bundle: Path, sensitivity: Sensitivity
) -> None:
    sites = all_sites(demo_bundle, Manifest.load(demo_bundle))
    assert set(sensitivity.layers) == {ALL_DIGITS, *(site.key for site in sites)}
    report = (planned[0] / "report.md").read_text()
    assert all(f"| {site.key} |" in report for site in sites)
    assert "condition: blocks.0.ada_lin.1" in report  # a third of the weights
    with Image.open(planned[0] / "sensitivity.png") as picture:
        assert len(np.unique(picture.convert("L").resize((40, 40)))) > 20
    assert {"report.md", "sensitivity.png"} < Manifest.load(planned[0]).files.keys()


def test_layers_differ_as_they_should(sensitivity: Sensitivity) -> None:
    layers = sensitivity.layers
    worst = max(layer.kl_of_scales for layer in layers.values())
    assert layers["condition: blocks.3.ada_lin.1"].kl_of_scales < worst / 50
    assert layers["transformer: blocks.0.ffn.fc1"].kl_of_scales > worst / 5
    last, first = layers["decoder: decoder.conv_out"].psnr, layers["decoder: decoder.mid.block_1.conv1"].psnr
    assert last is not None and first is not None
    assert last < first - 10  # the last convolution's result is the image


def test_plans_follow_the_budget(demo_bundle: Path, sensitivity: Sensitivity) -> None:
    sites = all_sites(demo_bundle, Manifest.load(demo_bundle))
    plan = default_plan(sites, SCALE)
    counts = []
    for budget in (0.05, 0.012, 0.006, 0.003):
        changed = within_budget(sites, plan, sensitivity, budget)
        assert expected(changed, sensitivity).value <= budget
        counts.append(sum(kind == DIGITS for kind in changed.values()))
    assert counts == sorted(counts)
    assert counts[0] < counts[-1]
    with pytest.raises(BundleError, match="--budget 1e-05: two digits for every layer still cost a KL of"):
        within_budget(sites, plan, sensitivity, 1e-5)


def test_what_the_user_sets_is_counted(demo_bundle: Path, sensitivity: Sensitivity) -> None:
    """Layers that are set to one digit cost what they cost; others get two digits in their place."""
    sites = all_sites(demo_bundle, Manifest.load(demo_bundle))
    fixed = overridden(sites, {"blocks.0.ffn.fc2": INT8, "blocks.3.ffn.fc2": INT8})
    plan = default_plan(sites, SCALE)
    loss = sum(sensitivity.layers[key].kl_of_scales for key in fixed)
    base = expected(plan, sensitivity).value
    assert expected(plan | fixed, sensitivity).value == pytest.approx(base + loss)
    budget = sensitivity.layers[ALL_DIGITS].kl_of_scales + 1.05 * loss
    changed = within_budget(sites, plan | fixed, sensitivity, budget, fixed)
    assert {changed[key] for key in fixed} == {INT8}
    assert loss < expected(changed, sensitivity).value <= budget
    with pytest.raises(BundleError, match="two digits for every layer that --set leaves still cost a KL of"):
        within_budget(sites, plan | fixed, sensitivity, 0.9 * loss, fixed)


def test_the_worst_convolutions_stay_float() -> None:
    def convolution(psnr: float) -> Layer:
        return Layer((), (), (), (), psnr)

    layers = {ALL_DIGITS: Layer((0.0,), (0.0,), (1.0,), (0.0, 0.0), None), "decoder: a": convolution(35.0)}
    layers |= {"decoder: b": convolution(45.0), "decoder: c": convolution(46.0)}
    plan = {key: INT8 for key in layers if key != ALL_DIGITS}
    sites = [Site("decoder", key[-1], "Conv", "", (), "", (), "", (8, 8, 3, 3)) for key in plan]
    changed = within_budget(sites, plan, Sensitivity(3, {}, "trt", SCALE, "mse", {}, (), 2, layers), 0.01)
    assert changed == {"decoder: a": FLOAT, "decoder: b": INT8, "decoder: c": INT8}


def test_values_of_another_calibration_are_measured_anew(demo_bundle: Path, tmp_path: Path) -> None:
    """The file names neither the images nor the guidance, so its content decides."""
    manifest, path = Manifest.load(demo_bundle), tmp_path / "sensitivity.json"
    sites = [site for site in all_sites(demo_bundle, manifest) if site.name == "blocks.0.attn.proj"]
    known = Calibration(fingerprint(manifest), Settings(channel_scaling="none"), [(0, 128)])

    def measured(calibration: Calibration, **form: str) -> list[str]:
        stages: list[str] = []
        options = {"target": "trt", "scales": ROW, "method": "mse", **form}
        bench = Bench(demo_bundle, sites, calibration, **options)
        found = measure(bench, path, lambda stage, done, total: stages.append(stage))
        assert all(layer.kl for layer in found.layers.values())
        return [stage for stage in stages if stage.startswith("measuring ")]

    both = [f"measuring {key}" for key in (ALL_DIGITS, sites[0].key)]
    assert measured(known) == both
    assert measured(known) == []
    for other in (
        replace(known, pictures=[(0, 16)]),
        replace(known, settings=replace(known.settings, cfg=7.0)),
        replace(known, bundle=dict.fromkeys(known.bundle, "0" * 64)),
    ):
        assert measured(other) == both
        assert measured(other) == []
    assert measured(known, target="cpu") == both
    path.write_text('{"schema_version": 2}')
    with pytest.raises(BundleError, match=r"sensitivity\.json: expected schema_version 3, found 2; remove it"):
        measured(known)


@pytest.mark.parametrize(
    ("margin", "seconds", "images"),
    [
        (0.05, 0.01, FEWEST),  # images hardly differ
        (0.2, 0.01, 4 * PILOT),  # twice the margin that is asked for
        (0.2, 1.0, 10),  # 100 plans of 10 images take 1000 seconds
        (0.2, 100.0, FEWEST),  # as many as give an interval
    ],
)
def test_images_are_enough_or_as_many_as_time_allows(
    margin: float, seconds: float, images: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Quick(Bench):
        one_digit = property(lambda self: {})  # type: ignore[assignment]

        def __init__(self) -> None:
            pass

        def _drawn(self, images: int, *_: object) -> int:  # type: ignore[override]
            return images

        def _compared(self, plan: object, teacher: int) -> SimpleNamespace:  # type: ignore[override]
            clock.append(clock[-1] + teacher * seconds)
            return SimpleNamespace(images=teacher, estimate=Estimate(1.0, margin))

    clock = [0.0]
    monkeypatch.setattr(benches, "time", SimpleNamespace(monotonic=lambda: clock[-1]))
    monkeypatch.setattr(benches, "WITHIN", 0.1)
    monkeypatch.setattr(benches, "LONGEST", 1000.0)
    assert Quick().enough_images(100) == images


def test_layers_in_rows_count_as_measured() -> None:
    layer = Layer((0.25, 0.75), (0.0, 0.0), (1.0, 1.0), (0.03, -0.03), None)
    layers = {ALL_DIGITS: Layer((0.1, 0.1), (0.0, 0.0), (1.0, 1.0), (0.01, -0.01), None), "transformer: a": layer}
    found = Sensitivity(3, {}, "trt", ROW, "mse", {}, (), 2, layers)
    for kind, value, spread in ((INT8_ROWS, 0.6, 0.04), (INT8, 0.6, 0.04), (DIGITS, 0.1, 0.01), (FLOAT, 0.1, 0.01)):
        estimate = expected({"transformer: a": kind}, found)
        assert estimate.value == pytest.approx(value)
        assert estimate.margin == pytest.approx(12.706 * np.sqrt(2 * 2 * spread**2))  # Student's t of two images
