"""Compare this project's INT8 with that of other tools on the demo model: the table of docs/int8.md.

python -m examples.int8_peers build/var_demo/fp32 --ours "VAR Edge, cpu=build/var_demo/int8-cpu"

Each tool gets the FP32 graphs and the inputs of the same calibration images, and quantises them with its defaults for
such a model. Each runs in an environment of its own in build/int8_peers, which the first run makes.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass, replace
from datetime import date
from functools import partial
from pathlib import Path

import click

from examples.environments import environment
from examples.int8_peers.inputs import GRAPHS, record_inputs, write_graphs
from examples.int8_peers.judge import NOT_INSTALLED, Accuracies, Found, Judge, in_int8, timed, versions
from examples.int8_peers.tools import TOOLS
from examples.kept_rows import KeptRows
from export.sizes import block
from runtime.bench.machine import machine
from runtime.bench.summary import Ratio, Summary
from runtime.bundle.manifest import FILE_NAME, File, Manifest
from runtime.cli import command, reports_errors
from runtime.errors import SettingsError, VarEdgeError
from runtime.limits import shown

WORK = Path("build/int8_peers")
QUIET = {**os.environ, "ORT_DISABLE_TELEMETRY": "1"}  # ONNX Runtime reads it when it is loaded
SCRIPT = Path(__file__).with_name("tools.py")


@dataclass(frozen=True)
class Candidate:
    """A bundle of the table: who made it, and the graphs that are INT8 in it."""

    name: str
    version: str
    graphs: list[str]
    bundle: Path


def python_of(tool: str) -> Path:
    """Return the Python of the tool's environment, which is made if it is not there. Raises CalledProcessError.

    Each tool has its own, because they ask for different releases of numpy, onnx and ONNX Runtime.
    """
    packages, _ = TOOLS[tool]
    return environment(WORK / "environments" / packages[0].partition("[")[0], *packages)


def quantised(tool: str, bundle: Path) -> tuple[Path, str, list[str]]:
    """Quantise the graphs with a tool. Return the bundle, the tool's version, and the graphs that it quantised.

    The tool runs in its folder of `WORK`, because some write reports into the current directory.
    """
    work = WORK.absolute()
    python, folder = python_of(tool).absolute(), work / tool
    folder.mkdir(parents=True, exist_ok=True)
    done, version = {}, "?"
    for graph in GRAPHS:
        out, log = folder / f"{graph}.onnx", folder / f"{graph}.log"
        command = [python, SCRIPT, tool, work / "graphs" / f"{graph}.onnx", work / "inputs" / graph, out]
        if not log.exists() or not log.read_text().endswith("quantised\n"):
            with log.open("w") as said:
                code = subprocess.run(command, stdout=said, stderr=subprocess.STDOUT, env=QUIET, cwd=folder).returncode
                said.write(f"exit code {code}\n" if code else "quantised\n")
        lines = log.read_text().splitlines()
        if lines[-1] == "quantised":
            done[graph], version = out, lines[-2]
        else:
            click.echo(f"{tool}: {graph} stays FP32; see {log}", err=True)
    made = assembled(bundle, done, folder / "bundle")
    return made, version, in_int8(made)


def assembled(bundle: Path, graphs: dict[str, Path], out: Path) -> Path:
    """Write a bundle with these graphs in place of those of `bundle`."""
    manifest = Manifest.load(bundle, verify=False)
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    kept = {name: graph for name, graph in manifest.graphs.items() if not name.startswith("transformer_")}
    for name, graph in kept.items():
        shutil.copyfile(graphs.get(name, bundle / graph.file), out / graph.file)
    for file in ("weights.safetensors", manifest.classes):
        if file:
            shutil.copyfile(bundle / file, out / file)
    files = {path.name: File.of(path) for path in sorted(out.iterdir())}
    replace(manifest, graphs=kept, files=files).write(out)
    return out


def candidates(bundle: Path, ours: dict[str, Path], tools: list[str]) -> list[Candidate]:
    """Return this project's bundles and those of the tools, which are made where they are not there yet."""
    found = [Candidate(name, "", in_int8(folder), folder) for name, folder in ours.items()]
    for tool in tools:
        made, version, graphs = quantised(tool, bundle)
        if graphs:
            found.append(Candidate(tool, version, graphs, made))
    return found


def kept_rows(path: Path, *settings: object) -> KeptRows:
    """Return the rows in a file. The versions of ONNX Runtime and TensorRT count as settings."""
    return KeptRows(path, (Found, Accuracies), *settings, versions())


SAME = 90  # dB; above it the decoder is that of FP32
HEAD = (
    "| tool | in INT8 | KL of a token | mean KL of the scales | top-1 | PSNR | accuracy | Fréchet | MB | ms | speed"
    " | INT8 products of the engine |\n|---|---|---|---|---|---|---|---|---|---|---|---|"
)


def table(rows: list[tuple[Candidate, Found, Summary]], fp32: Summary, products: int) -> str:
    """Return the table, the best first, and what the builder of engines said about the graphs that it refused.

    `fp32` is the time of FP32 in the same rounds. `products` is how many products of the transformer have a weight.
    """
    lines, notes = [HEAD], list[str]()
    for of, found, time in sorted(rows, key=lambda row: row[1].kl):
        engine = f"{_span(found.int8_products)} of {products}"
        if found.refused and found.refused != NOT_INSTALLED:
            reason = found.refused.partition(" (node ")[0]
            notes += [reason] if reason not in notes else []
            engine = f"refused [{notes.index(reason) + 1}]"
        psnr = f"{found.psnr:.1f} dB" if found.psnr < SAME else ""
        lines.append(
            f"| {of.name}{f' ({of.version})' if of.version else ''} | {', '.join(of.graphs)} | {found.kl:.4f}"
            f" | {found.kl_of_scales:.4f} | {found.agreement:.1%} | {psnr} | {found.accuracy:.1%}"
            f" | {found.frechet:.2f}x | {found.size / 1e6:.1f} | {1e3 * time.median:.1f}"
            f" | {Ratio.of(fp32, time).of_medians:.2f}x | {engine} |"
        )
    return "\n".join([*lines, "", *(f"[{i + 1}] {note:.240}" for i, note in enumerate(notes))]).rstrip()


def _span(counts: tuple[int, ...]) -> str:
    """Return "16", or "12 to 16" if the profiles differ; "?" if the builder does not say or is not there."""
    return " to ".join(map(str, sorted({min(counts), max(counts)}))) if counts else "?"


@command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--ours", multiple=True, metavar="NAME=DIR", help="INT8 bundle of this project, made from BUNDLE.")
@click.option("--tools", default=",".join(TOOLS), help="The tools to run.")
@click.option("--images", default=128, help="Number of calibration images.")
@click.option("--tokens", default=2000, help="Number of tokens compared at every scale.")
@click.option("--seed", default=1000, help="Seed of the compared images; calibration uses seeds from 0.")
@click.option("--per-class", default=70, help="Number of images of each class for accuracy and Fréchet distance.")
@click.option("--rounds", default=15, help="Number of timed images with each bundle.")
@reports_errors
def main(
    bundle: Path,
    ours: tuple[str, ...],
    tools: str,
    images: int,
    tokens: int,
    seed: int,
    per_class: int,
    rounds: int,
) -> None:
    """Quantise the FP32 BUNDLE of the demo model with other tools, and print a table beside bundles of this project.

    What was measured of a bundle is kept in build/int8_peers; only the times are measured again.
    """
    chosen = [tool for tool in tools.split(",") if tool]
    if unknown := set(chosen) - set(TOOLS):
        raise click.UsageError(f"--tools: expected any of {', '.join(TOOLS)}, found {', '.join(sorted(unknown))}")
    named = _named(ours)
    for folder in (bundle, *named.values()):  # before minutes of work
        Manifest.load(folder, verify=False)
    if chosen and not (WORK / "inputs").exists():
        WORK.mkdir(parents=True, exist_ok=True)
        write_graphs(bundle, WORK / "graphs")
        record_inputs(bundle, WORK / "unfinished", images)
        (WORK / "unfinished").rename(WORK / "inputs")
    judge, rows = Judge(bundle, tokens, seed, per_class), []
    kept = kept_rows(WORK / "rows.json", (bundle / FILE_NAME).read_text(), tokens, seed, per_class)
    for candidate in candidates(bundle, named, chosen):
        try:
            rows.append((candidate, kept.row(Found, partial(judge.find, candidate.bundle), candidate.bundle)))
        except VarEdgeError as error:
            click.echo(f"{candidate.name}: {error}", err=True)
    fp32_draws = kept.row(Accuracies, judge.accuracies, bundle, what="accuracies")
    fp32, *times = timed([bundle, *(candidate.bundle for candidate, _ in rows)], rounds)
    here, model = machine(), Manifest.load(bundle, verify=False).model
    click.echo(
        f"{date.today()}, {here.cpu} ({', '.join(here.instruction_sets)}), {images} calibration images. FP32: accuracy"
        f" {fp32_draws.accuracy:.1%}, with other seeds {fp32_draws.other:.1%}; {1e3 * fp32.median:.1f} ms.\n"
    )
    timed_rows = [(*row, time) for row, time in zip(rows, times, strict=True)]
    click.echo(table(timed_rows, fp32, 1 + model.depth * len(block(model))))


def _named(ours: tuple[str, ...]) -> dict[str, Path]:
    """Return the bundles of `--ours` by their names. Raises SettingsError."""
    found = {}
    for item in ours:
        name, _, folder = item.partition("=")
        if not name or not folder:
            raise SettingsError(f"--ours: expected NAME=DIR, found {shown(item)}")
        found[name] = Path(folder)
    return found


if __name__ == "__main__":
    main()
