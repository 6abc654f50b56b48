"""Which module may import which: the layers of the project, without a circle or an arrow that points upward.

Every import counts, also one inside a function or for type checking only: a circle that is hidden is still one.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("runtime", "export", "calibration", "var_edge")
Imports = dict[str, set[str]]  # module -> what it imports

# Layers, the lowest first: a module imports from its own layer and from those listed before it, never from later ones.
# A name stands for the module and everything inside it; the longest name that matches decides. "name." is only the
# package file.
LAYERS = (
    ("runtime.errors", "runtime.limits", "runtime.memory", "runtime.processors", "runtime.pixels", "runtime.version"),
    ("runtime.shadowing", "runtime.optional", "runtime.progress"),
    ("runtime.files",),
    ("runtime.bundle",),
    ("runtime.sampling", "runtime.uniforms", "runtime.editing"),
    ("runtime.backends",),
    ("runtime.base_pipeline",),
    ("runtime.pipeline",),
    ("runtime.drafted",),
    ("runtime.record",),
    ("runtime.images", "runtime.dump", "runtime.evaluation_set"),
    ("runtime.cli",),
    ("runtime.drawing", "runtime.cluster"),
    ("runtime.serving.", "runtime.serving.tensors", "runtime.serving.settings", "runtime.serving.client"),
    ("runtime.serving.request",),
    ("runtime.serving.batches",),
    ("runtime.serving.process",),
    ("runtime.serving.model", "runtime.serving.repository"),
    (
        "runtime.generate",
        "runtime.edit",
        "runtime.sample_set",
        "runtime.bench",
        "runtime.cpp",
        "runtime.web",
        "runtime.triton",
        "runtime.client",
    ),  # commands
    ("runtime.",),
    ("var_edge.",),  # the facade; the packages above ask it whether a file of the user's stands in the way
    ("export.", "export.checkpoint.recipe"),
    ("export.model",),
    ("export.checkpoint",),
    ("export.graphs",),
    ("export.sizes",),
    ("export.engine", "export.kept", "export.room", "export.footprint"),
    ("export.bundle",),
    ("export.verify",),
    (
        "export.__main__",
        "export.bench",
        "export.fidelity",
        "export.gpu_check",
        "export.roofline",
        "export.fits",
    ),  # commands
    ("calibration.", "calibration.sites", "calibration.ranges", "calibration.channel_scaling"),
    ("calibration.plan", "calibration.record", "calibration.target", "calibration.weight"),
    ("calibration.graph_editor", "calibration.row_scales"),
    ("calibration.product",),
    ("calibration.quantize",),
    ("calibration.collect",),
    ("calibration.bundle", "calibration.speed"),
    ("calibration.bench",),
    ("calibration.sensitivity",),
    ("calibration.budget", "calibration.report"),
    ("calibration.make", "calibration.ablation", "calibration.__main__"),  # commands
    ("var_edge",),  # its table of commands
)
TRAINING = ("torch", "onnx", "onnx_ir", "onnxscript", "torchvision")


@cache
def modules() -> dict[str, Path]:
    files = [file for package in PACKAGES for file in (ROOT / package).rglob("*.py")]
    return {".".join(f.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): f for f in files}


def imported(module: str, text: str) -> Iterator[str]:
    """Yield the full names of the modules that a module's text imports, also of modules imported from a package."""
    package = module if modules()[module].name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*parts, node.module] if node.module else parts)
            for alias in node.names:
                inside = f"{base}.{alias.name}"
                yield inside if inside in modules() else base


@cache
def imports() -> Imports:
    return {name: set(imported(name, file.read_text(encoding="utf-8"))) for name, file in modules().items()}


def own(graph: Imports) -> Imports:
    """Return the imports between modules of the project, without those that are known to point upward."""
    return {name: {other for other in found if other in modules()} for name, found in graph.items()}


def layer(module: str) -> int:
    """Return the layer of the longest name in the table that matches."""
    fitting = [
        (len(name), i)
        for i, names in enumerate(LAYERS)
        for name in names
        if f"{module}." == name or (not name.endswith(".") and f"{module}.".startswith(f"{name}."))
    ]
    assert fitting, f"{module} has no layer: add it to LAYERS"
    return max(fitting)[1]


def upward(graph: Imports) -> list[tuple[str, str]]:
    return [(name, other) for name, found in own(graph).items() for other in found if layer(other) > layer(name)]


def circle(graph: Imports) -> list[str]:
    try:
        TopologicalSorter(own(graph)).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def reached(graph: Imports, module: str) -> set[str]:
    """Return everything that importing a module may import in turn, with the package files on the way."""
    found: set[str] = set()
    todo = {module}
    while todo:
        name = todo.pop()
        found.add(name)
        parents = {".".join(name.split(".")[:i]) for i in range(1, name.count(".") + 1)}
        todo |= (graph.get(name, set()) | (parents & graph.keys())) - found
    return found


def top(names: set[str]) -> set[str]:
    return {name.split(".")[0] for name in names}


def test_no_import_points_upward() -> None:
    assert upward(imports()) == []


def test_no_circle() -> None:
    assert circle(imports()) == []


def test_the_runtime_needs_no_exporter() -> None:
    """It runs on a device that has numpy and one inference engine."""
    for name, found in imports().items():
        if name.split(".")[0] == "runtime":
            assert not top(found) & {*TRAINING, "export", "calibration"}, name


@pytest.mark.parametrize("package", ["runtime", "export.engine"])
def test_what_runs_on_a_device_never_reaches_torch(package: str) -> None:
    inside = [name for name in modules() if f"{name}.".startswith(f"{package}.")]
    assert inside
    for name in inside:
        assert "torch" not in top(reached(imports(), name)), name


@pytest.mark.parametrize(
    ("module", "added"),
    [
        ("runtime.bundle.manifest", "from ..pipeline import Pipeline"),
        ("runtime.errors", "def f():\n    from runtime.files import atomic"),
        ("runtime.pipeline", "import export.graphs.write"),
        (
            "export.graphs.write",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from calibration import plan",
        ),
    ],
)
def test_an_import_that_points_upward_is_found(module: str, added: str) -> None:
    text = modules()[module].read_text(encoding="utf-8")
    graph = imports() | {module: set(imported(module, f"{text}\n{added}\n"))}
    assert [name for name, _ in upward(graph)] == [module]


def test_a_circle_is_found() -> None:
    name = "calibration.product"
    added = "if TYPE_CHECKING:\n    from calibration.quantize import Quantizer"
    text = modules()[name].read_text(encoding="utf-8")
    found = circle(imports() | {name: set(imported(name, f"{text}\n{added}\n"))})
    assert {name, "calibration.quantize"} <= set(found)


def test_torch_is_found_however_far_away() -> None:
    graph = imports() | {"export.engine.report": imports()["export.engine.report"] | {"export.room"}}
    assert "torch" in top(reached(graph, "export.engine.__main__"))
