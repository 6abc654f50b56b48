"""Download checkpoints from the model hub, and compare them with the hash that the hub gives."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from export.checkpoint.file import CheckpointError, is_html
from runtime.files.atomic import sha256

SHA256 = re.compile(r"[0-9a-f]{64}")  # the hub's etag of a large file; a small file has a Git hash instead


def download(hub: str, name: str, looked: str, help_text: str) -> Path:
    """Return the path of the hub's file `name` in the cache of its client. Raises CheckpointError with the reason.

    A file with another hash than the hub gives is removed and downloaded once more. `looked` says where the file was
    looked for before, `help_text` what the user can do; both go into the error.
    """
    for _ in ("maybe cached", "downloaded again"):
        path, expected = _fetched(hub, name, looked, help_text)
        if expected is None or (found := sha256(path)) == expected:
            return path
        kind = "an HTML page, maybe from a proxy" if is_html(path) else f"SHA-256 {found:.12}…"
        _remove(path)
    raise CheckpointError(
        f"{name}: two downloads from the model hub {hub} were damaged: expected SHA-256 {expected:.12}…, found {kind};"
        f" removed; {help_text}"
    )


def _fetched(hub: str, name: str, looked: str, help_text: str) -> tuple[Path, str | None]:
    from huggingface_hub import hf_hub_download

    try:
        path = Path(hf_hub_download(hub, name))
        return path, _expected(hub, name, path)
    except Exception as error:  # the hub client raises whatever its transport raises
        reason = _reason(error)
    raise CheckpointError(
        f"{name}: {looked}, and the download from the model hub {hub} failed: {reason}; {help_text}"
    ) from None


def _expected(hub: str, name: str, path: Path) -> str | None:
    """Return the SHA-256 that the hub gave, or None. In the client's cache, `path` links to a blob with this name."""
    if path.is_symlink():
        etag = path.readlink().name
    else:  # a file system without links
        from huggingface_hub import get_hf_file_metadata, hf_hub_url

        etag = get_hf_file_metadata(hf_hub_url(hub, name)).etag or ""
    return etag if SHA256.fullmatch(etag) else None


def _remove(path: Path) -> None:
    """Remove a file, and every file that it links to: else the next try finds the blob in the cache."""
    while path.is_symlink():
        link, path = path, path.parent / path.readlink()
        link.unlink()
    path.unlink(missing_ok=True)


def _reason(error: Exception) -> str:
    """Return in words why a download failed."""
    status: Any = None
    causes: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and len(causes) < 8:
        causes.append(cause)
        status = status or getattr(getattr(cause, "response", None), "status_code", None)
        cause = cause.__cause__ or cause.__context__
    names = " ".join(type(cause).__name__ for cause in causes)
    known = {
        401: "it asks for a login (401)",
        403: "access is refused (403)",
        404: "it has no such file (404)",
        429: "too many requests (429): wait some minutes and try again",
    }
    if status in known:
        return known[status]
    if isinstance(status, int) and status >= 500:
        return f"its server has an error ({status}): try again later"
    if "OfflineMode" in names:
        return "HF_HUB_OFFLINE is set, so nothing is downloaded"
    if "FileMetadata" in names:
        return "the answer came from no model hub, maybe from a proxy or a login page: check HF_ENDPOINT and the proxy"
    if "Timeout" in names:
        return "it did not answer in time"
    if "Connect" in names:
        return "no connection to its server"
    text = re.sub(r"[^ -~]", "?", (str(causes[-1]).splitlines() or [""])[0])
    return f"{type(error).__name__}: {text:.100}"
