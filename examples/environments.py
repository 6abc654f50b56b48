"""An environment of its own for packages that do not fit the project's."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path


def environment(folder: Path, *packages: str) -> Path:
    """Return the Python of the environment in `folder`, which has these packages and what they need.

    It is made if it is not there, and made again if it was made for other packages or by another Python. Raises
    CalledProcessError.
    """
    python, complete, wanted = folder / "bin" / "python", folder / "complete", json.dumps([sys.version, *packages])
    if not complete.exists() or complete.read_text() != wanted:
        print(f"installing {packages[0]} and others into {folder} (minutes)", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        pip = [python, "-m", "pip", "--disable-pip-version-check", "install", "-qq"]
        subprocess.run([*pip, *packages], check=True)
        complete.write_text(wanted)
    return python
