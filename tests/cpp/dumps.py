"""Generations of the C++ runtime and of the Python one, to be compared."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from runtime.bundle.manifest import Manifest
from runtime.drafted import DraftedPipeline
from runtime.pipeline import Pipeline
from runtime.sampling import Sampling


@dataclass(frozen=True)
class Case:
    labels: tuple[int, ...]
    seed: int
    cfg: float
    top_k: int
    top_p: float
    batch: int = 8
    smooth: bool = False
    guidance_scales: int | None = None
    draft_scales: int = 0
    decoder: str = "full"

    @property
    def line(self) -> str:
        """As tests/dump.cpp reads it."""
        labels = ",".join(map(str, self.labels))
        sampling = f"{self.cfg!r} {self.top_k} {self.top_p!r} {self.batch} {self.smooth:d}"
        shortcuts = f"{self.guidance_scales or 0} {self.draft_scales} {self.decoder == 'tiny':d}"
        return f"{labels} {self.seed} {sampling} {shortcuts}\n"


@dataclass(frozen=True)
class Drawn:
    tokens: np.ndarray  # (N, T) int32
    images: np.ndarray  # (N, H, W, 3) uint8


def drawn_by_cpp(
    program: Sequence[str | Path],
    bundle: Path,
    cases: Sequence[Case],
    out: Path,
    timeout: float = 600,
    draft: Path | None = None,
) -> list[Drawn]:
    """`program` is tests/dump.cpp, with what it runs under. `draft` is the bundle of the model that drafts."""
    model = Manifest.load(bundle, verify=False).model
    once_with_all_threads = ("1", "0", str(draft)) if draft else ()
    result = subprocess.run(
        [*map(str, program), str(bundle), str(out), *once_with_all_threads],
        input="".join(case.line for case in cases),
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert result.returncode == 0, result.stderr
    found, data, position = [], out.read_bytes(), 0
    for case in cases:
        n, side = len(case.labels), model.image_size
        tokens = np.frombuffer(data, "<i4", n * model.tokens, position).reshape(n, model.tokens)
        position += tokens.nbytes
        images = np.frombuffer(data, np.uint8, n * side * side * 3, position).reshape(n, side, side, 3)
        position += images.nbytes
        found.append(Drawn(tokens, images))
    assert position == len(data)
    return found


def drawn_by_python(bundle: Path, cases: Sequence[Case], draft: Path | None = None) -> list[Drawn]:
    refiner, found = Pipeline(bundle, "onnxruntime"), []
    large = Pipeline(draft, "onnxruntime") if draft else None
    for case in cases:
        pipeline = DraftedPipeline(large, refiner, case.draft_scales) if large else refiner
        sampling = Sampling(case.cfg, case.top_k, case.top_p, case.smooth, case.guidance_scales, case.decoder)
        result = pipeline.generate(list(case.labels), case.seed, batch=case.batch, sampling=sampling)
        found.append(Drawn(np.concatenate(result.tokens, axis=1), result.images))
    return found


def assert_equal(expected: Sequence[Drawn], found: Sequence[Drawn], cases: Sequence[Case]) -> None:
    for case, a, b in zip(cases, expected, found, strict=True):
        np.testing.assert_array_equal(a.tokens, b.tokens, err_msg=str(case))
        np.testing.assert_array_equal(a.images, b.images, err_msg=str(case))
