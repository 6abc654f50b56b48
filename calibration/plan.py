"""The mixed-precision plan: the kind of every product."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from calibration.ranges import CalibrationError
from calibration.sites import Site
from runtime.bundle.names import CONDITION, DECODER

INT8 = "int8"  # operand and weight in INT8
DIGITS = "int8x2"  # the operand as two INT8 digits, 15 bits in all: nearly exact, but it takes two products
WEIGHTS = "weights"  # only the weight in INT8; the product is computed in the base precision
FLOAT = "float"  # unchanged
KINDS = (INT8, DIGITS, WEIGHTS, FLOAT)

Plan = Mapping[str, str]  # site key -> kind


def default_plan(sites: Sequence[Site], weights_only: bool = False) -> dict[str, str]:
    """Return the plan that measurements recommend (docs/int8.md): INT8, unless it changes tokens or saves little."""
    kinds = {site.key: _kind(site) for site in sites}
    return {key: WEIGHTS if weights_only and kind != FLOAT else kind for key, kind in kinds.items()}


def _kind(site: Site) -> str:
    if site.graph == CONDITION:
        return DIGITS  # two rows an image: the second digit costs nothing
    if site.graph == DECODER:
        ends = site.name in ("decoder.conv_in", "decoder.conv_out")
        return FLOAT if ends or ".attn" in site.name else INT8
    if site.name == "head":
        return FLOAT  # guidance multiplies the rounding of logits by up to 1 + 2t
    return DIGITS if site.name.endswith("fc2") else INT8  # after GELU a few values are many times the others


def with_overrides(plan: Plan, overrides: Mapping[str, str]) -> dict[str, str]:
    """Return the plan with some kinds changed. A name is a site's key, or the end of the keys of several sites.

    Raises CalibrationError for an unknown name or kind.
    """
    changed = dict(plan)
    for name, kind in overrides.items():
        found = [key for key in plan if key == name or key.endswith(f".{name}") or key.endswith(f" {name}")]
        if not found or kind not in KINDS:
            known = f"one of {', '.join(KINDS)}" if found else "a layer of the plan"
            raise CalibrationError(f"--set {name}={kind}: expected {known}; the report of a bundle lists all layers")
        changed.update(dict.fromkeys(found, kind))
    return changed
