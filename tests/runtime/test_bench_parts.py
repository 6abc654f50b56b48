"""The parts of a benchmark: statistics, readers of the machine, the count of its work."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from safetensors import safe_open

from runtime import Pipeline
from runtime.base_pipeline import Maps
from runtime.bench import other_work
from runtime.bench.compare import RivalRuns, differing_pictures
from runtime.bench.gemm import gemm_rate
from runtime.bench.machine import machine, physical_cores
from runtime.bench.measure import measure_batch
from runtime.bench.other_work import OtherWork
from runtime.bench.report import Settings
from runtime.bench.summary import Ratio, Summary
from runtime.bench.tables import seconds
from runtime.bundle.manifest import WEIGHTS, Manifest
from runtime.bundle.names import ENCODER, REQUIRED_GRAPHS, TINY_DECODER
from runtime.bundle.weight_file import loaded_weights
from runtime.memory import Memory, memory
from tests.runtime.toy import SIDES

SETTINGS = Settings("auto", 1, (2,), 4, "1", 7, 2.0, 3, 0.5, True, None)


def test_summary() -> None:
    summary = Summary.of([4.0, 1.0, 3.0, 2.0, 10.0])
    assert (summary.median, summary.min, summary.max, summary.iqr) == (3, 1, 10, 2)
    assert summary.samples == (4, 1, 3, 2, 10)


def test_summary_of_one_run() -> None:
    assert Summary.of([2.0]) == Summary(2, 2, 2, 0, (2,))


def test_ratio_pairs_the_runs_of_a_round() -> None:
    slow, fast = Summary.of([3.0, 8.0, 5.0]), Summary.of([1.0, 4.0, 2.0])
    assert Ratio.of(slow, fast) == Ratio(of_medians=2.5, min=2.0, max=3.0)


def test_differing_pictures() -> None:
    first = [np.array([[1], [2], [3]]), np.array([[1, 2], [3, 4], [5, 6]])]  # three pictures, two scales
    second = [maps.astype(np.int32) for maps in first]
    assert differing_pictures(first, second) == 0
    second[0][2], second[1][2, 1], second[1][0, 0] = 9, 9, 9
    assert differing_pictures(first, second) == 2


def test_rivals_run_in_turns(toy_bundle: Path) -> None:
    pipeline, calls = Pipeline(toy_bundle), []

    def rival(name: str, change: int) -> RivalRuns:
        def draw(batch: int) -> Maps:
            calls.append(name)
            maps = pipeline.generate([1] * batch, 7, 2.0, 3, 0.5).tokens
            maps[-1][:change] += 1
            return maps

        return draw

    rounds: list[int] = []
    rivals = {"a": rival("a", 0), "b": rival("b", 1)}
    times = measure_batch(pipeline, SETTINGS, 2, None, rivals, None, lambda: rounds.append(len(calls)))
    assert calls == ["a", "b"] * 5  # the first round is not timed
    assert rounds == [2, 4, 6, 8, 10]
    assert [(r.name, len(r.seconds.samples), r.differing_pictures) for r in times.rivals] == [("a", 4, 0), ("b", 4, 1)]
    assert times.rivals[0].ratio.min <= times.rivals[0].ratio.max


def test_stages_and_the_rest_make_the_whole(toy_bundle: Path) -> None:
    settings = Settings("auto", 1, (2,), 1, "1", 7, 2.0, 3, 0.5, True, None)
    times = measure_batch(Pipeline(toy_bundle), settings, 2, None, {}, None, lambda: None)
    parts = sum(stage.seconds for stage in times.stages)
    assert times.outside_graphs > 0
    assert parts + times.outside_graphs == pytest.approx(times.seconds.median)
    assert [stage.scale for stage in times.stages if stage.graph == "bridge"] == list(range(len(SIDES)))
    assert times.spent("bridge") == pytest.approx(sum(times.spent("bridge", k) for k in range(len(SIDES))))


def test_memory_of_this_process(tmp_path: Path) -> None:
    status = tmp_path / "status"
    status.write_text("Name:\tpython\nVmHWM:\t  2048 kB\nVmRSS:\t  1024 kB\nThreads:\t1\n")
    assert memory(status) == Memory(resident=1 << 20, peak=1 << 21)
    assert memory(tmp_path / "no such system") is None


def test_loaded_weights_are_those_that_onnx_names(tiny_bundle: Path) -> None:
    manifest = Manifest.load(tiny_bundle)
    found = {}
    for name in REQUIRED_GRAPHS:
        model = onnx.load(tiny_bundle / manifest.graphs[name].file, load_external_data=False)
        for tensor in model.graph.initializer:
            where = {entry.key: entry.value for entry in tensor.external_data}
            found[tensor.name] = int(where.get("length", 0))
    with safe_open(tiny_bundle / WEIGHTS, framework="numpy") as weights:
        for scale in manifest.scales:
            for matrix in filter(None, (scale.upsample, scale.downsample)):
                found[matrix] = weights.get_tensor(matrix).nbytes
    assert loaded_weights(tiny_bundle, manifest) == sum(found.values())
    assert sum(found.values()) < 0.8 * (tiny_bundle / WEIGHTS).stat().st_size  # the encoder is not among them
    with_tiny = replace(manifest, graphs=manifest.graphs | {TINY_DECODER: manifest.graphs[ENCODER]})
    assert loaded_weights(tiny_bundle, with_tiny) > sum(found.values())  # a tiny decoder is


@pytest.mark.parametrize(
    ("cpuinfo", "cpu", "expected"),
    [
        (
            "processor\t: 0\nmodel name\t: Some CPU\nflags\t\t: fpu fma avx2 avx512f avx512_vnni\n\n"
            "processor\t: 1\nmodel name\t: Other\n",
            "Some CPU",
            ("fma", "avx2", "avx512", "avx512-vnni"),
        ),
        ("model name\t: ARMv8\nFeatures\t: fp asimd asimdhp asimddp", "ARMv8", ("neon", "neon-fp16", "neon-dotprod")),
    ],
)
def test_machine(tmp_path: Path, cpuinfo: str, cpu: str, expected: tuple[str, ...]) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/cpuinfo").write_text(cpuinfo)
    (tmp_path / "proc/meminfo").write_text("MemTotal:        1000 kB\nMemFree:  10 kB\n")
    found = machine(tmp_path)
    assert (found.cpu, found.instruction_sets, found.memory_bytes) == (cpu, expected, 1_024_000)
    assert found.libraries["numpy"] == np.__version__


def test_two_threads_of_a_core_count_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1, 4, 5}, raising=False)
    for cpu, siblings in {0: "0,4", 1: "1,5", 2: "2,6", 4: "0,4", 5: "1,5"}.items():
        topology = tmp_path / f"sys/devices/system/cpu/cpu{cpu}/topology"
        topology.mkdir(parents=True)
        (topology / "thread_siblings_list").write_text(siblings)
    assert physical_cores(tmp_path) == 2


def test_other_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stat, ticks = tmp_path / "stat", os.sysconf("SC_CLK_TCK")
    stat.write_text("cpu  100 0 50 9000 7 0 0 0 0 0\ncpu0 100 0 50 9000 7 0 0 0 0 0\n")
    now, ours = 7.0, os.times()
    monkeypatch.setattr(other_work.time, "monotonic", lambda: now)
    monkeypatch.setattr(other_work.os, "times", lambda: ours)
    watch = OtherWork(stat)
    now += 0.5
    stat.write_text(f"cpu  {100 + 3 * ticks} 0 50 9900 99 0 0 {ticks} 0 0\n")  # 3 s of user time, 1 s stolen
    cpus = watch.cpus()
    assert cpus == pytest.approx(8)  # 4 s in half a second
    assert OtherWork(tmp_path / "no such system").cpus() is None


def test_gemm_rate_is_a_processors() -> None:
    assert 1e8 < gemm_rate(threads=1) < 1e14


@pytest.mark.parametrize(
    ("value", "text"), [(123.4, "123 s"), (1.234, "1.23 s"), (0.9996, "1000 ms"), (0.01234, "12.3 ms"), (5e-6, "5 µs")]
)
def test_seconds(value: float, text: str) -> None:
    assert seconds(value) == text
