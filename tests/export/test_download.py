"""Downloads: the exported file has the hub's hash, and every failure is one line."""

from __future__ import annotations

import hashlib
import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from export.checkpoint.download import download
from export.checkpoint.weights import HOME, CheckpointError

CONTENT = bytes(range(256)) * 64
COMMIT = "0" * 39 + "1"


class Hub(BaseHTTPRequestHandler):
    """A minimal model hub with one file. It answers with `bodies` one after the other, and repeats the last one."""

    status, bodies, sent, metadata, silent = 200, [CONTENT], 0, True, 0.0

    def do_HEAD(self) -> None:
        threading.Event().wait(self.silent)  # time.sleep is patched out
        self._headers()

    def do_GET(self) -> None:
        if "/resolve/" not in self.path:  # the client also asks for a listing
            self.send_error(404)
            return
        self._headers()
        if self.status == 200:
            body = self.bodies[min(Hub.sent, len(self.bodies) - 1)]
            Hub.sent += 1  # before the client has it and goes on
            self.wfile.write(body)

    def _headers(self) -> None:
        self.send_response(self.status)
        if self.metadata:
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("ETag", f'"{hashlib.sha256(CONTENT).hexdigest()}"')
            self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(CONTENT) if self.status == 200 else 0))
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The client's cache, empty, while a hub runs on this machine."""
    from huggingface_hub import constants, file_download
    from huggingface_hub.utils import _http

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.delenv(HOME, raising=False)
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", f"{address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    )
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(file_download.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(_http.time, "sleep", lambda seconds: None)
    Hub.status, Hub.bodies, Hub.sent, Hub.metadata, Hub.silent = 200, [CONTENT], 0, True, 0.0
    yield tmp_path / "cache"
    server.shutdown()
    server.server_close()
    thread.join(10)


def fetched() -> Path:
    return download("somebody/model", "var.pth", "not here", "give --var-checkpoint FILE")


def test_what_the_hub_names_is_kept(cache: Path) -> None:
    assert fetched().read_bytes() == CONTENT
    assert fetched().read_bytes() == CONTENT
    assert Hub.sent == 1


def test_a_damaged_file_is_fetched_anew(cache: Path) -> None:
    Hub.bodies = [bytes(len(CONTENT)), CONTENT]
    assert fetched().read_bytes() == CONTENT
    assert Hub.sent == 2


@pytest.mark.parametrize(
    ("body", "found"), [(bytes(1), "SHA-256"), (b"<html>Log in", "an HTML page, maybe from a proxy")]
)
def test_a_file_damaged_twice_is_not_kept(cache: Path, body: bytes, found: str) -> None:
    Hub.bodies = [body.ljust(len(CONTENT), b"\0")]
    with pytest.raises(
        CheckpointError, match=rf"var\.pth: two downloads .* were damaged: .*, found {found}.*; removed; give --var"
    ):
        fetched()
    assert not [path for path in cache.rglob("*") if path.is_file() and path.read_bytes() == Hub.bodies[0]]


@pytest.mark.parametrize(
    ("status", "reason"),
    [(404, r"no such file \(404\)"), (429, r"too many requests \(429\)"), (500, r"its server has an error \(500\)")],
)
def test_a_refusal_is_named(cache: Path, status: int, reason: str) -> None:
    Hub.status = status
    with pytest.raises(CheckpointError, match=rf"from the model hub somebody/model failed: .*{reason}.*; give"):
        fetched()


def test_a_page_in_place_of_the_hub_is_named(cache: Path) -> None:
    Hub.metadata = False
    with pytest.raises(CheckpointError, match="the answer came from no model hub, maybe from a proxy"):
        fetched()


def test_offline_is_named(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError, match="HF_HUB_OFFLINE is set, so nothing is downloaded; give"):
        fetched()


def test_a_server_that_does_not_answer_is_named(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants, file_download

    monkeypatch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", 0.2)
    monkeypatch.setattr(file_download, "_ETAG_RETRY_TIMEOUT", 0.2)
    Hub.silent = 1.0
    with pytest.raises(CheckpointError, match="it did not answer in time; give"):
        fetched()


@pytest.mark.parametrize("resets", [False, True], ids=["no server", "a connection that is reset"])
def test_no_connection_is_named(cache: Path, monkeypatch: pytest.MonkeyPatch, resets: bool) -> None:
    from huggingface_hub import constants

    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url)
        if not resets:
            server.close()
        else:
            threading.Thread(target=_reset, args=(server,), daemon=True).start()
        with pytest.raises(CheckpointError, match="no connection to its server; give"):
            fetched()


def _reset(server: socket.socket) -> None:
    """Close every connection at once, with its request unread, until the server is closed."""
    with suppress(OSError):
        while True:
            connection, _ = server.accept()
            connection.recv(1)
            connection.close()
