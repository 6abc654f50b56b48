"""The default number of threads: what this process may use, not what the machine has."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from runtime import Pipeline
from runtime.processors import usable_cpus

QUOTAS = {
    "version 2": ("0::/job\n", {"sys/fs/cgroup/job/cpu.max": "250000 100000\n"}, 3),
    "version 2, the group as root of the mount": ("0::/../../job\n", {"sys/fs/cgroup/cpu.max": "200000 100000\n"}, 2),
    "version 2, a group above": (
        "0::/pod/job\n",
        {"sys/fs/cgroup/pod/job/cpu.max": "max 100000\n", "sys/fs/cgroup/pod/cpu.max": "50000 100000\n"},
        1,
    ),
    "version 1": (
        "5:memory:/\n4:cpu,cpuacct:/job\n",
        {
            "sys/fs/cgroup/cpu,cpuacct/job/cpu.cfs_quota_us": "150000\n",
            "sys/fs/cgroup/cpu,cpuacct/job/cpu.cfs_period_us": "100000\n",
        },
        2,
    ),
    "version 1 without a quota": (
        "4:cpu:/\n",
        {"sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n", "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n"},
        64,
    ),
    "both versions": (
        "4:cpu:/job\n0::/job\n",
        {
            "sys/fs/cgroup/cpu/job/cpu.cfs_quota_us": "300000\n",
            "sys/fs/cgroup/cpu/job/cpu.cfs_period_us": "100000\n",
            "sys/fs/cgroup/unified/job/cpu.max": "max 100000\n",
        },
        3,
    ),
    "no quota": ("0::/\n", {"sys/fs/cgroup/cpu.max": "max 100000\n"}, 64),
    "garbage": ("4:cpu\nx\n0::/\n", {"sys/fs/cgroup/cpu.max": "\n"}, 64),
    "a period of nothing": ("0::/\n", {"sys/fs/cgroup/cpu.max": "5 0\n"}, 64),
    "no control groups": (None, {}, 64),
}


def write_quota(case: str, root: Path) -> int:
    """Write the kernel's files under `root`, and return how many of 64 CPUs the quota leaves."""
    groups, files, expected = QUOTAS[case]
    for name, text in {**files, **({} if groups is None else {"proc/self/cgroup": groups})}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return expected


@pytest.mark.parametrize("case", QUOTAS)
def test_quota(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(64)), raising=False)
    expected = write_quota(case, tmp_path)
    assert usable_cpus(tmp_path) == expected


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system cannot bind a process to CPUs")
def test_affinity(toy_bundle: Path) -> None:
    """ONNX Runtime printed 120 lines of errors for threads on CPUs that the process may not use."""
    code = (
        "import os, sys; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
        "from runtime import Pipeline; from runtime.processors import usable_cpus\n"
        "session = Pipeline(sys.argv[1], 'onnxruntime').backend._sessions['bridge']._session\n"
        "print(usable_cpus(), session.get_session_options().intra_op_num_threads)"
    )
    command = [sys.executable, "-c", code, str(toy_bundle)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert (result.stdout, result.stderr) == ("1 1\n", "")


def test_threads_that_are_given_are_taken(toy_bundle: Path) -> None:
    session = Pipeline(toy_bundle, "onnxruntime", threads=3).backend._sessions["bridge"]._session  # type: ignore[attr-defined]
    assert session.get_session_options().intra_op_num_threads == 3
