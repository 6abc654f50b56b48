"""Write what the tools need: each graph with its weights inside, and the inputs of its runs while images are drawn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx

from calibration.collect import label_of
from calibration.record import Settings
from runtime.backends.base import StageRun
from runtime.bundle.manifest import Manifest
from runtime.bundle.names import CONDITION, DECODER, TRANSFORMER
from runtime.pipeline import Pipeline

GRAPHS = (CONDITION, TRANSFORMER, DECODER)  # those that this project quantises too
BATCH = 8


def write_graphs(bundle: Path, folder: Path) -> None:
    """Write the graphs of the bundle to `folder`, with their weights inside."""
    manifest = Manifest.load(bundle)
    folder.mkdir(parents=True, exist_ok=True)
    for name in GRAPHS:
        model = onnx.load(bundle / manifest.graphs[name].file)  # with the values of its weights
        for tensor in model.graph.initializer:
            del tensor.external_data[:]
            tensor.data_location = onnx.TensorProto.DEFAULT
        onnx.save(model, folder / f"{name}.onnx")


def record_inputs(bundle: Path, folder: Path, images: int) -> None:
    """Draw the images that this project calibrates with, and write `folder`/GRAPH/NUMBER.npz for each run of a graph.

    Some tools cannot take an empty array. So the first scale is left out, where there are no past keys and values; it
    has one token of each image.
    """
    pipeline, settings = Pipeline(bundle), Settings()
    classes, vocab_size = pipeline.manifest.model.num_classes, pipeline.manifest.model.vocab_size
    counts = dict.fromkeys(GRAPHS, 0)
    for name in GRAPHS:
        (folder / name).mkdir(parents=True, exist_ok=True)

    def record(run: StageRun) -> None:
        if run.graph not in GRAPHS:
            return
        arrays = dict(run.inputs)
        if all(array.size for array in arrays.values()):
            np.savez(folder / run.graph / f"{counts[run.graph]:06d}.npz", **arrays)
            counts[run.graph] += 1

    for start in range(0, images, BATCH):
        labels = [label_of(i, classes) for i in range(start, min(start + BATCH, images))]
        pipeline.generate(
            labels,
            settings.seed + start,
            settings.cfg,
            min(settings.top_k, vocab_size),
            settings.top_p,
            batch=BATCH,
            observe=record,
        )
