"""VAR Edge for applications: a bundle, a label and a seed become a picture.

>>> from var_edge import Pipeline
>>> images = Pipeline("build/var_d16/fp32").generate(labels=["golden retriever", 980], seed=0).images

The packages behind it have everyday names, `runtime` and `export`. An application may have a `runtime.py` of its own:
then this module loads VAR Edge's under another name, and both work. `python -m var_edge export --help` runs a command
(`export`, `runtime.generate` …) from any folder, too.
"""

from __future__ import annotations

import importlib
import importlib.util
import runpy
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from runtime import (
        BundleError,
        NumericError,
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
    "NumericError",
    "Pipeline",
    "Result",
    "Sampling",
    "ScaleView",
    "SettingsError",
    "VarEdgeError",
    "__version__",
]
HOME = Path(__file__).resolve().parent
PACKAGES = ("runtime", "export", "calibration")
OTHER_NAME = "var_edge_runtime"


def shadowing() -> str | None:
    """One line about a file that Python takes for a package of VAR Edge; None if there is none."""
    for name in PACKAGES:
        found = _found(name)
        if found is not None and found != HOME / name / "__init__.py":
            return (
                f"{found}: Python takes it for VAR Edge's package {name}; rename it, or run the command"
                f" from another folder or as python -m var_edge COMMAND"
            )
    return None


def _found(name: str) -> Path | None:
    """The file that `import name` runs, or ran."""
    loaded = sys.modules.get(name)
    spec: ModuleSpec | None = getattr(loaded, "__spec__", None) if loaded else importlib.util.find_spec(name)
    origin = spec.origin if spec else getattr(loaded, "__file__", None)
    return Path(origin).resolve() if origin else None


def _runtime() -> ModuleType:
    """The package `runtime` of VAR Edge, under another name where an application has its own."""
    file = HOME / "runtime" / "__init__.py"
    if _found("runtime") == file:
        return importlib.import_module("runtime")
    if OTHER_NAME not in sys.modules:
        spec = importlib.util.spec_from_file_location(OTHER_NAME, file, submodule_search_locations=[str(file.parent)])
        assert spec is not None and spec.loader is not None
        sys.modules[OTHER_NAME] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules[OTHER_NAME]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(_runtime(), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _run(arguments: list[str]) -> None:
    """Runs a command of VAR Edge, whatever the current folder holds."""
    if not arguments or arguments[0].split(".")[0] not in PACKAGES:
        sys.exit(f"usage: python -m var_edge COMMAND [OPTIONS], a COMMAND of {', '.join(PACKAGES)}")
    sys.path.insert(0, str(HOME))
    sys.argv = arguments
    runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    _run(sys.argv[1:])
