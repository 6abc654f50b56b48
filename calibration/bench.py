"""Measure plans on an FP32 bundle: compare its logits with those of the same bundle with some layers in INT8."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir

from calibration.bundle import activations, remove_unused
from calibration.plan import FLOAT, ONE_TO_TWO_DIGITS, Plan, alone
from calibration.quantize import Quantizer
from calibration.record import Calibration
from calibration.sites import Site, open_graph
from calibration.target import TARGETS
from export.graphs.signature import Signature
from export.verify.fidelity import BATCH, Batch, Fidelity, Teacher, psnr
from runtime.backends.onnxruntime import OnnxRuntimeBackend
from runtime.bundle.manifest import Graph, Manifest
from runtime.bundle.names import TRANSFORMER
from runtime.bundle.weight_file import open_weights
from runtime.pipeline import Pipeline
from runtime.progress import Progress, silent

TOKENS, TOKENS_OF_WIDE = 300, 64  # at least this many are compared at every scale; a wide model takes seconds an image
WIDE = 512  # channels; wider models generate images one at a time
PILOT = 8  # images that tell how much images differ
FEWEST = 2  # images compared at every scale; a single one has no interval
WITHIN = 0.1  # of the KL: half the width of its 95 % interval that the number of images aims at
LONGEST = 3600.0  # seconds that all layers together may take, where FEWEST images allow it
HELD_OUT = 1 << 20  # first seed of the images that a whole plan is measured on; layers are measured on others


class Bench:
    """Measures layers and plans on one loaded bundle, by replacing its graphs.

    The arithmetic is exact on every processor (`replace_graph`), so a result does not depend on its instruction set.
    """

    def __init__(
        self, bundle: Path, sites: Sequence[Site], calibration: Calibration, target: str, scales: str, method: str
    ) -> None:
        self._bundle, self._manifest = bundle, Manifest.load(bundle, verify=False)
        self._backend = OnnxRuntimeBackend(bundle, self._manifest)
        self._pipeline = Pipeline(bundle, self._backend, verify=False)
        self._replaced: frozenset[str] = frozenset()  # graphs that are not the bundle's own now
        self._teacher: Teacher | None = None
        self.sites, self.calibration = sites, calibration
        self.target, self.scales, self.method = target, scales, method
        self.alone = alone(sites, scales)  # the kind of each layer when it is measured
        self.count = len(self._manifest.scales)

    @property
    def one_digit(self) -> dict[str, str]:
        """The plan with all layers of the transformer but the head in INT8, and everything else float."""
        return {
            site.key: self.alone[site.key] if site.graph == TRANSFORMER and site.name != "head" else FLOAT
            for site in self.sites
        }

    @property
    def two_digits(self) -> dict[str, str]:
        """The same in two digits: the loss by INT8 weights and rounded logits, which every plan has."""
        return {key: ONE_TO_TWO_DIGITS.get(kind, kind) for key, kind in self.one_digit.items()}

    def enough_images(self, plans: int, progress: Progress = silent) -> int:
        """Return how many images `draw` needs so that KLs are known within WITHIN.

        PILOT images tell how much images differ. Measuring that number of `plans` takes LONGEST at most, if FEWEST
        images do.
        """
        teacher = self._drawn(PILOT, 0, progress)
        start = time.monotonic()
        found = self._compared(self.one_digit, teacher)
        seconds = (time.monotonic() - start) / found.images
        wanted = found.images * (found.estimate.relative / WITHIN) ** 2
        return max(FEWEST, min(math.ceil(wanted), int(LONGEST / (plans * seconds))))

    def draw(self, images: int, progress: Progress = silent) -> tuple[int, int]:
        """Draw what layers are compared on, at least `images` images of every scale.

        Return the number of images of every scale, which are whole batches, and the number of images in all.
        """
        self._teacher = self._drawn(images, 0, progress)
        sizes = [(len(batch.labels), batch.images is not None) for batch in self._teacher.batches]
        return sum(size for size, complete in sizes if complete), sum(size for size, _ in sizes)

    def layers(self, plan: Plan) -> Fidelity:
        """Measure a plan of the transformer or `condition` on the images of `draw`."""
        assert self._teacher is not None, "draw comes first"
        return self._compared(plan, self._teacher)

    def decoder(self, plan: Plan) -> float:
        """Decode the first batch of `draw` with a plan of the decoder; return its PSNR, infinite if equal."""
        assert self._teacher is not None, "draw comes first"
        self._apply(plan)
        batch = self._teacher.batches[0]
        assert batch.images is not None
        return psnr(float(((self._redrawn(batch).astype(float) - batch.images) ** 2).mean()))

    def held_out(self, plan: Plan, images: int, progress: Progress = silent) -> Fidelity:
        """Measure a whole plan on at least `images` images that layers were not measured on."""
        return self._compared(plan, self._drawn(max(images, PILOT), HELD_OUT, progress))

    def _drawn(self, images: int, seed: int, progress: Progress) -> Teacher:
        wide = self._manifest.model.width > WIDE
        tokens, batch = (TOKENS_OF_WIDE, 1) if wide else (TOKENS, BATCH)
        self._apply({})
        sampling = self.calibration.settings.sampling
        return Teacher.draw(self._pipeline, tokens, seed, (batch,), progress, images, sampling)

    def _compared(self, plan: Plan, teacher: Teacher) -> Fidelity:
        self._apply(plan)
        return teacher.compare(self._pipeline)

    def _apply(self, plan: Plan) -> None:
        """Replace the graphs that the plan changes, and restore the others."""
        changed = {site.graph for site in self.sites if plan.get(site.key, FLOAT) != FLOAT}
        for name in self._replaced - changed:
            self._backend.restore_graph(name)
        self._replaced = frozenset(changed)
        for name in sorted(changed):
            self._backend.replace_graph(name, *self._variant(name, plan))

    def _redrawn(self, batch: Batch) -> np.ndarray:
        keep = [np.ones_like(tokens, bool) for tokens in batch.tokens]
        return self._pipeline.generate(
            batch.labels, batch.seed, keep=keep, kept_tokens=batch.tokens, batch=len(batch.labels)
        ).images

    def _variant(self, name: str, plan: Plan) -> tuple[Graph, bytes, dict[str, np.ndarray]]:
        """Return a graph by this plan: its manifest entry, its content with all new tensors, its inputs by scale."""
        model = open_graph(self._bundle, self._manifest, name)
        sites = [site for site in self.sites if site.graph == name]
        outside = ir.load(self._bundle / self._manifest.graphs[name].file).graph.initializers
        with open_weights(self._bundle) as weights:
            quantizer = Quantizer(
                TARGETS[self.target],
                plan,
                activations(self.sites, self.calibration, plan, TARGETS[self.target], self.method),
                self.calibration.channel_scaling or {},
                weights.get_tensor,
                fold=False,
            )
            listed = self._manifest.graphs[name]
            signature = quantizer.rewrite(Signature(name, listed.inputs, listed.outputs), model, sites)
            values = {n: np.asarray(e.compute(), e.numpy_dtype) for n, e in quantizer.entries.items()}
        remove_unused(model.graph)
        for n, value in model.graph.initializers.items():
            if value.const_value is None:
                value.const_value = ir.tensor(values[n], name=n) if n in values else outside[n].const_value
        steps = {spec.name: values[spec.name] for spec in signature.inputs if spec.name in values}
        proto = ir.to_proto(model)
        proto.graph.ClearField("value_info")  # these are sizes before rewriting: two digits double the rows
        return Graph(listed.file, signature.inputs, signature.outputs), proto.SerializeToString(), steps
