"""Make the environment that the page of runtime.web is tested in: python tests/web_environment.py

It is not .venv, because Gradio brings fifty packages and an older Pillow than the one the other tests run with.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / ".venv" / "web"
PYTHON = FOLDER / "bin" / "python"
DONE = FOLDER / ".installed"


def make() -> None:
    """Install VAR Edge with the extra `web` into `FOLDER`, if it is not there. Raises CalledProcessError."""
    if DONE.exists():
        return
    subprocess.run([sys.executable, "-m", "venv", "--clear", FOLDER], check=True)
    options = ["-qq", "--disable-pip-version-check", "--editable"]
    subprocess.run([PYTHON, "-m", "pip", "install", *options, f"{ROOT}[web]"], check=True)
    DONE.touch()


if __name__ == "__main__":
    try:
        make()
    except subprocess.CalledProcessError:
        sys.exit("not installed: Gradio; the tests of the page install it when they run, or are skipped")
