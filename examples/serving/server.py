"""python -m examples.serving.server DIR: serve a model repository without a container."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType

import click

from runtime.cli import FILE, Number, command, reports_errors
from runtime.errors import SettingsError, VarEdgeError
from runtime.files.unfinished import undone_at_the_end
from runtime.limits import PORT, TIMEOUT
from runtime.serving.process import exit_words

from .environment import ENVIRONMENT, environment, libraries

HOST = "127.0.0.1"
READY_SECONDS, STOP_SECONDS = 60.0, 10


class Server:
    """A server of one repository, on loopback only, that ends with its `with` block, or with the thread that made it.

    Raises SettingsError, also if the server is not ready within `timeout` seconds.
    """

    def __init__(
        self,
        repository: Path,
        http: int,
        grpc: int,
        log: Path | None = None,
        *options: str,
        timeout: float = READY_SECONDS,
    ) -> None:
        for port in (http, grpc):
            _check_free(port)
        if not any(repository.glob("*/config.pbtxt")):
            raise SettingsError(
                f"{repository}: expected a model repository, found none; python -m runtime.triton makes one"
            )
        folder = environment()
        self.url, self.http = f"{HOST}:{grpc}", f"http://{HOST}:{http}"
        arguments = (
            f"--model-repository={repository}",
            f"--backend-directory={folder / 'backends'}",
            *(f"--{kind}-address={HOST}" for kind in ("http", "grpc")),
            f"--http-port={http}",
            f"--grpc-port={grpc}",
            "--allow-metrics=false",
            f"--exit-timeout-secs={STOP_SECONDS // 2}",
            *options,
        )
        folders = {
            "PATH": os.pathsep.join((str(ENVIRONMENT / "bin"), os.environ.get("PATH", os.defpath))),
            "LD_LIBRARY_PATH": libraries(),
        }
        self._log = log
        output = log.open("wb") if log else None
        self._ending = ExitStack()
        self.process = subprocess.Popen(
            # The kernel ends the server if this process is killed, which can end nothing itself then.
            ["setpriv", "--pdeathsig", "TERM", folder / "bin" / "tritonserver", *arguments],
            env=os.environ | folders,
            stdout=output,
            stderr=output,
            start_new_session=True,  # so that all of it can be stopped
        )
        self._ending.enter_context(undone_at_the_end(self._end))  # also if a signal ends the command
        try:
            self._await_ready(timeout)
        except BaseException:
            self.stop()
            raise

    def _await_ready(self, timeout: float) -> None:
        end = time.monotonic() + timeout
        while time.monotonic() < end and self.process.poll() is None:
            try:
                urllib.request.urlopen(f"{self.http}/v2/health/ready", timeout=5)
                return
            except (urllib.error.URLError, OSError):
                time.sleep(0.1)
        said = self._log.read_text(errors="replace")[-600:] if self._log else "see above"
        ended = "ended" if self.process.poll() is not None else f"not ready in {timeout:g} s, see --timeout"
        raise SettingsError(f"tritonserver: {ended}: {said}")

    def processes(self, text: str) -> list[int]:
        """Return the processes of this server with this text in their command lines."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):  # ended meanwhile
                ours = os.getsid(int(folder.name)) == self.process.pid
                if ours and text.encode() in (folder / "cmdline").read_bytes():
                    found.append(int(folder.name))
        return found

    def stop(self) -> None:
        """Ask the server to end, then end all its processes."""
        self._ending.close()

    def _end(self) -> None:
        self.process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(STOP_SECONDS)
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def __enter__(self) -> Server:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()


def free_port() -> int:
    """Return a port that nobody uses now."""
    with socket.socket() as found:
        found.bind((HOST, 0))
        port: int = found.getsockname()[1]
        return port


def _check_free(port: int) -> None:
    with socket.socket() as tried:
        tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            tried.bind((HOST, port))
        except OSError as error:
            raise SettingsError(f"{HOST}:{port}: {error.strerror}; stop what uses it, or give another port") from None


@command()
@click.argument("repository", type=FILE, metavar="DIR")
@click.option("--http-port", type=Number(int, PORT), default=8000, help="Port for HTTP.")
@click.option("--grpc-port", type=Number(int, PORT), default=8001, help="Port for gRPC.")
@click.option(
    "--timeout", type=Number(float, TIMEOUT), default=READY_SECONDS, help="Seconds until the server must be ready."
)
@reports_errors
def main(repository: Path, http_port: int, grpc_port: int, timeout: float) -> None:
    """Serve a model repository on this machine's loopback, on the CPU, until Ctrl-C."""
    with Server(repository, http_port, grpc_port, timeout=timeout) as server:
        click.echo(f"ready: {server.http} and gRPC {server.url}")
        # Not Popen.wait, which holds a lock: a signal that ends the command waits for the server, too.
        os.waitid(os.P_PID, server.process.pid, os.WEXITED | os.WNOWAIT)
        if code := server.process.wait():
            raise VarEdgeError(f"{repository}: the server ended with {exit_words(code)}")


if __name__ == "__main__":
    main()
