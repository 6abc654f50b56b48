"""Make the environment that the page of runtime.web is tested in: python -m tests.web_environment

It is not .venv, because Gradio brings fifty packages and an older Pillow than the one the other tests run with.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from examples.environments import environment
from runtime.files.bounded import read_toml

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / ".venv" / "web"


def packages(project: Path = ROOT / "pyproject.toml") -> list[str]:
    """Return what `pip install var-edge[web]` brings."""
    wanted = read_toml(project)["project"]
    return [*wanted["optional-dependencies"]["web"], *wanted["dependencies"]]


def make() -> Path:
    """Return the Python of the environment, which runs VAR Edge from `ROOT`. Raises CalledProcessError."""
    return environment(FOLDER, *packages())


if __name__ == "__main__":
    try:
        make()
    except subprocess.CalledProcessError:
        sys.exit("not installed: Gradio; the tests of the page install it when they run, or are skipped")
