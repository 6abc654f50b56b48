"""The kernels that an engine launches: in each profile, in a block of the transformer, and for a batch of images.

At a scale of a few tokens a GPU waits for launches more than for anything else. So the build reports their number, and
`tests/export/test_kernels.py` keeps it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise

from export.engine.build_log import LAYER, profile_of
from runtime.bundle.engine_record import EngineRecord
from runtime.bundle.names import BRIDGE, CONDITION, DECODER, TRANSFORMER

NEW_KEYS = re.compile(r"Outputs: \[.*\bName: new_k_\d+\b")  # the layer of each block that writes its new keys


@dataclass(frozen=True)
class Kernels:
    """The kernels of one engine, in each profile."""

    profiles: tuple[int, ...]
    blocks: tuple[int, ...]  # of one block of the transformer; 0 for other graphs


def count(log: Iterable[tuple[str, str]], profiles: int) -> Kernels:
    """Count the kernels of each profile in the (severity, text) of a build with detailed verbosity.

    A layer of the log is one launch. All counts are 0 if the log lists no layers, or more parts than profiles: then
    TensorRT numbers parts of the graph, and not profiles.
    """
    layers: dict[int, list[str]] = {i: [] for i in range(profiles)}
    for _, text in log:
        for line in text.splitlines():
            if layer := LAYER.match(line):
                layers.setdefault(0 if profiles == 1 else profile_of(layer["name"]), []).append(line)
    if len(layers) > profiles:
        return Kernels((0,) * profiles, (0,) * profiles)
    return Kernels(tuple(map(len, layers.values())), tuple(map(_of_a_block, layers.values())))


def _of_a_block(layers: Sequence[str]) -> int:
    """Return the largest number of layers from the one that writes a block's new keys to that of the next block."""
    keys = [i for i, layer in enumerate(layers) if NEW_KEYS.search(layer)]
    return max((after - before for before, after in pairwise(keys)), default=0)


def for_a_batch(kernels: Mapping[str, Kernels], record: EngineRecord) -> dict[int, int]:
    """Return the kernels that each batch size needs, from labels to images.

    The profiles of transformer and bridge are in the order of batch sizes and, within a size, of scales. The decoder
    takes one image at a time.
    """
    scales = len(record.engines[BRIDGE].profiles) // len(record.batches)  # the transformer may have more profiles
    found = {}
    for i, batch in enumerate(record.batches):
        steps = slice(i * scales, (i + 1) * scales)
        stages = [kernels[graph].profiles[steps] for graph in (TRANSFORMER, BRIDGE)]
        once = kernels[CONDITION].profiles[i] + batch * kernels[DECODER].profiles[0]
        found[batch] = once + sum(map(sum, stages))
    return found


def table(kernels: Mapping[str, Kernels], record: EngineRecord) -> str:
    """Return a Markdown table with a row for each graph, and the kernels for a batch of each size."""
    lines = ["| graph | kernels in each profile | of a block |", "|---|---|---|"]
    for graph, counted in kernels.items():
        blocks = _runs(counted.blocks) if any(counted.blocks) else ""
        lines.append(f"| {graph} | {_runs(counted.profiles)} | {blocks} |")
    batches = [f"{number} for a batch of {batch}" for batch, number in for_a_batch(kernels, record).items()]
    return "\n".join([*lines, "", f"Kernels from labels to images: {', '.join(batches)}."])


def _runs(numbers: Sequence[int]) -> str:
    """Return the numbers as text, equal neighbours as in "194, 9 x 163"."""
    runs = [(number, len(list(group))) for number, group in groupby(numbers)]
    return ", ".join(str(number) if times == 1 else f"{times} x {number}" for number, times in runs)
