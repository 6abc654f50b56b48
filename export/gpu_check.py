"""python -m export.gpu_check: what only a GPU can show. Builds engines, compares them with ONNX Runtime, measures."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click
import numpy as np

from export import fidelity
from export.builder import BuildError
from export.fidelity import top_k
from runtime import engine_record
from runtime.backends.cuda import Cuda
from runtime.backends.trt_engine import load_tensorrt
from runtime.cli import reports_errors
from runtime.errors import SettingsError
from runtime.files import whole_directory
from runtime.pipeline import Pipeline, ScaleView

NO_GPU = 3  # exit code, so that a script can tell it from a failed check
LEAST_AGREEMENT, LARGEST_KL, LEAST_PSNR = 0.995, 1e-4, 45.0  # of FP16 against FP32
LEAST_COSINE = 0.999


@dataclass(frozen=True)
class StageError:
    """How far a tensor of one stage is from ONNX Runtime's."""

    tensor: str
    scale: int | None
    largest: float
    cosine: float


def stage_errors(reference: Pipeline, candidate: Pipeline, label: int = 0, seed: int = 0) -> Iterator[StageError]:
    """Every output of every graph, for the same tokens.

    Both pipelines keep their arrays in a `Wiring`.
    """
    tokens = reference.generate([label], seed, top_k=top_k(reference)).tokens
    keep = [np.ones_like(maps, bool) for maps in tokens]
    seen: list[dict[tuple[str, int | None], np.ndarray]] = []
    for pipeline in (reference, candidate):
        found: dict[tuple[str, int | None], np.ndarray] = {}

        def collect(view: ScaleView, found: dict[tuple[str, int | None], np.ndarray] = found) -> None:
            batch = view.backend.batch  # type: ignore[attr-defined]
            if view.index == 0:
                for name in ("modulation", "head_modulation"):
                    found[name, None] = batch.arrays.download(batch.wiring.condition.outputs[name])
            for stage in batch.wiring.steps[view.index]:
                for name, array in stage.outputs.items():
                    found[name, view.index] = batch.arrays.download(array)

        settings = {"keep": keep, "kept_tokens": tokens, "on_scale": collect}
        result = pipeline.generate([label], seed, top_k=top_k(pipeline), **settings)  # type: ignore[arg-type]
        found["image", None] = result.images
        if "encoder" in pipeline.manifest.graphs:
            found["encoder tokens", None] = np.concatenate(pipeline.encode(result.images), axis=1)
        seen.append(found)
    for (name, scale), expected in seen[0].items():
        a, b = (array.astype(np.float64).ravel() for array in (expected, seen[1][name, scale]))
        norms = float(np.linalg.norm(a) * np.linalg.norm(b))
        yield StageError(
            name, scale, float(np.abs(a - b).max()), float(a @ b) / norms if norms else float(np.array_equal(a, b))
        )


def compared(reference: Pipeline, candidate: Pipeline, tokens: int) -> tuple[list[str], list[str]]:
    """Lines of the report, and what failed."""
    errors = list(stage_errors(reference, candidate))
    worst = {name: max((e for e in errors if e.tensor == name), key=lambda e: e.largest) for name in _names(errors)}
    lines = ["| output | largest error | at scale | smallest cosine |", "|---|---|---|---|"]
    failed = []
    for name, error in worst.items():
        cosine = min(e.cosine for e in errors if e.tensor == name)
        where = "" if error.scale is None else str(error.scale)
        lines.append(f"| {name} | {error.largest:.4g} | {where} | {cosine:.6f} |")
        if not cosine >= LEAST_COSINE and name not in ("drawn", "encoder tokens"):  # token numbers are no vectors
            failed.append(f"{name}: expected a cosine of {LEAST_COSINE} or more, found {cosine:.6f}")
    result = fidelity.compare(reference, candidate, tokens)
    for k, scale in enumerate(result.scales):
        if not (scale.agreement >= LEAST_AGREEMENT and scale.kl <= LARGEST_KL):
            failed.append(f"scale {k}: agreement {scale.agreement:.2%}, mean KL {scale.kl:.1e}")
    if not result.psnr >= LEAST_PSNR:
        failed.append(f"pictures: expected {LEAST_PSNR} dB or more, found {result.psnr:.1f} dB")
    return [*lines, "", fidelity.table(result), ""], failed


def _names(errors: list[StageError]) -> list[str]:
    """Of all outputs; keys and values of many blocks stand for themselves."""
    return list(dict.fromkeys(error.tensor for error in errors))


def candidates(fp16: Path) -> Iterator[tuple[str, Path]]:
    """(backend, bundle) of everything this machine can run: engines of each TensorRT here, built now; ONNX Runtime."""
    from export.engine import DEFAULTS, target
    from runtime.backends.ort_session import require_cuda

    for flavour in filter(find_spec, engine_record.FLAVOURS):
        # In a process of its own: Polygraphy works with the TensorRT it was imported for, and with no other.
        command = [sys.executable, "-m", "export.engine", str(fp16), "--trt", flavour.replace("_", "-")]
        result = subprocess.run([*command, "--batches", "1,8"], stderr=subprocess.PIPE, text=True)
        if result.returncode:
            raise BuildError(" ".join(result.stderr.split()).removeprefix("Error: "))
        yield "tensorrt", fp16 / engine_record.FOLDER / target(load_tensorrt(flavour), flavour, (), DEFAULTS).tag
    try:
        require_cuda()
        yield "onnxruntime-cuda", fp16
    except SettingsError as error:
        click.echo(str(error), err=True)


def _measured(backend: str, bundle: Path, folder: Path) -> list[str]:
    """The benchmark in a process of its own, its JSON kept in `folder`."""
    file = folder / f"bench-{backend}-{bundle.name}.json"
    command = [sys.executable, "-m", "runtime.bench", "--bundle", str(bundle), "--backend", backend]
    subprocess.run([*command, "--batches", "1,8", "--json", str(file)], check=True, stdout=subprocess.DEVNULL)
    report: dict[str, Any] = json.loads(file.read_text())
    rows = [
        f"| {b['batch']} | {b['seconds']['median']:.4f} s | {b['pictures_per_second']:.2f} |" for b in report["batches"]
    ]
    return ["| batch | median | pictures/s |", "|---|---|---|", *rows, ""]


@click.command(context_settings={"show_default": True})
@click.argument("fp32", type=click.Path(path_type=Path))
@click.argument("fp16", type=click.Path(path_type=Path))
@click.option("--report", type=click.Path(path_type=Path), default=Path("build/gpu-check"), help="Directory to write.")
@click.option("--tokens", type=click.IntRange(min=1), default=2000, help="Tokens compared at every scale.")
@reports_errors
def main(fp32: Path, fp16: Path, report: Path, tokens: int) -> None:
    """Build and run everything this machine's GPU allows, against the bundle FP32 on ONNX Runtime's CPU."""
    try:
        gpu = Cuda().gpu
    except SettingsError as error:
        click.echo(f"gpu-check: {error}; nothing was checked", err=True)
        sys.exit(NO_GPU)
    reference, problems = Pipeline(fp32, "onnxruntime"), []
    report.parent.mkdir(parents=True, exist_ok=True)
    with whole_directory(report) as folder:
        lines = [f"# GPU check on {gpu.name}, sm_{gpu.capability.replace('.', '')}", ""]
        for backend, bundle in candidates(fp16):
            pipeline = Pipeline(bundle, backend)
            comparison, failed = compared(reference, pipeline, tokens)
            problems += [f"{pipeline.backend.name}: {text}" for text in failed]
            lines += [f"## {pipeline.backend.name}", "", *comparison]
            del pipeline  # its memory, before the benchmark takes its own
            lines += _measured(backend, bundle, folder)
        lines += ["## Result", "", *([f"- FAILED {text}" for text in problems] or ["all passed"])]
        (folder / "report.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    click.echo(f"{report / 'report.md'}: {len(problems)} failed")
    sys.exit(bool(problems))


if __name__ == "__main__":
    main()
