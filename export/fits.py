"""python -m export.fits: which models fit a device's memory, in which precision, and which one to deploy."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from export import sizes
from export.checkpoint.recipe import RECIPES, Recipe, model_of
from export.sizes import FP16, FP32, INT8, INT8_CPU, INT8_MIXED, Kind
from runtime import limits
from runtime.bundle.manifest import Model
from runtime.cli import Number, command, reports_errors
from runtime.errors import SettingsError
from runtime.limits import shown

if TYPE_CHECKING:
    from export.footprint import Footprint

UNITS = {"MB": 10**6, "GB": 10**9, "MiB": 2**20, "GiB": 2**30}
SIZE = re.compile(r"(\d{1,9}(?:\.\d{1,9})?) ?([MG]i?B)", re.ASCII)
SYSTEM = "1.5GB"  # for the operating system and other programs: an allowance, more where a desktop runs


class Size(click.ParamType):  # type: ignore[type-arg]  # generic only in later releases of click
    """A number of bytes, such as 8GB (8 * 10^9) or 8GiB (8 * 2^30)."""

    name = "size"

    def __init__(self, zero: bool = False) -> None:
        self._zero = zero  # allowed

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        found = SIZE.fullmatch(value.strip())
        size = round(float(found[1]) * UNITS[found[2]]) if found else -1
        if size < (0 if self._zero else 1):
            least = "of 0 or more" if self._zero else "above 0"
            units = "8GB (GB is 10^9 bytes) or 8GiB (GiB is 2^30 bytes)"
            self.fail(f"expected a size {least} with its unit, such as {units}, found {shown(value)}", param, ctx)
        return size


@dataclass(frozen=True)
class Backend:
    """A way to run models, and the kinds of bundle it is used with, the best first."""

    title: str
    kinds: tuple[Kind, ...]
    builds: bool  # engines of TensorRT, on the device


BACKENDS = (
    # FP16 is left out on a CPU: ONNX Runtime computes it in FP32.
    Backend("ONNX Runtime on the CPU", (FP32, INT8_CPU), False),
    # FP32 comes last on a GPU: FP16 draws nearly the same tokens in half the memory (docs/fp16.md).
    Backend("TensorRT on a GPU that shares the memory", (FP16, INT8, INT8_MIXED, FP32), True),
)


@dataclass(frozen=True)
class Candidate:
    """A model in one precision on one backend."""

    model: Model
    kind: Kind
    footprint: Footprint
    engines: float  # bytes of their files; 0 if nothing is built on the device
    build: float  # bytes of memory without which a build of them is refused

    @property
    def needed(self) -> float:
        return max(self.footprint.total, self.build)

    @property
    def text(self) -> str:
        return f"{self.model.name} in {self.kind.title}"

    @property
    def memory(self) -> str:
        building = f", building its engines {_gb(self.build)}" if self.engines else ""
        return f"Drawing takes {_gb(self.footprint.total)}{building}."


def candidates(backend: Backend, models: Sequence[Model], batch: int) -> list[Candidate]:
    """Return what can run on the backend, the largest model first, and the best precision of a model first."""
    ordered = sorted(models, key=lambda model: -sizes.weight_file(model, FP32))
    return [_candidate(backend, model, kind, batch) for model in ordered for kind in backend.kinds]


def _candidate(backend: Backend, model: Model, kind: Kind, batch: int) -> Candidate:
    from export.engine.build import build_bytes  # these import numpy, for which --help should not wait
    from export.footprint import engine_code, on_cpu, on_tensorrt

    if not backend.builds:
        return Candidate(model, kind, on_cpu(model, kind, batch), 0, 0)
    weights = sizes.graph_weights(model, kind).values()
    engines = sum(weights) + engine_code(model, kind, batch)
    return Candidate(model, kind, on_tensorrt(model, kind, batch), engines, build_bytes(max(weights)))


def recommended(found: Sequence[Candidate], free: float) -> str:
    """Return which of `found` to deploy within `free` bytes, and why not those that would be better."""
    chosen = next((candidate for candidate in found if candidate.needed <= free), None)
    if chosen is None:
        least = min(found, key=lambda candidate: candidate.needed)
        return f"**Nothing fits**, not even {least.text}. {least.memory}"
    better = found[: found.index(chosen)]
    larger = [candidate for candidate in better if candidate.model != chosen.model]
    same = [candidate for candidate in better if candidate.model == chosen.model]
    reasons = [_too_large(same[-1], free)] if same else []
    if larger:
        reasons.append(_too_large(min(larger, key=lambda candidate: candidate.needed), free))
    head = f"**Deploy {chosen.text}**: the largest model that fits, in the best precision that fits."
    return "\n".join([head, chosen.memory, *([f"{', '.join(reasons)}."] if reasons else [])])


def _too_large(candidate: Candidate, free: float) -> str:
    total = candidate.footprint.total
    what = f"{_gb(total)} to draw" if total > free else f"{_gb(candidate.build)} to build"
    return f"{candidate.text} takes {what}"


def page(models: Sequence[Model], memory: int, system: int, batch: int) -> str:
    """Return the tables and the recommendations as Markdown."""
    free = memory - system
    head = f"{_gb(memory)} of memory, of which {_gb(system)} stay free for the system and other programs. "
    head += f"Images drawn at once: {batch}. GB is 10^9 bytes."
    return "\n\n".join([head, *(_section(backend, models, free, batch) for backend in BACKENDS)]) + "\n"


def _section(backend: Backend, models: Sequence[Model], free: float, batch: int) -> str:
    found = candidates(backend, models, batch)
    built = " engines | building |" if backend.builds else ""
    columns = f"| model | precision | bundle |{built} weights | keys, values | scratch | host | peak | fits |"
    lines = [f"## {backend.title}", "", columns, "|---" * (columns.count("|") - 1) + "|"]
    lines += [_row(candidate, free) for candidate in found]
    return "\n".join([*lines, "", recommended(found, free)])


def _row(candidate: Candidate, free: float) -> str:
    model, kind, footprint = candidate.model, candidate.kind, candidate.footprint
    cells = [model.name, kind.title, _gb(sizes.bundle(model, kind))]
    if candidate.engines:
        cells += [_gb(candidate.engines), _gb(candidate.build)]
    parts = (footprint.weights, footprint.cache, footprint.scratch, footprint.host, footprint.total)
    fits = "yes" if candidate.needed <= free else "no" if footprint.total > free else "not its build"
    return f"| {' | '.join([*cells, *map(_gb, parts), fits])} |"


def _gb(size: float) -> str:
    return f"{size / 1e9:.2f} GB"


def shipped() -> Iterator[Model]:
    """Yield the models whose recipes are shipped."""
    for path in sorted(RECIPES.glob("*.toml")):
        yield Recipe.load(path.stem).model


@command()
@click.option("--memory", type=Size(), required=True, help="Memory of the device, such as 8GB or 7.4GiB.")
@click.option("--model", "models", multiple=True, metavar="NAME", help="Recipe or bundle; repeatable.  [default: all]")
@click.option("--batch", type=Number(int, limits.BATCH), default=1, help="Images drawn at once.")
@click.option("--system", type=Size(zero=True), default=SYSTEM, help="Memory that stays free for the system.")
@reports_errors
def main(memory: int, models: tuple[str, ...], batch: int, system: int) -> None:
    """Compute which models fit a device, and recommend one.

    Prints tables of Markdown: the size of each bundle, and the peak memory of drawing by what takes it. Nothing is
    exported or loaded.
    """
    if system >= memory:
        raise SettingsError(f"--system: expected less than the {_gb(memory)} of --memory, found {_gb(system)}")
    asked = dict.fromkeys(model_of(name) for name in models)  # each once
    click.echo(page(list(asked or shipped()), memory, system, batch), nl=False)


if __name__ == "__main__":
    main()
