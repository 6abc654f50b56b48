"""A reader reads any file or refuses it in one line: a short run of python -m tests.fuzz."""

from __future__ import annotations

import subprocess
import sys

import pytest

INPUTS = 3000


@pytest.mark.skipif(sys.platform != "linux", reason="limits of memory and processor time are those of Linux")
def test_damaged_files_are_read_or_refused() -> None:
    """Run in a separate process with limited memory and time."""
    result = subprocess.run(
        [sys.executable, "-m", "tests.fuzz", "--inputs", str(INPUTS), "--seed", "1"], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.count("the others refused") == 13
