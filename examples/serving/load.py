"""python -m examples.serving.load DIR: what the server costs, beside the bare Pipeline in the same run."""

from __future__ import annotations

import os
import signal
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty, SimpleQueue
from tempfile import TemporaryDirectory

import click
import numpy as np

from runtime import Pipeline, VarEdgeError
from runtime.cli import FILE, Number, command, reports_errors
from runtime.limits import BATCH, RUNS, THREADS, Integers
from runtime.serving.client import Client
from runtime.serving.tensors import NAME

from .server import Server, free_port

CLIENTS = Integers(1, 256)
COUNTED = Integers(1, 10**6)


@dataclass
class Load:
    """What `clients` threads saw: seconds and tokens of each request by its seed, and how many were sent again."""

    seconds: dict[int, float] = field(default_factory=dict)
    tokens: dict[int, np.ndarray] = field(default_factory=dict)
    again: int = 0

    def run(self, clients: list[Client], seeds: range, labels: int) -> float:
        """Send one request for each seed; return the seconds of all."""
        todo: SimpleQueue[int] = SimpleQueue()
        for seed in seeds:
            todo.put(seed)

        def work(client: Client) -> None:
            with suppress(Empty):
                while True:
                    seed = todo.get_nowait()
                    start = time.perf_counter()
                    self.tokens[seed] = self._answer(client, seed, labels)
                    self.seconds[seed] = time.perf_counter() - start

        start = time.perf_counter()
        with ThreadPoolExecutor(len(clients)) as threads:
            list(threads.map(work, clients))
        return time.perf_counter() - start

    def _answer(self, client: Client, seed: int, labels: int) -> np.ndarray:
        """Send a request, and once more if the process of the model died meanwhile."""
        request = {"label": str(seed % labels), "seed": seed, "format": "uint8"}
        try:
            return client.result(request)["tokens"]
        except VarEdgeError as error:
            if "send the request again" not in str(error):
                raise
            self.again += 1
            return client.result(request)["tokens"]


def drawn_alone(pipeline: Pipeline, seeds: range, labels: int, batch: int) -> tuple[float, np.ndarray]:
    """Return the seconds that the bare pipeline takes for the same images, and their tokens (N, T)."""
    start = time.perf_counter()
    result = pipeline.generate([seed % labels for seed in seeds], list(seeds), batch=batch)
    return time.perf_counter() - start, np.concatenate(result.tokens, axis=1)


def model_process(server: Server) -> int:
    """Return the process that holds the pipeline. Raises VarEdgeError."""
    found = server.processes("multiprocessing.spawn")
    if len(found) != 1:
        raise VarEdgeError(f"the server: expected one process with a pipeline, found {len(found)}")
    return found[0]


def kill_later(server: Server, seconds: float) -> None:
    """End the process that holds the pipeline with SIGKILL after this time. Raises VarEdgeError."""
    time.sleep(seconds)
    os.kill(model_process(server), signal.SIGKILL)


@command()
@click.argument("repository", type=FILE, metavar="DIR")
@click.option("--requests", type=Number(int, COUNTED), default=200, help="Number of requests for one image.")
@click.option("--clients", type=Number(int, CLIENTS), default=8, help="Number of clients that wait for their answers.")
@click.option("--rounds", type=Number(int, RUNS), default=5, help="Number of times server and Pipeline alternate.")
@click.option("--batch", type=Number(int, BATCH), default=8, help="Batch size of the bare Pipeline.")
@click.option("--threads", type=Number(int, THREADS), help="CPU threads of the bare Pipeline; as in the repository.")
@click.option("--kill", is_flag=True, help="End the process of the model with SIGKILL in the middle of each round.")
@reports_errors
def main(
    repository: Path, requests: int, clients: int, rounds: int, batch: int, threads: int | None, kill: bool
) -> None:
    """Serve a repository, send requests from several clients, and compare with the bare Pipeline in the same run."""
    load, served, bare, wrong, kills = Load(), [], [], 0, 0
    pipeline = Pipeline(repository / NAME / "bundle", threads=threads)
    labels = pipeline.manifest.model.num_classes
    with (
        TemporaryDirectory() as folder,
        Server(repository, free_port(), free_port(), Path(folder, "log")) as server,
        ThreadPoolExecutor(1) as killer,
        ExitStack() as connections,
    ):
        connected = [connections.enter_context(Client(server.url)) for _ in range(clients)]
        load.run(connected, range(clients), labels)  # warm: arrays of every batch size are allocated
        drawn_alone(pipeline, range(batch), labels, batch)
        load = Load()
        for i in range(rounds):
            seeds = range(i * requests // rounds, (i + 1) * requests // rounds)
            if kill:
                middle = statistics.median(served or [1]) / 2
                killed = killer.submit(kill_later, server, middle)
            served.append(load.run(connected, seeds, labels))
            if kill:
                killed.result()
                kills += 1
            seconds, tokens = drawn_alone(pipeline, seeds, labels, batch)
            bare.append(seconds)
            found = np.concatenate([load.tokens[seed] for seed in seeds])
            wrong += int((found != tokens).any(axis=1).sum())
        drawn, batches = connected[0].executed()
    p50, p95, p99 = np.percentile(list(load.seconds.values()), (50, 95, 99))
    rate, alone = requests / sum(served), requests / sum(bare)
    overhead = statistics.median(a / b for a, b in zip(served, bare, strict=True)) - 1
    click.echo(
        f"{requests} requests from {clients} clients: p50 {p50:.2f} s, p95 {p95:.2f} s, p99 {p99:.2f} s;"
        f" {rate:.2f} images/s, bare Pipeline {alone:.2f} images/s,"
        f" overhead {overhead:.1%} (median of {rounds} rounds), {drawn / batches:.1f} images a batch;"
        f" {wrong} drawn wrongly, {kills} kills, {load.again} sent again"
    )


if __name__ == "__main__":
    main()
