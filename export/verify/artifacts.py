"""Find the artifacts to verify: bundles and engine directories. Each can run on this machine, or says why not."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from export.graphs.simulate import simulate
from runtime.backends.cuda import gpu_or_reason
from runtime.bundle import engine_record, names
from runtime.bundle.manifest import FILE_NAME, Manifest
from runtime.bundle.weight_file import open_weights
from runtime.errors import BundleError, SettingsError
from runtime.files.atomic import scratch_directory
from runtime.pipeline import Pipeline

PRECISIONS = ("fp32", "fp16", "int8", "int8-cpu")  # folders that make onnx and make calibrate write


@dataclass(frozen=True)
class Artifact:
    """A bundle or a directory of engines; absent if it has no manifest."""

    path: Path
    manifest: Manifest | None
    engines: bool = False

    @property
    def name(self) -> str:
        """A short name for tables: "fp16", "fp16/engines/tensorrt-…"."""
        if not self.engines:
            return self.path.name
        return "/".join(self.path.parts[-3:]) if self.path.parent.name == engine_record.FOLDER else self.path.name

    @property
    def simulated(self) -> bool:
        """Whether this holds FP16, which ONNX Runtime computes in FP32 on a CPU: its simulated twin has to run."""
        return not self.engines and self.manifest is not None and self.manifest.precision.has_fp16

    def unable(self) -> str | None:
        """Return why this cannot run on this machine; None if it can."""
        if self.manifest is None:
            return "absent"
        if self.engines and isinstance(found := gpu_or_reason(), str):
            return f"not run: engines need an NVIDIA GPU: {found}"
        return None


def find(directories: Sequence[Path]) -> list[Artifact]:
    """Return the artifacts in these directories. Each directory is a bundle, one of engines, or a folder of bundles.

    A bundle's engines are included. Raises BundleError if an artifact is damaged, SettingsError if there is none or if
    they belong to different models.
    """
    everything = (artifact for directory in directories for artifact in _in(directory.resolve()))
    found = list({artifact.path: artifact for artifact in everything}.values())  # each once
    present = [(artifact.path, artifact.manifest) for artifact in found if artifact.manifest]
    if not present:
        named = ", ".join(map(str, directories))
        raise SettingsError(f"{named}: expected a bundle or one of {', '.join(PRECISIONS)}, found none; run make onnx")
    first_path, first = present[0]
    for path, manifest in present[1:]:
        if manifest.model != first.model:
            raise SettingsError(f"{path}: {manifest.model.name} has other sizes than {first_path}; verify one model")
        if not manifest.provenance.same_checkpoints(first.provenance):
            raise SettingsError(f"{path}: made from other weights than {first_path}; verify one model at a time")
    tiny = [(path, manifest) for path, manifest in present if names.TINY_DECODER in manifest.graphs]
    for path, manifest in tiny[1:]:
        if manifest.provenance.tiny_decoder_sha256 != tiny[0][1].provenance.tiny_decoder_sha256:
            raise SettingsError(f"{path}: has another tiny decoder than {tiny[0][0]}; verify them one by one")
    return found


def _in(directory: Path) -> Iterator[Artifact]:
    if (directory / FILE_NAME).is_file():
        engines = (directory / engine_record.FILE_NAME).is_file()
        yield Artifact(directory, Manifest.load(directory), engines)
        for folder in sorted(directory.glob(f"{engine_record.FOLDER}/[!.]*")):  # hidden ones are being written
            if not (folder / engine_record.FILE_NAME).is_file():
                raise BundleError(
                    f"{folder}: no {engine_record.FILE_NAME}, so its engines are incomplete; run make engine again"
                )
            yield Artifact(folder, Manifest.load(folder), engines=True)
    elif directory.is_dir():
        if any((directory / name / FILE_NAME).is_file() for name in PRECISIONS):
            for name in PRECISIONS:
                if (directory / name).exists():
                    if not (directory / name / FILE_NAME).is_file():
                        raise BundleError(
                            f"{directory / name}: no {FILE_NAME}, so the bundle is incomplete; make it again"
                        )
                    yield from _in(directory / name)
                else:
                    yield Artifact(directory / name, None)
        else:
            raise BundleError(f"{directory}: no {FILE_NAME}, so neither a bundle nor a folder of bundles")
    else:
        raise SettingsError(f"{directory}: no such directory; make onnx makes a bundle")


@contextmanager
def runnable(artifact: Artifact) -> Iterator[tuple[Path, Pipeline]]:
    """Yield the directory that runs (for FP16 on a CPU the simulated twin) and its pipeline."""
    if artifact.engines:  # `find` has checked the files
        yield artifact.path, Pipeline(artifact.path, "tensorrt", verify=False, finite=False)
    elif artifact.simulated:
        with scratch_directory(artifact.path) as scratch:
            twin = scratch / artifact.path.name
            simulate(artifact.path, twin)
            yield twin, Pipeline(twin, "onnxruntime", verify=False, finite=False)
    else:
        yield artifact.path, Pipeline(artifact.path, "onnxruntime", verify=False, finite=False)


def channel_scaling(artifact: Artifact) -> dict[str, np.ndarray]:
    """Return the factors (…, 1, C) by which an INT8 bundle multiplies outputs of `condition`; empty without any."""
    assert artifact.manifest
    outputs = [spec.name for spec in artifact.manifest.graphs[names.CONDITION].outputs]
    with open_weights(artifact.path) as weights:
        held = set(weights.keys())
        stored = {name: names.channel_scaling(name) for name in outputs}
        return {name: weights.get_tensor(tensor) for name, tensor in stored.items() if tensor in held}


def static_sizes(manifest: Manifest) -> list[int]:
    """Return the batch sizes for which the bundle has static steps."""
    steps = (re.fullmatch(rf"{names.STEP_PREFIX}b(\d+)_\d+", name) for name in manifest.graphs)
    return sorted({int(step[1]) for step in steps if step})
