"""A set that workers of a Ray cluster draw has the bytes of a set that one process draws, also if workers are lost."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.runtime.test_sample_set import SMALL, contents, sample_set

COMMAND = [sys.executable, "-m", "runtime.sample_set"]


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


def workers() -> list[int]:
    """Return the processes of workers that hold a pipeline. Ray names them by their class."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if entry.read_bytes().startswith(b"ray::Worker"):
                found.append(int(entry.parent.name))
        except OSError:
            continue
    return found


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a cluster of one machine that says it has four cores, so there are two workers."""
    pytest.importorskip("ray", reason="ray has no package for this machine")
    address = f"127.0.0.1:{free_port()}"
    script = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--disable-usage-stats"]
    where = ["--node-ip-address=127.0.0.1", f"--port={address.rpartition(':')[2]}", "--include-dashboard=false"]
    log = tmp_path_factory.mktemp("ray") / "log"
    with log.open("w") as said:
        head = subprocess.Popen([*script, *where, "--num-cpus=4"], stdout=said, stderr=said, start_new_session=True)
    end = time.monotonic() + 90
    while "Ray runtime started" not in log.read_text():
        assert head.poll() is None and time.monotonic() < end, log.read_text()
        time.sleep(0.1)
    yield address
    head.terminate()  # ends all processes of this cluster, and no others
    head.wait(timeout=60)


def test_a_cluster_draws_the_same_bytes(cluster: str, toy_bundle: Path, tmp_path: Path) -> None:
    alone, shared = tmp_path / "alone", tmp_path / "shared"
    assert sample_set("--bundle", toy_bundle, "--out", alone, *SMALL).exit_code == 0
    for part, count in (("1/2", 16), ("1/1", 14)):
        result = sample_set("--bundle", toy_bundle, "--out", shared, *SMALL, "--ray", cluster, "--shard", part)
        assert result.exit_code == 0, result.output
        assert f"{count} of 30 picture(s) drawn with onnxruntime" in result.output
        assert "by up to 2 worker(s)" in result.output
    assert contents(shared) == contents(alone)


def test_lost_workers_are_replaced(cluster: str, toy_bundle: Path, tmp_path: Path) -> None:
    """A worker is killed twice at a random moment, while both draw."""
    settings = ["--bundle", toy_bundle, "--per-class", 400, "--batch", 3, "--top-k", 5, "--out"]
    assert sample_set(*settings, tmp_path / "alone").exit_code == 0
    shared, killed, seen = tmp_path / "shared", 0, set[int]()
    run = subprocess.Popen([*COMMAND, *map(str, settings), str(shared), "--ray", cluster], stderr=subprocess.PIPE)
    while run.poll() is None and killed < 2:
        there = len(list(shared.glob("*.png")))
        if workers() and there > 100 * (1 + killed):
            seen.update(workers())
            os.kill(random.choice(workers()), signal.SIGKILL)
            killed += 1
        time.sleep(random.random() / 20)
    assert run.wait(timeout=120) == 0, run.stderr and run.stderr.read()
    assert killed == 2
    assert len(seen) >= 2
    assert contents(shared) == contents(tmp_path / "alone")
