"""The command python -m export.gpu_check: build engines on a GPU, verify them stage by stage, and benchmark them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click

from export.engine.builder import BuildError
from export.verify.artifacts import Artifact
from export.verify.html import HTML, write_files
from export.verify.report import Report
from export.verify.run import bundle_reference, verified
from runtime import limits
from runtime.backends.cuda import Cuda
from runtime.backends.trt_engine import load_tensorrt
from runtime.bundle import engine_record
from runtime.bundle.manifest import Manifest
from runtime.cli import FILE, Number, command, progress_bar, reports_errors
from runtime.errors import SettingsError
from runtime.files.atomic import atomic_directory
from runtime.files.bounded import read_json
from runtime.files.outputs import REPORT, check_directory
from runtime.pipeline import Pipeline

NO_GPU = 3  # exit code without a GPU; a failed check exits with 1
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


@command()
@click.argument("fp32", type=FILE)
@click.argument("bundles", metavar="BUNDLE…", nargs=-1, required=True, type=FILE)
@click.option("--report", type=FILE, default=Path("build/gpu-check"), help="Directory to write.")
@click.option("--pictures", type=Number(int, limits.VERIFIED), default=32, help="Pictures to verify with.")
@reports_errors
def main(fp32: Path, bundles: tuple[Path, ...], report: Path, pictures: int) -> None:
    """Build and run everything that this machine's GPU can make of each BUNDLE, against FP32 on the CPU."""
    check_directory(report, REPORT, fp32, *bundles)
    try:
        gpu = Cuda().gpu
    except SettingsError as error:
        click.echo(f"gpu-check: {error}; nothing was checked", err=True)
        sys.exit(NO_GPU)
    entries, lines = [], [f"# {gpu.name}, sm_{gpu.capability.replace('.', '')}", ""]
    with progress_bar() as bar, atomic_directory(report, REPORT) as folder:
        task = bar.add_task("starting", total=None)

        def progress(stage: str, done: int, total: int) -> None:
            bar.update(task, description=stage, completed=done, total=total)

        first = Artifact(bundles[0], Manifest.load(bundles[0]))
        reference = bundle_reference(fp32, first, pictures, progress)
        for backend, directory in (found for bundle in bundles for found in candidates(bundle)):
            artifact = Artifact(directory, Manifest.load(directory, verify=False), backend == "tensorrt")
            pipeline = Pipeline(directory, backend, finite=False)
            entries.append(verified(artifact, pipeline, reference, progress))
            lines += [f"## {pipeline.backend.name}: {artifact.name}", ""]
            del pipeline  # its memory, before the benchmark takes its own
            lines += _measured(backend, directory, folder)
        result = Report(reference, entries)
        write_files(result, folder)
        (folder / BENCHMARKS).write_text("\n".join(lines) + "\n", encoding="utf-8")
    result.print()
    click.echo(f"{report / HTML}: {result.summary}; {report / BENCHMARKS}")
    sys.exit(not result.passed)


if __name__ == "__main__":
    main()
