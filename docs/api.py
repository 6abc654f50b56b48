"""Write the Python API reference to build/api, from the docstrings: python docs/api.py"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import pdoc

ROOT = Path(__file__).resolve().parents[1]
LAZY = ("var_edge", "runtime")  # packages that import a name when it is first asked for
MODULES = (
    *LAZY,
    "runtime.images",
    "runtime.record",
    "runtime.dump",
    "runtime.backends.base",
    "runtime.bundle.manifest",
)


def main() -> None:
    warnings.simplefilter("error")
    for package in map(__import__, LAZY):
        for name in package.__all__:
            setattr(package, name, getattr(package, name))  # pdoc reads the module's dictionary
    pdoc.render.configure(docformat="markdown", math=False, mermaid=False)
    pdoc.pdoc(*MODULES, output_directory=ROOT / "build" / "api")
    print("build/api/index.html")


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))  # the packages of this checkout
    main()
