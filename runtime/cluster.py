"""Draw an evaluation set with the workers of a Ray cluster.

The driver hands out the batches of the set from one queue and writes the files, so the machines need no common folder:
only this package, and the bundle at the same path. The batch of a worker that is lost goes back into the queue. The
batches are those of a run without Ray, and so are the bytes of the files.
"""

from __future__ import annotations

import logging
import os
import platform
import secrets
import signal
import socket
import subprocess
import sys
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, replace
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import SettingsError, VarEdgeError
from .evaluation_set import EvaluationSet, Picture
from .limits import shown
from .optional import require
from .progress import Progress, counter

if TYPE_CHECKING:
    from .base_pipeline import BasePipeline
    from .drawing import Loading

LOCAL = "local"  # the address of a cluster that runs on this machine for one command
ANSWER = 10.0  # seconds within which the port of a cluster has to open
STATUS = 60.0  # seconds for `ray status`, most of which Python takes to import Ray on a slow machine
START = 600.0  # seconds within which a worker has to load the bundle, while none draws
CPUS = 2  # threads of a worker where there is no GPU: more workers gain more than more threads
LOSSES = 3  # times that a batch is handed out again, or that workers are replaced while they load and none has loaded

Batch = list[Picture]
Files = list[bytes]  # PNG


@dataclass(frozen=True)
class Job:
    """A set to draw, as the command was told: enough for every worker to load what draws it."""

    loading: Loading
    bundle: Path
    classes: Sequence[str]
    settings: dict[str, Any]  # the other arguments of `EvaluationSet.of`

    def load(self) -> tuple[BasePipeline, EvaluationSet]:
        """Load the bundle, and return it with the set that it draws. Raises BundleError, SettingsError."""
        pipeline = self.loading.pipeline(self.bundle)
        return pipeline, EvaluationSet.of(pipeline, pipeline.classes.listed(self.classes), **self.settings)


class Worker:
    """An actor that draws batches with a pipeline of its own. Its errors name its machine."""

    def load(self, job: Job) -> tuple[EvaluationSet, str]:
        """Return the set that this worker draws, and what it draws with. Raises BundleError, SettingsError."""
        with _naming_the_machine():
            self._pipeline, self._set = job.load()
            return self._set, self._pipeline.drawn_with

    def draw(self, batch: Batch) -> Files:
        """Return the PNG files of a batch. Raises VarEdgeError."""
        with _naming_the_machine():
            return self._set.files(self._pipeline, batch)


@contextmanager
def _naming_the_machine() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        kind, reason = (type(error), error) if isinstance(error, VarEdgeError) else (VarEdgeError, repr(error))
        raise kind(f"ray worker on {platform.node()}: {reason}") from None


class Workers:
    """The workers of the cluster that this process is connected to: one for each GPU, or for every two CPU cores."""

    def __init__(self, job: Job) -> None:
        """Start the first worker and wait until it has loaded the bundle. Raises VarEdgeError."""
        import ray

        self._ray: Any = ray
        gpus, cpus = (int(self._ray.cluster_resources().get(name, 0)) for name in ("GPU", "CPU"))
        self.count = gpus or max(1, cpus // CPUS)
        threads = job.loading.threads or (None if gpus else max(1, min(cpus, CPUS)))
        draft = job.loading.draft and job.loading.draft.absolute()  # a worker runs in a folder of its own
        loading = replace(job.loading, threads=threads, draft=draft)
        self._job = replace(job, loading=loading, bundle=job.bundle.absolute())
        self._loading = f"loading {self._job.bundle}"
        # Half a core each: where actors hold every core, Ray finds none to start anything else with.
        needs: dict[str, float] = {"num_gpus": 1, "num_cpus": 0} if gpus else {"num_cpus": 0.5}
        self._actor: Any = ray.remote(Worker).options(scheduling_strategy="SPREAD", **needs)
        self._asked: dict[Any, tuple[Any, Batch]] = {}  # by future: the worker, and the batch; empty: the bundle
        self._idle: list[Any] = []
        self._queue: deque[Batch] = deque()
        self._losses = Counter[str]()
        self._loaded: list[tuple[EvaluationSet, str]] = []
        self._start()
        while not self._loaded:
            self._hear()

    @property
    def set(self) -> EvaluationSet:
        """The set that all workers draw."""
        return self._loaded[0][0]

    @property
    def drawn_with(self) -> str:
        """What the first worker draws with."""
        return self._loaded[0][1]

    def draw(self, batches: Sequence[Batch], drawn: Callable[[Batch, Files], None]) -> None:
        """Draw the batches in any order, and call `drawn` with each and its files. Raises VarEdgeError."""
        self._queue.extend(batches)
        for _ in range(1, min(self.count, len(batches))):
            self._start()
        left = len(batches)
        while left:
            while self._queue and self._idle:
                worker, batch = self._idle.pop(), self._queue.popleft()
                self._asked[worker.draw.remote(batch)] = worker, batch
            if answer := self._hear():
                drawn(*answer)
                left -= 1

    def _start(self) -> None:
        worker = self._actor.remote()
        self._asked[worker.load.remote(self._job)] = worker, []

    def _hear(self) -> tuple[Batch, Files] | None:
        """Wait for one worker. Return its batch and files, or None if it has loaded the bundle or was lost."""
        errors = self._ray.exceptions
        drawing = any(batch for _, batch in self._asked.values())
        ready, _ = self._ray.wait(list(self._asked), timeout=None if drawing else START)
        if not ready:
            raise SettingsError(f"ray: no worker has loaded {self._job.bundle} in {START:.0f} s; see ray status")
        worker, batch = self._asked.pop(ready[0])
        try:
            answer = self._ray.get(ready[0])
        except errors.RayTaskError as error:
            raise error.cause if isinstance(error.cause, VarEdgeError) else VarEdgeError(f"ray: {error}") from None
        except errors.RayError as error:  # of the worker's process or of its machine
            self._ray.kill(worker)  # perhaps only its machine does not answer: then it would hold its GPU
            self._lost(batch, str(error))
            return None
        self._idle.append(worker)
        if batch:
            return batch, answer
        self._loaded.append(answer)
        del self._losses[self._loading]  # only a row of workers that cannot load says something about the bundle
        if difference := self.set.difference(answer[0]):
            raise SettingsError(f"ray: workers draw different sets: {difference}; give all machines the same bundle")
        return None

    def _lost(self, batch: Batch, reason: str) -> None:
        """Replace a lost worker, and put its batch back. Raises VarEdgeError if that has been done LOSSES times."""
        what = f"the batch of {batch[0].file}" if batch else self._loading
        self._losses[what] += 1
        if self._losses[what] > LOSSES:
            raise VarEdgeError(f"ray: {what} has ended {LOSSES + 1} workers, perhaps for want of memory: {reason}")
        if batch:
            self._queue.appendleft(batch)
        self._start()


def draw_with_ray(
    address: str, job: Job, folder: Path, part: tuple[int, int], progress: Progress
) -> tuple[EvaluationSet, int, str]:
    """Draw what `folder` lacks of this part of a set. Return the set, the number of images, and what drew them.

    Raises VarEdgeError.
    """
    with connected(address):
        workers = Workers(job)
        workers.set.claim(folder)
        batches = workers.set.missing(folder, *part)
        todo = sum(map(len, batches))
        advance = counter(progress, "drawing", todo)

        def drawn(batch: Batch, files: Files) -> None:
            workers.set.write(folder, batch, files)
            advance(len(batch))

        workers.draw(batches, drawn)
        return workers.set, todo, f"{workers.drawn_with} by up to {workers.count} worker(s)"


@contextmanager
def connected(address: str) -> Iterator[None]:
    """Connect to the cluster at HOST:PORT, or start one here for LOCAL, until the block ends. Raises SettingsError."""
    require("--ray", "ray")
    local = address == LOCAL
    if not local:
        _check_answers(address)
    own: dict[str, Any] = {"include_dashboard": False, "_node_ip_address": "127.0.0.1"} if local else {}
    # The import reads the environment. Ray prints many lines about lost workers, also as it is shut down.
    with _environment(_of_local() if local else {}), redirect_stdout(StringIO()):
        import ray

        try:
            _connect(address, own)
            yield
        finally:
            ray.shutdown()  # also what a start that failed has left


def _connect(address: str, options: dict[str, Any]) -> None:
    """Call `ray.init`, and take back SIGTERM, for which Ray sets a handler of its own. Raises SettingsError."""
    import ray

    ours = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(address, log_to_driver=False, logging_level=logging.ERROR, **options)
    except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:  # another version, no node here
        raise SettingsError(f"--ray: cannot connect to {shown(address)}: {error}") from None
    finally:
        signal.signal(signal.SIGTERM, ours)


@contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    """Set variables of the environment until the block ends: whoever calls the command has others."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def _of_local() -> dict[str, str]:
    """Return the environment of a cluster for one command: on loopback only, and with a token of its own.

    Without a token Ray writes one to the home folder of the user, and every later cluster asks for it.
    """
    return {
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # the name of Ray's switch on every system: 127.0.0.1 is kept
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_USAGE_STATS_ENABLED": "0",  # no report to Ray's developers
    }


def _check_answers(address: str) -> None:
    """Raise SettingsError unless a cluster answers at the address. `ray.init` would wait without end."""
    host, _, port = address.rpartition(":")
    if not host or not port.isascii() or not port.isdecimal():
        raise SettingsError(f"--ray: expected {LOCAL} or HOST:PORT, found {shown(address)}")
    nothing = f"--ray: no cluster answers at {shown(address)}; start one with ray start --head, or give --ray {LOCAL}"
    try:
        socket.create_connection((host.strip("[]"), int(port)), ANSWER).close()
    except (OSError, OverflowError, UnicodeError):
        raise SettingsError(nothing) from None
    question = [sys.executable, "-m", "ray.scripts.scripts", "status", "--address", address]
    try:
        subprocess.run(question, capture_output=True, timeout=STATUS, check=True, text=True)
    except subprocess.TimeoutExpired:
        raise SettingsError(nothing) from None
    except subprocess.CalledProcessError as error:
        if "AuthenticationError" in error.stderr:
            advice = "set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH to the token of the cluster"
            raise SettingsError(f"--ray: the cluster at {shown(address)} refuses the token; {advice}") from None
        reason = error.stderr.strip().rpartition("\n")[2]
        raise SettingsError(f"--ray: the cluster at {shown(address)} cannot be used: {reason}") from None
