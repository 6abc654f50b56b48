"""The comparison of bundles: noise is not taken for a difference, and a difference is seen."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from examples.demo_model import compare
from examples.demo_model.compare import Judged, drop, frechet_ratio

COUNT, FEATURES = 600, 12


def seen(seed: int, shift: float = 0.0, accuracy: float = 0.93) -> Judged:
    random = np.random.default_rng(seed)
    return Judged(random.standard_normal((COUNT, FEATURES)) + shift, random.random(COUNT) < accuracy)


def test_frechet_distances_have_an_interval() -> None:
    base, other = seen(0), seen(1)
    held = 0
    for seed in range(2, 22):
        ratio = frechet_ratio(seen(seed), base, other)
        held += abs(ratio.value - 1) <= ratio.margin
    assert held >= 15  # of 20 sets that differ by their seed only; their margin is of one pair of sets
    far = frechet_ratio(seen(2, shift=0.3), base, other)
    assert far.value - far.margin > 1


def test_a_drop_within_noise_has_an_interval_with_0() -> None:
    base = Judged(seen(0).features, np.arange(COUNT) % 10 > 0)
    lost, gained = (np.isin(np.arange(COUNT), [place + 10 * i for i in range(8)]) for place in (1, 0))
    assert drop(base, base).margin == 0
    found = drop(base, Judged(base.features, base.right & ~lost))
    assert found.value == pytest.approx(100 * 8 / COUNT)
    assert found.value - found.margin > 0
    found = drop(base, Judged(base.features, base.right & ~lost | gained))  # others are recognised in their place
    assert found.value == pytest.approx(0)
    assert found.margin == pytest.approx(
        100 * 1.96 * 4 / COUNT, rel=0.01
    )  # 16 images of +-1: their sum has a spread of 4


def test_the_command_sorts_by_kl_and_names_the_settings(demo_bundle: Path, int8_bundles: dict[str, Path]) -> None:
    paths = [str(path) for path in (demo_bundle, int8_bundles["cpu"], int8_bundles["trt-row"])]
    result = CliRunner().invoke(compare.main, [*paths, "--per-class", "2", "--tokens", "16"], catch_exceptions=False)
    assert "drawn with cfg 2, top-k 20, top-p 0.5; KL for cfg 4," in result.output
    rows = [line for line in result.output.splitlines() if line.startswith(f"| {int8_bundles['cpu'].parent}")]
    assert [row.split()[1] for row in rows[:2]] == [paths[2], paths[1]]  # the nearest first
    assert all(row.count("±") == 3 and (": as near" in row or ": farther" in row) for row in rows[:2])
    assert f"{paths[1]}: calibrated for cfg 4.0, not 2.0, top_k" in result.output
