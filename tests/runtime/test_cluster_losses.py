"""How the driver counts lost workers, and what it leaves behind: with a Ray that loses workers as it is told."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from runtime import cluster
from runtime.cluster import LOSSES, Job, Workers, connected
from runtime.drawing import Loading
from runtime.errors import SettingsError, VarEdgeError

LOST, GOOD = "lost", "good"
BATCHES: Any = [[SimpleNamespace(file=f"{i}.png")] for i in range(3)]


class RayError(Exception):
    pass


class RayTaskError(RayError):
    pass


class FakeRay:
    """A cluster with one worker. `loads` and `draws` say what becomes of each call in turn; then all are good."""

    exceptions = SimpleNamespace(RayError=RayError, RayTaskError=RayTaskError)

    def __init__(self, loads: list[str], draws: list[str]) -> None:
        self.loads, self.draws = loads, draws
        self.calls: list[str] = []
        self.environment: dict[str, str] = {}
        self.init_fails: Exception | None = None

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": 2.0}

    def remote(self, _: type) -> Any:
        drawn_by = SimpleNamespace(difference=lambda other: None)
        load = SimpleNamespace(remote=lambda job: self._future(self.loads, (drawn_by, "fake")))
        draw = SimpleNamespace(remote=lambda batch: self._future(self.draws, [b"png"] * len(batch)))
        actor = SimpleNamespace(load=load, draw=draw)
        return SimpleNamespace(options=lambda **_: SimpleNamespace(remote=lambda: actor))

    @staticmethod
    def _future(fates: list[str], answer: object) -> Callable[[], object]:
        fate = fates.pop(0) if fates else GOOD

        def get() -> object:
            if fate == LOST:
                raise RayError("the worker died")
            return answer

        return get

    def wait(self, futures: list[Any], timeout: float | None) -> tuple[list[Any], list[Any]]:
        return futures[:1], futures[1:]

    def get(self, future: Callable[[], object]) -> object:
        return future()

    def kill(self, _: object) -> None:
        pass

    def init(self, *_: object, **__: object) -> None:
        self.calls.append("init")
        self.environment = dict(os.environ)
        signal.signal(signal.SIGTERM, lambda *_: None)  # as Ray does
        if self.init_fails:
            raise self.init_fails

    def shutdown(self) -> None:
        self.calls.append("shutdown")
        print("(raylet) A worker died or was killed")


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Callable[[list[str], list[str]], FakeRay]:
    def made(loads: list[str], draws: list[str]) -> FakeRay:
        ray = FakeRay(loads, draws)
        monkeypatch.setitem(sys.modules, "ray", ray)  # type: ignore[arg-type]
        monkeypatch.setattr(cluster, "require", lambda *_: None)
        return ray

    return made


def draw() -> list[str]:
    """Return the files of the batches in the order in which they were drawn."""
    drawn: list[str] = []
    workers = Workers(Job(Loading(1, "auto", True, None, None), Path("bundle"), (), {}))
    workers.draw(BATCHES, lambda batch, files: drawn.append(batch[0].file))
    return drawn


def test_losses_while_loading_count_until_a_worker_has_loaded(fake: Any) -> None:
    """Over days of spot machines many workers are lost while they load, each time with others that load well later."""
    fake([*[LOST] * LOSSES, GOOD] * 2, [LOST])
    assert draw() == ["0.png", "1.png", "2.png"]


def test_a_bundle_that_no_worker_can_load_ends_the_command(fake: Any) -> None:
    fake([LOST] * (LOSSES + 1), [])
    with pytest.raises(VarEdgeError, match=f"loading .*/bundle has ended {LOSSES + 1} workers"):
        draw()


def test_a_batch_that_ends_its_workers_is_counted_although_others_load(fake: Any) -> None:
    fake([], [LOST] * (LOSSES + 1))
    with pytest.raises(VarEdgeError, match=f"the batch of 0.png has ended {LOSSES + 1} workers"):
        draw()


def test_a_local_cluster_leaves_no_token_no_handler_and_no_text(
    fake: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    before, handler, ray = dict(os.environ), signal.getsignal(signal.SIGTERM), fake([], [])
    with connected("local"):
        assert signal.getsignal(signal.SIGTERM) == handler
        assert len(os.environ["RAY_AUTH_TOKEN"]) == 64
    assert dict(os.environ) == before
    assert ray.environment["RAY_AUTH_MODE"] == "token"
    assert ray.calls == ["init", "shutdown"]
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("error", [RuntimeError("no room"), KeyboardInterrupt()])
def test_a_start_that_fails_is_shut_down(fake: Any, error: BaseException) -> None:
    before, handler, ray = dict(os.environ), signal.getsignal(signal.SIGTERM), fake([], [])
    ray.init_fails = error
    with pytest.raises(SettingsError if isinstance(error, RuntimeError) else KeyboardInterrupt), connected("local"):
        pass
    assert ray.calls == ["init", "shutdown"]
    assert dict(os.environ) == before
    assert signal.getsignal(signal.SIGTERM) == handler
