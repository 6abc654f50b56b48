"""Compare this project's INT8 with that of other tools on the demo model: the table of docs/int8.md.

python -m examples.int8_peers build/var_demo/fp32 --ours "VAR Edge, cpu=build/var_demo/int8-cpu"

Each tool gets the FP32 graphs and the inputs of the same calibration images, and quantises them with its defaults for
such a model. Each runs in an environment of its own in build/int8_peers, which the first run makes.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import asdict, dataclass, replace
from datetime import date
from pathlib import Path

import click
import numpy as np
import onnx

from examples.demo_model.classes import CLASSES
from examples.demo_model.classifier import load_classifier
from examples.demo_model.compare import draw, frechet_distance, judged
from examples.int8_peers.inputs import GRAPHS, record_inputs, write_graphs
from examples.int8_peers.tools import TOOLS
from export.verify.fidelity import Teacher
from runtime.bench.machine import machine
from runtime.bundle.manifest import File, Manifest
from runtime.errors import VarEdgeError
from runtime.pipeline import Pipeline

WORK = Path("build/int8_peers")
QUIET = {**os.environ, "ORT_DISABLE_TELEMETRY": "1"}  # ONNX Runtime reads it when it is loaded
SCRIPT = Path(__file__).with_name("tools.py")


@dataclass(frozen=True)
class Row:
    """What is known of one bundle."""

    name: str
    version: str
    graphs: str  # those that the tool quantised
    kl: float  # nats, mean per token
    kl_of_scales: float  # nats, mean of the means of the scales
    agreement: float  # of the most probable token
    psnr: float  # dB
    accuracy: float
    frechet: float  # to FP32 of other seeds, as a multiple of FP32's own distance
    size: int  # bytes of the three graphs with their weights


def environment(tool: str) -> Path:
    """Return the Python of the tool's environment, which is made if it is not there.

    Each tool has its own, because they ask for different releases of numpy, onnx and ONNX Runtime.
    """
    packages, _ = TOOLS[tool]
    folder = WORK / "environments" / packages[0].partition("[")[0]
    if not (folder / "ready").exists():
        click.echo(f"installing {packages[0]} into {folder} (minutes)", err=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        subprocess.run([folder / "bin" / "python", "-m", "pip", "install", "-q", *packages], check=True)
        (folder / "ready").touch()
    return folder / "bin" / "python"


def quantised(tool: str, bundle: Path) -> tuple[Path, str, list[str]]:
    """Quantise the graphs with a tool. Return the bundle, the tool's version, and the graphs that it quantised."""
    python, folder = environment(tool), WORK / tool
    folder.mkdir(parents=True, exist_ok=True)
    done, version = {}, "?"
    for graph in GRAPHS:
        out, log = folder / f"{graph}.onnx", folder / f"{graph}.log"
        command = [python, SCRIPT, tool, WORK / "graphs" / f"{graph}.onnx", WORK / "inputs" / graph, out]
        if not log.exists() or not log.read_text().endswith("quantised\n"):
            with log.open("w") as said:
                code = subprocess.run(command, stdout=said, stderr=subprocess.STDOUT, env=QUIET).returncode
                said.write(f"exit code {code}\n" if code else "quantised\n")
        lines = log.read_text().splitlines()
        if lines[-1] == "quantised":
            done[graph], version = out, lines[-2]
        else:
            click.echo(f"{tool}: {graph} stays FP32; see {log}", err=True)
    made = assembled(bundle, done, folder / "bundle")
    return made, version, in_int8(made)


def in_int8(bundle: Path) -> list[str]:
    """Return the graphs that hold anything in INT8. Some tools leave a graph as it is, without a word."""
    manifest = Manifest.load(bundle, verify=False)
    kinds = ("Quantize", "DynamicQuantize", "QLinear")

    def quantised(graph: str) -> bool:
        nodes = onnx.load(bundle / manifest.graphs[graph].file, load_external_data=False).graph.node
        return any(node.op_type.startswith(kinds) for node in nodes)

    return [graph for graph in GRAPHS if quantised(graph)]


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


class Judge:
    """Measures bundles against the FP32 bundle, with the images and the metrics of `examples.demo_model.compare`."""

    def __init__(self, fp32: Path, tokens: int, seed: int, per_class: int) -> None:
        self.teacher = Teacher.draw(Pipeline(fp32), tokens, seed)
        self.classifier = load_classifier()
        self.labels = np.repeat(np.arange(len(CLASSES)), per_class)
        base, other = (judged(self.classifier, draw(fp32, self.labels, s), self.labels) for s in (0, len(self.labels)))
        self.base, self.other = base, other
        self.own = frechet_distance(base.features, other.features)

    def row(self, name: str, bundle: Path, version: str, graphs: list[str]) -> Row:
        fidelity = self.teacher.compare(Pipeline(bundle, verify=False))
        found = judged(self.classifier, draw(bundle, self.labels, 0), self.labels)
        return Row(
            name,
            version,
            ", ".join(graphs),
            fidelity.kl,
            fidelity.kl_of_scales,
            fidelity.agreement,
            fidelity.psnr,
            found.accuracy,
            frechet_distance(found.features, self.other.features) / self.own,
            used_bytes(bundle),
        )


def used_bytes(bundle: Path) -> int:
    """Return the bytes of the graphs that the tools were given, with their weights."""
    manifest = Manifest.load(bundle, verify=False)
    total = 0
    for name in GRAPHS:
        file = bundle / manifest.graphs[name].file
        beside = {
            tensor.name: int(entry.value)
            for tensor in onnx.load(file, load_external_data=False).graph.initializer
            for entry in tensor.external_data
            if entry.key == "length"
        }
        total += file.stat().st_size + sum(beside.values())
    return total


def table(rows: list[Row]) -> str:
    lines = [
        "| tool | graphs in INT8 | KL per token | mean of scales | top-1 | PSNR | accuracy | Fréchet | MB |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in sorted(rows, key=lambda row: row.kl):
        lines.append(
            f"| {row.name}{f' ({row.version})' if row.version else ''} | {row.graphs} | {row.kl:.4f}"
            f" | {row.kl_of_scales:.4f} | {row.agreement:.1%} | {row.psnr:.1f} dB | {row.accuracy:.1%}"
            f" | {row.frechet:.2f}x | {row.size / 1e6:.1f} |"
        )
    return "\n".join(lines)


@click.command(context_settings={"show_default": True})
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--ours", multiple=True, metavar="NAME=DIR", help="INT8 bundle of this project, made from BUNDLE.")
@click.option("--tools", default=",".join(TOOLS), help="The tools to run.")
@click.option("--images", default=128, help="Number of calibration images.")
@click.option("--tokens", default=2000, help="Number of tokens compared at every scale.")
@click.option("--seed", default=1000, help="Seed of the compared images; calibration uses seeds from 0.")
@click.option("--per-class", default=70, help="Number of images of each class for accuracy and Fréchet distance.")
def main(bundle: Path, ours: tuple[str, ...], tools: str, images: int, tokens: int, seed: int, per_class: int) -> None:
    """Quantise the FP32 BUNDLE of the demo model with other tools, and print a table beside bundles of this project."""
    chosen = [tool for tool in tools.split(",") if tool]
    if unknown := set(chosen) - set(TOOLS):
        raise click.UsageError(f"--tools: expected any of {', '.join(TOOLS)}, found {', '.join(sorted(unknown))}")
    own = dict(item.split("=", 1) for item in ours)
    if chosen and not (WORK / "inputs").exists():
        WORK.mkdir(parents=True, exist_ok=True)
        write_graphs(bundle, WORK / "graphs")
        record_inputs(bundle, WORK / "unfinished", images)
        (WORK / "unfinished").rename(WORK / "inputs")
    judge, rows = Judge(bundle, tokens, seed, per_class), []
    for name, folder in own.items():
        rows.append(judge.row(name, Path(folder), "", in_int8(Path(folder))))
    for tool in chosen:
        made, version, graphs = quantised(tool, bundle)
        if not graphs:
            continue
        try:
            rows.append(judge.row(tool, made, version, graphs))
        except VarEdgeError as error:
            click.echo(f"{tool}: {error}", err=True)
    (WORK / "rows.json").write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")
    base = f"FP32: accuracy {judge.base.accuracy:.1%}, with other seeds {judge.other.accuracy:.1%}"
    here = machine()
    where = f"{here.cpu} ({', '.join(here.instruction_sets)})"
    click.echo(f"{date.today()}, {where}, {images} calibration images. {base}.\n\n{table(rows)}")


if __name__ == "__main__":
    main()
