"""Measure how busy other processes kept the machine during a benchmark."""

from __future__ import annotations

import os
import time
from pathlib import Path

STAT = Path("/proc/stat")


class OtherWork:
    """Measures, from its creation on, how many CPUs other processes or the host of a virtual machine keep busy."""

    def __init__(self, stat: Path = STAT) -> None:
        self._stat = stat
        self._began, self._before = time.monotonic(), self._seconds()

    def cpus(self) -> float | None:
        """Return the average number of busy CPUs until now; None on a system without /proc/stat."""
        after = self._seconds()
        if self._before is None or after is None:
            return None
        return max(0.0, after - self._before) / (time.monotonic() - self._began)

    def _seconds(self) -> float | None:
        """Return the CPU seconds of all other processes since the system started; None without the file."""
        if not self._stat.is_file():
            return None
        user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, self._stat.read_text().split()[1:9])
        ours = os.times()
        busy = user + nice + system + irq + softirq + steal
        return busy / os.sysconf("SC_CLK_TCK") - ours.user - ours.system
