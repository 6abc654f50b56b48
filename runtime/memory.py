"""Read the memory use of this process, and the memory that the machine has available."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

STATUS = Path("/proc/self/status")
MEMINFO = Path("/proc/meminfo")


@dataclass(frozen=True)
class Memory:
    """The memory of this process in bytes: resident now, and the peak since it started."""

    resident: int
    peak: int


def memory(status: Path = STATUS) -> Memory | None:
    """Return the kernel's VmRSS and VmHWM of this process; None on a system without /proc."""
    if not status.is_file():
        return None
    resident, peak = _kilobytes(status, "VmRSS", "VmHWM")
    return Memory(resident, peak)


def available_memory(meminfo: Path = MEMINFO) -> int | None:
    """Return the bytes that a process can allocate without swapping; None on a system without /proc."""
    return _kilobytes(meminfo, "MemAvailable")[0] if meminfo.is_file() else None


def _kilobytes(path: Path, *names: str) -> list[int]:
    """Return the bytes in these fields of a file with lines such as "VmRSS:  12345 kB"."""
    fields = dict(line.split(":", 1) for line in path.read_text().splitlines())
    return [int(fields[name].split()[0]) * 1024 for name in names]
