"""Find a file of another project that Python imports instead of a package of VAR Edge.

Standard library only: `var_edge` loads this file by its path, because `runtime` itself may be what is shadowed.
"""

from __future__ import annotations

import importlib.util
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path

HOME = Path(__file__).resolve().parents[1]
PACKAGES = ("runtime", "export", "calibration")


def shadowing() -> str | None:
    """Return one line about the first package that another file shadows, None if there is none."""
    for name in PACKAGES:
        file = found(name)
        if file is not None and file != HOME / name / "__init__.py":
            return (
                f"{file}: Python takes it for VAR Edge's package {name}; rename it, or run the command"
                f" from another folder or as var-edge COMMAND"
            )
    return None


def found(name: str) -> Path | None:
    """Return the file that `import name` runs, or has run; None if there is none."""
    loaded = sys.modules.get(name)
    spec: ModuleSpec | None = getattr(loaded, "__spec__", None) if loaded else importlib.util.find_spec(name)
    origin = spec.origin if spec else getattr(loaded, "__file__", None)
    return Path(origin).resolve() if origin else None
