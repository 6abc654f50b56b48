"""The settings of a served model, which config.pbtxt keeps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ..drawing import Loading


@dataclass(frozen=True)
class Settings:
    """How to load the pipeline, as parameters of config.pbtxt keep it: text by name."""

    bundle: Path
    loading: Loading
    batch: int
    gpu: int | None = None  # the number of the GPU; None: the CPU, or the first GPU

    def parameters(self) -> dict[str, str]:
        """Return the parameters. Paths are relative to the model's folder."""
        loading = self.loading
        found = {
            "bundle": self.bundle,
            "backend": loading.backend,
            "threads": loading.threads,
            "verify": int(loading.verify),
            "draft": loading.draft,
            "draft_scales": loading.draft_scales,
            "batch": self.batch,
        }
        return {name: str(value) for name, value in found.items() if value is not None}

    @classmethod
    def of(cls, parameters: Mapping[str, str], folder: Path, gpu: int | None) -> Settings:
        """Return the settings of a model in `folder`."""

        def number(name: str) -> int | None:
            return int(parameters[name]) if name in parameters else None

        draft = folder / parameters["draft"] if "draft" in parameters else None
        loading = Loading(
            number("threads"), parameters["backend"], bool(number("verify")), draft, number("draft_scales")
        )
        return cls(folder / parameters["bundle"], loading, int(parameters["batch"]), gpu)
