from pathlib import Path

import pytest

from tests.runtime.toy import write_bundle


@pytest.fixture(scope="session")
def toy_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that draws in a millisecond. All tests share it: one that changes it must use `own_bundle`."""
    folder = tmp_path_factory.mktemp("toy") / "bundle"
    write_bundle(folder)
    return folder


@pytest.fixture
def own_bundle(tmp_path: Path) -> Path:
    """A copy of the toy bundle, which the test may change."""
    write_bundle(tmp_path / "bundle")
    return tmp_path / "bundle"
