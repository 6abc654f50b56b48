"""Paths with spaces and quotes reach the commands unchanged."""

from __future__ import annotations

import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def commands(goal: str, **variables: str) -> list[list[str]]:
    """Return the arguments of the commands that `make` would run."""
    assignments = [f"{name}={value}" for name, value in variables.items()]
    made = ["make", "--dry-run", "--no-print-directory", goal, "PYTHON=true", "INSTALLED=Makefile", *assignments]
    result = subprocess.run(made, cwd=ROOT, capture_output=True, text=True, check=True)
    return [shlex.split(line) for line in result.stdout.replace("\\\n", " ").splitlines()]


@pytest.mark.skipif(not shutil.which("make"), reason="make is not installed")
@pytest.mark.parametrize(
    ("goal", "variables", "expected"),
    [
        (
            "onnx",
            {"MODEL": "my models/it's  mine.toml", "VAR_CHECKPOINT": "a b.pth", "VAE_CHECKPOINT": 'c "d".pth'},
            "-m export --model|my models/it's  mine.toml|--precision|fp32|--var-checkpoint|a b.pth|--vae-checkpoint|"
            'c "d".pth|--out|build/it\'s  mine/fp32',
        ),
        (
            "verify",
            {"MODEL": "a b.toml", "AGAINST": "c d"},
            "-m export.verify|build/a b|--against|c d|--report|build/a b/verify",
        ),
        (
            "bench",
            {"MODEL": "a b.toml", "COMPARE": "pytorch", "VAR_CHECKPOINT": "c d"},
            "-m runtime.bench --bundle|build/a b/fp32|--compare|pytorch|--var-checkpoint|c d|--json|"
            "build/a b/bench_fp32.json|--plot|build/a b/bench_fp32.png",
        ),
    ],
)
def test_names_with_spaces(goal: str, variables: dict[str, str], expected: str) -> None:
    first, *rest = expected.split("|")
    assert commands(goal, **variables)[-1] == ["true", *first.split(" "), *rest]
