"""python -m calibration for users: errors take one line, and nothing is left half-written."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from runtime.bundle.manifest import Manifest


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "calibration", *arguments], capture_output=True, text=True, timeout=300
    )


def test_the_command_makes_a_bundle(tiny_bundle: Path, tmp_path: Path) -> None:
    result = run(str(tiny_bundle), "--out", str(tmp_path / "out"), "--target", "cpu", "--images", "8",
                 "--calibration", str(tmp_path / "c.json"), "--set", "fc2=float")  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert "int8 for cpu" in result.stdout
    manifest = Manifest.load(tmp_path / "out")
    assert manifest.precision == "int8 for cpu"
    assert "transformer: blocks.0.ffn.fc2" in manifest.provenance.options["plan"]["float"]
    drawn = subprocess.run(
        [sys.executable, "-m", "runtime.generate", "--bundle", tmp_path / "out", "--label", "1", "--top-k", "4",
         "--out", tmp_path / "p.png"], capture_output=True, text=True,
    )  # fmt: skip
    assert drawn.returncode == 0, drawn.stderr
    assert (tmp_path / "p.png").is_file()


def test_row_scales_need_no_images(tiny_bundle: Path, tmp_path: Path) -> None:
    out, file = tmp_path / "out", tmp_path / "c.json"
    result = run(str(tiny_bundle), "--out", str(out), "--calibration", str(file))
    assert result.returncode == 0, result.stderr
    assert "3 int8-row" in result.stdout
    assert "3 int8x2-row" in result.stdout
    assert not file.exists()
    assert Manifest.load(out).provenance.options["calibration"]["smoothing"] == "none"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--alpha", "nan"], "'--alpha': expected a number of 0 to 1, found 'nan'"),
        (["--scales", "mixed", "--images", "3"], "--images: expected 8 or more, found 3"),
        (["--set", "fc2"], "--set: expected LAYER=KIND such as fc2=float, found 'fc2'"),
        (["--set", "fc9=float"], "--set fc9=float: expected a layer of the plan"),
        (["--scales", "mixed", "--images", "8", "--budget", "1e-9"], "two digits for every layer still cost a KL of"),
        (["--weights-only", "--budget", "0.1"], "--weights-only has no activations to plan for"),
        (["--merge", "absent.json"], "absent.json: there is no calibration"),
        (["--images", "8"], "--images 8: no layer has calibrated ranges"),
        (["--weights-only", "--images", "8"], "--images 8: no layer has calibrated ranges"),
        (["--scales", "token"], "'token' is not one of 'row', 'scale', 'mixed'"),
        (["--set", "conv1=int8-row"], "conv1 is a convolution, which has no rows"),
    ],
)
def test_bad_input_is_one_line(tiny_bundle: Path, tmp_path: Path, arguments: list[str], message: str) -> None:
    result = run(
        str(tiny_bundle), "--out", str(tmp_path / "out"), "--calibration", str(tmp_path / "c.json"), *arguments
    )
    assert result.returncode != 0
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "out").exists()
    if "--budget" not in arguments:  # measured after hours of collecting, which are kept
        assert not (tmp_path / "c.json").exists()


def test_what_is_no_bundle_is_refused(tmp_path: Path) -> None:
    result = run(str(tmp_path), "--out", str(tmp_path / "out"))
    assert result.returncode == 1
    assert result.stderr == f"Error: {tmp_path}: no manifest.json, so not a bundle; make onnx makes one\n"


def test_other_directories_are_not_overwritten(tiny_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    result = run(str(tiny_bundle), "--out", str(tmp_path / "mine"))
    assert "expected a new or empty folder or an INT8 bundle" in result.stderr
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.tex"]


def test_a_calibration_of_another_bundle_is_refused(tiny_bundle: Path, golden_bundle: Path, tmp_path: Path) -> None:
    file = tmp_path / "c.json"
    bundle = tmp_path / "bundle"
    shutil.copytree(tiny_bundle, bundle)
    assert (
        run(
            str(bundle), "--out", str(tmp_path / "a"), "--calibration", str(file), "--scales", "mixed", "--images", "8"
        ).returncode
        == 0
    )
    result = run(
        str(golden_bundle),
        "--out",
        str(tmp_path / "b"),
        "--calibration",
        str(file),
        "--scales",
        "mixed",
        "--images",
        "8",
    )
    assert f"{file}: collected on another bundle:" in result.stderr
    assert not (tmp_path / "b").exists()


def test_help_is_quick() -> None:
    code = "import sys, calibration.__main__ as m; sys.exit('torch' in sys.modules or 'onnx' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
