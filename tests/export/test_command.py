"""python -m export for users: errors take one line, and no half-written bundle is left."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from export import sizes
from export.bundle import export_bundle
from export.checkpoint.recipe import Recipe
from export.checkpoint.weights import formula_weights
from export.room import check_room
from runtime import Pipeline
from runtime.backends.ort_session import Session
from runtime.bundle.manifest import Manifest
from runtime.bundle.precision import Precision
from runtime.errors import SettingsError
from tests.conftest import DATA

TINY = ["--model", str(DATA / "tiny.toml"), "--random-weights", "0"]


def run(*arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "export", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, **options)  # type: ignore[call-overload]


def refused(result: subprocess.CompletedProcess[str], *parts: str) -> None:
    assert result.returncode != 0
    assert "Traceback" not in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1 or "Usage:" in result.stderr, result.stderr
    for part in parts:
        assert part in result.stderr


@pytest.mark.slow
def test_a_bundle_is_written_with_its_provenance(tmp_path: Path) -> None:
    result = run(*TINY, "--out", str(tmp_path / "bundle"), "--batches", "2,1")
    assert result.returncode == 0, result.stderr
    manifest = Manifest.load(tmp_path / "bundle")
    assert {f"transformer_b{b}_0{k}" for b in (1, 2) for k in range(3)} < manifest.graphs.keys()
    assert manifest.provenance.source == {"random_weights": 0, "vqvae_sha256": manifest.vqvae_sha256}
    assert manifest.provenance.options == {"precision": "fp32", "batches": [1, 2], "smooth": False}
    assert os.listdir(tmp_path) == ["bundle"]


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--model", "var_d17", "--random-weights", "0"], ["no recipe 'var_d17'", "var_d16"]),
        (["--model", "var_d16", "--var-checkpoint", "nothing.pth"], ["--var-checkpoint: no file nothing.pth"]),
        ([*TINY, "--var-checkpoint", "x.pth"], ["--random-weights takes the place of both checkpoints"]),
        ([*TINY, "--batches", "0"], ["--batches: expected at most 64 numbers of 1 to 1024"]),
        ([*TINY, "--precision", "int3"], ["int3"]),
    ],
)
def test_wrong_arguments(arguments: list[str], parts: list[str], tmp_path: Path) -> None:
    refused(run(*arguments, "--out", str(tmp_path / "bundle")), *parts)
    assert not list(tmp_path.iterdir())


def test_a_folder_of_something_else_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "holiday.jpg").touch()
    refused(run(*TINY, "--out", str(tmp_path)), "expected a new or empty folder or an exported bundle")
    assert (tmp_path / "holiday.jpg").exists()


def test_too_little_disk_is_said_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=10**8)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    recipe = Recipe.load("var_d16")
    with pytest.raises(SettingsError, match=r"the bundle needs 1\.\d\d GB, .* has 0\.10 GB; free some space"):
        export_bundle(recipe, formula_weights(recipe, 0), tmp_path / "bundle")


@pytest.mark.parametrize("precision", [Precision.FP32, Precision.FP16])
def test_the_disk_must_hold_the_bundle_of_this_precision_and_a_margin(
    precision: Precision, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, usage = Recipe.load("var_d16"), shutil.disk_usage(tmp_path)
    size = sizes.bundle(recipe.model, {Precision.FP32: sizes.FP32, Precision.FP16: sizes.FP16}[precision])
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=round(1.011 * size)))
    check_room(recipe, tmp_path / "bundle", precision)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=round(1.009 * size)))
    with pytest.raises(SettingsError, match="free some space"):
        check_room(recipe, tmp_path / "bundle", precision)


def test_too_little_memory_is_said_before_the_work(tmp_path: Path) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal:        2000000 kB\nMemAvailable:     500000 kB\n")
    with pytest.raises(SettingsError, match=r"var_d30: the export needs 0\.8\d GB of memory, 0\.51 GB are available"):
        check_room(Recipe.load("var_d30"), tmp_path / "bundle", Precision.FP32, meminfo)


@pytest.mark.slow
def test_a_disk_that_fills_up_leaves_nothing(tmp_path: Path) -> None:
    def small_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))  # as a full disk: the write itself fails

    result = run(*TINY, "--out", str(tmp_path / "bundle"), preexec_fn=small_files)
    refused(result, "File too large")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_nan_in_a_checkpoint_leaves_nothing(tmp_path: Path) -> None:
    from export.checkpoint.weights import CheckpointError, Weights

    recipe = Recipe.load(str(DATA / "tiny.toml"))
    good = formula_weights(recipe, 0)
    shape = good.read("head.weight").shape
    bad = Weights(good.readers | {"head.weight": lambda: np.full(shape, np.nan)}, good.source)
    with pytest.raises(CheckpointError, match=r"head\.weight: holds NaN"):
        export_bundle(recipe, bad, tmp_path / "bundle")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("seconds", [1.5, 3.5])  # importing, tracing
def test_ctrl_c_leaves_nothing(tmp_path: Path, seconds: float) -> None:
    command = [sys.executable, "-m", "export", *TINY, "--out", str(tmp_path / "bundle")]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    time.sleep(seconds)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    assert stderr.strip() == "interrupted"
    assert not list(tmp_path.iterdir())


def test_ctrl_c_in_a_destructor_is_not_lost() -> None:
    code = """
import signal, time
from runtime.cli import reports_errors

class Late:
    def __del__(self):
        signal.raise_signal(signal.SIGINT)

@reports_errors
def command():
    late = Late()
    del late
    time.sleep(5)
    print("went on")

command()
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (result.returncode, result.stdout, result.stderr.strip()) == (130, "", "interrupted")


def test_without_the_export_extra_it_is_named() -> None:
    code = "import sys; sys.modules['onnx'] = None; import export.__main__ as m; m.main(sys.argv[1:])"
    command = [sys.executable, "-c", code, *TINY, "--out", "never"]
    refused(subprocess.run(command, capture_output=True, text=True), "onnx", "pip install 'var-edge[export]'")


def test_help_is_quick() -> None:
    """It would be slow if it imported torch."""
    code = "import sys, export.__main__ as m; sys.exit('torch' in sys.modules or 'onnx' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_exporting_again_keeps_what_others_put_there(tmp_path: Path, tiny_bundle: Path) -> None:
    """Engines and calibrations are kept; a warning names those that were made for other weights."""
    bundle, recipe = tmp_path / "bundle", Recipe.load(str(DATA / "tiny.toml"))
    shutil.copytree(tiny_bundle, bundle)
    files = Manifest.load(tiny_bundle).files
    (bundle / "notes.txt").write_text("mine")
    hashes = {"bundle": {name: files[name].sha256 for name in ("decoder.onnx", "weights.safetensors")}}
    (bundle / "calibration.json").write_text(json.dumps(hashes))
    (bundle / "engines" / "gpu").mkdir(parents=True)
    (bundle / "engines" / "gpu" / "decoder.engine").write_text("hours of work")
    notes: list[str] = []
    for seed, expected in ((0, ["engines/gpu"]), (1, ["calibration.json, engines/gpu"])):
        notes.clear()
        export_bundle(recipe, formula_weights(recipe, seed), bundle, warn=notes.append)
        assert [note.split("kept ")[1].split(", made")[0] for note in notes] == expected
        assert (bundle / "engines" / "gpu" / "decoder.engine").read_text() == "hours of work"
        assert json.loads((bundle / "calibration.json").read_text()) == hashes
        assert (bundle / "notes.txt").read_text() == "mine"
        assert Manifest.load(bundle).provenance.source["random_weights"] == seed
        assert (Manifest.load(bundle).files == files) == (seed == 0)


def test_a_bundle_of_links_into_a_store(tmp_path: Path, tiny_bundle: Path) -> None:
    """A bundle as in a hub's cache generates images, is observed as by calibration, and is simulated."""
    store, bundle = tmp_path / "blobs", tmp_path / "snapshot"
    store.mkdir()
    bundle.mkdir()
    for i, path in enumerate(sorted(tiny_bundle.iterdir())):
        (store / f"disk{i % 2}").mkdir(exist_ok=True)  # also spread over several
        shutil.copyfile(path, store / f"disk{i % 2}" / f"{i:040x}")
        (bundle / path.name).symlink_to(f"../blobs/disk{i % 2}/{i:040x}")
    drawn, expected = (Pipeline(place).generate(1, top_k=9) for place in (bundle, tiny_bundle))
    assert np.array_equal(drawn.images, expected.images)
    content = (bundle / "decoder.onnx").read_bytes()
    Session(bundle, Manifest.load(bundle).graphs["decoder"], threads=1, content=content)
