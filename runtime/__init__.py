"""The runtime of VAR Edge: draw images from a bundle, labels and a seed.

Applications import it as `var_edge`, which also works if they have a `runtime.py` of their own.

>>> from var_edge import Pipeline
>>> pipeline = Pipeline("build/var_d16/fp32")
>>> images = pipeline.generate(labels=["golden retriever", 980], seed=0).images  # (2, 256, 256, 3) uint8
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .errors import BundleError, NumericError, OutOfMemoryError, SettingsError, VarEdgeError
from .version import __version__

if TYPE_CHECKING:
    from .base_pipeline import Result, ScaleView
    from .drafted import DraftedPipeline
    from .pipeline import Pipeline
    from .sampling import Sampling

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


def __getattr__(name: str) -> Any:
    # Imported on first use, so that --help does not wait for numpy.
    if name in ("Pipeline", "Result", "ScaleView"):
        from . import pipeline

        return getattr(pipeline, name)
    if name == "DraftedPipeline":
        from .drafted import DraftedPipeline

        return DraftedPipeline
    if name == "Sampling":
        from .sampling import Sampling

        return Sampling
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
