"""The process that holds the pipeline may die at any time: the server answers, and the next request is served."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Iterator
from multiprocessing.context import SpawnProcess
from pathlib import Path

import numpy as np
import pytest

from runtime.drawing import Loading
from runtime.errors import VarEdgeError
from runtime.pipeline import Pipeline
from runtime.serving.batches import Answer
from runtime.serving.process import ModelProcess, visible_gpu
from runtime.serving.settings import Settings
from tests.runtime.test_serving import tensors


def settings(bundle: Path) -> Settings:
    return Settings(bundle, Loading(1, "auto", True, None, None), 8)


@pytest.fixture
def process(own_bundle: Path) -> Iterator[ModelProcess]:
    made = ModelProcess(settings(own_bundle))
    yield made
    made.close()


def served(process: ModelProcess, label: str = "1", seed: int = 0) -> Answer:
    (answer,) = process.answers([tensors(label=label, seed=seed, top_k=3)], lambda i: False)
    return answer


def assert_served(process: ModelProcess, bundle: Path) -> None:
    answer, alone = served(process, "2", 5), Pipeline(bundle).generate(2, 5, top_k=3)
    assert answer.outputs is not None, answer.error
    assert np.array_equal(answer.outputs["tokens"], np.concatenate(alone.tokens, axis=1))


def test_the_next_request_is_served_after_a_kill_in_the_middle(process: ModelProcess, own_bundle: Path) -> None:
    assert_served(process, own_bundle)
    pid = process.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)  # so that the kill comes before the answer

    def kill(_: int) -> bool:
        os.kill(pid, signal.SIGKILL)
        return False

    found = list(process.answers([tensors(label="1", top_k=3), tensors(label="2", top_k=3)], kill))
    assert [(answer.request, answer.code) for answer in found] == [(0, "UNAVAILABLE"), (1, "UNAVAILABLE")]
    assert process.pid != pid  # the next one loads already
    assert found[0].error == "the process of the model ended with signal 9; send the request again"
    assert_served(process, own_bundle)


def test_answers_that_nobody_reads_reach_no_other_request(process: ModelProcess, own_bundle: Path) -> None:
    answers = process.answers([tensors(label=label, top_k=3) for label in "13"], lambda i: False)
    assert next(answers).last
    del answers
    assert_served(process, own_bundle)


def test_errors_are_sent_although_no_process_can_be_started(
    process: ModelProcess, own_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where memory is short the kernel kills the process, and then refuses another: later it does not."""
    assert process.pid is not None
    os.kill(process.pid, signal.SIGSTOP)

    def kill(_: int) -> bool:
        os.kill(process.pid or 0, signal.SIGKILL)
        return False

    def refused(_: SpawnProcess) -> None:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    with monkeypatch.context() as patch:
        patch.setattr(SpawnProcess, "start", refused)
        for is_cancelled in (kill, lambda _: False):
            found = list(process.answers([tensors(label="1", top_k=3)], is_cancelled))
            assert [(answer.request, answer.code) for answer in found] == [(0, "UNAVAILABLE")]
    assert_served(process, own_bundle)


def test_a_pipeline_that_does_not_load_is_not_waited_for(
    process: ModelProcess, own_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    process._end()
    process._start()
    os.kill(process.pid or 0, signal.SIGSTOP)
    monkeypatch.setattr("runtime.serving.process.LOAD_SECONDS", 0.1)
    assert served(process).error == f"{own_bundle}: not loaded in 0.1 s; send the request again"
    monkeypatch.undo()
    assert_served(process, own_bundle)


def test_a_kill_between_two_requests_is_not_noticed(process: ModelProcess, own_bundle: Path) -> None:
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process._process.join()
    assert_served(process, own_bundle)


def test_a_cancelled_request_ends_and_the_next_is_served(process: ModelProcess, own_bundle: Path) -> None:
    assert process.pid is not None
    os.kill(process.pid, signal.SIGSTOP)

    send = process._connection.send

    def sent(what: object) -> None:
        send(what)
        if what == 0:  # the cancellation is in the pipe before the process runs on
            os.kill(process.pid or 0, signal.SIGCONT)

    process._connection.send = sent  # type: ignore[method-assign]
    found = list(process.answers([tensors(label="1", top_k=3, previews=True)], lambda i: True))
    process._connection.send = send  # type: ignore[method-assign]
    assert [(answer.last, answer.outputs, answer.error) for answer in found] == [(True, None, None)]
    assert_served(process, own_bundle)


def test_a_cancellation_that_comes_too_late_touches_no_other_request(process: ModelProcess, own_bundle: Path) -> None:
    assert_served(process, own_bundle)
    process._connection.send(0)
    assert_served(process, own_bundle)


def test_a_bundle_that_cannot_be_loaded_is_one_line(own_bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(VarEdgeError, match=r"no manifest\.json"):
        ModelProcess(settings(tmp_path))
    process = ModelProcess(settings(own_bundle))
    try:
        (own_bundle / "manifest.json").rename(tmp_path / "aside.json")
        os.kill(process.pid or 0, signal.SIGKILL)
        process._process.join()
        for _ in range(2):
            assert "no manifest.json" in str(served(process).error)
        (tmp_path / "aside.json").rename(own_bundle / "manifest.json")
        assert_served(process, own_bundle)
    finally:
        process.close()


def test_the_gpu_of_an_instance() -> None:
    """Each instance sees its own GPU only, also where the server sees only some of them."""
    assert visible_gpu(1, "") == "1"
    assert visible_gpu(1, "5,GPU-7f") == "GPU-7f"


def test_settings_survive_the_configuration(tmp_path: Path) -> None:
    for loading in (Loading(None, "auto", True, None, None), Loading(3, "tensorrt", False, Path("draft"), 4)):
        inside = Settings(Path("bundle"), loading, 4)
        found = Settings.of(inside.parameters(), tmp_path, 2)
        assert (found.bundle, found.batch, found.gpu) == (tmp_path / "bundle", 4, 2)
        assert found.loading.draft == (tmp_path / "draft" if loading.draft else None)
        assert (found.loading.threads, found.loading.backend) == (loading.threads, loading.backend)
        assert (found.loading.verify, found.loading.draft_scales) == (loading.verify, loading.draft_scales)
