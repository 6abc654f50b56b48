"""Print a report on the terminal."""

from __future__ import annotations

from rich.box import SIMPLE_HEAD
from rich.console import Console, RenderableType
from rich.table import Table

from ..memory import Memory
from .report import BatchTimes, JetsonFacts, Report


def print_report(report: Report, console: Console | None = None) -> None:
    """Print the report to `console`, by default to standard output."""
    console = console or Console()
    parts = [_facts(report), _latency(report), _resources(report), _graphs(report.batches), _scales(report.batches)]
    if report.settings.compare:
        parts.append(_comparison(report))
    for part in parts:
        console.print(part)
        console.print()


def seconds(value: float) -> str:
    """Return a time with three digits and its unit, such as "1.25 ms"."""
    factor, unit = (1, "s") if value >= 1 else (1e3, "ms") if value >= 1e-3 else (1e6, "µs")
    scaled = value * factor
    return f"{scaled:.0f} {unit}" if scaled >= 100 else f"{scaled:.3g} {unit}"


def _facts(report: Report) -> RenderableType:
    machine, bundle, load, floor = report.machine, report.bundle, report.load, report.floor
    hashing = "not hashed" if load.hashing is None else f"{seconds(load.hashing)} hashing"
    rate = f"{floor.flop_per_second / 1e9:.0f} GFLOP/s in float32 matrix products"
    grid = Table.grid(padding=(0, 2))
    for name, value in (
        ("bundle", f"{bundle.name} {bundle.precision}, {report.backend}, {report.threads} thread(s), {report.date}"),
        ("draft", _draft(report)),
        ("processor", f"{machine.cpu}, {machine.cores} core(s), {rate}"),
        ("instructions", " ".join(machine.instruction_sets) or "unknown"),
        ("software", ", ".join([f"Python {machine.python}", *(f"{k} {v}" for k, v in machine.libraries.items())])),
        ("Jetson", _jetson(report.jetson)),
        ("start", f"{hashing}, {seconds(load.pipeline)} loading, {seconds(load.first_picture)} first picture"),
    ):
        grid.add_row(name, value)
    return grid


def _draft(report: Report) -> str:
    draft, scales = report.draft, report.settings.draft_scales
    return f"{draft.name} {draft.precision}, {scales} scale(s)" if draft else "none"


def _latency(report: Report) -> RenderableType:
    table = _table(f"Warm runs, {report.settings.runs} of each", "batch")
    _numbers(table, "median", "min", "max", "IQR", "pictures/s", "floor", "others")
    for times in report.batches:
        summary, floor = times.seconds, report.floor.seconds_per_picture * times.batch
        spread = (seconds(value) for value in (summary.median, summary.min, summary.max, summary.iqr))
        others = "unknown" if times.other_cpus is None else f"{times.other_cpus:.1f}"
        table.add_row(str(times.batch), *spread, f"{times.pictures_per_second:.2f}", seconds(floor), others)
    table.caption = "floor: float32 work at the rate above; others: CPUs kept busy by other work"
    return table


def _resources(report: Report) -> RenderableType:
    table = _table("Memory and energy" if report.jetson else "Memory", "")
    _numbers(table, "resident", "peak", *(["joules per picture"] if report.jetson else []))
    table.add_row("loaded", *_memory(report.load.memory))
    for times in report.batches:
        table.add_row(f"batch of {times.batch}", *_memory(times.memory), *(_energy(times) if report.jetson else []))
    loaded = [facts.loaded_weight_bytes for facts in (report.bundle, report.draft) if facts]
    table.add_row("weights in use", _megabytes(sum(loaded)))
    return table


def _graphs(batches: tuple[BatchTimes, ...]) -> RenderableType:
    table = _per_batch("Median time per graph", "graph", batches, ("time", "share"))
    for graph in dict.fromkeys(stage.graph for stage in batches[0].stages):
        spent = [times.spent(graph) for times in batches]
        table.add_row(graph, *_shares(spent, batches))
    table.add_row("outside", *_shares([times.outside_graphs for times in batches], batches))
    return table


def _shares(spent: list[float], batches: tuple[BatchTimes, ...]) -> list[str]:
    pairs = zip(spent, batches, strict=True)
    return [cell for part, times in pairs for cell in (seconds(part), f"{part / times.seconds.median:.1%}")]


def _scales(batches: tuple[BatchTimes, ...]) -> RenderableType:
    graphs = tuple(dict.fromkeys(stage.graph for stage in batches[0].stages if stage.scale is not None))
    table = _per_batch("Median time per scale", "scale", batches, graphs)
    for k in sorted({stage.scale for stage in batches[0].stages if stage.scale is not None}):
        table.add_row(str(k), *(seconds(times.spent(graph, k)) for times in batches for graph in graphs))
    return table


def _per_batch(title: str, first: str, batches: tuple[BatchTimes, ...], columns: tuple[str, ...]) -> Table:
    """Return an empty table with these columns for each batch size."""
    table = _table(title, first)
    _numbers(table, *(f"{name}\nbatch {times.batch}" for times in batches for name in columns))
    return table


def _comparison(report: Report) -> RenderableType:
    table = _table("In turns with the runtime: how many times its time", "batch", "kind")
    _numbers(table, "median", "ratio", "ratio per round", "other pictures")
    for times in report.batches:
        for rival in times.rivals:
            ratio, differing = rival.ratio, f"{rival.differing_pictures} of {times.batch}"
            rounds = f"{ratio.min:.2f} to {ratio.max:.2f}"
            cells = (seconds(rival.seconds.median), f"{ratio.of_medians:.2f}", rounds, differing)
            table.add_row(str(times.batch), rival.name, *cells)
    table.caption = "\n".join(f"{name} not measured: {reason}" for name, reason in report.left_out.items())
    return table


def _jetson(jetson: JetsonFacts | None) -> str:
    if jetson is None:
        return "none: no clocks, temperatures or power"
    clocks = ", ".join(f"{name} {rate / 1e6:.0f} MHz" for name, rate in jetson.after.clocks.items())
    hottest = max(jetson.after.temperatures.values(), default=float("nan"))
    return f"{jetson.model}, {jetson.after.power_mode or 'power mode unknown'}, {clocks}, {hottest:.0f} °C at most"


def _energy(times: BatchTimes) -> list[str]:
    """Return the energy of the board, or of each rail if no rail feeds the whole board."""
    joules = times.energy.joules_per_picture if times.energy else {}
    if times.energy and times.energy.board:
        joules = {times.energy.board: joules[times.energy.board]}
    return [", ".join(f"{rail} {value:.2f}" for rail, value in joules.items()) or "unknown"]


def _memory(memory: Memory | None) -> list[str]:
    return [_megabytes(memory.resident), _megabytes(memory.peak)] if memory else ["unknown", "unknown"]


def _table(title: str, *columns: str) -> Table:
    return Table(*columns, title=title, title_justify="left", caption_justify="left", box=SIMPLE_HEAD)


def _numbers(table: Table, *names: str) -> None:
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)


def _megabytes(count: int) -> str:
    return f"{count / 1e6:.0f} MB"
