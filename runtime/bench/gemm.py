"""python -m runtime.bench.gemm: measure this machine's rate of float32 matrix products with numpy."""

from __future__ import annotations

import os
import subprocess
import sys
import time

SIZES = ((512, 1024, 4096), (1024, 1024, 1024), (2048, 2048, 2048))  # rows, inner, columns
REPEATS = 5
THREAD_VARIABLES = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")


def gemm_rate(threads: int) -> float:
    """Return the FLOP/s of the fastest of several matrix products.

    They run in a separate process, because numpy fixes its number of threads when it is imported.
    """
    environment = os.environ | dict.fromkeys(THREAD_VARIABLES, str(threads))
    command = [sys.executable, "-m", __name__]
    return float(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)


def best_rate() -> float:
    """Measure the FLOP/s in this process."""
    import numpy as np

    best = 0.0
    for rows, inner, columns in SIZES:
        a, b = np.ones((rows, inner), np.float32), np.ones((inner, columns), np.float32)
        out = np.empty((rows, columns), np.float32)
        for _ in range(REPEATS):
            start = time.perf_counter()
            np.matmul(a, b, out=out)
            best = max(best, 2 * rows * inner * columns / (time.perf_counter() - start))
    return best


if __name__ == "__main__":
    print(best_rate())
