"""Time each kind of layer on this CPU, as planned and in FP32, so that a layer that INT8 slows down stays float."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
import onnx
import onnx_ir as ir
from onnx import TensorProto, helper, numpy_helper

from calibration.plan import CALIBRATED, FLOAT, Plan
from calibration.quantize import Quantizer
from calibration.sites import Site
from calibration.target import TARGETS, Activation
from export.graphs.signature import Signature
from runtime.backends.ort_session import Session
from runtime.bench.machine import machine
from runtime.bundle.manifest import Graph, Manifest, Tensor
from runtime.bundle.names import DECODER, TRANSFORMER
from runtime.processors import usable_cpus
from runtime.progress import Progress, silent

ROUNDS = 8  # even, so that each form is the first one, with a cold operand, in half of them
MARGIN = 0.05  # a layer that is slower by less may only look so
GAIN = 0.01  # share of the time of all layers that a kind of layer has to save as float, to be worth its memory
SPAN = 10.0  # of values with variance 1: what the ranges of operands and results cover here

Run = Callable[[], dict[str, np.ndarray]]


@dataclass(frozen=True)
class Speed:
    """The seconds of one layer for one batch, by round. `keys` are the sites with the same shapes and plan."""

    keys: tuple[str, ...]
    kind: str
    planned: tuple[float, ...]
    float32: tuple[float, ...]

    @property
    def ratios(self) -> tuple[float, float, float]:
        """The lower quartile, median and upper quartile of FP32 / planned over the rounds; below 1 INT8 is slower."""
        low, middle, high = np.quantile(np.array(self.float32) / np.array(self.planned), (0.25, 0.5, 0.75))
        return float(low), float(middle), float(high)

    @property
    def saved(self) -> float:
        """The seconds that all layers of this kind would save as float; negative if INT8 is faster."""
        return len(self.keys) * (median(self.planned) - median(self.float32))

    @property
    def is_slower(self) -> bool:
        return self.ratios[2] < 1 - MARGIN


def measure_speed(
    bundle: Path,
    sites: Sequence[Site],
    plan: Plan,
    batch: int = 1,
    progress: Progress = silent,
    rounds: int = ROUNDS,
) -> list[Speed]:
    """Time one layer of each kind that the plan for the CPU makes INT8, at every scale, with all usable CPUs.

    The weights are random, and one round runs all layers, so that they come from memory as they do in drawing.
    """
    manifest = Manifest.load(bundle, verify=False)
    groups: dict[tuple[object, ...], list[Site]] = {}
    for site in sites:
        if plan[site.key] != FLOAT:
            alike = (site.graph, site.op, site.operand_shape, site.weight_shape, plan[site.key], _behind_gelu(site))
            groups.setdefault(alike, []).append(site)
    pairs = [list(_runs(bundle, manifest, group[0], plan, batch)) for group in groups.values()]
    times = np.zeros((len(pairs), 2, rounds + 1))  # of each group, planned and in FP32, by round
    for number in range(rounds + 1):
        progress("timing layers", number, rounds + 1)
        for group, scales in zip(times, pairs, strict=True):
            for pair in scales:
                for form in (0, 1) if number % 2 else (1, 0):
                    group[form, number] += _seconds(pair[form])
    return [
        Speed(tuple(site.key for site in group), plan[group[0].key], *(tuple(form[1:].tolist()) for form in taken))
        for group, taken in zip(groups.values(), times, strict=True)  # without the first round, which allocates
    ]


def slower(speeds: Sequence[Speed]) -> list[str]:
    """Return the layers that should stay float: INT8 slows them down, and what they lose together matters."""
    total = sum(len(speed.keys) * median(speed.planned) for speed in speeds)
    return [key for speed in speeds if speed.is_slower and speed.saved > GAIN * total for key in speed.keys]


def speed_table(speeds: Sequence[Speed]) -> str:
    """Return a Markdown section of the times, with the machine that they are of."""
    here = machine()
    sets = ", ".join(here.instruction_sets) or "unknown"
    lines = [
        "## Speed of the layers",
        "",
        f"One layer, one batch, all scales together; medians of {ROUNDS} rounds, with each form first in half of them.",
        "FP32 / planned has the quartiles of the rounds.",
        f"Machine: {here.cpu}, {usable_cpus()} CPU(s); instruction sets of the processor: {sets}.",
        f"A layer stays float if FP32 is more than {MARGIN:.0%} faster in three quarters of the rounds, and if all",
        f"layers like it save more than {GAIN:.0%} of the time in this table; but not if --set names it.",
        "",
        "| layer | layers like it | kind | milliseconds | in FP32 | FP32 / planned | stays float |",
        "|---|---|---|---|---|---|---|",
    ]
    floats = set(slower(speeds))
    for speed in speeds:
        times = f"{1e3 * median(speed.planned):.2f} | {1e3 * median(speed.float32):.2f}"
        low, middle, high = speed.ratios
        ratio, stays = f"{middle:.2f}x ({low:.2f} to {high:.2f})", "yes" if speed.keys[0] in floats else "no"
        lines.append(f"| {speed.keys[0]} | {len(speed.keys)} | {speed.kind} | {times} | {ratio} | {stays} |")
    return "\n".join([*lines, ""])


def _seconds(run: Run) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def _runs(bundle: Path, manifest: Manifest, site: Site, plan: Plan, batch: int) -> Iterator[tuple[Run, Run]]:
    """Yield the planned form and the FP32 form of a layer for each shape that it has in drawing one batch."""
    sessions = [_session(bundle, site, kind) for kind in (plan[site.key], FLOAT)]
    # The decoder takes one image at a time.
    count = 1 if site.graph == DECODER else batch
    sizes = {"B": count, "2B": 2 * count}
    steps = [{**sizes, "L": scale.tokens} for scale in manifest.scales] if site.graph == TRANSFORMER else [sizes]
    for step in steps:
        shape = [step[axis] if isinstance(axis, str) else axis for axis in site.operand_shape]
        x = np.random.default_rng(0).standard_normal(shape, np.float32)
        planned, float32 = (_run(session, {"x": x, **constants}) for session, constants in sessions)
        yield planned, float32


def _run(session: Session, inputs: Mapping[str, np.ndarray]) -> Run:
    return lambda: session.run(inputs)


def _session(bundle: Path, site: Site, kind: str) -> tuple[Session, dict[str, np.ndarray]]:
    """Return a session of the layer alone, with random weights, and its inputs that do not depend on the scale."""
    stored = _weights(site)
    model = ir.from_proto(onnx.shape_inference.infer_shapes(_layer(site, stored)))
    values = {f"{site.name}.{name}": array for name, array in stored.items()}
    constants: dict[str, np.ndarray] = {}
    inputs: tuple[Tensor, ...] = (Tensor("x", "float32", site.operand_shape),)
    if kind != FLOAT:
        ranges = Activation(np.array([SPAN / 255], np.float32), np.array([128.0]))
        ends = (f"{site.key} {end}" for end in ("input", "output")) if kind in CALIBRATED else ()
        quantizer = Quantizer(TARGETS["cpu"], {site.key: kind}, dict.fromkeys(ends, ranges), {}, values.__getitem__)
        alone = Signature(TRANSFORMER if site.graph == TRANSFORMER else "", inputs, ())
        inputs = quantizer.rewrite(alone, model, [_renamed(site)]).inputs
        for name, entry in quantizer.entries.items():
            array = np.asarray(entry.compute(), entry.numpy_dtype)
            if name in model.graph.initializers:
                model.graph.initializers[name].const_value = ir.tensor(array, name=name)
            else:
                constants[name] = array[0]
    proto = ir.to_proto(model)
    proto.graph.ClearField("value_info")  # these are sizes before rewriting: two digits double the rows
    graph = Graph(f"{site.name} alone", inputs, (Tensor("y", "float32", site.result_shape),))
    return Session(bundle, graph, usable_cpus(), content=proto.SerializeToString()), constants


def _renamed(site: Site) -> Site:
    """Return the site in the graph of `_layer`."""
    return Site(
        site.graph, site.name, site.op, "a" if _behind_gelu(site) else "x", site.operand_shape,
        "without_bias" if site.op == "MatMul" else "product",
        site.result_shape, f"{site.name}.weight", site.weight_shape,
    )  # fmt: skip


def _weights(site: Site) -> dict[str, np.ndarray]:
    """Return a weight and a bias, such that operands with variance 1 have results with variance 1."""
    random = np.random.default_rng(0)
    fan_in = np.prod(site.weight_shape) / site.weight_shape[site.out_axis]
    weight = random.standard_normal(site.weight_shape, np.float32) / np.float32(np.sqrt(fan_in))
    return {"weight": weight, "bias": random.standard_normal(site.weight_shape[site.out_axis], np.float32)}


def _layer(site: Site, stored: Mapping[str, np.ndarray]) -> onnx.ModelProto:
    """Return the graph of one layer in FP32. What GELU made has a zero point (`Product`), so GELU is part of it."""
    weight, bias = f"{site.name}.weight", f"{site.name}.bias"
    nodes, operand = [], "x"
    if _behind_gelu(site):
        nodes, operand = [helper.make_node("Gelu", ["x"], ["a"], approximate="tanh")], "a"
    if site.op == "Gemm":
        nodes += [helper.make_node("Gemm", [operand, weight, bias], ["product"], transB=1)]
    elif site.op == "Conv":
        pads = [(size - 1) // 2 for size in site.weight_shape[2:]] * 2  # decoders keep the size of a map
        nodes += [helper.make_node("Conv", [operand, weight, bias], ["product"], pads=pads)]
    else:
        nodes += [helper.make_node("MatMul", [operand, weight], ["without_bias"])]
        nodes += [helper.make_node("Add", ["without_bias", bias], ["product"])]
    nodes += [helper.make_node("Identity", ["product"], ["y"])]
    return helper.make_model(
        helper.make_graph(
            nodes,
            "layer",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, site.operand_shape)],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
            [numpy_helper.from_array(array, f"{site.name}.{name}") for name, array in stored.items()],
        ),
        opset_imports=[helper.make_opsetid("", 20)],
        ir_version=10,
    )


def _behind_gelu(site: Site) -> bool:
    return site.name.endswith("fc2")
