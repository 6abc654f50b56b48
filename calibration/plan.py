"""The mixed-precision plan: the kind of every product."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from calibration.ranges import CalibrationError
from calibration.sites import Site
from runtime.bundle.names import CONDITION, DECODER

INT8 = "int8"  # operand and weight in INT8; the operand's scale comes from calibrated ranges
DIGITS = "int8x2"  # the operand as two INT8 digits, 15 bits in all: nearly exact, but it takes two products
INT8_ROWS, DIGITS_ROWS = "int8-row", "int8x2-row"  # the same with a scale for each row, computed in the graph
WEIGHTS = "weights"  # only the weight in INT8; the product is computed in the base precision
FLOAT = "float"  # unchanged
KINDS = (INT8, DIGITS, INT8_ROWS, DIGITS_ROWS, WEIGHTS, FLOAT)

CALIBRATED, ROWS = (INT8, DIGITS), (INT8_ROWS, DIGITS_ROWS)
QUANTIZED, ONE_DIGIT, TWO_DIGITS = CALIBRATED + ROWS, (INT8, INT8_ROWS), (DIGITS, DIGITS_ROWS)
OF_ROWS = dict(zip(CALIBRATED, ROWS, strict=True))
ONE_TO_TWO_DIGITS = {INT8: DIGITS, INT8_ROWS: DIGITS_ROWS}
TWO_TO_ONE_DIGIT = {two: one for one, two in ONE_TO_TWO_DIGITS.items()}

# Where the scales of INT8 operands come from
SCALE = "scale"  # calibrated ranges, one for each scale of the model
ROW = "row"  # each row itself. A convolution has no rows and stays float: no images are needed
MIXED = "mixed"  # each row itself, and calibrated ranges in convolutions
# By target. Around an INT8 decoder trt is FP16 and cpu FP32, where it is a third of the time (docs/benchmarks/cpu.md).
DEFAULT_SCALES = {"trt": ROW, "cpu": MIXED}

Plan = Mapping[str, str]  # site key -> kind


def images_needed(sites: Sequence[Site], plan: Plan, channel_scaling: bool) -> int:
    """Return how many images tell what the plan has to know; 0 if each scale is of a row and no channel is scaled."""
    calibrated = [site for site in sites if plan[site.key] in CALIBRATED]
    if any(site.has_rows for site in calibrated):
        return 128
    of_rows = any(kind in ROWS for kind in plan.values())
    return 16 if calibrated or (channel_scaling and of_rows) else 0  # ranges of the decoder do not change with more


def default_plan(sites: Sequence[Site], scales: str, weights_only: bool = False) -> dict[str, str]:
    """Return the plan that measurements recommend (docs/int8.md): INT8, unless it changes tokens or saves little."""
    kinds = {site.key: _kind(site) for site in sites}
    if weights_only:
        return {key: kind if kind == FLOAT else WEIGHTS for key, kind in kinds.items()}
    return {site.key: _scaled(kinds[site.key], site, scales) for site in sites}


def alone(sites: Sequence[Site], scales: str) -> dict[str, str]:
    """Return the kind of each layer when its loss is measured; FLOAT if these `scales` cannot make it INT8."""
    return {site.key: _scaled(INT8, site, scales) for site in sites}


def _kind(site: Site) -> str:
    if site.graph == CONDITION:
        return DIGITS  # two rows an image: the second digit costs nothing
    if site.graph == DECODER:
        ends = site.name in ("decoder.conv_in", "decoder.conv_out")
        return FLOAT if ends or ".attn" in site.name else INT8
    if site.name == "head":
        return FLOAT  # guidance multiplies the rounding of logits by up to 1 + 2t
    return DIGITS if site.name.endswith("fc2") else INT8  # after GELU a few values are many times the others


def _scaled(kind: str, site: Site, scales: str) -> str:
    """Return `kind`, INT8, DIGITS or FLOAT, with these scales."""
    if scales == SCALE:
        return kind
    if site.has_rows:
        return OF_ROWS.get(kind, kind)
    return FLOAT if scales == ROW else kind


def overridden(sites: Sequence[Site], overrides: Mapping[str, str]) -> dict[str, str]:
    """Return the kinds that overrides give, by site key. A name is a key, or the end of the keys of several sites.

    Raises CalibrationError for an unknown name or kind, and for row scales of a product without rows.
    """
    changed = {}
    for name, kind in overrides.items():
        found = [site for site in sites if site.key == name or site.key.endswith((f".{name}", f" {name}"))]
        if not found or kind not in KINDS:
            known = f"one of {', '.join(KINDS)}" if found else "a layer of the plan"
            raise CalibrationError(f"--set {name}={kind}: expected {known}; the report of a bundle lists all layers")
        for site in found:
            if kind in ROWS and not site.has_rows:
                raise CalibrationError(
                    f"--set {name}={kind}: {site.key} is a convolution, which has no rows; give it {INT8} or {FLOAT}"
                )
            changed[site.key] = kind
    return changed
