"""Nothing leaves the device: no identifier is created, no event is stored, no connection is attempted."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from examples.int8_peers import __main__ as peers

ROOT = Path(__file__).parents[2]
IMPORT = re.compile(r"^\s*(import onnxruntime|from onnxruntime[\w.]* import)", re.MULTILINE)


def generate(bundle: Path, home: Path, *before: str) -> None:
    """Draw an image as a user whose home is this folder."""
    named = {name: str(home) for name in ("HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "TMPDIR")}
    kept = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    command = [sys.executable, "-m", "runtime.generate", "--bundle", str(bundle), "--label", "1"]
    result = subprocess.run(
        [*before, *command, "--out", str(bundle / "picture.png")],
        env=kept | named | {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
        cwd=bundle,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    assert not result.stderr


def test_no_file_appears(own_bundle: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    generate(own_bundle, home)
    assert not list(home.rglob("*"))


@pytest.mark.skipif(not shutil.which("strace"), reason="strace is not installed, which sees connections")
def test_no_connection_is_tried(own_bundle: Path, tmp_path: Path) -> None:
    home, calls = tmp_path / "home", tmp_path / "calls"
    home.mkdir()
    trace = ["strace", "-f", "-qq", "-e", "trace=socket,connect,sendto", "-o", str(calls)]
    if subprocess.run([*trace, "true"], capture_output=True).returncode:
        pytest.skip("strace may not trace here")
    generate(own_bundle, home, *trace)
    assert "AF_INET" not in calls.read_text()


def test_onnxruntime_is_imported_at_one_place() -> None:
    """An import elsewhere could run first, while telemetry is still on.

    The other tools of the comparison run in processes of their own, whose environment turns it off.
    """
    folders = ("runtime", "export", "calibration", "examples")
    files = [file for folder in folders for file in (ROOT / folder).rglob("*.py") if IMPORT.search(file.read_text())]
    assert files == [ROOT / "runtime/backends/ort.py", ROOT / "examples/int8_peers/tools.py"]
    assert peers.QUIET["ORT_DISABLE_TELEMETRY"] == "1"
