"""Compile the C++ TensorRT backend against real headers: of several TensorRT, each with several CUDA. No GPU is needed.

    git clone https://github.com/NVIDIA/TensorRT
    python runtime/cpp/check_headers.py TensorRT --cuda /usr/local/cuda

A folder is a git repository of TensorRT, of which every release from 10.0 on is taken, or the root of an installed
TensorRT or TensorRT for RTX. Prints a table, and the first error of whatever does not compile. The exit code is 1 if
anything does not, or if a folder holds no headers. docs/gpu-status.md has the last result.
"""

from __future__ import annotations

import argparse
import io
import re
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

SOURCE = Path(__file__).parent
RELEASE = re.compile(r"v(1\d)\.(\d+)(\.\d+)*")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "tensorrt", type=Path, nargs="+", help="git repository of TensorRT, or root of an installed one"
    )
    parser.add_argument(
        "--cuda", type=Path, nargs="+", default=[Path("/usr/local/cuda")], help="roots of CUDA toolkits"
    )
    parser.add_argument(
        "--json", type=Path, default=Path("build/cpp/deps/include"), help="folder with nlohmann/json.hpp"
    )
    parser.add_argument("--compiler", default="c++", help="a C++17 compiler, default c++")
    arguments = parser.parse_args()
    toolkits = {cuda_version(root): root / "include" for root in arguments.cuda}
    if not (arguments.json / "nlohmann" / "json.hpp").is_file():
        sys.exit(f"{arguments.json}: no nlohmann/json.hpp; python runtime/cpp/fetch.py build/cpp/deps fetches it")
    print("| TensorRT | " + " | ".join(f"CUDA {version}" for version in toolkits) + " |")
    print("|---" * (1 + len(toolkits)) + "|")
    errors: dict[str, str] = {}
    for root in arguments.tensorrt:
        for include in headers(root):
            name, cells = tensorrt_version(include), []
            for version, cuda in toolkits.items():
                error = first_error(
                    [arguments.compiler, f"-isystem{include}", f"-isystem{cuda}", f"-isystem{arguments.json}"]
                )
                if error:
                    errors[f"TensorRT {name}, CUDA {version}"] = error
                cells.append("no" if error else "yes")
            print(f"| {name} | {' | '.join(cells)} |", flush=True)
    for where, error in errors.items():
        print(f"{where}: {error}", file=sys.stderr)
    sys.exit(1 if errors else 0)


def headers(root: Path) -> Iterator[Path]:
    """Yield the directories of headers: of each release in a repository, or the one of an installed TensorRT."""
    installed = [path.parent for path in (root / "include").glob("**/NvInferVersion.h")]
    tags = _git(root, "tag", "--list").split() if (root / ".git").exists() or (root / "HEAD").exists() else []
    releases = sorted(filter(RELEASE.fullmatch, tags), key=lambda tag: [int(number) for number in tag[1:].split(".")])
    if not releases and not installed:
        sys.exit(f"{root}: neither a repository of TensorRT with tags from v10.0 on nor include/NvInferVersion.h")
    if not releases:
        yield from installed
    for tag in releases:
        with tempfile.TemporaryDirectory() as folder:
            command = ["git", "-C", str(root), "archive", tag, "include"]
            archive = subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout
            with tarfile.open(fileobj=io.BytesIO(archive)) as files:
                files.extractall(folder, filter="data")
            yield Path(folder) / "include"


def _git(root: Path, *arguments: str) -> str:
    return subprocess.run(["git", "-C", str(root), *arguments], check=True, stdout=subprocess.PIPE, text=True).stdout


def tensorrt_version(include: Path) -> str:
    """Return "10.3.0.26", or "RTX 1.2.0.54"."""
    text = (include / "NvInferVersion.h").read_text()
    found = dict(re.findall(r"#define (?:NV_TENSORRT|TRT)_(MAJOR|MINOR|PATCH|BUILD)\w* +(\d+)", text))
    return ("RTX " if "TRT_MAJOR_RTX" in text else "") + ".".join(
        found[part] for part in ("MAJOR", "MINOR", "PATCH", "BUILD")
    )


def cuda_version(root: Path) -> str:
    header = root / "include" / "cuda_runtime_api.h"
    found = re.search(r"#define CUDART_VERSION +(\d+)", header.read_text()) if header.is_file() else None
    if not found:
        sys.exit(f"{root}: no CUDA toolkit: include/cuda_runtime_api.h is missing or says no version")
    return f"{int(found[1]) // 1000}.{int(found[1]) % 1000 // 10}"


def backend_files() -> list[Path]:
    """Return the sources that VAR_EDGE_TENSORRT adds to the library."""
    listed = (SOURCE / "CMakeLists.txt").read_text().split("find_package(CudaRuntime REQUIRED)")[1].split(")")[0]
    return [SOURCE / name for name in listed.split() if name.endswith(".cpp")]


def first_error(command: list[str]) -> str | None:
    """Return the first error or warning of the backend's files, None if they compile without."""
    flags = ["-std=c++17", "-fsyntax-only", "-Wall", "-Wextra", "-Wpedantic", "-Werror"]
    own = [f"-I{SOURCE / 'src'}", f"-I{SOURCE / 'include'}"]
    for file in backend_files():
        result = subprocess.run([*command, *flags, *own, str(file)], capture_output=True, text=True)
        if result.returncode:
            lines = result.stderr.splitlines()
            return next((line for line in lines if "error" in line), f"the compiler ended with {result.returncode}")
    return None


if __name__ == "__main__":
    main()
