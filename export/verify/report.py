"""The result of a verification: in the terminal, as report.json, and (see `html`) as report.html."""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from importlib.metadata import version
from typing import Any

import numpy as np

from export.verify.artifacts import Artifact
from export.verify.bisect import Finding
from export.verify.check import Row
from export.verify.recording import Reference
from export.verify.tolerances import LIMITS

COLUMNS = (
    "max",
    "mean",
    "relative",
    "cosine",
    "top1",
    "top5",
    "kl",
    "tokens",
    "drawn",
    "explained",
    "equal",
    "psnr",
    "ssim",
)
FAILED = "FAILED"  # the status of an artifact; a reason that starts with it is a failure, others are not
SHARES = ("top1", "top5", "tokens", "drawn", "explained", "equal")


@dataclass(frozen=True)
class Entry:
    """One artifact: its rows and images, or why it did not run."""

    artifact: Artifact
    reason: str | None
    backend: str = ""
    rows: Sequence[Row] = ()
    led: np.ndarray | None = None  # (N, H, W, 3) uint8
    free: np.ndarray | None = None
    finding: Finding | str | None = None

    @property
    def failed(self) -> list[Row]:
        return [row for row in self.rows if row.misses]

    @property
    def status(self) -> str:
        if self.reason:
            return self.reason.split(":")[0]
        return FAILED if self.failed else "passed"

    @property
    def title(self) -> str:
        """The artifact's name, with the backend that it ran on."""
        rounded = ", rounded as FP16 hardware does, but for static steps" if self.artifact.simulated else ""
        return f"{self.artifact.name} ({self.backend}{rounded})" if self.backend else self.artifact.name


@dataclass(frozen=True)
class Report:
    """The results of all artifacts, compared with one reference."""

    reference: Reference
    entries: Sequence[Entry]
    created: str = field(default_factory=lambda: datetime.now(timezone.utc).isoformat(timespec="seconds"))

    @property
    def passed(self) -> bool:
        """Whether something was verified and nothing failed. An artifact that is absent or did not run is no pass."""
        return all(entry.status != FAILED for entry in self.entries) and any(entry.rows for entry in self.entries)

    @property
    def summary(self) -> str:
        found = [entry.status for entry in self.entries]
        return ", ".join(f"{found.count(status)} {status}" for status in dict.fromkeys(found))

    @property
    def model(self) -> str:
        return next(entry.artifact.manifest for entry in self.entries if entry.artifact.manifest).model.name

    @property
    def settings(self) -> str:
        settings = self.reference.settings
        sampling = settings.sampling
        drawn = f"{settings.pictures} pictures, seeds from {settings.seed}"
        return f"{drawn}, cfg {sampling.cfg:g}, top-k {sampling.top_k}, top-p {sampling.top_p:g}"

    def print(self) -> None:
        """Print a table for each artifact to stdout."""
        from rich.console import Console
        from rich.markup import escape
        from rich.table import Table

        terminal = Console(highlight=False)
        # Lines are not wrapped if stdout is not a terminal.
        console = terminal if terminal.is_terminal else Console(highlight=False, width=400)

        def say(text: str) -> None:
            console.print(text, markup=False, soft_wrap=True)

        say(f"{self.model} against {self.reference.name}: {self.settings}")
        for entry in self.entries:
            if entry.reason:
                say(f"\n{entry.artifact.name}: {entry.reason}")
                continue
            used = [name for name in COLUMNS if any(name in row.metrics for row in entry.rows)]
            table = Table(title=escape(entry.title), title_justify="left", pad_edge=False, box=None)
            for heading in ("stage", *used, ""):
                table.add_column(heading, justify="left" if heading in ("stage", "") else "right", no_wrap=True)
            for row in entry.rows:
                style, prefix = {"FAILED": ("red", "FAILED "), "passed": ("green", "")}.get(row.verdict, ("dim", ""))
                cells = (shown(name, row.metrics.get(name)) for name in used)
                table.add_row(row.name, *cells, f"[{style}]{prefix}{escape(row.remark)}[/{style}]")
            console.print("", table)
            if entry.failed:
                say(f"first out of tolerance: {entry.failed[0].name}")
            if entry.finding:
                say(f"bisected: {entry.finding}")

    def to_json(self) -> dict[str, Any]:
        settings = self.reference.settings
        return {
            "created": self.created,
            "passed": self.passed,
            "model": self.model,
            "reference": self.reference.name,
            "settings": {
                "pictures": settings.pictures,
                "labels": [label for recording in self.reference.recordings for label in recording.batch.labels],
                "seed": settings.seed,
                "cfg": settings.sampling.cfg,
                "top_k": settings.sampling.top_k,
                "top_p": settings.sampling.top_p,
            },
            "machine": {"system": platform.platform(), "onnxruntime": version("onnxruntime"), "cores": os.cpu_count()},
            "tolerances": LIMITS,
            "artifacts": [_entry_json(entry) for entry in self.entries],
        }


def shown(metric: str, value: float | None) -> str:
    """Return a metric as text for people."""
    if value is None:
        return ""
    if metric in SHARES:
        return f"{value:.2%}"
    if metric == "psnr":
        return "equal" if math.isinf(value) else f"{value:.1f} dB"
    if metric in ("cosine", "ssim"):
        return f"{value:.6f}"
    return f"{value:.2g}"


def _entry_json(entry: Entry) -> dict[str, Any]:
    finding = entry.finding
    rows = [
        {
            "stage": row.stage,
            "scale": row.scale,
            "verdict": row.verdict,
            "remark": row.remark,
            "metrics": {name: _number(value) for name, value in row.metrics.items()},
        }
        for row in entry.rows
    ]
    return {
        "directory": str(entry.artifact.path),
        "precision": str(entry.artifact.manifest.precision) if entry.artifact.manifest else None,
        "backend": entry.backend or None,
        "simulated": entry.artifact.simulated,
        "status": entry.status,
        "reason": entry.reason,
        "rows": rows,
        "bisected": {k: _number(v) if k == "error" else v for k, v in vars(finding).items()}
        if isinstance(finding, Finding)
        else finding,
    }


def _number(value: float) -> float | str:
    """Return a number as JSON can hold it: NaN and infinity become text."""
    return value if math.isfinite(value) else str(value)
