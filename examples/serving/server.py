"""python -m examples.serving.server DIR: serve a model repository without a container.

The PyPI package nvidia-pytriton has a Triton Inference Server for the CPU (2.51, x86-64 Linux). It needs numpy before
2, so it gets an environment of its own in build/serving, which borrows all other packages from this one.
"""

from __future__ import annotations

import os
import platform
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import time
import urllib.error
import urllib.request
import venv
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType

import click

from runtime.cli import FILE, Number, command, reports_errors
from runtime.errors import SettingsError, VarEdgeError
from runtime.files.unfinished import undone_at_the_end
from runtime.limits import PORT
from runtime.serving.process import exit_words

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = ROOT / "build" / "serving"
PACKAGES = ("nvidia-pytriton==0.7.0", "numpy<2")  # its stub crashes with numpy 2
HOST = "127.0.0.1"
READY_SECONDS, STOP_SECONDS = 60, 10


def environment(folder: Path = ENVIRONMENT) -> Path:
    """Return the folder of site-packages with the server; install it if it is not there. Raises SettingsError."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        raise SettingsError("nvidia-pytriton: there is none for this platform; use NVIDIA's container")
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    complete = folder / f"complete-{version}"
    if not complete.exists():
        shutil.rmtree(folder, ignore_errors=True)
        venv.create(folder, symlinks=True)
        pip = [sys.executable, "-m", "pip", "--python", str(folder / "bin" / "python"), "--disable-pip-version-check"]
        arguments = ["install", "-qq", "--no-deps", "--no-compile", "--only-binary", ":all:", *PACKAGES]
        result = subprocess.run([*pip, *arguments], capture_output=True, text=True)
        if result.returncode != 0:
            raise SettingsError(f"{' '.join(PACKAGES)}: cannot be installed: {result.stderr}")
        _site(folder).joinpath("others.pth").write_text(sysconfig.get_path("purelib") + "\n")
        complete.touch()
    return _site(folder)


def _site(folder: Path) -> Path:
    return next(folder.glob("lib/python*/site-packages"))


def backends(site: Path) -> Path:
    """Return a folder with Triton's Python backend for this Python. Raises SettingsError."""
    server = site / "pytriton" / "tritonserver"
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    stub = server / "python_backend_stubs" / version / "triton_python_backend_stub"
    if not stub.exists():
        raise SettingsError(f"nvidia-pytriton: has no Python backend for Python {version}")
    libraries = {**os.environ, "LD_LIBRARY_PATH": _libraries()}
    linked = subprocess.run(["ldd", stub], capture_output=True, text=True, env=libraries).stdout
    if missing := [line.split()[0] for line in linked.splitlines() if "not found" in line]:
        raise SettingsError(f"{', '.join(missing)}: not found; install the shared library of Python {version}")
    link = server / "backends" / "python" / stub.name
    link.unlink(missing_ok=True)
    link.symlink_to(stub)  # it finds its libraries beside its real place
    return server / "backends"


def _libraries() -> str:
    """Return where the loader finds libpython: a Python that is not the system's has its own."""
    return os.pathsep.join(filter(None, (sysconfig.get_config_var("LIBDIR"), os.environ.get("LD_LIBRARY_PATH"))))


class Server:
    """A server of one repository, on loopback only, that ends with its `with` block. Raises SettingsError."""

    def __init__(self, repository: Path, http: int, grpc: int, log: Path | None = None, *options: str) -> None:
        for port in (http, grpc):
            _check_free(port)
        site = environment()
        self.url, self.http = f"{HOST}:{grpc}", f"http://{HOST}:{http}"
        arguments = (
            f"--model-repository={repository}",
            f"--backend-directory={backends(site)}",
            *(f"--{kind}-address={HOST}" for kind in ("http", "grpc")),
            f"--http-port={http}",
            f"--grpc-port={grpc}",
            "--allow-metrics=false",
            f"--exit-timeout-secs={STOP_SECONDS // 2}",
            *options,
        )
        folders = {
            "PATH": os.pathsep.join((str(site.parents[2] / "bin"), os.environ.get("PATH", os.defpath))),
            "PYTHONPATH": str(ROOT),
            "LD_LIBRARY_PATH": _libraries(),
        }
        self._log = log
        output = log.open("wb") if log else None
        self._ending = ExitStack()
        self.process = subprocess.Popen(
            [site / "pytriton" / "tritonserver" / "bin" / "tritonserver", *arguments],
            env=os.environ | folders,
            stdout=output,
            stderr=output,
            start_new_session=True,  # so that all of it can be stopped
        )
        self._ending.enter_context(undone_at_the_end(self._end))  # also if a signal ends the command
        try:
            self._await_ready()
        except BaseException:
            self.stop()
            raise

    def _await_ready(self) -> None:
        end = time.monotonic() + READY_SECONDS
        while time.monotonic() < end and self.process.poll() is None:
            try:
                urllib.request.urlopen(f"{self.http}/v2/health/ready", timeout=5)
                return
            except (urllib.error.URLError, OSError):
                time.sleep(0.1)
        said = self._log.read_text(errors="replace")[-600:] if self._log else "see above"
        raise SettingsError(f"tritonserver: not ready: {said}")

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
@reports_errors
def main(repository: Path, http_port: int, grpc_port: int) -> None:
    """Serve a model repository on this machine's loopback, on the CPU, until Ctrl-C."""
    with Server(repository, http_port, grpc_port) as server:
        click.echo(f"ready: {server.http} and gRPC {server.url}")
        # Not Popen.wait, which holds a lock: a signal that ends the command waits for the server, too.
        os.waitid(os.P_PID, server.process.pid, os.WEXITED | os.WNOWAIT)
        if code := server.process.wait():
            raise VarEdgeError(f"{repository}: the server ended with {exit_words(code)}")


if __name__ == "__main__":
    main()
