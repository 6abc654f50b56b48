"""Ranges: streaming histograms lose nothing that matters, and every method chooses the range of its definition."""

from __future__ import annotations

import numpy as np
import pytest

from calibration.ranges import METHODS, Histogram

RANDOM = np.random.default_rng(0)


def histogram(values: np.ndarray, parts: int = 1) -> Histogram:
    found = Histogram()
    for part in np.array_split(values.astype(np.float32), parts):
        found.add(part)
    return found


def square_error(values: np.ndarray, low: float, high: float, symmetric: bool) -> float:
    step = 2 * max(-low, high) / 254 if symmetric else (high - low) / 255
    zero = 0 if symmetric else round(-low / step)
    whole = np.clip(np.round(values / step) + zero, -127 if symmetric else 0, 127 if symmetric else 255)
    return float((((whole - zero) * step - values) ** 2).mean())


def test_the_order_and_parts_of_the_data_do_not_matter() -> None:
    values = RANDOM.standard_normal(50_000) * np.exp(RANDOM.standard_normal(50_000))
    whole, parts = histogram(values), histogram(values[::-1], 13)
    assert (whole.limit, whole.low, whole.high) == (parts.limit, parts.low, parts.high)
    assert np.abs(np.cumsum(whole.counts - parts.counts)).max() <= 1  # halving rounds a value on an edge either way
    assert whole.counts.sum() == len(values)


def test_merged_histograms_are_those_of_all_data() -> None:
    small, large = RANDOM.standard_normal(5000), 37 * RANDOM.standard_normal(5000)
    for first, second in ((small, large), (large, small)):
        merged = histogram(first)
        merged.merge(histogram(second))
        whole = histogram(np.concatenate((first, second)))
        assert (merged.limit, merged.low, merged.high) == (whole.limit, whole.low, whole.high)
        assert merged.counts.sum() == 10_000
        assert np.abs(np.cumsum(merged.counts - whole.counts)).max() <= 2


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_no_number_is_refused(bad: float) -> None:
    with pytest.raises(ValueError, match="not a number"):
        Histogram().add(np.array([1.0, bad], np.float32))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("symmetric", [True, False])
def test_a_range_holds_zero_and_no_more_than_was_seen(method: str, symmetric: bool) -> None:
    for values in (RANDOM.standard_normal(9000), RANDOM.random(9000), -RANDOM.random(9000)):
        found = histogram(values)
        low, high = METHODS[method](found, symmetric)
        assert found.low <= low <= 0 <= high <= found.high
        assert high > low


@pytest.mark.parametrize("method", ["percentile", "mse"])
def test_an_outlier_is_clipped(method: str) -> None:
    values = np.append(RANDOM.standard_normal(100_000), 100.0)
    assert METHODS["minmax"](histogram(values), True)[1] == 100
    assert METHODS[method](histogram(values), True)[1] < 80


@pytest.mark.parametrize("symmetric", [True, False])
def test_mse_rounds_as_well_as_any_range_can(symmetric: bool) -> None:
    heavy = np.random.default_rng(1).standard_t(4, 200_000)
    one_sided = heavy / (1 + np.exp(-1.702 * heavy))  # nearly GELU
    for values in (heavy, one_sided):
        found = histogram(values)
        best = square_error(values, *METHODS["mse"](found, symmetric), symmetric)
        tried = [
            square_error(values, max(found.low, -limit), min(found.high, limit), symmetric)
            for limit in np.linspace(0.1, 1, 40) * max(-found.low, found.high)
        ]
        assert best < 1.1 * min(tried)
