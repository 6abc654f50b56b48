"""Fetch what the C++ build needs into one folder: nlohmann_json, and ONNX Runtime's headers and library.

    python runtime/cpp/fetch.py FOLDER [--arm64]

The headers are ONNX Runtime's official ones, from the npm package com.github.asus4.onnxruntime. The library for this
machine comes from the installed wheel of onnxruntime; with --arm64, the one for aarch64 is taken from its wheel.
Folders that are complete are not changed.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

HEADERS = "com.github.asus4.onnxruntime@0.4.9"
HEADERS_FOLDER = "ios-arm64_x86_64-simulator/onnxruntime.framework/Headers/"
JSON = "nlohmann_json==3.12.0"
JSON_LICENCE = "LICENSE.MIT"
LICENCES = ("LICENSE", "ThirdPartyNotices.txt")  # of ONNX Runtime's wheel; packages hold its library


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--arm64", action="store_true", help="also ONNX Runtime for aarch64")
    arguments = parser.parse_args()
    folder: Path = arguments.folder
    wanted = {folder / "include" / "nlohmann": json, folder / "onnxruntime": onnxruntime}
    if arguments.arm64:
        wanted[folder / "onnxruntime-arm64"] = onnxruntime_arm64
    for target, fetch in wanted.items():
        if (target / (JSON_LICENCE if fetch is json else LICENCES[0])).exists():
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            fetched = fetch(Path(scratch), folder)
            shutil.rmtree(target, ignore_errors=True)  # an incomplete one, kept until its successor is there
            fetched.rename(target)  # atomic


def json(scratch: Path, folder: Path) -> Path:
    headers = scratch / "nlohmann_json" / "include" / "nlohmann"
    with zipfile.ZipFile(_wheel(scratch, JSON)) as archive:
        archive.extractall(scratch, [name for name in archive.namelist() if "/include/nlohmann/" in name])
        licence = next(name for name in archive.namelist() if name.endswith(".dist-info/licenses/LICENSE"))
        mit = archive.read(licence).decode()
    # The licence of the wheel names those who packed it. The headers name their own authors.
    texts = [header.read_text(encoding="utf-8") for header in headers.rglob("*.hpp")]
    authors = sorted({author for text in texts for author in re.findall(r"SPDX-FileCopyrightText: (.*)", text)})
    holders = "".join(f"Copyright (c) {author}\n" for author in authors)
    terms = mit[mit.index("Permission is hereby granted") :]
    (headers / JSON_LICENCE).write_text(f"MIT License\n\n{holders}\n{terms}", encoding="utf-8")
    return headers


def onnxruntime(scratch: Path, folder: Path) -> Path:
    out = scratch / "onnxruntime"
    (out / "lib").mkdir(parents=True)
    distribution = importlib.metadata.distribution("onnxruntime")
    library = next(file for file in distribution.files or () if file.name.startswith("libonnxruntime.so."))
    shutil.copyfile(str(library.locate()), out / "lib" / "libonnxruntime.so.1")
    for name in LICENCES:
        shutil.copyfile(str(distribution.locate_file(f"onnxruntime/{name}")), out / name)
    _headers(scratch, out / "include")
    return out


def onnxruntime_arm64(scratch: Path, folder: Path) -> Path:
    out = scratch / "onnxruntime-arm64"
    (out / "lib").mkdir(parents=True)
    version = importlib.metadata.version("onnxruntime")
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    platforms = [part for glibc in range(17, 42) for part in ("--platform", f"manylinux_2_{glibc}_aarch64")]
    wheel = _wheel(scratch, f"onnxruntime=={version}", "--python-version", python, *platforms)
    with zipfile.ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if "/libonnxruntime.so." in name)
        (out / "lib" / "libonnxruntime.so.1").write_bytes(archive.read(name))
        for name in LICENCES:
            (out / name).write_bytes(archive.read(f"onnxruntime/{name}"))
    shutil.copytree(folder / "onnxruntime" / "include", out / "include")
    return out


def _headers(scratch: Path, out: Path) -> None:
    npm = shutil.which("npm")
    if npm is None:
        sys.exit(
            "runtime/cpp/fetch.py: npm is not installed; it fetches ONNX Runtime's headers (or set ONNXRUNTIME_ROOT)"
        )
    subprocess.run([npm, "pack", "--silent", HEADERS], cwd=scratch, check=True, stdout=subprocess.DEVNULL)
    out.mkdir()
    with tarfile.open(next(scratch.glob("*.tgz"))) as archive:
        for member in archive:
            if HEADERS_FOLDER in member.name and member.isfile():
                content = archive.extractfile(member)
                assert content is not None
                (out / Path(member.name).name).write_bytes(content.read())
    if not (out / "onnxruntime_cxx_api.h").is_file():
        sys.exit(f"runtime/cpp/fetch.py: {HEADERS} holds no ONNX Runtime headers any more")


def _wheel(scratch: Path, requirement: str, *options: str) -> Path:
    command = [sys.executable, "-m", "pip", "download", "-qq", "--no-deps", "--only-binary=:all:", requirement]
    subprocess.run([*command, *options], cwd=scratch, check=True)
    return next(scratch.glob("*.whl"))


if __name__ == "__main__":
    main()
