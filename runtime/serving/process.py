"""The process that holds the pipeline, apart from the server's own: if it dies, the next request starts another.

Triton does not restart a Python backend that was killed, and a crash in an engine or the kernel's search for memory
would kill it. So the server's process only passes tensors on.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection

from ..errors import VarEdgeError
from .batches import Answer, draw
from .request import Inputs
from .settings import Settings

CANCEL_SECONDS = 0.05  # how often the server is asked for cancelled requests
CLOSE_SECONDS = 10  # for the process to end by itself
LOAD_SECONDS = 600  # for the pipeline: the largest bundle has 9.9 GB, which a slow SD card reads at 20 MB/s
VISIBLE = "CUDA_VISIBLE_DEVICES"


class ModelProcess:
    """A process with a pipeline. Raises VarEdgeError if it cannot be loaded."""

    _answering: bool  # whether answers to earlier requests may still come

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._start()
        self._await_pipeline()

    @property
    def pid(self) -> int | None:
        """The number of the process."""
        return self._process.pid

    def answers(self, waiting: Sequence[Inputs], is_cancelled: Callable[[int], bool]) -> Iterator[Answer]:
        """Yield the answers to these requests as they are ready, see `batches.draw`.

        If the process dies meanwhile, those that have no last answer yet get an error, and another process is started.
        So it is if the caller left the answers to earlier requests half read: the next ones must not get the rest.
        """
        unanswered = set(range(len(waiting)))
        try:
            if self._answering or not self._process.is_alive():
                self._end()
                self._start()
            self._await_pipeline()
            self._answering = True
            self._connection.send(waiting)
            for answer in self._received(unanswered, is_cancelled):
                if answer.last:
                    unanswered.discard(answer.request)
                yield answer
            self._answering = False
        except (EOFError, OSError):
            self._process.join()
            text = f"the process of the model ended with {exit_words(self._process.exitcode)}; send the request again"
            yield from (Answer(i, error=text, code="UNAVAILABLE") for i in sorted(unanswered))
            with suppress(OSError):  # where memory is short this fails, too: then the next request tries again
                self._start()
        except VarEdgeError as error:  # of a process that was started again
            yield from (Answer.failed(i, error) for i in sorted(unanswered))

    def close(self) -> None:
        """End the process."""
        self._connection.close()
        self._process.join(CLOSE_SECONDS)
        self._end()

    def _end(self) -> None:
        self._connection.close()
        self._process.kill()
        self._process.join()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")  # a fork would share the engine's threads and the GPU
        connection, other = context.Pipe()
        with other:
            process = context.Process(target=_serve, args=(other, self._settings), daemon=True)
            process.start()
        self._connection, self._process = connection, process
        self._loaded = self._answering = False

    def _await_pipeline(self) -> None:
        """Wait until the pipeline is loaded. Raises VarEdgeError, EOFError if the process ended."""
        if not self._loaded:
            if not self._connection.poll(LOAD_SECONDS):
                self._end()
                raise VarEdgeError(f"{self._settings.bundle}: not loaded in {LOAD_SECONDS:g} s; send the request again")
            fault = self._connection.recv()
            if fault is not None:
                self._process.join()
                raise VarEdgeError(fault)
            self._loaded = True

    def _received(self, unanswered: set[int], is_cancelled: Callable[[int], bool]) -> Iterator[Answer]:
        told: set[int] = set()
        asked = time.monotonic()
        while True:
            if self._connection.poll(CANCEL_SECONDS):
                answer = self._connection.recv()
                if answer is None:
                    return
                yield answer
            if time.monotonic() - asked < CANCEL_SECONDS:
                continue
            for i in unanswered - told:
                if is_cancelled(i):
                    self._connection.send(i)
                    told.add(i)
            asked = time.monotonic()


def visible_gpu(gpu: int, visible: str) -> str:
    """Return what CUDA_VISIBLE_DEVICES must be to see only the GPU that is number `gpu` of those visible now."""
    return visible.split(",")[gpu] if visible else str(gpu)


def exit_words(code: int | None) -> str:
    """Return how a process ended, in words."""
    return f"signal {-code}" if code is not None and code < 0 else f"code {code}"


def _serve(connection: Connection, settings: Settings) -> None:
    """Load the pipeline, then draw what comes over the connection until its other end closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C ends the server, which then ends this process
    if settings.gpu is not None:
        os.environ[VISIBLE] = visible_gpu(settings.gpu, os.environ.get(VISIBLE, ""))
    try:
        pipeline = settings.loading.pipeline(settings.bundle)
    except (VarEdgeError, OSError) as error:
        connection.send(str(error))
        return
    gone: set[int] = set()

    def cancelled() -> set[int]:
        while connection.poll():
            gone.add(connection.recv())
        return gone

    with suppress(EOFError, OSError):
        connection.send(None)
        while True:
            waiting = connection.recv()
            if isinstance(waiting, int):  # cancelled when its answer was already on the way
                continue
            gone.clear()
            draw(pipeline, waiting, settings.batch, connection.send, cancelled)
            connection.send(None)
