"""Generations of the C++ runtime and of the Python one, to be compared."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from runtime.bundle.manifest import Manifest
from runtime.pipeline import Pipeline


@dataclass(frozen=True)
class Case:
    labels: tuple[int, ...]
    seed: int
    cfg: float
    top_k: int
    top_p: float
    batch: int = 8
    smooth: bool = False

    @property
    def line(self) -> str:
        """As tests/dump.cpp reads it."""
        labels = ",".join(map(str, self.labels))
        return f"{labels} {self.seed} {self.cfg!r} {self.top_k} {self.top_p!r} {self.batch} {self.smooth:d}\n"


@dataclass(frozen=True)
class Drawn:
    tokens: np.ndarray  # (N, T) int32
    images: np.ndarray  # (N, H, W, 3) uint8


def drawn_by_cpp(
    program: Sequence[str | Path], bundle: Path, cases: Sequence[Case], out: Path, timeout: float = 600
) -> list[Drawn]:
    """`program` is tests/dump.cpp, with what it runs under."""
    model = Manifest.load(bundle, verify=False).model
    result = subprocess.run(
        [*map(str, program), str(bundle), str(out)],
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


def drawn_by_python(bundle: Path, cases: Sequence[Case]) -> list[Drawn]:
    pipeline, found = Pipeline(bundle, "onnxruntime"), []
    for case in cases:
        settings = {"batch": case.batch, "smooth": case.smooth}
        result = pipeline.generate(list(case.labels), case.seed, case.cfg, case.top_k, case.top_p, **settings)  # type: ignore[arg-type]
        found.append(Drawn(np.concatenate(result.tokens, axis=1), result.images))
    return found


def assert_equal(expected: Sequence[Drawn], found: Sequence[Drawn], cases: Sequence[Case]) -> None:
    for case, a, b in zip(cases, expected, found, strict=True):
        np.testing.assert_array_equal(a.tokens, b.tokens, err_msg=str(case))
        np.testing.assert_array_equal(a.images, b.images, err_msg=str(case))
