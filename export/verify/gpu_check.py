"""The command python -m export.gpu_check: build engines on a GPU, verify them stage by stage, and benchmark them."""

from __future__ import annotations

import multiprocessing
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

import click
import numpy as np

from export.engine.build import DEFAULTS, target
from export.engine.build_log import int8_fault
from export.engine.builder import BuildError
from export.verify.artifacts import Artifact
from export.verify.html import write_files
from export.verify.recording import Reference
from export.verify.report import FAILED, Entry, Report
from export.verify.run import bundle_reference, verified
from runtime.backends.cuda import Gpu
from runtime.backends.ort_session import require_cuda
from runtime.backends.trt_engine import load_tensorrt
from runtime.bundle import engine_record
from runtime.bundle.engine_record import EngineRecord
from runtime.bundle.manifest import Manifest
from runtime.errors import SettingsError, VarEdgeError
from runtime.files.atomic import atomic_directory
from runtime.files.bounded import read_json
from runtime.files.outputs import REPORT
from runtime.optional import INSTALL
from runtime.pipeline import Pipeline
from runtime.progress import Progress, silent

BENCHMARKS = "benchmarks.md"
BATCHES = "1,8"
T = TypeVar("T")


@dataclass(frozen=True)
class Candidate:
    """A backend and the directory that it runs; or the bundle, and why no engines were built from it."""

    backend: str
    directory: Path
    fault: str | None = None

    @property
    def artifact(self) -> Artifact:
        engines = self.backend == "tensorrt" and self.fault is None
        return Artifact(self.directory, Manifest.load(self.directory, verify=False), engines)


def candidates(bundle: Path) -> Iterator[Candidate]:
    """Build engines with each installed TensorRT; yield all that runs here, also ONNX Runtime."""
    flavours = list(filter(find_spec, engine_record.FLAVOURS))
    if not flavours:
        yield Candidate("tensorrt", bundle, f"no TensorRT is installed; {INSTALL['tensorrt']}")
    for flavour in flavours:
        try:
            yield Candidate("tensorrt", _built(bundle, flavour))
        except VarEdgeError as error:
            yield Candidate("tensorrt", bundle, f"{flavour}: {error}")
    try:
        require_cuda()
        yield Candidate("onnxruntime-cuda", bundle)
    except SettingsError as error:
        click.echo(str(error), err=True)


def gpu_check(gpu: Gpu, fp32: Path, bundles: Sequence[Path], folder: Path, images: int, progress: Progress) -> Report:
    """Verify and measure everything that `candidates` finds, and write the report to `folder`.

    What cannot be built or run is a failed entry of the report, which is written after each candidate: a first run on a
    GPU may end in any way, and no finished result is lost. Raises VarEdgeError if the reference cannot be computed.
    """
    first = Artifact(bundles[0], Manifest.load(bundles[0]))
    reference = bundle_reference(fp32, first, images, progress)
    report, lines = Report(reference, []), [f"# {gpu.name}, sm_{gpu.capability.replace('.', '')}", ""]
    with tempfile.TemporaryDirectory() as measured:
        for candidate in (found for bundle in bundles for found in candidates(bundle)):
            progress(f"verifying {candidate.artifact.name}", 0, 1)
            entries = [_verified(candidate, reference), *_int8(candidate)]
            lines += [f"## {entries[0].backend or candidate.backend}: {candidate.artifact.name}", ""]
            if entries[0].rows:
                try:
                    lines += _benchmark(candidate, Path(measured))
                except VarEdgeError as error:
                    entries.append(Entry(candidate.artifact, f"{FAILED}: benchmark: {error}"))
            lines += [f"{entry.reason}\n" for entry in entries if entry.reason]
            report = Report(reference, [*report.entries, *entries])
            _write(report, lines, Path(measured), folder)
    return report


def _built(bundle: Path, flavour: str) -> Path:
    """Build the engines and return their directory. Raises VarEdgeError."""
    built = target(load_tensorrt(flavour), flavour, (), DEFAULTS)
    # In its own process: Polygraphy works only with the TensorRT that it was imported for.
    _run("export.engine", str(bundle), "--trt", flavour.replace("_", "-"), "--batches", BATCHES)
    return bundle / engine_record.FOLDER / built.tag


def _verified(candidate: Candidate, reference: Reference) -> Entry:
    """Verify a candidate in its own process: after a crash on a GPU no other would run in this one."""
    if candidate.fault:
        return Entry(candidate.artifact, f"{FAILED}: {candidate.fault}")
    try:
        return _apart(verify_candidate, candidate, reference)
    except Exception as error:  # TensorRT's and CUDA's own exceptions share no base class
        if not isinstance(error, VarEdgeError):
            traceback.print_exc()
        return Entry(candidate.artifact, f"{FAILED}: {candidate.backend}: {error}")


def _apart(function: Callable[..., T], *arguments: Any) -> T:
    """Return the function's result from a new process. Raises what it raises, BuildError if the process dies."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        try:
            return process.submit(function, *arguments).result()
        except BrokenProcessPool:
            raise BuildError(
                f"{function.__name__}: its process crashed; see what TensorRT and CUDA say above"
            ) from None


def verify_candidate(candidate: Candidate, reference: Reference) -> Entry:
    """Verify each stage, and that images drawn with one launch are those that are drawn stage by stage."""
    pipeline = Pipeline(candidate.directory, candidate.backend, finite=False)
    entry = verified(candidate.artifact, pipeline, reference, silent)
    labels = list(range(min(9, pipeline.manifest.model.num_classes)))
    whole = pipeline.generate(labels, seed=1, batch=8)
    staged = pipeline.generate(labels, seed=1, batch=8, on_scale=lambda view: None)
    if not all(map(np.array_equal, [*whole.tokens, whole.images], [*staged.tokens, staged.images])):
        return replace(entry, reason=f"{FAILED}: one launch for a whole batch draws other images than its stages do")
    return entry


def _int8(candidate: Candidate) -> list[Entry]:
    """Return a failed entry if the engines do not show that they compute in INT8 what is planned so."""
    if not candidate.artifact.engines:
        return []
    engines = EngineRecord.load(candidate.directory).engines
    faults = [fault for name, engine in engines.items() if (fault := int8_fault(name, engine))]
    return [Entry(candidate.artifact, f"{FAILED}: {'; '.join(faults)}")] if faults else []


def _benchmark(candidate: Candidate, folder: Path) -> list[str]:
    """Run the benchmark, keep its JSON in `folder`, and return its table as Markdown lines. Raises BuildError."""
    file = folder / f"bench-{candidate.backend}-{candidate.directory.name}.json"
    command = ("runtime.bench", "--bundle", str(candidate.directory), "--backend", candidate.backend)
    _run(*command, "--batches", BATCHES, "--json", str(file))  # in its own process, with all memory
    report: dict[str, Any] = read_json(file)
    rows = [
        f"| {b['batch']} | {b['seconds']['median']:.4f} s | {b['pictures_per_second']:.2f} |" for b in report["batches"]
    ]
    return ["| batch | median | pictures/s |", "|---|---|---|", *rows, ""]


def _run(module: str, *arguments: str) -> None:
    """Run a command of this project. Raises BuildError with its error, or with the signal that ended it."""
    command = [sys.executable, "-m", module, *arguments]
    result = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    if result.returncode < 0:
        ended = signal.Signals(-result.returncode).name
        raise BuildError(f"{module}: ended by {ended}; if it was SIGKILL, memory ran out: close other programs")
    if result.returncode:
        said = " ".join(result.stderr.rpartition("Error: ")[2].split())
        raise BuildError(said or f"{module}: exit code {result.returncode} without a message")
    click.echo(result.stderr, nl=False, err=True)  # warnings


def _write(report: Report, lines: Sequence[str], measured: Path, folder: Path) -> None:
    with atomic_directory(folder, REPORT) as out:
        write_files(report, out)
        (out / BENCHMARKS).write_text("\n".join(lines) + "\n", encoding="utf-8")
        for file in measured.iterdir():
            (out / file.name).write_bytes(file.read_bytes())
