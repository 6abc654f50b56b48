"""Python and C++ are asked the same question about the same files, and give the same answer in one printable line."""

from __future__ import annotations

import resource
import subprocess
from pathlib import Path

import pytest

from runtime.bundle.classes import ClassNames
from runtime.bundle.engine_record import FILE_NAME, EngineRecord
from runtime.bundle.manifest import WEIGHTS, Manifest
from runtime.bundle.weight_file import read_header
from runtime.errors import BundleError
from tests.cpp.conftest import Configure
from tests.cpp.hostile import CASES
from tests.runtime.toy import write_bundle

STACK = 256 << 10  # bytes: what a thread of an embedding application may have


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """One for each case."""
    root = tmp_path_factory.mktemp("hostile")
    write_bundle(root / "toy")
    found = [root / f"{i:03}" for i in range(len(CASES))]
    for case, folder in zip(CASES, found, strict=True):
        case.write(root / "toy", folder)
    return found


def python_says(folder: Path) -> str:
    try:
        manifest = Manifest.load(folder, verify=False)
        ClassNames.load(folder, manifest)
        read_header(folder / WEIGHTS)
        if (folder / FILE_NAME).exists():
            EngineRecord.load(folder)
    except BundleError as error:
        return f"2 {error}"
    return "accepted"


def cpp_says(program: Path, folders: list[Path], stack: int) -> list[str]:
    result = subprocess.run(
        [program],
        input="".join(f"{folder}\n" for folder in folders),
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_STACK, (stack, stack)),
    )
    assert result.returncode == 0, result.stderr
    assert not result.stderr
    return result.stdout.splitlines()


def disagreements(answers: list[str]) -> list[str]:
    return [
        f"{case.file}: {case.name}: {answer}"
        for case, answer in zip(CASES, answers, strict=True)
        if (answer == "accepted") != case.accepted or not (case.accepted or answer.startswith("2 "))
    ]


def test_python(folders: list[Path]) -> None:
    assert disagreements([python_says(folder) for folder in folders]) == []


def test_cpp(release: Path, folders: list[Path]) -> None:
    """On a small stack; every refusal is one printable line."""
    answers = cpp_says(release / "tests" / "accepts", folders, STACK)
    assert disagreements(answers) == []
    assert [answer for answer in answers if not answer.isprintable() or len(answer.encode()) > 302] == []


def test_cpp_under_sanitizers(build: Configure, folders: list[Path]) -> None:
    checked = build("asan", "-DVAR_EDGE_SANITIZE=address,undefined", "-DCMAKE_BUILD_TYPE=Debug")
    assert disagreements(cpp_says(checked / "tests" / "accepts", folders, 8 << 20)) == []
