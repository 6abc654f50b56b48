"""The results of a benchmark, which `--json` writes. docs/benchmarks/README.md describes the fields."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..files.atomic import atomic_file
from ..memory import Memory
from ..sampling import Sampling
from .jetson import State
from .machine import Machine
from .summary import Ratio, Summary

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class BundleFacts:
    """The measured bundle, with the bytes of its weight file and of the weights that drawing loads."""

    directory: str
    name: str
    precision: str
    source: dict[str, Any]
    weights_sha256: str
    weight_file_bytes: int
    loaded_weight_bytes: int


@dataclass(frozen=True)
class Settings:
    """The options of the benchmark. `threads` None means as many as the process may use."""

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
    guidance_scales: int | None = None  # None: all scales
    decoder: str = Sampling.decoder
    draft: str | None = None  # directory of the bundle that draws the first `draft_scales` scales
    draft_scales: int | None = None


@dataclass(frozen=True)
class Load:
    """The seconds from the start to the first image. `hashing` is None if it was skipped."""

    hashing: float | None
    pipeline: float
    first_picture: float
    memory: Memory | None  # after the pipeline was made


@dataclass(frozen=True)
class StageTime:
    """The median seconds of one graph in a run. `scale` is None outside the scale loop."""

    graph: str
    scale: int | None
    seconds: float


@dataclass(frozen=True)
class Energy:
    """Joules per image of every rail. `board` is the rail that feeds all others, None if there is none."""

    board: str | None
    joules_per_picture: dict[str, float]


@dataclass(frozen=True)
class Rival:
    """Another way to draw the same images. Its runs alternate with those of the runtime."""

    name: str
    seconds: Summary
    ratio: Ratio  # its time divided by the runtime's
    differing_pictures: int  # images of the batch that differ in at least one token


@dataclass(frozen=True)
class BatchTimes:
    """The results of warm runs that draw `batch` images together, in alternation with the rivals."""

    batch: int
    seconds: Summary
    pictures_per_second: float  # at the median
    stages: tuple[StageTime, ...]
    outside_graphs: float  # median seconds spent outside all graphs
    other_cpus: float | None  # number of CPUs that other processes kept busy meanwhile
    memory: Memory | None  # the most measured between two graphs, and the peak of the process so far
    energy: Energy | None
    rivals: tuple[Rival, ...]

    def spent(self, graph: str, scale: int | None = None) -> float:
        """Return the seconds in a graph at one scale, or at all scales together."""
        return sum(time.seconds for time in self.stages if time.graph == graph and scale in (None, time.scale))


@dataclass(frozen=True)
class Floor:
    """The least time for the float32 matrix products and convolutions of an image at this CPU's rate.

    The FLOP are those of the drawn image: shortcuts leave a part out, and a draft's transformer counts as well.
    """

    flop_per_second: float
    transformer_flop: int
    decoder_flop: int
    seconds_per_picture: float


@dataclass(frozen=True)
class JetsonFacts:
    """The Jetson module, and its state before the first and after the last run."""

    model: str
    before: State
    after: State


@dataclass(frozen=True)
class Report:
    """All results of a benchmark."""

    schema_version: int
    date: str
    command: str
    bundle: BundleFacts
    draft: BundleFacts | None
    settings: Settings
    backend: str
    threads: int
    machine: Machine
    load: Load
    batches: tuple[BatchTimes, ...]
    floor: Floor
    jetson: JetsonFacts | None
    left_out: dict[str, str]  # rivals that could not be measured, with the reason


def write_json(path: Path, report: Report) -> None:
    """Write the report as JSON, atomically."""
    with atomic_file(path) as file:
        file.write((json.dumps(dataclasses.asdict(report), indent=1, ensure_ascii=False) + "\n").encode())
