"""Measure INT8 bundles of the demo model beside its FP32 bundle: what is lost, what is gained, what an engine makes."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path

import numpy as np
import onnx

from examples.demo_model.classes import CLASSES
from examples.demo_model.classifier import load_classifier
from examples.demo_model.compare import SAMPLING, Judged, draw, frechet_distance, judged
from examples.int8_peers.inputs import GRAPHS
from export.engine.build import DEFAULTS, find_tensorrt, target
from export.engine.build_log import int8_products
from export.engine.builder import Builder, BuildError
from export.verify.fidelity import Teacher
from runtime.bench.summary import Summary
from runtime.bundle.engine_record import profiles
from runtime.bundle.manifest import Manifest
from runtime.bundle.names import TRANSFORMER
from runtime.errors import SettingsError
from runtime.pipeline import Pipeline
from runtime.progress import silent

NOT_INSTALLED = "not installed"


@dataclass(frozen=True)
class Found:
    """What is known of one bundle, apart from its speed."""

    kl: float  # nats, mean per token
    kl_of_scales: float  # nats, mean of the means of the scales
    agreement: float  # of the most probable token
    psnr: float  # dB
    accuracy: float
    frechet: float  # to FP32 of other seeds, as a multiple of FP32's own distance
    size: int  # bytes of the three graphs with their weights
    int8_products: tuple[int, ...]  # of the transformer's engine, in each profile; () if it was not built
    refused: str  # why the builder refused the transformer's graph, or NOT_INSTALLED; "" if it is built


@dataclass(frozen=True)
class Accuracies:
    """The accuracy of FP32, and that of FP32 with other seeds."""

    accuracy: float
    other: float


class Judge:
    """Compares bundles with the FP32 bundle, by the images and the metrics of `examples.demo_model.compare`."""

    def __init__(self, fp32: Path, tokens: int, seed: int, per_class: int) -> None:
        self._fp32, self._tokens, self._seed = fp32, tokens, seed
        self._labels = np.repeat(np.arange(len(CLASSES)), per_class)

    def accuracies(self) -> Accuracies:
        return Accuracies(self._base.accuracy, self._other.accuracy)

    def find(self, bundle: Path) -> Found:
        fidelity = self._teacher.compare(Pipeline(bundle, verify=False))
        seen = self._judged(bundle, 0)
        distance = frechet_distance(seen.features, self._other.features)
        products, refused = products_in_engine(bundle)
        return Found(
            fidelity.kl,
            fidelity.kl_of_scales,
            fidelity.agreement,
            fidelity.psnr,
            seen.accuracy,
            distance / frechet_distance(self._base.features, self._other.features),
            used_bytes(bundle),
            products,
            refused,
        )

    @cached_property
    def _teacher(self) -> Teacher:
        return Teacher.draw(Pipeline(self._fp32), self._tokens, self._seed)

    @cached_property
    def _base(self) -> Judged:
        return self._judged(self._fp32, 0)

    @cached_property
    def _other(self) -> Judged:
        return self._judged(self._fp32, len(self._labels))

    def _judged(self, bundle: Path, seed: int) -> Judged:
        return judged(load_classifier(), draw(Pipeline(bundle), self._labels, seed), self._labels)


def timed(bundles: Sequence[Path], rounds: int) -> list[Summary]:
    """Return the times of one image with each bundle. A round draws one with each, so that other load slows all."""
    pipelines = [Pipeline(bundle, verify=False) for bundle in bundles]
    samples: list[list[float]] = [[] for _ in pipelines]
    for i in range(rounds + 1):
        for pipeline, seconds in zip(pipelines, samples, strict=True):
            start = time.perf_counter()
            pipeline.generate([0], 0, sampling=SAMPLING)
            if i > 0:  # the first round allocates
                seconds.append(time.perf_counter() - start)
    return [Summary.of(seconds) for seconds in samples]


def products_in_engine(bundle: Path) -> tuple[tuple[int, ...], str]:
    """Return how many products of the transformer's engine read INT8 in each profile, and why it was refused or "".

    It is built ahead of time with TensorRT for RTX. Returns (), NOT_INSTALLED without that.
    """
    try:
        flavour, trt = find_tensorrt("tensorrt-rtx")
    except SettingsError:
        return (), NOT_INSTALLED
    builder = Builder(trt, target(trt, flavour, ("8.6",), DEFAULTS), DEFAULTS, None)
    manifest = Manifest.load(bundle, verify=False)
    shapes = profiles(TRANSFORMER, manifest, (1,), len(manifest.scales))
    try:
        builder.build(bundle / manifest.graphs[TRANSFORMER].file, shapes, silent)
    except BuildError as error:
        return (), " ".join(error.reason.split())
    return int8_products(builder.layers(), len(shapes)), ""


def versions() -> dict[str, str]:
    """Return the versions of what bundles run and engines are built with."""
    try:
        tensorrt = str(find_tensorrt("tensorrt-rtx")[1].__version__)
    except SettingsError:
        tensorrt = NOT_INSTALLED
    return {"onnxruntime": version("onnxruntime"), "tensorrt_rtx": tensorrt}


def in_int8(bundle: Path) -> list[str]:
    """Return the graphs that hold anything in INT8. Some tools leave a graph as it is, without a word."""
    manifest = Manifest.load(bundle, verify=False)
    kinds = ("Quantize", "DynamicQuantize", "QLinear")

    def quantised(graph: str) -> bool:
        nodes = onnx.load(bundle / manifest.graphs[graph].file, load_external_data=False).graph.node
        return any(node.op_type.startswith(kinds) for node in nodes)

    return [graph for graph in GRAPHS if quantised(graph)]


def used_bytes(bundle: Path) -> int:
    """Return the bytes of the graphs that the tools were given, with their weights."""
    manifest = Manifest.load(bundle, verify=False)
    total = 0
    for name in GRAPHS:
        file = bundle / manifest.graphs[name].file
        beside = {
            tensor.name: int(entry.value)
            for tensor in onnx.load(file, load_external_data=False).graph.initializer
            for entry in tensor.external_data
            if entry.key == "length"
        }
        total += file.stat().st_size + sum(beside.values())
    return total
