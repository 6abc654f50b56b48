"""The C++ runtime as a rival: it runs the program of the C++ tests in a separate process."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np

from ..base_pipeline import Maps
from ..bundle.manifest import Manifest
from ..errors import SettingsError, VarEdgeError
from .compare import Draw
from .report import Settings

PROGRAM = Path("build/cpp/release/tests/dump")  # where make cpp puts it
NAME = "C++"


def cpp_rival(bundle: Path, manifest: Manifest, label: int, settings: Settings, threads: int) -> dict[str, Draw]:
    """Return the C++ runtime as a rival, with this bundle and number of threads.

    Raises SettingsError if it is not built.
    """
    if not PROGRAM.is_file():
        raise SettingsError(f"--compare cpp: {PROGRAM} is not built; run make cpp")
    command = [str(PROGRAM), str(bundle), "-", "1", str(threads)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    model, drawing = manifest.model, f"{settings.seed} {settings.cfg!r} {settings.top_k} {settings.top_p!r}"
    ends = [scale.offset for scale in manifest.scales][1:]

    def draw(batch: int) -> Maps:
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(f"{','.join([str(label)] * batch)} {drawing} {batch} 0\n".encode())
        process.stdin.flush()
        size = batch * model.tokens * 4
        data = process.stdout.read(size + batch * model.image_size**2 * 3)
        if len(data) < size:
            raise VarEdgeError(f"{PROGRAM}: ended with exit code {process.wait()}")
        return np.split(np.frombuffer(data[:size], "<i4").reshape(batch, model.tokens), ends, axis=1)

    return {NAME: draw}
