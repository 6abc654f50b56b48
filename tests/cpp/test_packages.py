"""What users install, outside of the repository: the wheel of the C and C++ library, and its Debian packages."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import venv
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import runtime
from packages.debs import debs, depends
from packages.library import ARCHITECTURES
from packages.wheels import PIP, native_wheel
from runtime.pipeline import Pipeline
from tests.cpp.conftest import require, run
from tests.cpp.test_packaging import CLEAN, CONSUMERS

VERSION = runtime.__version__
HERE = ARCHITECTURES["x86_64"]
ARM = ARCHITECTURES["aarch64"]
SETTINGS = ["--seed", "7", "--cfg", "3", "--top-k", "5"]
pytestmark = pytest.mark.skipif(HERE.cross, reason="packs for x86-64 as this machine's own and aarch64 as another's")


@pytest.fixture(scope="module")
def drawn(tiny_bundle: Path) -> np.ndarray:
    """The image of label 1 with SETTINGS, (P, P, 3) of uint8, as Python draws it."""
    return Pipeline(tiny_bundle, "onnxruntime").generate([1], 7, cfg=3.0, top_k=5).images[0]


@pytest.fixture(scope="module")
def tokens(tiny_bundle: Path) -> str:
    """What the programs of tests/cpp/consumers print."""
    scales = Pipeline(tiny_bundle, "onnxruntime").generate([1], top_k=1).tokens
    return "".join(f"{token} " for scale in scales for token in scale[0])


@pytest.fixture(scope="module")
def packing(release: Path) -> Iterator[Path]:
    """The build of this machine. Packing configures where it installs to; other tests want it as it was."""
    yield release
    run("cmake", "-UCMAKE_INSTALL_LIBDIR", "-DCMAKE_INSTALL_PREFIX=/usr/local", release)


@pytest.fixture(scope="module")
def in_venv(packing: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin folder of an environment that holds the wheel and nothing else."""
    folder = tmp_path_factory.mktemp("wheel")
    wheel = native_wheel(packing, HERE, folder)
    assert re.fullmatch(rf"var_edge_native-{VERSION}-py3-none-manylinux_2_\d\d_x86_64.whl", wheel.name)
    venv.create(folder / "venv")
    run(*PIP, "--python", folder / "venv" / "bin" / "python", "install", "--no-deps", "--no-index", wheel)
    return folder / "venv" / "bin"


def path_of(name: str, in_venv: Path) -> Path:
    return Path(run(in_venv / "python", "-m", "var_edge_native", name, cwd="/", env=CLEAN).stdout.strip())


def test_the_wheel_draws(in_venv: Path, tiny_bundle: Path, drawn: np.ndarray, tmp_path: Path) -> None:
    """pip install var-edge-native, and the program: no other package, no environment variable."""
    program = [in_venv / "var_edge_generate", tiny_bundle, "1", *SETTINGS, "--out", "drawn.png"]
    run(*program, cwd=tmp_path, env={"PATH": ""})
    with Image.open(tmp_path / "drawn.png") as image:
        np.testing.assert_array_equal(np.asarray(image), drawn)


def test_the_wheel_says_where_things_are(in_venv: Path) -> None:
    listed = dict(line.split() for line in run(in_venv / "python", "-m", "var_edge_native").stdout.splitlines())
    assert {*listed} == {"prefix", "include", "library", "cmake", "pkgconfig", "program"}
    for name, path in listed.items():
        assert Path(path).exists(), name
        assert path_of(name, in_venv) == Path(path)
    wrong = subprocess.run([in_venv / "python", "-m", "var_edge_native", "lib"], capture_output=True, text=True)
    assert wrong.returncode == 1
    assert wrong.stderr.startswith("var_edge_native: expected one of prefix, include, ")


def test_programs_are_built_against_the_wheel(in_venv: Path, tiny_bundle: Path, tokens: str, tmp_path: Path) -> None:
    require("pkg-config", "gcc")
    prefix = path_of("prefix", in_venv)
    run("cmake", "-S", CONSUMERS / "c_only", "-B", tmp_path, "-G", "Ninja", f"-DCMAKE_PREFIX_PATH={prefix}", env=CLEAN)
    run("ninja", "-C", tmp_path)
    environment = CLEAN | {"PKG_CONFIG_PATH": str(path_of("pkgconfig", in_venv))}
    flags = run("pkg-config", "--cflags", "--libs", "var_edge", env=environment).stdout.split()
    run("gcc", CONSUMERS / "app.c", *flags, "-o", tmp_path / "app", env=CLEAN)
    for program in ("c_shared", "c_static", "app"):
        assert run(tmp_path / program, tiny_bundle, "1", env=CLEAN).stdout == tokens


def test_the_wheel_holds_the_licence_of_onnx_runtime(in_venv: Path) -> None:
    (information,) = in_venv.parent.rglob("var_edge_native-*.dist-info")
    licences = {path.name: path.read_text() for path in (information / "licenses").rglob("*") if path.is_file()}
    assert {*licences} == {"LICENSE", "ThirdPartyNotices.txt"}
    assert "Microsoft" in (path_of("prefix", in_venv) / "lib" / "var_edge" / "LICENSE").read_text()


def test_the_wheel_for_aarch64(
    arm64: Path, emulator: list[str | Path], tiny_bundle: Path, drawn: np.ndarray, tmp_path: Path
) -> None:
    """pip accepts its tag for a Jetson with JetPack 6, whose C library is 2.35. Its program draws under emulation."""
    wheel = native_wheel(arm64, ARM, tmp_path)
    assert wheel.name.startswith(f"var_edge_native-{VERSION}-py3-none-manylinux_2_")
    platforms = [option for minor in range(17, 36) for option in ("--platform", f"manylinux_2_{minor}_aarch64")]
    options = ["--no-deps", "--no-index", "--only-binary=:all:", "--python-version", "3.10", *platforms]
    run(*PIP, "install", *options, "--target", tmp_path / "site", wheel)
    program = tmp_path / "site" / "var_edge_native" / "bin" / "var_edge_generate"
    run(*emulator, program, tiny_bundle, "1", *SETTINGS, "--out", tmp_path / "drawn.png", timeout=600)
    with Image.open(tmp_path / "drawn.png") as image:
        assert (np.abs(np.asarray(image).astype(int) - drawn) <= 1).all()  # the last bit of another processor


def test_a_wheel_of_a_newer_system_does_not_claim_an_older_one(in_venv: Path) -> None:
    """auditwheel finds that the wheel may not be called manylinux_2_17, the tag of a system of 2012."""
    (wheel,) = in_venv.parents[1].glob("*.whl")
    older = wheel.parent / re.sub(r"manylinux_2_\d\d", "linux", wheel.name)
    shutil.copy(wheel, older)
    command = [sys.executable, "-m", "auditwheel", "repair", "--plat", "manylinux_2_17_x86_64", older]
    result = subprocess.run([*command, "--wheel-dir", older.parent / "older"], capture_output=True, text=True)
    older.unlink()
    assert result.returncode != 0
    assert "too-recent versioned symbols" in result.stderr
    with zipfile.ZipFile(wheel) as archive:
        assert not [name for name in archive.namelist() if ".libs/" in name]  # nothing of the system is copied


@pytest.fixture(scope="module")
def packed(packing: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    require("dpkg-deb", "dpkg-shlibdeps")
    return debs(packing, HERE, tmp_path_factory.mktemp("debs"), "gzip")


def field(package: Path, name: str) -> str:
    return run("dpkg-deb", "--field", package, name).stdout.strip()


def test_the_debian_packages(packed: list[Path], release: Path) -> None:
    development, library, tools = packed
    names = ("libvar-edge-dev", "libvar-edge0", "var-edge-tools")
    assert [package.name for package in packed] == [f"{name}_{VERSION}_amd64.deb" for name in names]
    assert field(development, "Depends") == f"libvar-edge0 (= {VERSION})"
    assert f"libvar-edge0 (= {VERSION})" in field(tools, "Depends")
    # What is computed for another architecture, here beside what Debian's own tool finds.
    for package, files in ((library, [release / "libvar_edge.so"]), (tools, [release / "examples/var_edge_generate"])):
        found = field(package, "Depends")
        assert {*depends(files).split(", ")} - {"libgcc-s1"} <= {*found.split(", ")}, found
        assert "libgcc-s1" in found
    control = (
        run("dpkg-deb", "--info", library, "shlibs").stdout + run("dpkg-deb", "--info", library, "triggers").stdout
    )
    assert control == f"libvar_edge 0 libvar-edge0 (>= {VERSION})\nactivate-noawait ldconfig\n"


# In a view of the machine in which what is written to /usr, /var and /etc goes to memory, and is gone at the end.
INSTALLED = """
set -eu
mount -t tmpfs tmpfs "$1"
for folder in usr var etc; do
    mkdir -p "$1/$folder" "$1/work/$folder"
    mount -t overlay overlay -o "lowerdir=/$folder,upperdir=$1/$folder,workdir=$1/work/$folder" "/$folder"
done || exit 77
cd "$2"
! dpkg -i libvar-edge-dev_*.deb 2> refused || exit 1
dpkg -i ./*.deb > said
ldconfig -p | grep -q 'libvar_edge.so.0 '
var_edge_generate "$3" 1 --seed 7 --cfg 3 --top-k 5 --out drawn.png
gcc "$4/app.c" $(pkg-config --cflags --libs var_edge) -o app
./app "$3" 1 > app.txt
cmake -S "$4/c_only" -B build > cmake.txt
cmake --build build >> cmake.txt
build/c_shared "$3" 1 > shared.txt
build/c_static "$3" 1 > static.txt
dpkg -r var-edge-tools libvar-edge-dev libvar-edge0 >> said
! ldconfig -p | grep -q libvar_edge || exit 1
test ! -e /usr/bin/var_edge_generate
"""


def test_dpkg_installs_and_programs_are_built(
    packed: list[Path], tiny_bundle: Path, drawn: np.ndarray, tokens: str, tmp_path: Path
) -> None:
    """With this machine's dpkg: it checks Depends, runs ldconfig, and removes everything."""
    require("dpkg", "unshare", "pkg-config", "gcc", "make")
    if os.geteuid() != 0:
        pytest.skip("needs root to install Debian packages into a view of this machine")
    (tmp_path / "memory").mkdir()
    (tmp_path / "work").mkdir()
    for package in packed:
        shutil.copy(package, tmp_path / "work")
    arguments = [tmp_path / "memory", tmp_path / "work", tiny_bundle, CONSUMERS]
    command = ["unshare", "-m", "bash", "-c", INSTALLED, "bash", *map(str, arguments)]
    result = subprocess.run(command, env=CLEAN | {"LC_ALL": "C"}, capture_output=True, text=True)
    if result.returncode == 77:
        pytest.skip(f"no overlayfs here, in which packages would be installed: {result.stderr.strip()}")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "dependency problems" in (tmp_path / "work" / "refused").read_text()  # the library was not installed yet
    with Image.open(tmp_path / "work" / "drawn.png") as image:
        np.testing.assert_array_equal(np.asarray(image), drawn)
    for program in ("app", "shared", "static"):
        assert (tmp_path / "work" / f"{program}.txt").read_text() == tokens
    assert not Path("/usr/bin/var_edge_generate").exists()  # nothing of it stays


def test_the_debian_packages_for_arm64(
    arm64: Path, emulator: list[str | Path], tiny_bundle: Path, drawn: np.ndarray, tmp_path: Path
) -> None:
    """Installed by dpkg in an empty root; the program draws under emulation."""
    require("dpkg", "dpkg-deb")
    packed = debs(arm64, ARM, tmp_path, "gzip")
    assert {field(package, "Architecture") for package in packed} == {"arm64"}
    said = field(packed[1], "Depends")
    glibc = re.fullmatch(r"libc6 \(>= 2\.(\d+)\), libgcc-s1, libstdc\+\+6 \(>= (\d+)\)", said)
    assert glibc and int(glibc[1]) <= 35 and int(glibc[2]) <= 12, said  # those of Ubuntu 22.04, as on a Jetson
    root = tmp_path / "root"
    (root / "var/lib/dpkg/info").mkdir(parents=True)
    (root / "var/lib/dpkg/updates").mkdir()
    for file in ("status", "available", "triggers/File", "triggers/Unincorp"):
        (root / "var/lib/dpkg" / file).parent.mkdir(exist_ok=True)
        (root / "var/lib/dpkg" / file).touch()
    run("dpkg", f"--root={root}", "--force-architecture", "--force-depends", "-i", *packed)
    library = f"LD_LIBRARY_PATH={root / 'usr/lib/aarch64-linux-gnu'}"
    program = ["-E", library, root / "usr/bin/var_edge_generate"]
    run(*emulator, *program, tiny_bundle, "1", *SETTINGS, "--out", tmp_path / "drawn.png", timeout=600)
    with Image.open(tmp_path / "drawn.png") as image:
        assert (np.abs(np.asarray(image).astype(int) - drawn) <= 1).all()


@pytest.mark.full
def test_on_a_minimal_debian(packed: list[Path], tiny_bundle: Path, drawn: np.ndarray, tmp_path: Path) -> None:
    """apt installs what Depends says, from Debian's packages, and nothing else is there. Downloads 150 MB."""
    require("debootstrap", "unshare")
    if os.geteuid() != 0:
        pytest.skip("needs root to make a Debian system")
    root = tmp_path / "debian"
    run("debootstrap", "--variant=minbase", "bookworm", root)
    shutil.copytree(tiny_bundle, root / "bundle")
    for package in packed[1:]:  # without the headers
        shutil.copy(package, root)
    install = "apt-get install -y --no-install-recommends /*.deb"
    draw = f"var_edge_generate /bundle 1 {' '.join(SETTINGS)} --out /drawn.png"
    inside = f"mount -t proc proc {root}/proc && LC_ALL=C chroot {root} sh -ec '{install} && {draw}'"
    run("unshare", "-m", "bash", "-c", inside)
    with Image.open(root / "drawn.png") as image:
        np.testing.assert_array_equal(np.asarray(image), drawn)


def test_symbols_decide_what_is_depended_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for said, expected in (
        ("GLIBC_2.17 GLIBCXX_3.4.29", "libc6 (>= 2.34), libgcc-s1, libstdc++6 (>= 11)"),
        ("GLIBC_2.17 GLIBC_2.38 GLIBCXX_3.4.30 GLIBCXX_3.4.9", "libc6 (>= 2.38), libgcc-s1, libstdc++6 (>= 12)"),
    ):
        monkeypatch.setattr("packages.debs.run", lambda *command, said=said: said)
        assert depends([tmp_path]) == expected
