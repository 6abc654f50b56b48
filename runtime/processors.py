"""Count the CPUs that this process may use; in a container they may be fewer than the machine has."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

ROOT = Path("/")  # tests use another root


def usable_cpus(root: Path = ROOT) -> int:
    """Return the number of CPUs that the process may run on, or its quota in the control group (v1 or v2) if less."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([cpus, *(math.ceil(quota) for quota in _quotas(root))]))


def _quotas(root: Path) -> Iterator[float]:
    """Yield the CPU quotas, in CPUs, of the process's control groups and all groups above them."""
    groups = _lines(root / "proc/self/cgroup")  # "4:cpu,cpuacct:/docker/7f", in version 2 "0::/docker/7f"
    for number, controllers, path in (line.split(":", 2) for line in groups if line.count(":") >= 2):
        if number == "0" and not controllers:
            mounts = [root / "sys/fs/cgroup", root / "sys/fs/cgroup/unified"]
        elif "cpu" in controllers.split(","):
            mounts = [root / "sys/fs/cgroup" / controllers, root / "sys/fs/cgroup/cpu"]
        else:
            continue
        inside = Path(path.strip("/"))
        # A container may see its own group as the root of the mount.
        for folder in (mount / group for mount in mounts for group in (inside, *inside.parents)):
            if controllers:
                numbers = [*_lines(folder / "cpu.cfs_quota_us")[:1], *_lines(folder / "cpu.cfs_period_us")[:1]]
            else:
                numbers = " ".join(_lines(folder / "cpu.max")[:1]).split()
            if len(numbers) == 2 and all(number.isdecimal() and int(number) for number in numbers):  # not "max", -1
                yield int(numbers[0]) / int(numbers[1])


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().split("\n")
    except OSError:
        return []
