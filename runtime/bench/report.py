"""What a benchmark found: the document that `--json` writes. docs/benchmarks/README.md is its schema."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..files.atomic import atomic_file
from ..memory import Memory
from .jetson import State
from .machine import Machine
from .summary import Ratio, Summary

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class BundleFacts:
    """Which bundle it was. Bytes of all weights, and of those that drawing loads."""

    directory: str
    name: str
    precision: str
    source: dict[str, Any]
    weights_sha256: str
    weight_file_bytes: int
    loaded_weight_bytes: int


@dataclass(frozen=True)
class Settings:
    """What was asked for. `threads` None: as many as the process may use."""

    backend: str
    threads: int | None
    batches: tuple[int, ...]
    runs: int
    label: str
    seed: int
    cfg: float
    top_k: int
    top_p: float
    verify: bool
    compare: str | None


@dataclass(frozen=True)
class Load:
    """From nothing to the first picture, in seconds; hashing is None where it was left out."""

    hashing: float | None
    pipeline: float
    first_picture: float
    memory: Memory | None  # after the pipeline was made


@dataclass(frozen=True)
class StageTime:
    """Median of one graph's time in a run, in seconds. `scale` is None outside the scale loop."""

    graph: str
    scale: int | None
    seconds: float


@dataclass(frozen=True)
class Energy:
    """Joules per picture of every rail; `board` is the rail that feeds all others, if one does."""

    board: str | None
    joules_per_picture: dict[str, float]


@dataclass(frozen=True)
class Rival:
    """Another way to draw the same pictures, timed in turns with the runtime."""

    name: str
    seconds: Summary
    ratio: Ratio  # its time over the runtime's
    differing_pictures: int  # of the batch: those with at least one other token


@dataclass(frozen=True)
class BatchTimes:
    """Warm runs that draw `batch` pictures together, those of rivals between them."""

    batch: int
    seconds: Summary
    pictures_per_second: float  # at the median
    stages: tuple[StageTime, ...]
    outside_graphs: float  # median of the seconds that no graph accounts for
    other_cpus: float | None  # CPUs that other processes kept busy meanwhile
    memory: Memory | None  # the most seen between two graphs, and the peak of the process so far
    energy: Energy | None
    rivals: tuple[Rival, ...]

    def spent(self, graph: str, scale: int | None = None) -> float:
        """Seconds in a graph, at one scale or at all of them."""
        return sum(time.seconds for time in self.stages if time.graph == graph and scale in (None, time.scale))


@dataclass(frozen=True)
class Floor:
    """The least time for a picture's float32 matrix products and convolutions at this CPU's rate."""

    flop_per_second: float
    transformer_flop: int
    decoder_flop: int
    seconds_per_picture: float


@dataclass(frozen=True)
class JetsonFacts:
    """The module, before the first and after the last run."""

    model: str
    before: State
    after: State


@dataclass(frozen=True)
class Report:
    """Everything."""

    schema_version: int
    date: str
    command: str
    bundle: BundleFacts
    settings: Settings
    backend: str
    threads: int
    machine: Machine
    load: Load
    batches: tuple[BatchTimes, ...]
    floor: Floor
    jetson: JetsonFacts | None
    left_out: dict[str, str]  # rival that could not be measured -> why


def write_json(path: Path, report: Report) -> None:
    """Writes the report, whole or not at all."""
    with atomic_file(path) as file:
        file.write((json.dumps(dataclasses.asdict(report), indent=1, ensure_ascii=False) + "\n").encode())
