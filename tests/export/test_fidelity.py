"""Fidelity: intervals hold the true mean, few images visit many classes, other settings are said."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from export.verify.fidelity import Fidelity, ScaleFidelity, Teacher, _label_step, other_settings
from export.verify.interval import Estimate, share_interval, t95
from runtime.bundle.manifest import Manifest
from runtime.drafted import DraftedPipeline
from runtime.pipeline import Pipeline
from runtime.sampling import Sampling


@pytest.mark.parametrize("freedom", [1, 2, 3, 5, 7, 15, 31, 1000])
def test_the_quantile_is_students(freedom: int) -> None:
    assert t95(freedom) == pytest.approx(stats.t.ppf(0.975, freedom), rel=0.01)


def test_a_share_has_wilsons_interval() -> None:
    for count, total in ((0, 20), (7, 9), (1900, 2030)):
        expected = stats.binomtest(count, total).proportion_ci(method="wilson")
        assert share_interval(count, total) == pytest.approx((expected.low, expected.high), abs=1e-4)


def of_images(kl: list[np.ndarray]) -> Fidelity:
    scales = [
        ScaleFidelity(side=k + 1, tokens=len(x), divergence=float(x.sum()), image_kl=x.tolist())
        for k, x in enumerate(kl)
    ]
    return Fidelity(scales, 40.0)


def test_the_interval_holds_the_true_mean_in_95_of_100_cases() -> None:
    """An image that is hard is so at all scales: the scales of one image are not independent."""
    random, counts, held = np.random.default_rng(0), (40, 20, 8), 0
    for _ in range(2000):
        hard = random.gamma(4, 0.25, counts[0])  # mean 1
        found = of_images([hard[:n] * random.gamma(9, 1 / 9, n) * (k + 1) for k, n in enumerate(counts)])
        held += abs(found.estimate.value - 2) <= found.estimate.margin
        assert found.images == 8
        assert found.deviations.sum() == pytest.approx(0, abs=1e-12)
    assert 0.93 < held / 2000 < 0.985


def test_one_image_has_no_interval() -> None:
    found = of_images([np.array([0.1, 0.2]), np.array([0.3])]).estimate
    assert found.value == pytest.approx(0.225)
    assert found.margin == float("inf")
    assert str(found) == "0.23 (one image: no interval)"
    assert str(Estimate(0.00503, 0.00024)) == "0.00503 ± 0.00024"


def test_few_images_visit_classes_from_everywhere() -> None:
    for count in (2, 3, 30, 1001):
        labels = [i * _label_step(count) % count for i in range(count)]
        assert sorted(labels) == [*range(count)]
    first = np.sort([i * _label_step(1001) % 1001 for i in range(8)])
    assert np.diff([*first, first[0] + 1001]).max() < 2.5 * 1001 / 8


def test_images_are_drawn_as_asked(demo_bundle: Path) -> None:
    pipeline = Pipeline(demo_bundle)
    teachers = [
        Teacher.draw(pipeline, 16, images=3, sizes=(4,), sampling=Sampling(cfg, top_k, 0.9))
        for cfg, top_k in ((4.0, 1), (7.0, 1), (4.0, None), (4.0, 1 << 20))
    ]
    assert {sum(batch.images is not None for batch in teacher.batches) for teacher in teachers} == {1}
    count = pipeline.manifest.model.num_classes + 1
    assert teachers[0].batches[0].labels == [i * _label_step(count) % count for i in range(4)]
    logits = [teacher.batches[0].logits[-1] for teacher in teachers]
    assert np.abs(logits[0] - logits[1]).max() > 1  # of the guidance
    tokens = [teacher.batches[0].tokens[-1] for teacher in teachers]
    assert (tokens[0] == logits[0].argmax(-1)).all()
    assert not (tokens[2] == logits[2].argmax(-1)).all()
    assert teachers[3].sampling.top_k == pipeline.manifest.model.vocab_size
    assert teachers[0].compare(pipeline).kl < 1e-6  # the candidate is guided alike


def test_a_shortcut_differs_only_at_the_scales_that_it_shortens(tiny_bundle: Path, other_tiny_bundle: Path) -> None:
    large, refiner = Pipeline(tiny_bundle), Pipeline(other_tiny_bundle)
    teacher, scales = Teacher.draw(large, 32), len(large.manifest.scales)
    for count in range(1, scales + 1):
        guided = teacher.compare(large, sampling=replace(teacher.sampling, guidance_scales=count))
        drafted = teacher.compare(DraftedPipeline(large, refiner, count))
        for found in (guided, drafted):
            assert [scale.kl > 1e-9 for scale in found.scales] == [k >= count for k in range(scales)]


def test_other_settings_than_the_calibrated_ones_are_said(int8_bundles: dict[str, Path], demo_bundle: Path) -> None:
    manifest = Manifest.load(int8_bundles["cpu"])
    assert other_settings(manifest, Sampling()) == ""
    assert other_settings(manifest, Sampling(top_k=900)) == ""
    assert (
        other_settings(manifest, Sampling(cfg=7.0, top_p=0.5)) == "calibrated for cfg 4.0, not 7.0, top_p 0.95, not 0.5"
    )
    assert other_settings(manifest, Sampling(top_k=10)).endswith("not 10")
    assert other_settings(Manifest.load(demo_bundle), Sampling(cfg=7.0)) == ""
    nothing = manifest.provenance.options | {"pictures": 0, "budget": None}  # row scales
    without = replace(manifest, provenance=replace(manifest.provenance, options=nothing))
    assert other_settings(without, Sampling(cfg=7.0)) == ""


def test_the_command_names_its_kl_and_the_other_guidance(int8_bundles: dict[str, Path], demo_bundle: Path) -> None:
    command = [sys.executable, "-m", "export.fidelity", demo_bundle, int8_bundles["cpu"], "--tokens", "16"]
    plain, strong = (
        subprocess.run([*command, "--cfg", cfg], capture_output=True, text=True, check=True).stdout for cfg in "47"
    )
    for text in (plain, strong):
        assert "| KL of a token |" in text
        assert "all scales: KL of a token" in text
        assert "mean KL of the scales" in text
        assert "±" in text
    assert "calibrated for" not in plain
    assert f"{int8_bundles['cpu']}: calibrated for cfg 4.0, not 7.0" in strong
