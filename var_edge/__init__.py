"""VAR Edge for applications: a bundle, a label and a seed become an image.

>>> from var_edge import Pipeline
>>> images = Pipeline("build/var_d16/fp32").generate(labels=["golden retriever", 980], seed=0).images

The packages behind it have everyday names, `runtime` and `export`. An application may have a `runtime.py` of its own:
then this module loads VAR Edge's under another name, and both work. `var-edge export --help`, or
`python -m var_edge export --help`, runs a command from any folder, too.
"""

from __future__ import annotations

import importlib
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from runtime import (
        BundleError,
        DraftedPipeline,
        NumericError,
        OutOfMemoryError,
        Pipeline,
        Result,
        Sampling,
        ScaleView,
        SettingsError,
        VarEdgeError,
        __version__,
    )

__all__ = [
    "BundleError",
    "DraftedPipeline",
    "NumericError",
    "OutOfMemoryError",
    "Pipeline",
    "Result",
    "Sampling",
    "ScaleView",
    "SettingsError",
    "VarEdgeError",
    "__version__",
]
HOME = Path(__file__).resolve().parents[1]
OTHER_NAME = "var_edge_runtime"


def _load(name: str, file: Path) -> ModuleType:
    """Return the module or package of `file` as `name`, whatever else Python finds."""
    if name not in sys.modules:
        folders = [str(file.parent)] if file.stem == "__init__" else None
        spec = spec_from_file_location(name, file, submodule_search_locations=folders)
        assert spec is not None and spec.loader is not None
        sys.modules[name] = module = module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules[name]


def _shadowing() -> ModuleType:
    return _load("var_edge._shadowing", HOME / "runtime" / "shadowing.py")


def shadowing() -> str | None:
    """Return one line about a file that Python takes for a package of VAR Edge; None if there is none."""
    line: str | None = _shadowing().shadowing()
    return line


def _runtime() -> ModuleType:
    """Return VAR Edge's package `runtime`, under another name where an application has its own."""
    file = HOME / "runtime" / "__init__.py"
    if _shadowing().found("runtime") == file:
        return importlib.import_module("runtime")
    return _load(OTHER_NAME, file)


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(_runtime(), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
