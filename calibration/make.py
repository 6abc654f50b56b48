"""Make an INT8 bundle: collect ranges, plan, and write the bundle with a report of the plan."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from calibration.bench import Bench
from calibration.budget import expected, within_budget
from calibration.bundle import quantize_bundle
from calibration.collect import check_source, collect
from calibration.plan import FLOAT, ROW, Plan, default_plan, images_needed, overridden
from calibration.ranges import CalibrationError
from calibration.record import FILE_NAME, Calibration, Settings, fingerprint
from calibration.report import HEAT_MAP, Outcome, counted, report
from calibration.sensitivity import FILE_NAME as SENSITIVITY
from calibration.sensitivity import heat_map, measure
from calibration.sites import Site, all_sites
from calibration.speed import measure_speed, slower, speed_table
from calibration.target import TARGETS
from export.kept import Warn
from runtime.bundle.manifest import Manifest
from runtime.files.outputs import INT8_BUNDLE, check_directory, check_target
from runtime.files.unfinished import exclusive
from runtime.progress import Progress, silent

DEFAULTS = Settings()
REPORT = "report.md"


@dataclass(frozen=True)
class Request:
    """The user's options; see `python -m calibration --help`."""

    target: str = "trt"
    scales: str = ROW
    method: str = "mse"
    images: int | None = None  # None: as many as the plan needs
    first: int = 0
    settings: Settings = DEFAULTS
    budget: float | None = None
    overrides: tuple[tuple[str, str], ...] = ()
    weights_only: bool = False
    batches: tuple[int, ...] = (1,)
    merge: tuple[Path, ...] = ()
    with_speed: bool = False  # time the layers here, and leave float those that INT8 slows down


def make_int8(
    bundle: Path,
    out: Path,
    request: Request,
    calibration: Path | None = None,
    progress: Progress = silent,
    warn: Warn = lambda note: None,
) -> str:
    """Write the INT8 bundle `out`; return one line about it. Raises VarEdgeError, OSError.

    `warn` is called if a file kept from an earlier `out` does not fit the new bundle.
    """
    path = calibration or bundle / FILE_NAME
    check_directory(out, INT8_BUNDLE, bundle)
    check_target(path, ".json", sources=(bundle,))
    # Check everything that can be wrong before hours of collecting.
    sites = all_sites(bundle, Manifest.load(bundle, verify=False))
    plan = default_plan(sites, request.scales, request.weights_only)
    fixed = overridden(sites, dict(request.overrides))
    speeds = []
    if request.with_speed:
        speeds = measure_speed(bundle, sites, plan | fixed, max(request.batches), progress)
        kept = [key for key in slower(speeds) if key not in fixed]
        fixed = fixed | dict.fromkeys(kept, FLOAT)
        warn(f"{len(kept)} layer(s) stay float, because INT8 is slower here: {', '.join(kept) or 'none'}")
    wanted = plan | fixed
    scaled = request.settings.channel_scaling != "none"
    needed = images_needed(sites, wanted, scaled)
    if request.budget is not None:  # layers are measured with the scales of the plan before overrides
        needed = max(needed, images_needed(sites, plan, scaled))
    others = {other: Calibration.load(other) for other in request.merge}
    outcome = None
    with exclusive(path, "wait for it or give another --calibration file"):
        found = _calibrated(bundle, path, request, needed, others, progress, sites)
        if request.budget is not None:
            where = path.with_name(f"{request.target}-{request.scales}-{request.method}-{SENSITIVITY}")
            bench = Bench(bundle, sites, found, request.target, request.scales, request.method)
            wanted, outcome = _planned(bench, where, wanted, request.budget, fixed, progress)
            del bench  # with the weights in FP32

    def write_report(folder: Path) -> None:
        text = report(request.target, request.scales, request.method, found, wanted, sites, outcome)
        if speeds:
            text += "\n" + speed_table(speeds)
        (folder / REPORT).write_text(text, encoding="utf-8")
        if outcome:
            heat_map(outcome.sensitivity, sites, folder / HEAT_MAP)

    form, batches = TARGETS[request.target], request.batches
    quantize_bundle(
        bundle, out, found, wanted, form, request.method, batches, progress, [write_report], warn, request.budget
    )
    size = sum(file.stat().st_size for file in out.iterdir())
    loss = f"{outcome.sentence}; " if outcome else ""
    return f"int8 for {request.target}, {size / 1e6:.1f} MB; {counted(wanted)}; {loss}see {out / REPORT}"


def _planned(
    bench: Bench, path: Path, plan: Plan, budget: float, fixed: Plan, progress: Progress
) -> tuple[dict[str, str], Outcome]:
    """Return the plan within the budget, with the layers in `fixed` as they are; and what it costs."""
    sensitivity = measure(bench, path, progress)
    chosen = within_budget(bench.sites, plan, sensitivity, budget, fixed)
    progress("measuring the plan", 0, 1)
    measured = bench.held_out(chosen, sensitivity.images)
    return chosen, Outcome(budget, sensitivity, expected(chosen, sensitivity), measured)


def _calibrated(
    bundle: Path,
    path: Path,
    request: Request,
    needed: int,
    others: Mapping[Path, Calibration],
    progress: Progress,
    sites: list[Site],
) -> Calibration:
    """Return what `needed` images tell, or as many as were asked for; without drawing any if none are needed."""
    if not needed:
        if request.images is not None or others:
            option = "--merge" if others else f"--images {request.images}"
            raise CalibrationError(
                f"{option}: no layer has calibrated ranges, so no image is drawn; leave it out or give --scales mixed"
            )
        manifest = Manifest.load(bundle, verify=False)
        check_source(bundle, manifest)
        return Calibration(fingerprint(manifest), replace(request.settings, channel_scaling="none"))
    found = collect(bundle, path, request.images or needed, request.settings, request.first, progress, sites)
    for other, calibration in others.items():
        found.merge(calibration, str(other))
        found.write(path)
    return found
