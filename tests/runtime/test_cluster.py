"""A set that workers of a Ray cluster draw has the bytes of a set that one process draws, also if workers are lost.

The cluster has a token of its own and listens on loopback only. It ends with the tests, also if they are killed.
"""

from __future__ import annotations

import os
import platform
import random
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from runtime import optional
from runtime.files.unfinished import is_temporary
from tests.runtime.test_sample_set import SMALL, contents, sample_set

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="the processes of Ray are looked for in /proc"),
]

COMMAND = [sys.executable, "-m", "runtime.sample_set"]
LARGE = ["--per-class", 300, "--batch", 3, "--top-k", 5]  # 500 batches: enough time to kill something
LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}  # without it Ray replaces 127.0.0.1
TOKEN = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
LISTENING = "0A"  # the state of a socket in /proc/net/tcp


def environment(**others: str) -> dict[str, str]:
    own = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return own | LOOPBACK | TOKEN | others


def start(*arguments: object, folder: Path | None = None, **variables: str) -> subprocess.Popen[str]:
    command = [*COMMAND, *map(str, arguments)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=folder, env=environment(**variables), **pipes)  # type: ignore[call-overload,no-any-return]


def ended(run: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Return the exit code of a command, and what it has written to stdout and stderr."""
    try:
        out, err = run.communicate(timeout=120)
    except subprocess.TimeoutExpired:
        run.kill()
        raise
    return run.returncode, out, err


def descendants(process: int) -> list[int]:
    """Return the processes that this one and its children have started."""
    parents = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(entry.parent.name)] = int(entry.read_text().rpartition(")")[2].split()[1])
        except OSError:  # it has just ended
            continue
    found = [process]
    for one in found:
        found += [child for child, parent in parents.items() if parent == one]
    return found[1:]


def workers(process: int) -> list[int]:
    """Return the workers that hold a pipeline. Ray names their processes by their class."""
    return [one for one in descendants(process) if _read(f"/proc/{one}/cmdline").startswith("ray::Worker")]


def listening(processes: list[int]) -> set[str]:
    """Return the addresses on which processes listen, in the hexadecimal words of /proc/net/tcp6 or tcp."""
    sockets = set()
    for one in processes:
        for entry in Path(f"/proc/{one}/fd").glob("*"):
            try:
                sockets.add(os.readlink(entry))
            except OSError:
                continue
    lines = [line.split() for name in ("tcp", "tcp6") for line in _read(f"/proc/net/{name}").splitlines()[1:]]
    return {words[1].split(":")[0] for words in lines if words[3] == LISTENING and f"socket:[{words[9]}]" in sockets}


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""


def wait_until(condition: Callable[[], object], run: subprocess.Popen[str] | None = None, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert run is None or run.poll() is None, ended(run)
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.02)


def are_gone(processes: list[int]) -> bool:
    return not any(_read(f"/proc/{one}/cmdline") for one in processes)  # empty also for a process nobody waited for


@pytest.fixture(scope="module")
def head() -> Iterator[tuple[int, str]]:
    """The process and the address of a cluster of one machine that says it has four cores: so it has two workers."""
    pytest.importorskip("ray", reason="ray has no package for this machine")
    folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))  # the path of a socket has at most 107 bytes
    address = f"127.0.0.1:{_free_port()}"
    bounded = ["setpriv", "--pdeathsig", "TERM", "timeout", "--kill-after=10", "300"]
    script = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--disable-usage-stats"]
    where = ["--node-ip-address=127.0.0.1", f"--port={address.partition(':')[2]}", f"--temp-dir={folder}"]
    size = ["--num-cpus=4", "--object-store-memory=100000000", "--include-dashboard=false"]
    with (folder / "log").open("w") as log:
        command = [*bounded, *script, *where, *size]
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment(), start_new_session=True)
    started = []
    try:
        wait_until(lambda: process.poll() is not None or "Ray runtime started" in _read(f"{folder}/log"), seconds=90)
        assert process.poll() is None, _read(f"{folder}/log")
        yield process.pid, address
    finally:
        started = descendants(process.pid)
        os.killpg(process.pid, signal.SIGKILL)  # Ray's processes end with the first of them
        process.wait(timeout=10)
        wait_until(lambda: are_gone(started), seconds=30)
        shutil.rmtree(folder)


def _free_port() -> int:
    """Return a port outside of 10002 to 19999, which Ray keeps for its workers."""
    while True:
        with socket.socket() as server:
            server.bind(("127.0.0.1", 0))
            port = int(server.getsockname()[1])
        if port >= 20000:
            return port


@pytest.fixture(scope="module")
def alone(toy_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The large set, drawn by two shards without Ray."""
    out = tmp_path_factory.mktemp("alone") / "set"
    for part in ("1/2", "2/2"):
        assert sample_set("--bundle", toy_bundle, "--out", out, *LARGE, "--shard", part).exit_code == 0
    return out


def test_lost_workers_are_replaced(head: tuple[int, str], toy_bundle: Path, alone: Path, tmp_path: Path) -> None:
    """Of two workers one is killed at random, twice, while both draw. The paths are relative, not to Ray's folder."""
    process, address = head
    bundle = os.path.relpath(toy_bundle, tmp_path)
    run = start("--bundle", bundle, "--out", "set", *LARGE, "--ray", address, folder=tmp_path)
    killed = set[int]()
    for drawn in (100, 600):
        wait_until(lambda: len(workers(process)) == 2 and len(list(tmp_path.glob("set/*.png"))) > drawn, run)  # noqa: B023
        time.sleep(random.random() / 10)
        lost = random.choice(workers(process))
        os.kill(lost, signal.SIGKILL)
        killed.add(lost)
    code, out, err = ended(run)
    assert (code, err) == (0, "")
    assert out.startswith("set: 1500 of 1500 image(s) drawn with onnxruntime")
    assert out.endswith(" by up to 2 worker(s); complete, with samples.npz\n")
    assert len(killed) == 2
    assert contents(tmp_path / "set") == contents(alone)


def test_shards_may_be_drawn_by_a_cluster(head: tuple[int, str], toy_bundle: Path, tmp_path: Path) -> None:
    first = start("--bundle", toy_bundle, "--out", tmp_path / "set", *SMALL, "--shard", "2/2", "--ray", head[1])
    code, out, err = ended(first)
    assert (code, err) == (0, "")
    assert "14 of 30 image(s)" in out
    assert "16 of 30" in sample_set("--bundle", toy_bundle, "--out", tmp_path / "set", *SMALL).output
    sample_set("--bundle", toy_bundle, "--out", tmp_path / "alone", *SMALL)
    assert contents(tmp_path / "set") == contents(tmp_path / "alone")


def test_a_batch_that_ends_every_worker_ends_the_command(
    head: tuple[int, str], toy_bundle: Path, tmp_path: Path
) -> None:
    run = start("--bundle", toy_bundle, "--out", tmp_path / "set", *LARGE, "--ray", head[1])
    killed = set[int]()
    while run.poll() is None:
        for worker in workers(head[0]):
            os.kill(worker, signal.SIGKILL)
            killed.add(worker)
        time.sleep(0.01)
    code, out, err = ended(run)
    assert (code, out) == (1, "")
    assert len(killed) in (4, 5)  # a worker that loads while another is counted may be killed, too
    assert "has ended 4 workers, perhaps for want of memory: " in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(("number", "word"), [(signal.SIGINT, "interrupted"), (signal.SIGTERM, "terminated")])
def test_a_signal_ends_the_command_and_its_workers(
    head: tuple[int, str], toy_bundle: Path, alone: Path, tmp_path: Path, number: int, word: str
) -> None:
    """Nothing of it is left in the cluster or in the folder, and the rest can be drawn without the cluster."""
    out = tmp_path / "set"
    run = start("--bundle", toy_bundle, "--out", out, *LARGE, "--ray", head[1])
    wait_until(lambda: len(list(out.glob("*.png"))) > 100, run)
    run.send_signal(number)
    assert ended(run) == (128 + number, "", f"{word}\n")
    wait_until(lambda: not workers(head[0]), seconds=30)
    assert [entry.name for entry in out.iterdir() if is_temporary(entry.name)] == []
    drawn = len(list(out.glob("*.png")))
    assert drawn < 1500
    result = sample_set("--bundle", toy_bundle, "--out", out, *LARGE)
    assert result.output.startswith(f"{out}: ") and "1500 of 1500" not in result.output
    assert contents(out) == contents(alone)


def test_a_local_cluster_ends_with_the_command(toy_bundle: Path, alone: Path, tmp_path: Path) -> None:
    """It is for this machine only, nothing of it is left when the command is killed, and the next run continues."""
    pytest.importorskip("ray", reason="ray has no package for this machine")
    arguments = ["--bundle", toy_bundle, "--out", tmp_path / "set", *LARGE, "--ray", "local"]
    run = start(*arguments, HOME=str(tmp_path), RAY_AUTH_MODE="disabled", RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER="1")
    wait_until(lambda: len(list(tmp_path.glob("set/*.png"))) > 100, run)
    started = descendants(run.pid)
    assert workers(run.pid)
    assert listening(started) <= {"0100007F", "0000000000000000FFFF00000100007F"}  # 127.0.0.1
    assert listening(started)
    agents = [one for one in started if _read(f"/proc/{one}/cmdline").partition("\0")[0].endswith("Agent")]
    run.kill()
    try:
        run.communicate(timeout=60)
        wait_until(lambda: are_gone([one for one in started if one not in agents]), seconds=30)
    finally:
        for one in agents:  # Ray's, which look after its logs, hold nothing, and take minutes to see that it is gone
            with suppress(ProcessLookupError):
                os.kill(one, signal.SIGKILL)
    assert not (tmp_path / ".ray").exists()  # a token there would be asked for by every later cluster of the user
    drawn = len(list(tmp_path.glob("set/*.png")))
    assert drawn < 1500

    code, out, err = ended(start(*arguments))
    assert (code, err) == (0, "")
    assert "1500 of 1500" not in out
    assert contents(tmp_path / "set") == contents(alone)


@pytest.mark.parametrize("token", [{"RAY_AUTH_MODE": "disabled"}, {"RAY_AUTH_TOKEN": "0" * 64}], ids=["none", "other"])
def test_a_token_that_is_refused(
    head: tuple[int, str], toy_bundle: Path, tmp_path: Path, token: dict[str, str]
) -> None:
    run = start("--bundle", toy_bundle, "--out", tmp_path / "set", "--ray", head[1], **token)
    advice = "set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH to the token of the cluster"
    assert ended(run) == (1, "", f"Error: --ray: the cluster at '{head[1]}' refuses the token; {advice}\n")
    assert not (tmp_path / "set").exists()


def test_mistakes_that_workers_find(head: tuple[int, str], toy_bundle: Path, tmp_path: Path) -> None:
    run = start("--bundle", toy_bundle, "--out", tmp_path / "set", "--ray", head[1], "--top-k", 65)
    assert ended(run) == (1, "", f"Error: ray worker on {platform.node()}: top_k: expected 0 (all) to 64, found 65\n")
    sample_set("--bundle", toy_bundle, "--out", tmp_path / "set", *SMALL)
    before = contents(tmp_path / "set")
    code, out, err = ended(
        start("--bundle", toy_bundle, "--out", tmp_path / "set", *SMALL, "--seed", 1, "--ray", head[1])
    )
    assert (code, out) == (1, "")
    assert err.endswith("settings.json: another set: seed: expected 1, found 0; give another folder\n")
    assert err.count("\n") == 1
    assert contents(tmp_path / "set") == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--ray", "remote"], "--ray: expected local or HOST:PORT, found 'remote'"),
        (["--ray", ""], "--ray: expected local or HOST:PORT, found ''"),
        (["--ray", "127.0.0.1:99999"], "--ray: no cluster answers at '127.0.0.1:99999'"),
        (["--ray", "host:"], "--ray: expected local or HOST:PORT, found 'host:'"),
        (["--ray", "127.0.0.1:1"], "--ray: no cluster answers at '127.0.0.1:1'; start one with ray start --head, or"),
        (["--ray", "local", "--out", "/proc/set"], "/proc/set: "),
    ],
)
def test_mistakes(
    toy_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    before = time.monotonic()
    result = sample_set("--bundle", toy_bundle, "--out", tmp_path / "set", *arguments)
    assert result.exit_code == 1
    assert message in result.output
    assert result.output.count("\n") == 1
    assert time.monotonic() - before < 10
    assert not (tmp_path / "set").exists()


def test_ray_is_not_installed(toy_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there = optional.find_spec
    monkeypatch.setattr(optional, "find_spec", lambda name: None if name == "ray" else there(name))
    result = sample_set("--bundle", toy_bundle, "--out", tmp_path / "set", "--ray", "local")
    advice = "needs ray, which is not installed; pip install 'var-edge[ray]'"
    assert (result.exit_code, result.output) == (1, f"Error: --ray: {advice}\n")
    assert sample_set("--bundle", toy_bundle, "--out", tmp_path / "set", *SMALL).exit_code == 0
