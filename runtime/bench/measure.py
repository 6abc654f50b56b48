"""Measure time, memory and energy of the runtime, and the time of its rivals."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from ..backends.base import OnStage
from ..base_pipeline import BasePipeline, Maps
from ..bundle.manifest import Manifest
from ..drawing import Loading
from ..memory import Memory, memory
from ..sampling import Sampling
from .compare import Draw, RivalRuns
from .jetson import Jetson, PowerMeter
from .other_work import OtherWork
from .report import BatchTimes, Energy, Load, Settings, StageTime
from .summary import Summary

Stage = tuple[str, int | None]  # graph, scale


@dataclass(frozen=True)
class Run:
    """One run: seconds of the whole run, of each graph and of what is outside of the graphs, joules of each rail."""

    seconds: float
    stages: dict[Stage, float]
    outside: float
    joules: dict[str, float]


def load(bundle: Path, settings: Settings) -> tuple[BasePipeline, Load]:
    """Load the bundle and draw a first image; return the pipeline and the times.

    The hashes are checked first, so the later steps find the files in the page cache.
    """
    hashing = None
    if settings.verify:
        start = time.perf_counter()
        Manifest.load(bundle)
        if settings.draft is not None:
            Manifest.load(Path(settings.draft))
        hashing = time.perf_counter() - start
    start = time.perf_counter()
    draft = Path(settings.draft) if settings.draft is not None else None
    pipeline = Loading(settings.threads, settings.backend, False, draft, settings.draft_scales).pipeline(bundle)
    loading, loaded = time.perf_counter() - start, memory()
    start = time.perf_counter()
    draw(pipeline, settings, 1)
    return pipeline, Load(hashing, loading, time.perf_counter() - start, loaded)


def draw(pipeline: BasePipeline, settings: Settings, batch: int, on_stage: OnStage | None = None) -> Maps:
    """Draw `batch` images together and return their tokens."""
    s = settings
    sampling = Sampling(s.cfg, s.top_k, s.top_p, False, s.guidance_scales, s.decoder)
    result = pipeline.generate([s.label] * batch, s.seed, batch=batch, on_stage=on_stage, sampling=sampling)
    return result.tokens


def memory_while_drawing(pipeline: BasePipeline, settings: Settings, batch: int) -> Memory | None:
    """Return the most memory that a run holds, measured between its graphs."""
    held: list[Memory] = []

    def on_stage(graph: str, scale: int | None, seconds: float) -> None:
        if now := memory():
            held.append(now)

    draw(pipeline, settings, batch, on_stage)
    return Memory(max(m.resident for m in held), max(m.peak for m in held)) if held else None


def measure_batch(
    pipeline: BasePipeline,
    settings: Settings,
    batch: int,
    held: Memory | None,
    rivals: Mapping[str, Draw],
    jetson: Jetson | None,
    on_round: Callable[[], None],
) -> BatchTimes:
    """Time `settings.runs` rounds after one round that is not timed. `on_round` is called after each round."""
    tokens = draw(pipeline, settings, batch)
    others = [RivalRuns(name, rival, batch) for name, rival in rivals.items()]
    on_round()
    runs, other_work = [], OtherWork()
    for _ in range(settings.runs):
        runs.append(timed_run(pipeline, settings, batch, jetson))
        for other in others:
            other.run()
        on_round()
    other_cpus = other_work.cpus()
    seconds = Summary.of([run.seconds for run in runs])
    return BatchTimes(
        batch=batch,
        seconds=seconds,
        pictures_per_second=batch / seconds.median,
        stages=tuple(StageTime(*stage, median(run.stages[stage] for run in runs)) for stage in runs[0].stages),
        outside_graphs=median(run.outside for run in runs),
        other_cpus=other_cpus,
        memory=held,
        energy=_energy(jetson, runs, batch) if jetson else None,
        rivals=tuple(other.against(seconds, tokens) for other in others),
    )


def timed_run(pipeline: BasePipeline, settings: Settings, batch: int = 1, jetson: Jetson | None = None) -> Run:
    """Draw once and measure. A backend that launches a whole batch at once draws again to time its stages."""
    stages: dict[Stage, float] = defaultdict(float)

    def on_stage(graph: str, scale: int | None, seconds: float) -> None:
        stages[graph, scale] += seconds

    whole = pipeline.launches_whole
    with PowerMeter(jetson.rails) if jetson else nullcontext() as meter:
        start = time.perf_counter()
        draw(pipeline, settings, batch, None if whole else on_stage)
        seconds = staged = time.perf_counter() - start
    if whole:
        start = time.perf_counter()
        draw(pipeline, settings, batch, on_stage)
        staged = time.perf_counter() - start
    return Run(seconds, stages, staged - sum(stages.values()), meter.joules if meter else {})


def _energy(jetson: Jetson, runs: list[Run], batch: int) -> Energy:
    pictures = batch * len(runs)
    joules = {rail.name: sum(run.joules[rail.name] for run in runs) / pictures for rail in jetson.rails}
    return Energy(jetson.board_rail, joules)
