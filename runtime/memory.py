"""What this process holds in memory, and what the machine has left."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

STATUS = Path("/proc/self/status")
MEMINFO = Path("/proc/meminfo")


@dataclass(frozen=True)
class Memory:
    """Bytes of this process: in memory now, and the most since it started."""

    resident: int
    peak: int


def memory(status: Path = STATUS) -> Memory | None:
    """The kernel's VmRSS and VmHWM; None on a system that does not tell."""
    if not status.is_file():
        return None
    resident, peak = _kilobytes(status, "VmRSS", "VmHWM")
    return Memory(resident, peak)


def available_memory(meminfo: Path = MEMINFO) -> int | None:
    """Bytes that a process can have without swapping, None on a system that does not tell."""
    return _kilobytes(meminfo, "MemAvailable")[0] if meminfo.is_file() else None


def _kilobytes(path: Path, *names: str) -> list[int]:
    """Bytes of these fields of a file with lines such as "VmRSS:  12345 kB"."""
    fields = dict(line.split(":", 1) for line in path.read_text().splitlines())
    return [int(fields[name].split()[0]) * 1024 for name in names]
