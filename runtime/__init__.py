"""The runtime of VAR Edge: a bundle, a label and a seed become a picture.

>>> from runtime import Pipeline
>>> pipeline = Pipeline("build/var_d16/fp32")
>>> images = pipeline.generate(labels=["golden retriever", 980], seed=0).images  # (2, 256, 256, 3) uint8
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .errors import BundleError, NumericError, SettingsError, VarEdgeError

if TYPE_CHECKING:
    from .pipeline import Pipeline

    __version__: str

__all__ = ["BundleError", "NumericError", "Pipeline", "SettingsError", "VarEdgeError", "__version__"]


def __getattr__(name: str) -> Any:
    # Loaded when asked for: --help should not wait for numpy.
    if name == "Pipeline":
        from .pipeline import Pipeline

        return Pipeline
    if name == "__version__":
        from importlib.metadata import version

        return version("var-edge")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
