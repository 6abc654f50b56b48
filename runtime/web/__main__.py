"""python -m runtime.web: a page in the browser to draw and edit images on."""

from __future__ import annotations

import os
import shutil
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import click

from .. import limits
from ..cli import FILE, Number, command, reports_errors, warn
from ..drawing import Loading, loading_options
from ..errors import SettingsError
from ..files.unfinished import undone_at_the_end
from ..limits import shown
from ..optional import require

LOOPBACK = ("127.0.0.1", "localhost")
LARGEST_UPLOAD = "64mb"
# The browser loads nothing from elsewhere, whatever Gradio's files name.
POLICY = (
    b"default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; connect-src 'self' data: blob:; form-action 'self';"
    b" frame-ancestors 'self'; base-uri 'self'"
)


@command()
@click.option("--bundle", type=FILE, required=True, help="Bundle to draw with.")
@click.option(
    "--host", default="127.0.0.1", help="Address to listen at. The default is reached from this machine only."
)
@click.option("--port", type=Number(int, limits.PORT), default=7860, help="Port to listen at.")
@loading_options
@reports_errors
def main(bundle: Path, host: str, port: int, loading: Loading) -> None:
    """Serve a page in the browser to draw and edit images on.

    The page needs no other site. Ctrl-C ends it.
    """
    require("runtime.web", "gradio")
    _check_free(host, port)
    if host not in LOOPBACK:
        warn(f"--host {host}: everyone who reaches this address can draw; there is no password")
    pipeline = loading.pipeline(bundle)
    for name in ("NO_PROXY", "no_proxy"):  # Gradio asks its own server whether it answers
        os.environ[name] = ",".join(filter(None, (os.environ.get(name), host)))
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # before Gradio is imported, which asks for it then
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    folder = Path(mkdtemp(prefix="var-edge-web-"))
    os.environ["GRADIO_TEMP_DIR"] = str(folder / "gradio")
    with undone_at_the_end(lambda: shutil.rmtree(folder, ignore_errors=True)):
        from starlette.middleware import Middleware  # of Gradio's own web server

        from .actions import Actions
        from .page import CSS, THEME, page

        actions = Actions(pipeline)
        _restrict_images()
        _refuse_downloads()
        served = page(actions, folder)
        with _told(host, port):  # the port may have been taken while the bundle was loaded
            served.launch(
                server_name=host,
                server_port=port,
                prevent_thread_lock=True,
                quiet=True,
                share=False,
                ssr_mode=False,
                pwa=False,
                mcp_server=False,
                enable_monitoring=False,
                footer_links=[],
                max_file_size=LARGEST_UPLOAD,
                allowed_paths=[str(folder)],
                app_kwargs={"middleware": [Middleware(_WithPolicy)]},
                theme=THEME,
                css=CSS,
            )
        click.echo(f"http://{host}:{port}: {actions.about}")
        threading.Event().wait()


def _check_free(host: str, port: int) -> None:
    """Raise SettingsError unless a server can listen there. This takes no time, unlike loading a bundle."""
    if ":" in host:
        raise SettingsError(f"--host: expected an IPv4 address or a name, found {shown(host)}; Gradio has no IPv6")
    with _told(host, port):
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a server that just ended is no obstacle
            probe.bind(address)
            probe.listen()


@contextmanager
def _told(host: str, port: int) -> Iterator[None]:
    """Turn what goes wrong when a server is started into a SettingsError."""
    try:
        yield
    except Exception as error:  # Gradio, its web server and its client raise errors of many types
        reason = getattr(error, "strerror", None) or str(error).partition(". ")[0]  # Gradio's advice follows
        raise SettingsError(
            f"cannot listen at {shown(host)}, port {port}: {reason}; give another --port or --host"
        ) from None


def _restrict_images() -> None:
    """Let this process open only the image formats and sizes of the commands, also where Gradio opens an upload."""
    from PIL import Image

    from ..images import FORMATS

    Image.init()
    for name in set(Image.OPEN) - {*FORMATS}:
        del Image.OPEN[name]
        Image.ID.remove(name)
    Image.MAX_IMAGE_PIXELS = limits.PIXELS // 2  # Pillow refuses twice as many


def _refuse_downloads() -> None:
    """Keep Gradio from loading what a request names by its URL: the page uploads files, and needs no other site."""
    from gradio import Error, processing_utils

    async def refuse(url: str, *_: Any, **__: Any) -> Any:
        raise Error("image: expected a file, found a URL; upload the image", print_exception=False)

    processing_utils.async_ssrf_protected_get = refuse


class _WithPolicy:
    """Adds the policy to every response."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def with_policy(message: Any) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message["headers"], (b"content-security-policy", POLICY)]}
            await send(message)

        await self.app(scope, receive, with_policy)


if __name__ == "__main__":
    main()
