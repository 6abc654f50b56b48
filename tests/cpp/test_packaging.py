"""Every documented way to use the C and C++ library builds a program that draws without being told where things are."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from runtime.pipeline import Pipeline
from tests.cpp.conftest import DEPENDENCIES, ROOT, SOURCE, require, run

CONSUMERS = Path(__file__).parent / "consumers"
HEADERS = SOURCE / "include"
# Of a library path nothing may depend; what was found in one build must not hide what is missing in the next.
CLEAN = {name: value for name, value in os.environ.items() if name not in ("LD_LIBRARY_PATH", "ONNXRUNTIME_ROOT")}
STRICT = ["-Wall", "-Wextra", "-Wpedantic", "-Wshadow", "-Wconversion", "-Wsign-conversion", "-Werror"]
UNOPTIMISED = ("-DCMAKE_BUILD_TYPE=Debug", "-DCMAKE_CXX_FLAGS_DEBUG=-O0")  # half the time to compile


@pytest.fixture(scope="module")
def installed(release: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An installation, moved after it was made."""
    folder = tmp_path_factory.mktemp("installed")
    run("cmake", "--install", release, "--prefix", folder / "before")
    (folder / "before").rename(folder / "after")
    return folder / "after"


@pytest.fixture(scope="module")
def installed_for_usr(release: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """What a Linux distribution packs: the root of a tree with prefix /usr."""
    root = tmp_path_factory.mktemp("usr")
    run("cmake", "-DCMAKE_INSTALL_PREFIX=/usr", release)
    run("cmake", "--install", release, env=CLEAN | {"DESTDIR": str(root)})
    yield root
    run("cmake", "-DCMAKE_INSTALL_PREFIX=/usr/local", release)


@pytest.fixture(scope="module")
def tokens(tiny_bundle: Path) -> str:
    scales = Pipeline(tiny_bundle, "onnxruntime").generate([1], top_k=1).tokens
    return "".join(f"{token} " for scale in scales for token in scale[0])


def picture(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def draws(program: Path, bundle: Path, tokens: str, **environment: str) -> None:
    assert run(program, bundle, "1", env=CLEAN | environment).stdout == tokens


def compile_with(compiler: str, folder: Path, pkg_config: list[str], **environment: str) -> Path:
    """app.c as the documentation says: gcc app.c $(pkg-config …)."""
    flags = run("pkg-config", *pkg_config, env=CLEAN | environment).stdout.split()
    run(compiler, CONSUMERS / "app.c", *flags, "-o", folder / "app", env=CLEAN)
    return folder / "app"


def configure(project: str, folder: Path, *options: str) -> Path:
    run("cmake", "-S", CONSUMERS / project, "-B", folder, "-G", "Ninja", *options, env=CLEAN)
    return folder


def needed(program: Path) -> str:
    return run("readelf", "-d", program).stdout


@pytest.fixture(scope="module")
def found(installed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = configure("find_package", tmp_path_factory.mktemp("found"), f"-DCMAKE_PREFIX_PATH={installed}")
    run("ninja", "-C", folder)
    return folder


@pytest.mark.parametrize("kind", ["shared", "static"])
@pytest.mark.parametrize("language", ["c", "cpp"])
def test_find_package(language: str, kind: str, found: Path, tiny_bundle: Path, tokens: str) -> None:
    program = found / f"{language}_{kind}"
    draws(program, tiny_bundle, tokens)
    assert ("libvar_edge" in needed(program)) == (kind == "shared")


@pytest.mark.parametrize("kind", ["shared", "static"])
def test_a_model_that_is_loaded_before_main(kind: str, found: Path, tiny_bundle: Path, tokens: str) -> None:
    assert run(found / f"global_{kind}", "1", env=CLEAN | {"BUNDLE": str(tiny_bundle)}).stdout == tokens


def test_a_project_in_c_alone(installed: Path, tiny_bundle: Path, tokens: str, tmp_path: Path) -> None:
    """The static library brings the C++ standard library along."""
    run("ninja", "-C", configure("c_only", tmp_path / "build", f"-DCMAKE_PREFIX_PATH={installed}"))
    for kind in ("shared", "static"):
        draws(tmp_path / "build" / f"c_{kind}", tiny_bundle, tokens)


@pytest.mark.parametrize("compiler", ["gcc", "clang"])
@pytest.mark.parametrize("package", [["var_edge"], ["--static", "var_edge"], ["var_edge_static"]], ids=" ".join)
def test_pkg_config(
    package: list[str], compiler: str, installed: Path, tiny_bundle: Path, tokens: str, tmp_path: Path
) -> None:
    require("pkg-config", compiler)
    path = {"PKG_CONFIG_PATH": str(installed / "lib" / "pkgconfig")}
    program = compile_with(compiler, tmp_path, ["--cflags", "--libs", *package], **path)
    draws(program, tiny_bundle, tokens)
    assert ("libvar_edge" in needed(program)) == ("var_edge_static" not in package)


def test_pkg_config_where_only_the_static_library_is(
    installed: Path, tiny_bundle: Path, tokens: str, tmp_path: Path
) -> None:
    require("pkg-config", "gcc")
    shutil.copytree(installed, tmp_path / "installed", symlinks=True)
    for library in (tmp_path / "installed" / "lib").glob("libvar_edge.so*"):
        library.unlink()
    path = {"PKG_CONFIG_PATH": str(tmp_path / "installed" / "lib" / "pkgconfig")}
    program = compile_with("gcc", tmp_path, ["--cflags", "--libs", "--static", "var_edge"], **path)
    draws(program, tiny_bundle, tokens)


def test_prefix_usr(installed_for_usr: Path, tiny_bundle: Path, tokens: str, tmp_path: Path) -> None:
    """Headers and libraries lie where the package says, on Debian under lib/ARCHITECTURE; with a sysroot as well."""
    require("pkg-config", "gcc")
    (config,) = installed_for_usr.rglob("var_edge.pc")
    libraries = config.parents[1]
    path = {"PKG_CONFIG_PATH": str(config.parent)}
    for sysroot in ({}, {"PKG_CONFIG_SYSROOT_DIR": str(installed_for_usr)}):
        for variable, right in (("includedir", installed_for_usr / "usr" / "include"), ("libdir", libraries)):
            said = run("pkg-config", f"--variable={variable}", "var_edge", env=CLEAN | path).stdout.strip()
            assert Path(said).resolve() == right.resolve()
        program = compile_with("gcc", tmp_path, ["--cflags", "--libs", "var_edge"], **path, **sysroot)
        assert "RUNPATH" not in needed(program)  # in /usr the loader finds it, and packages must not hold one
        draws(program, tiny_bundle, tokens, LD_LIBRARY_PATH=str(libraries))
    build = configure("c_only", tmp_path / "build", f"-DCMAKE_PREFIX_PATH={installed_for_usr / 'usr'}")
    run("ninja", "-C", build)
    for kind in ("shared", "static"):
        draws(build / f"c_{kind}", tiny_bundle, tokens)


ONNXRUNTIME = f"-DONNXRUNTIME_ROOT={DEPENDENCIES / 'onnxruntime'}"
JSON = DEPENDENCIES / "include"


def test_add_subdirectory(release: Path, tiny_bundle: Path, tokens: str, tmp_path: Path) -> None:
    """In a project in C that has no build type: optimised, and not installed with the project."""
    folder = configure(
        "subdirectory",
        tmp_path / "build",
        *(ONNXRUNTIME, f"-DNLOHMANN_JSON_INCLUDE={JSON}", "-DCMAKE_EXPORT_COMPILE_COMMANDS=ON"),
    )
    assert "-O3 -DNDEBUG" in (folder / "compile_commands.json").read_text()
    run("cmake", "--install", folder, "--prefix", tmp_path / "prefix")
    assert not (tmp_path / "prefix").exists()

    configure("subdirectory", folder, *UNOPTIMISED)
    assert "-O3" not in (folder / "compile_commands.json").read_text()
    run("ninja", "-C", folder)
    for kind in ("shared", "static"):
        draws(folder / f"c_{kind}", tiny_bundle, tokens)


def test_fetch_content_beside_a_json_library(release: Path, tiny_bundle: Path, tokens: str, tmp_path: Path) -> None:
    """A project in C++ that has the target nlohmann_json already."""
    folder = configure("fetch_content", tmp_path, ONNXRUNTIME, f"-DJSON={JSON}", f"-DCHECKOUT={ROOT}", *UNOPTIMISED)
    run("ninja", "-C", folder)
    for kind in ("shared", "static"):
        draws(folder / f"cpp_{kind}", tiny_bundle, tokens)


@pytest.mark.parametrize("compiler", ["gcc -std=c11", "clang -std=c11", "g++ -std=c++17", "clang++ -std=c++17"])
def test_each_header_compiles_alone_without_a_warning(compiler: str, tmp_path: Path) -> None:
    program, standard = compiler.split()
    require(program)
    headers = ["var_edge.h"] if standard == "-std=c11" else ["var_edge.h", "var_edge.hpp"]
    for header in headers:
        source = tmp_path / ("alone.c" if standard == "-std=c11" else "alone.cpp")
        source.write_text(
            f'#include "{HEADERS / header}"\n#include "{HEADERS / header}"\nint main(void) {{ return 0; }}\n'
        )
        run(program, standard, *STRICT, "-fsyntax-only", source)
    for application in ["app.c"] if standard == "-std=c11" else ["app.cpp"]:
        run(program, standard, *STRICT, "-fsyntax-only", f"-I{HEADERS}", CONSUMERS / application)


def test_every_install_names_one_version(installed: Path, tmp_path: Path) -> None:
    """SONAME and package say the same: programs of 0.1 run with every later 0.x, not with 1.0."""
    assert "[libvar_edge.so.0]" in needed(installed / "lib" / "libvar_edge.so")
    (version,) = installed.rglob("var_edgeConfigVersion.cmake")
    for asked, accepted in (("0", True), ("0.1", True), ("0.2", True), ("0.3", False), ("1.0", False)):
        script = f"set(PACKAGE_FIND_VERSION {asked})\nset(PACKAGE_FIND_VERSION_MAJOR {asked[0]})\n"
        script += f'include({version})\nmessage("${{PACKAGE_VERSION_COMPATIBLE}}")\n'
        (tmp_path / "ask.cmake").write_text(script)
        assert (run("cmake", "-P", tmp_path / "ask.cmake").stderr.strip() == "TRUE") == accepted, asked


def test_no_release_of_onnx_runtime_is_asked_for(installed: Path) -> None:
    """Its functions are marked VERS_1.32.0 and so on; linked with a mark the library would load beside one release."""
    library = installed / "lib" / "libvar_edge.so"
    assert "[libonnxruntime.so.1]" in needed(library)
    assert "VERS_" not in run("readelf", "-V", library).stdout


SDK = "cmake_minimum_required(VERSION 3.18)\nproject(sdk LANGUAGES CXX)\nfind_package({} {} REQUIRED)\n"
SDK += 'message("found ${{{}_INCLUDE}} ${{{}_LIBRARY}}")\n'


def an_sdk(folder: Path, version: str, *libraries: str) -> Path:
    (folder / "include").mkdir(parents=True)
    (folder / "include" / "NvInfer.h").write_text("")
    (folder / "include" / "NvInferVersion.h").write_text(version)
    (folder / "lib").mkdir()
    for library in libraries:
        (folder / "lib" / library).write_text("")
    return folder


def find_tensorrt(folder: Path, *options: str) -> tuple[int, str]:
    return find_sdk(folder, SDK.format("TensorRT", "", "TensorRT", "TensorRT"), *options)


def find_sdk(folder: Path, project: str, *options: str) -> tuple[int, str]:
    (folder / "project").mkdir(parents=True, exist_ok=True)
    (folder / "project" / "CMakeLists.txt").write_text(project)
    command = ["cmake", "-S", folder / "project", "-B", folder / "build", f"-DCMAKE_MODULE_PATH={SOURCE / 'cmake'}"]
    result = subprocess.run([*map(str, command), *options], capture_output=True, text=True, env=CLEAN)
    return result.returncode, result.stderr


def test_headers_and_library_of_one_tensorrt(tmp_path: Path) -> None:
    ten = "#define NV_TENSORRT_MAJOR 10 //!< major\n#define NV_TENSORRT_MINOR 3\n"
    eleven = "#define TRT_MAJOR_ENTERPRISE 11\n#define TRT_MINOR_ENTERPRISE 0\n"
    eleven += "#define NV_TENSORRT_MAJOR TRT_MAJOR_ENTERPRISE\n"
    rtx = "#define TRT_MAJOR_RTX 1\n#define TRT_MINOR_RTX 2\n"
    both = an_sdk(tmp_path / "both", ten, "libnvinfer.so.11", "libnvinfer.so.10", "libtensorrt_rtx.so.1")
    newer = an_sdk(tmp_path / "newer", eleven, "libnvinfer.so.11")
    for_rtx = an_sdk(tmp_path / "rtx", rtx, "libnvinfer.so", "libtensorrt_rtx.so.1")
    headers = an_sdk(tmp_path / "headers", ten)
    for root, library in ((both, "libnvinfer.so.10"), (newer, "libnvinfer.so.11"), (for_rtx, "libtensorrt_rtx.so.1")):
        code, said = find_tensorrt(tmp_path, f"-DTensorRT_ROOT={root}")  # in the cache of the root before
        assert (code, f"found {root / 'include'} {root / 'lib' / library}" in said) == (0, True), said
    for options in ([f"-DTensorRT_ROOT={headers}"], ["-UTensorRT_*", f"-DCMAKE_PREFIX_PATH={headers};{both}"]):
        code, said = find_tensorrt(tmp_path, *options, f"-DCMAKE_LIBRARY_PATH={both / 'lib'}")
        assert code == 1, said
        assert "set TensorRT_ROOT to a release of TensorRT" in said


TEN = "#define NV_TENSORRT_MAJOR 10\n#define NV_TENSORRT_MINOR 3\n"
RTX = "#define TRT_MAJOR_RTX 1\n#define TRT_MINOR_RTX 5\n"


def test_a_tensorrt_of_another_version_beside_the_headers(tmp_path: Path) -> None:
    """libnvinfer.so may be of any: it would load, and calls would go astray."""
    root = an_sdk(tmp_path / "sdk", TEN, "libnvinfer.so.11", "libnvinfer.so")
    code, said = find_tensorrt(tmp_path, f"-DTensorRT_ROOT={root}")
    assert (code, "missing: TensorRT_LIBRARY" in said) == (1, True), said


def test_headers_of_rtx_before_the_systems_tensorrt(tmp_path: Path) -> None:
    """Without TensorRT_ROOT: the first headers decide, and no library of another SDK joins them."""
    system = an_sdk(tmp_path / "system", TEN, "libnvinfer.so.10", "libtensorrt_rtx.so.1")
    headers = an_sdk(tmp_path / "headers", RTX)
    whole = an_sdk(tmp_path / "whole", RTX, "libtensorrt_rtx.so.1")
    for first, library in ((whole, "libtensorrt_rtx.so.1"), (system, "libnvinfer.so.10"), (headers, None)):
        roots = f"-DCMAKE_PREFIX_PATH={first};{system}"
        code, said = find_tensorrt(tmp_path, "-UTensorRT_*", roots, f"-DCMAKE_LIBRARY_PATH={system / 'lib'}")
        assert code == (library is None), said
        assert library is None or f"found {first / 'include'} {first / 'lib' / library}" in said


def test_headers_given_anew_have_a_library_beside_them(tmp_path: Path) -> None:
    """TensorRT_INCLUDE in a build that has found another SDK: its library is not kept. One that is given is."""
    first = an_sdk(tmp_path / "first", TEN, "libnvinfer.so.10")
    second = an_sdk(tmp_path / "second", RTX, "libtensorrt_rtx.so.1", "mine.so")
    assert find_tensorrt(tmp_path, f"-DTensorRT_ROOT={first}")[0] == 0
    code, said = find_tensorrt(tmp_path, f"-DTensorRT_INCLUDE={second / 'include'}")
    assert (code, f"found {second / 'include'} {second / 'lib' / 'libtensorrt_rtx.so.1'}" in said) == (0, True), said
    mine = second / "lib" / "mine.so"
    code, said = find_tensorrt(tmp_path, f"-DTensorRT_INCLUDE={first / 'include'}", f"-DTensorRT_LIBRARY={mine}")
    assert (code, f"found {first / 'include'} {mine}" in said) == (0, True), said


def a_toolkit(folder: Path, *libraries: str) -> Path:
    (folder / "include").mkdir(parents=True)
    (folder / "lib64").mkdir()
    for file in ("version.txt", "include/cuda_runtime.h", "include/cuda_runtime_api.h", *libraries):
        (folder / file).write_text("CUDA Version 12.6.0\n")
    return folder


def test_headers_and_library_of_one_cuda(tmp_path: Path) -> None:
    """Another toolkit in CMAKE_PREFIX_PATH, as an activated environment sets it, does not lend its library."""
    ours = a_toolkit(tmp_path / "ours", "lib64/libcudart.so")
    bare = a_toolkit(tmp_path / "bare")
    other = a_toolkit(tmp_path / "other", "lib64/libcudart.so")
    project = SDK.format("CudaRuntime", "", "CUDART", "CUDART")
    for root, library in ((ours, ours / "lib64" / "libcudart.so"), (bare, None)):
        elsewhere = [f"-DCMAKE_PREFIX_PATH={other}", f"-DCMAKE_LIBRARY_PATH={other / 'lib64'}"]
        code, said = find_sdk(tmp_path / root.name / "work", project, f"-DCUDAToolkit_ROOT={root}", *elsewhere)
        assert code == (library is None), said
        assert (f"found {root / 'include'} {library}" if library else "set CUDAToolkit_ROOT") in said


def test_an_onnx_runtime_that_is_too_old(tmp_path: Path) -> None:
    root = tmp_path / "onnxruntime"
    shutil.copytree(DEPENDENCIES / "onnxruntime", root, ignore=shutil.ignore_patterns("*experimental*"))
    header = root / "include" / "onnxruntime_c_api.h"
    header.write_text("#define ORT_API_VERSION 17\n")
    command = ["cmake", "-S", SOURCE, "-B", tmp_path / "build", f"-DONNXRUNTIME_ROOT={root}"]
    command += [f"-DNLOHMANN_JSON_INCLUDE={JSON}"]
    result = subprocess.run(list(map(str, command)), capture_output=True, text=True, env=CLEAN)
    assert result.returncode == 1
    assert 'Found unsuitable version "1.17", but required is at least "1.18"' in " ".join(result.stderr.split())


def test_the_examples(release: Path, demo_bundle: Path, tmp_path: Path) -> None:
    """Each program of runtime/cpp/examples does its task; generate and preview are compared in test_parity.py."""
    examples = release / "examples"
    pipeline = Pipeline(demo_bundle, "onnxruntime")
    drawn = pipeline.generate([3], 7, top_k=900).images[0]
    run(examples / "var_edge_draw", demo_bundle, "3", tmp_path / "drawn.ppm", "7")
    np.testing.assert_array_equal(picture(tmp_path / "drawn.ppm"), drawn)

    run(examples / "var_edge_edit", demo_bundle, tmp_path / "drawn.ppm", "0,0.5,1,1", "12", tmp_path / "edited.png")
    edited = pipeline.edit(drawn, (0, 0.5, 1, 1), "inpaint", 12).images[0]
    np.testing.assert_array_equal(picture(tmp_path / "edited.png"), edited)

    said = run(examples / "var_edge_stop", demo_bundle, "3", "0", tmp_path / "stopped.png").stdout
    assert "stopped after scale 1 of" in said
    assert picture(tmp_path / "stopped.png").shape == drawn.shape
    run(examples / "var_edge_stop", demo_bundle, "3", "1000000", tmp_path / "whole.png")
    np.testing.assert_array_equal(picture(tmp_path / "whole.png"), pipeline.generate([3], top_k=900).images[0])

    (tmp_path / "set").mkdir()
    run(examples / "var_edge_batch", demo_bundle, "1", tmp_path / "set", "4")
    assert len(list((tmp_path / "set").iterdir())) == 29
    np.testing.assert_array_equal(picture(tmp_path / "set" / "3_7.png"), drawn)


def test_the_table_of_functions_is_complete() -> None:
    header = (HEADERS / "var_edge.h").read_text()
    table = (ROOT / "docs" / "embedding.md").read_text().split("## Functions by task")[1].split("\n## ")[0]
    declared = set(re.findall(r"^VAR_EDGE_API [^(]*?(var_edge_[a-z_]+)\(", header, re.MULTILINE))
    assert declared <= set(re.findall(r"`(var_edge_[a-z_]+)`", table))
