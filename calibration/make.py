"""Make an INT8 bundle: collect ranges, plan, and write the bundle with a report of the plan."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from calibration.bundle import quantize_bundle
from calibration.collect import check_source, collect
from calibration.plan import ROW, Plan, default_plan, images_needed, with_overrides
from calibration.ranges import CalibrationError
from calibration.record import FILE_NAME, Calibration, Settings, fingerprint
from calibration.sensitivity import FILE_NAME as SENSITIVITY
from calibration.sensitivity import Sensitivity, heat_map, measure, table, within_budget
from calibration.sites import Site, all_sites
from calibration.speed import measure_speed, speed_table, without_slower
from calibration.target import TARGETS
from export.kept import Warn
from runtime.bundle.manifest import Manifest
from runtime.files.outputs import INT8_BUNDLE, check_directory, check_target
from runtime.files.unfinished import exclusive
from runtime.progress import Progress, silent

DEFAULTS = Settings()
REPORT, HEAT_MAP = "report.md", "sensitivity.png"


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
    measure_speed: bool = False  # time the layers on this CPU, and plan those as float that are slower in INT8


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
    plan: Plan = default_plan(sites, request.scales, request.weights_only)
    wanted = with_overrides(sites, plan, dict(request.overrides))
    scaled = request.settings.channel_scaling != "none"
    needed = images_needed(sites, wanted, scaled)
    if request.budget is not None:  # layers are measured with the scales of the plan before overrides
        needed = max(needed, images_needed(sites, plan, scaled))
    others = {other: Calibration.load(other) for other in request.merge}
    sensitivity, expected = None, None
    with exclusive(path, "wait for it or give another --calibration file"):
        found = _calibrated(bundle, path, request, needed, others, progress, sites)
        if request.budget is not None:
            where = path.with_name(f"{request.target}-{request.scales}-{request.method}-{SENSITIVITY}")
            target, scales, method = request.target, request.scales, request.method
            sensitivity = measure(bundle, where, found, target, scales, method, progress, sites)
            plan, expected = within_budget(sites, plan, sensitivity, request.budget)
    plan = with_overrides(sites, plan, dict(request.overrides))
    speeds = measure_speed(bundle, sites, plan, progress) if request.measure_speed else []
    plan = with_overrides(sites, without_slower(plan, speeds), dict(request.overrides))

    def report(folder: Path) -> None:
        text = _report(request, found, plan, sites, sensitivity, expected)
        if speeds:
            text += "\n" + speed_table(speeds)
        (folder / REPORT).write_text(text, encoding="utf-8")
        if sensitivity:
            heat_map(sensitivity, sites, folder / HEAT_MAP)

    form, batches = TARGETS[request.target], request.batches
    quantize_bundle(bundle, out, found, plan, form, request.method, batches, progress, [report], warn)
    size = sum(file.stat().st_size for file in out.iterdir())
    return f"int8 for {request.target}, {size / 1e6:.1f} MB; {_counted(plan)}; see {out / REPORT}"


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


def _counted(plan: Plan) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in Counter(plan.values()).most_common())


def _drawn(request: Request, calibration: Calibration) -> str:
    if not calibration.count:
        return "No pictures were drawn: no layer has calibrated ranges."
    scaling = calibration.settings.channel_scaling
    return f"Ranges: {request.method} of {calibration.count} pictures, smoothing {scaling}; scales: {request.scales}."


def _report(
    request: Request,
    calibration: Calibration,
    plan: Plan,
    sites: list[Site],
    sensitivity: Sensitivity | None,
    expected: float | None,
) -> str:
    lines = [
        f"# INT8 for {request.target}",
        "",
        _drawn(request, calibration),
        "",
        f"Layers: {_counted(plan)}.",
        "",
    ]
    if sensitivity is None:
        rows = [f"| {site.key} | {plan[site.key]} |" for site in sites]
        return "\n".join([*lines, "| layer | plan |", "|---|---|", *rows, ""])
    bound = f"Budget: a KL of {request.budget:g} a token; the plan is expected to cost {expected:.2g}."
    return "\n".join([*lines, bound, "", f"![sensitivity]({HEAT_MAP})", "", table(sensitivity, plan)])
