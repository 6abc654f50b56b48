"""A calibration can be resumed and merged, and serves only the bundle that it was collected on."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from calibration.collect import FEWEST, collect
from calibration.ranges import CalibrationError
from calibration.record import Calibration, Settings
from runtime.bundle.manifest import Manifest
from runtime.errors import BundleError, SettingsError
from runtime.pipeline import Pipeline

QUICK = Settings(seed=3)


class Stop(Exception):
    pass


def test_an_interrupted_run_goes_on_and_ends_the_same(tiny_bundle: Path, tmp_path: Path) -> None:
    collect(tiny_bundle, tmp_path / "whole.json", 12, QUICK)

    def stop(stage: str, done: int, total: int) -> None:
        if stage == "collecting ranges" and done == 5:
            raise Stop

    with pytest.raises(Stop):
        collect(tiny_bundle, tmp_path / "parts.json", 12, QUICK, progress=stop)
    assert Calibration.load(tmp_path / "parts.json").pictures == [(0, 5)]
    drawn = []
    collect(tiny_bundle, tmp_path / "parts.json", 12, QUICK, progress=lambda stage, done, total: drawn.append(done))
    assert drawn == [*range(5, 12)]  # neither the channel scaling nor the first five again
    assert (tmp_path / "parts.json").read_bytes() == (tmp_path / "whole.json").read_bytes()


def test_two_machines_share_the_work(tiny_bundle: Path, tmp_path: Path) -> None:
    whole = collect(tiny_bundle, tmp_path / "whole.json", 16, QUICK)
    merged = collect(tiny_bundle, tmp_path / "first.json", 8, QUICK)
    other = collect(tiny_bundle, tmp_path / "second.json", 8, QUICK, first=8)
    merged.merge(other, "second.json")
    assert merged.pictures == whole.pictures == [(0, 16)]
    for name, histograms in whole.histograms.items():
        for expected, found in zip(histograms, merged.histograms[name], strict=True):
            assert (found.limit, found.low, found.high) == (expected.limit, expected.low, expected.high)
            assert np.abs(np.cumsum(found.counts - expected.counts)).max() <= 4
    with pytest.raises(CalibrationError, match=r"second\.json: holds pictures that are already collected"):
        merged.merge(other, "second.json")


def test_what_is_collected_is_what_the_graph_computes(tiny_bundle: Path, tmp_path: Path) -> None:
    """The embedding of the last scale's codes, computed by the runtime, lies within the collected range."""
    found = collect(tiny_bundle, tmp_path / "c.json", FEWEST, Settings(channel_scaling="none"))
    scales = Manifest.load(tiny_bundle).scales
    for name, histograms in found.histograms.items():
        assert len(histograms) == (len(scales) if name.startswith("transformer") else 1), name
        assert all(h.high > h.low for h in histograms), name
    tokens = [h.counts.sum() for h in found.histograms["transformer: head input"]]
    width = Manifest.load(tiny_bundle).model.width
    assert tokens == [FEWEST * 2 * scale.tokens * width for scale in scales]  # both guidance halves of every token


def test_another_bundle_is_refused(tiny_bundle: Path, golden_bundle: Path, tmp_path: Path) -> None:
    collect(tiny_bundle, tmp_path / "c.json", FEWEST, QUICK)
    with pytest.raises(CalibrationError, match=r"c\.json: collected on another bundle: .* differs; remove it"):
        collect(golden_bundle, tmp_path / "c.json", FEWEST, QUICK)
    with pytest.raises(CalibrationError, match=r"c\.json: collected with alpha 0.5, asked for 0.7"):
        collect(tiny_bundle, tmp_path / "c.json", FEWEST, replace(QUICK, alpha=0.7))


def test_too_few_pictures_are_refused(tiny_bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"--images: expected 8 or more, found 2"):
        collect(tiny_bundle, tmp_path / "c.json", 2, QUICK)
    assert not list(tmp_path.iterdir())


def test_an_int8_bundle_is_not_calibrated(int8_bundles: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="starts from a bundle in fp32, found int8 for cpu"):
        collect(int8_bundles["cpu"], tmp_path / "c.json", FEWEST, QUICK)


@pytest.mark.parametrize("damage", [b"", b"{", b'{"schema_version": 9}', b'{"schema_version": 1}'])
def test_a_damaged_file_is_refused(tiny_bundle: Path, tmp_path: Path, damage: bytes) -> None:
    (tmp_path / "c.json").write_bytes(damage)
    with pytest.raises(BundleError, match=r"c\.json"):
        collect(tiny_bundle, tmp_path / "c.json", FEWEST, QUICK)


def test_damaged_counts_are_refused(calibration_file: Path, tmp_path: Path) -> None:
    document = json.loads(calibration_file.read_text())
    next(iter(document["histograms"].values()))[0]["counts"] = "many"
    (tmp_path / "c.json").write_text(json.dumps(document))
    with pytest.raises(CalibrationError, match=r"c\.json: damaged"):
        Calibration.load(tmp_path / "c.json")


def test_a_model_that_overflows_is_named(tiny_bundle: Path, tmp_path: Path) -> None:
    """NaN in FP32 has a cause that no range can cure."""
    bundle = tmp_path / "bundle"
    shutil.copytree(tiny_bundle, bundle)
    path = bundle / "weights.safetensors"
    header = json.loads(path.read_bytes()[8 : 8 + int.from_bytes(path.read_bytes()[:8], "little")])
    start = 8 + int.from_bytes(path.read_bytes()[:8], "little") + header["blocks.0.ffn.fc1.bias"]["data_offsets"][0]
    data = bytearray(path.read_bytes())
    data[start : start + 4] = np.float32(np.inf).tobytes()
    path.write_bytes(data)
    manifest = Manifest.load(tiny_bundle)
    manifest.files[path.name] = type(manifest.files[path.name]).of(path)
    manifest.write(bundle)
    with pytest.raises(CalibrationError, match=r"blocks\.0\.ffn\.fc2 input: not a number at scale 0"):
        collect(bundle, tmp_path / "c.json", FEWEST, QUICK)
    assert Pipeline(bundle)  # the bundle itself is well-formed
