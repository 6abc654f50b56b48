"""The seconds of each candidate, measured in turns."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import TypeVar

from examples.shortcuts.models import Candidate, Models
from runtime.bench.measure import Run, timed_run
from runtime.bench.report import Settings
from runtime.bench.summary import Summary
from runtime.bundle.names import BRIDGE, DECODER, TINY_DECODER, TRANSFORMER
from runtime.drafted import DRAFT
from runtime.sampling import Sampling

STAGES = ("draft", "transformer", "bridge", "decoder", "rest")
STAGE_OF = {
    TRANSFORMER: "transformer",
    "step": "transformer",  # with the bridge, if an engine records both as one CUDA graph
    BRIDGE: "bridge",
    DECODER: "decoder",
    TINY_DECODER: "decoder",
}
T = TypeVar("T")


@dataclass(frozen=True)
class Times:
    """The seconds of one image: in all, and the medians of its stages."""

    seconds: Summary
    stages: dict[str, float]  # by STAGES

    @classmethod
    def of(cls, runs: Sequence[Run]) -> Times:
        stages = [_stages(run) for run in runs]
        return cls(
            Summary.of([run.seconds for run in runs]),
            {stage: median(found[stage] for found in stages) for stage in STAGES},
        )


def _stages(run: Run) -> dict[str, float]:
    """Return the seconds of a run by STAGES. All graphs of the draft are "draft"."""
    found = dict.fromkeys(STAGES, 0.0) | {"rest": run.outside}
    for (graph, _), seconds in run.stages.items():
        found["draft" if graph.startswith(DRAFT) else STAGE_OF.get(graph, "rest")] += seconds
    return found


def rotated(items: Sequence[T], count: int) -> list[T]:
    """Return the items in the order of round `count`: each round begins with the next one."""
    start = count % len(items)
    return [*items[start:], *items[:start]]


def in_turns(
    wanted: Sequence[Candidate],
    rounds: int,
    run: Callable[[Candidate], Run],
    on_run: Callable[[Candidate, Sequence[Run]], object] = lambda candidate, runs: None,
) -> dict[Candidate, Times]:
    """Time one image of each candidate in every round, so that other load slows all of them.

    An untimed run comes before each timed one, because a pipeline keeps the arrays of the last settings only. `on_run`
    is called after each timed run, with all timed runs of the candidate so far.
    """
    runs: dict[Candidate, list[Run]] = defaultdict(list)
    for count in range(rounds):
        for candidate in rotated(wanted, count):
            run(candidate)
            runs[candidate].append(run(candidate))
            on_run(candidate, runs[candidate])
    return {candidate: Times.of(runs[candidate]) for candidate in wanted}


def run_of(models: Models, candidate: Candidate, sampling: Sampling, threads: int | None) -> Run:
    """Draw one image of the first class and measure it."""
    model = candidate.bundles.manifest.model
    chosen = candidate.point.sampling(sampling).fitted(model.vocab_size, len(model.patch_nums))
    settings = Settings(
        backend="auto",
        threads=threads,
        batches=(1,),
        runs=1,
        label="0",
        seed=0,
        cfg=chosen.cfg,
        top_k=chosen.tokens_kept,
        top_p=chosen.top_p,
        verify=False,
        compare=None,
        guidance_scales=chosen.guidance_scales,
        decoder=chosen.decoder,
    )
    return timed_run(models.pipeline(candidate), settings)
