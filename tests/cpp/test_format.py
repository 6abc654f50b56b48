"""The C and C++ sources are formatted as .clang-format says."""

from __future__ import annotations

import importlib.metadata
import sys
from pathlib import Path

import pytest

from tests.cpp.conftest import SOURCE, run

OLD_HEADER = SOURCE / "tests" / "compat" / "var_edge.h"  # stays as 0.1.0 had it
CONSUMERS = Path(__file__).parent / "consumers"


def test_sources_are_formatted() -> None:
    try:
        importlib.metadata.version("clang-format")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("not installed: clang-format; pip install clang-format==23.1.5")
    folders = (SOURCE / "src", SOURCE / "include", SOURCE / "examples", SOURCE / "tests", CONSUMERS)
    files = [path for folder in folders for path in folder.rglob("*") if path.suffix in (".c", ".h", ".cpp", ".hpp")]
    files.remove(OLD_HEADER)
    assert len(files) > 60
    run(Path(sys.executable).parent / "clang-format", "--dry-run", "-Werror", *files)
