"""What users install, outside of the repository: the wheel of the C and C++ library, and its Debian packages."""

from __future__ import annotations

import gzip
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

import packages.debs
import runtime
from packages.debs import binaries, debs, depends
from packages.library import ARCHITECTURES
from packages.wheels import AUDITWHEEL, PIP, native_wheel
from runtime.pipeline import Pipeline
from tests.cpp.conftest import DEPENDENCIES, ROOT, SOURCE, require, require_mounts, run
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
    venv.create(folder / "venv", symlinks=True)  # a copied Python does not find its own library everywhere
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


def holds_all_licences(text: str) -> None:
    """Ours, and the texts of what is inside, whole and as their authors publish them."""
    onnxruntime = DEPENDENCIES / "onnxruntime"
    for file in (ROOT / "LICENSE", onnxruntime / "LICENSE", onnxruntime / "ThirdPartyNotices.txt"):
        assert file.read_text() in text, file
    ours, json, microsoft, others = re.split(r"^-{78}\n", text, maxsplit=3, flags=re.MULTILINE)
    authors = (ours, "VAR Edge developers"), (json, "2013 - 2025 Niels Lohmann"), (microsoft, "Microsoft Corporation")
    for section, author in authors:
        assert author in section and "Permission is hereby granted" in section
    assert json.count("Copyright (c)") == 5  # those that its headers name
    assert "Eigen" in others


def test_the_wheel_holds_all_licences_and_its_types(in_venv: Path) -> None:
    (information,) = in_venv.parent.rglob("var_edge_native-*.dist-info")
    holds_all_licences((information / "licenses" / "copyright").read_text())
    assert "License-Expression: MIT AND LicenseRef-ThirdPartyNotices\n" in (information / "METADATA").read_text()
    assert (path_of("prefix", in_venv) / "py.typed").is_file()


def newest_glibc(*files: Path) -> int:
    """The N of the newest symbol GLIBC_2.N that compiled files use."""
    versions = "".join(run("readelf", "-V", file).stdout for file in files)
    return max(int(number) for number in re.findall(r"\bGLIBC_2\.(\d+)", versions))


@pytest.fixture(scope="module")
def newest_for_arm64() -> int:
    """The newest glibc 2.N that packages may ask for: that of JetPack 6, or of a newer compiler."""
    require("aarch64-linux-gnu-gcc")
    libc = run("aarch64-linux-gnu-gcc", "-print-file-name=libc.so.6").stdout.strip()
    provided = newest_glibc(Path(libc))
    return 35 if provided <= 36 else provided  # Ubuntu 22.04, Debian 12


@pytest.fixture(scope="module")
def arm64_wheel(arm64: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return native_wheel(arm64, ARM, tmp_path_factory.mktemp("arm64"))


@pytest.fixture(scope="module")
def in_site(arm64_wheel: Path) -> Path:
    """The folder that pip installs the wheel for aarch64 to."""
    site = arm64_wheel.parent / "site"
    platform = arm64_wheel.stem.split("-")[-1]
    options = ["--no-deps", "--no-index", "--only-binary=:all:", "--python-version", "3.10", "--platform", platform]
    run(*PIP, "install", *options, "--target", site, arm64_wheel)
    return site / "var_edge_native"


def test_the_wheel_for_aarch64(arm64_wheel: Path, in_site: Path, newest_for_arm64: int) -> None:
    """Its tag promises no older system than its files run on."""
    tag = re.fullmatch(rf"var_edge_native-{VERSION}-py3-none-manylinux_2_(\d\d)_aarch64.whl", arm64_wheel.name)
    assert tag, arm64_wheel.name
    files = (
        in_site / "bin/var_edge_generate",
        in_site / "lib/libvar_edge.so",
        in_site / "lib/var_edge/libonnxruntime.so.1",
    )
    assert newest_glibc(*files) <= int(tag[1]) <= newest_for_arm64


def test_the_wheel_for_aarch64_draws(
    in_site: Path, emulator: list[str | Path], tiny_bundle: Path, drawn: np.ndarray, tmp_path: Path
) -> None:
    program = in_site / "bin" / "var_edge_generate"
    run(*emulator, program, tiny_bundle, "1", *SETTINGS, "--out", tmp_path / "drawn.png", timeout=600)
    with Image.open(tmp_path / "drawn.png") as image:
        assert (np.abs(np.asarray(image).astype(int) - drawn) <= 1).all()  # the last bit of another processor


def test_a_wheel_of_a_newer_system_does_not_claim_an_older_one(in_venv: Path) -> None:
    """auditwheel finds that the wheel may not be called manylinux_2_17, the tag of a system of 2012."""
    (wheel,) = in_venv.parents[1].glob("*.whl")
    older = wheel.parent / re.sub(r"manylinux_2_\d\d", "linux", wheel.name)
    shutil.copy(wheel, older)
    command = [*AUDITWHEEL, "repair", "--plat", "manylinux_2_17_x86_64", older]
    result = subprocess.run([*command, "--wheel-dir", older.parent / "older"], capture_output=True, text=True)
    older.unlink()
    assert result.returncode != 0
    assert "too-recent versioned symbols" in result.stderr
    with zipfile.ZipFile(wheel) as archive:
        assert not [name for name in archive.namelist() if ".libs/" in name]  # nothing of the system is copied


@pytest.fixture(scope="module")
def packed(packing: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    require("dpkg-deb", "dpkg-shlibdeps", "file")
    return debs(packing, HERE, tmp_path_factory.mktemp("debs"), "gzip")


def field(package: Path, name: str) -> str:
    return run("dpkg-deb", "--field", package, name).stdout.strip()


def control(package: Path, name: str) -> str:
    return run("dpkg-deb", "--info", package, name).stdout


def system_libraries(package: Path) -> set[str]:
    """Depends without the packages of VAR Edge. A libgcc-s1 of any version serves."""
    found = re.sub(r"libgcc-s1 \(>= [\d.]+\)", "libgcc-s1", field(package, "Depends")).split(", ")
    return {name for name in found if not name.startswith("libvar-edge")}


def test_the_debian_packages(packed: list[Path], release: Path) -> None:
    development, library, tools = packed
    names = ("libvar-edge-dev", "libvar-edge0", "var-edge-tools")
    assert [package.name for package in packed] == [f"{name}_{VERSION}_amd64.deb" for name in names]
    assert field(development, "Depends") == f"libvar-edge0 (= {VERSION})"
    assert f"libvar-edge0 (= {VERSION})" in field(tools, "Depends")
    # What is computed for another architecture, here beside what Debian's own tool finds.
    *files, program = binaries(release, HERE)
    assert {*depends(files).split(", ")} == system_libraries(library)
    assert {*depends([program]).split(", ")} == system_libraries(tools)
    assert_debian(packed)


def assert_debian(packed: list[Path]) -> None:
    """What is the same for every architecture."""
    _, library, _ = packed
    assert control(library, "shlibs") == f"libvar_edge 0 libvar-edge0 (>= {VERSION})\n"
    assert control(library, "triggers") == "activate-noawait ldconfig\n"
    for package in packed:
        assert re.fullmatch(r"VAR Edge developers <\S+@\S+>", field(package, "Maintainer"))
        _, *lines = field(package, "Description").splitlines()
        assert lines and all(re.match(r" \S", line) and len(line) <= 80 for line in lines), lines


def test_every_debian_package_has_licences_and_a_changelog(packed: list[Path], tmp_path: Path) -> None:
    for package in packed:
        run("dpkg-deb", "--extract", package, tmp_path)
    for name in ("libvar-edge-dev", "libvar-edge0", "var-edge-tools"):
        folder = tmp_path / "usr/share/doc" / name
        holds_all_licences((folder / "copyright").read_text())
        changelog = gzip.decompress((folder / "changelog.gz").read_bytes()).decode()
        assert changelog.startswith(f"var-edge ({VERSION}) unstable; urgency=medium\n\n  ### ")
        assert re.search(
            r"\n\n -- VAR Edge developers <\S+>  \w{3}, \d\d \w{3} \d{4} \d\d:\d\d:\d\d \+0000\n$", changelog
        )


@pytest.mark.parametrize("program", ["dpkg-shlibdeps", "file"])
def test_what_packing_needs_is_named(program: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    which = shutil.which
    monkeypatch.setattr("packages.debs.shutil.which", lambda name: None if name == program else which(name) or name)
    with pytest.raises(SystemExit) as error:
        debs(tmp_path, HERE, tmp_path)
    assert str(error.value).startswith(f"{program}: expected this program")


# In a view of the machine in which what is written to /usr, /var and /etc goes to memory, and is gone at the end. dpkg
# must not run before all three are seen through it.
INSTALLED = """
set -eu
mount -t tmpfs tmpfs "$1"
for folder in usr var etc; do
    mkdir -p "$1/$folder" "$1/work/$folder"
    touch "$1/$folder/seen-through-the-view"
    mount -t overlay overlay -o "lowerdir=/$folder,upperdir=$1/$folder,workdir=$1/work/$folder" "/$folder" || exit 77
    test -e "/$folder/seen-through-the-view" || { echo "mounted, but not seen: /$folder" >&2; exit 1; }
done
cd "$2"
! dpkg -i libvar-edge-dev_*.deb 2> refused || exit 1
dpkg -i ./*.deb > dpkg.txt
ldconfig -p | grep -q 'libvar_edge.so.0 '
var_edge_generate "$3" 1 --seed 7 --cfg 3 --top-k 5 --out drawn.png
gcc "$4/app.c" $(pkg-config --cflags --libs var_edge) -o app
./app "$3" 1 > app.txt
cmake -S "$4/c_only" -B build > cmake.txt
cmake --build build >> cmake.txt
build/c_shared "$3" 1 > shared.txt
build/c_static "$3" 1 > static.txt
dpkg -r var-edge-tools libvar-edge-dev libvar-edge0 >> dpkg.txt
! ldconfig -p | grep -q libvar_edge || exit 1
test ! -e /usr/bin/var_edge_generate
"""


def test_dpkg_installs_and_programs_are_built(
    packed: list[Path], tiny_bundle: Path, drawn: np.ndarray, tokens: str, tmp_path: Path
) -> None:
    """With this machine's dpkg: it checks Depends, runs ldconfig, and removes everything."""
    require("dpkg", "pkg-config", "gcc", "make")
    require_mounts()
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


@pytest.mark.parametrize(("mount", "status"), [("case $* in */usr) exit 32;; esac", 77), ("", 1)])
def test_dpkg_never_runs_on_the_machine_itself(mount: str, status: int, tmp_path: Path) -> None:
    """If one of the mounts fails, and if they succeed without effect."""
    programs = {"mount": mount, "dpkg": f'touch "{tmp_path}/ran"'}
    for name, text in programs.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    (tmp_path / "memory").mkdir()
    arguments = [tmp_path / "memory", tmp_path, "no bundle", "no source"]
    environment = CLEAN | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    result = subprocess.run(["bash", "-c", INSTALLED, "bash", *map(str, arguments)], env=environment)
    assert not (tmp_path / "ran").exists()
    assert result.returncode == status


def test_who_may_not_mount_is_told_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As root in a container without CAP_SYS_ADMIN: a test that mounts is skipped with the reason."""
    (tmp_path / "unshare").write_text("#!/bin/sh\necho unshare failed: Operation not permitted >&2; exit 1\n")
    (tmp_path / "unshare").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(pytest.skip.Exception, match=r"CAP_SYS_ADMIN .*: unshare failed: Operation not permitted"):
        require_mounts()


@pytest.fixture(scope="module")
def packed_for_arm64(arm64: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    require("dpkg-deb")
    return debs(arm64, ARM, tmp_path_factory.mktemp("debs_arm64"), "gzip")


def test_the_debian_packages_for_arm64(packed_for_arm64: list[Path], arm64: Path, newest_for_arm64: int) -> None:
    assert {field(package, "Architecture") for package in packed_for_arm64} == {"arm64"}
    assert_debian(packed_for_arm64)
    _, library, tools = packed_for_arm64
    assert system_libraries(library) == system_libraries(tools)
    depended = re.fullmatch(r"libc6 \(>= 2\.(\d+)\), libgcc-s1, libstdc\+\+6 \(>= [\d.]+\)", field(library, "Depends"))
    assert depended
    assert newest_glibc(*binaries(arm64, ARM)) <= int(depended[1]) <= newest_for_arm64


def test_the_debian_packages_for_arm64_draw(
    packed_for_arm64: list[Path], emulator: list[str | Path], tiny_bundle: Path, drawn: np.ndarray, tmp_path: Path
) -> None:
    """Installed by dpkg in an empty root; the program draws under emulation."""
    require("dpkg")
    root = tmp_path / "root"
    (root / "var/lib/dpkg/info").mkdir(parents=True)
    (root / "var/lib/dpkg/updates").mkdir()
    for file in ("status", "available", "triggers/File", "triggers/Unincorp"):
        (root / "var/lib/dpkg" / file).parent.mkdir(exist_ok=True)
        (root / "var/lib/dpkg" / file).touch()
    run("dpkg", f"--root={root}", "--force-architecture", "--force-depends", "-i", *packed_for_arm64)
    library = f"LD_LIBRARY_PATH={root / 'usr/lib/aarch64-linux-gnu'}"
    program = ["-E", library, root / "usr/bin/var_edge_generate"]
    run(*emulator, *program, tiny_bundle, "1", *SETTINGS, "--out", tmp_path / "drawn.png", timeout=600)
    with Image.open(tmp_path / "drawn.png") as image:
        assert (np.abs(np.asarray(image).astype(int) - drawn) <= 1).all()


@pytest.mark.full
def test_on_a_minimal_debian(packed: list[Path], tiny_bundle: Path, drawn: np.ndarray, tmp_path: Path) -> None:
    """apt installs what Depends says, from Debian's packages, and nothing else is there. Downloads 150 MB."""
    require("debootstrap")
    require_mounts()
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
    for symbols, expected in (
        ("GLIBC_2.17 GLIBCXX_3.4.29", "libc6 (>= 2.34), libgcc-s1, libstdc++6 (>= 11)"),
        ("GLIBC_2.17 GLIBC_2.38 GLIBCXX_3.4.30 GLIBCXX_3.4.9", "libc6 (>= 2.38), libgcc-s1, libstdc++6 (>= 12)"),
        ("GLIBC_2.38 GLIBCXX_3.4.32", "libc6 (>= 2.38), libgcc-s1, libstdc++6 (>= 13.2)"),
    ):
        monkeypatch.setattr("packages.debs.run", lambda *command, symbols=symbols: symbols)
        assert depends([tmp_path]) == expected


def test_symbols_of_an_unknown_compiler_are_one_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("packages.debs.run", lambda *command: "GLIBC_2.17 GLIBCXX_3.4.99")
    with pytest.raises(SystemExit, match=r"expected GLIBCXX_3\.4\.34 or older, found GLIBCXX_3\.4\.99; add its GCC"):
        depends([tmp_path])


def packing_without_compilers(arguments: list[str], monkeypatch: pytest.MonkeyPatch, machine: str = "x86_64") -> None:
    monkeypatch.setattr("packages.library.platform.machine", lambda: machine)
    monkeypatch.setattr("packages.library.shutil.which", lambda program: None)
    monkeypatch.setattr("sys.argv", ["debs", *arguments])
    packages.debs.main()


def test_without_a_compiler_nothing_is_packed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="no package was made"):
        packing_without_compilers([str(tmp_path)], monkeypatch)
    assert capsys.readouterr().err == (
        "not packed for x86_64: expected the compiler g++, found none; install g++\n"
        "not packed for aarch64: expected the compiler aarch64-linux-gnu-g++, found none; "
        "install g++-aarch64-linux-gnu\n"
    )
    with pytest.raises(SystemExit, match=r"^--architecture aarch64: .* install g\+\+-aarch64-linux-gnu$"):
        packing_without_compilers([str(tmp_path), "--architecture", "aarch64"], monkeypatch)


def test_only_aarch64_is_cross_compiled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """There is no toolchain file for x86-64."""
    with pytest.raises(SystemExit):
        packing_without_compilers([str(tmp_path), "--architecture", "x86_64"], monkeypatch, "aarch64")
    assert "invalid choice: 'x86_64'" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        packing_without_compilers([str(tmp_path)], monkeypatch, "aarch64")
    assert capsys.readouterr().err == "not packed for aarch64: expected the compiler g++, found none; install g++\n"


def test_a_failed_fetch_keeps_what_was_there(tmp_path: Path) -> None:
    """Without npm, as without a network, an incomplete folder stays: it may be all that there is."""
    for kept in ("include/nlohmann/LICENSE.MIT", "onnxruntime/lib/libonnxruntime.so.1"):
        (tmp_path / kept).parent.mkdir(parents=True)
        (tmp_path / kept).touch()
    command = [sys.executable, SOURCE / "fetch.py", tmp_path]
    result = subprocess.run(command, env={"PATH": ""}, capture_output=True, text=True)
    assert "npm is not installed" in result.stderr
    assert (tmp_path / "onnxruntime/lib/libonnxruntime.so.1").is_file()
