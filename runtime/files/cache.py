"""The user's directory for files that can be made again at any time."""

from __future__ import annotations

import os
from pathlib import Path


def cache_directory() -> Path | None:
    """Return `var-edge` in $XDG_CACHE_HOME or ~/.cache; None if the user has no home, as in some containers."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(base):  # such a value is to be ignored
        base = os.path.expanduser("~/.cache")
    return Path(base) / "var-edge" if os.path.isabs(base) else None
