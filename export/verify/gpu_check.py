"""The command python -m export.gpu_check: build engines on a GPU, verify them stage by stage, and benchmark them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click

from export.engine.builder import BuildError
from export.verify.artifacts import Artifact
from export.verify.html import write_files
from export.verify.report import Report
from export.verify.run import bundle_reference, verified
from runtime.backends.cuda import Gpu
from runtime.backends.trt_engine import load_tensorrt
from runtime.bundle import engine_record
from runtime.bundle.manifest import Manifest
from runtime.errors import SettingsError
from runtime.files.atomic import atomic_directory
from runtime.files.bounded import read_json
from runtime.files.outputs import REPORT
from runtime.pipeline import Pipeline
from runtime.progress import Progress

BENCHMARKS = "benchmarks.md"


def candidates(bundle: Path) -> Iterator[tuple[str, Path]]:
    """Build engines with each installed TensorRT; yield (backend, bundle) of all that runs here, also ONNX Runtime."""
    from export.engine.build import DEFAULTS, target
    from runtime.backends.ort_session import require_cuda

    for flavour in filter(find_spec, engine_record.FLAVOURS):
        # In its own process: Polygraphy works only with the TensorRT that it was imported for.
        command = [sys.executable, "-m", "export.engine", str(bundle), "--trt", flavour.replace("_", "-")]
        result = subprocess.run([*command, "--batches", "1,8"], stderr=subprocess.PIPE, text=True)
        if result.returncode:
            raise BuildError(" ".join(result.stderr.split()).removeprefix("Error: "))
        yield "tensorrt", bundle / engine_record.FOLDER / target(load_tensorrt(flavour), flavour, (), DEFAULTS).tag
    try:
        require_cuda()
        yield "onnxruntime-cuda", bundle
    except SettingsError as error:
        click.echo(str(error), err=True)


def _measured(backend: str, bundle: Path, folder: Path) -> list[str]:
    """Run the benchmark in its own process, keep its JSON in `folder`, and return its table as Markdown lines."""
    file = folder / f"bench-{backend}-{bundle.name}.json"
    command = [sys.executable, "-m", "runtime.bench", "--bundle", str(bundle), "--backend", backend]
    subprocess.run([*command, "--batches", "1,8", "--json", str(file)], check=True, stdout=subprocess.DEVNULL)
    report: dict[str, Any] = read_json(file)
    rows = [
        f"| {b['batch']} | {b['seconds']['median']:.4f} s | {b['pictures_per_second']:.2f} |" for b in report["batches"]
    ]
    return ["| batch | median | pictures/s |", "|---|---|---|", *rows, ""]


def gpu_check(gpu: Gpu, fp32: Path, bundles: Sequence[Path], folder: Path, images: int, progress: Progress) -> Report:
    """Verify and measure everything that `candidates` finds, and write the report to `folder`. Raises VarEdgeError."""
    entries, lines = [], [f"# {gpu.name}, sm_{gpu.capability.replace('.', '')}", ""]
    with atomic_directory(folder, REPORT) as out:
        first = Artifact(bundles[0], Manifest.load(bundles[0]))
        reference = bundle_reference(fp32, first, images, progress)
        for backend, directory in (found for bundle in bundles for found in candidates(bundle)):
            artifact = Artifact(directory, Manifest.load(directory, verify=False), backend == "tensorrt")
            pipeline = Pipeline(directory, backend, finite=False)
            entries.append(verified(artifact, pipeline, reference, progress))
            lines += [f"## {pipeline.backend.name}: {artifact.name}", ""]
            del pipeline  # its memory, before the benchmark takes its own
            lines += _measured(backend, directory, out)
        result = Report(reference, entries)
        write_files(result, out)
        (out / BENCHMARKS).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return result
