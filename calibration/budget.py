"""Plan by measured losses: which layers need two digits, so that the KL stays within a budget."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

import numpy as np

from calibration.plan import FLOAT, ONE_DIGIT, ONE_TO_TWO_DIGITS, QUANTIZED, TWO_TO_ONE_DIGIT, Plan
from calibration.sensitivity import ALL_DIGITS, Sensitivity
from calibration.sites import Site
from export.verify.interval import Estimate
from runtime.bundle.names import DECODER, TRANSFORMER
from runtime.errors import BundleError

PSNR = 40.0  # dB that the decoder's images must keep in INT8


def within_budget(
    sites: Sequence[Site], plan: Plan, sensitivity: Sensitivity, budget: float, fixed: Collection[str] = ()
) -> dict[str, str]:
    """Choose the INT8 layers of the plan by the measured loss; return the plan.

    In the transformer, as few multiplications as possible get two digits: those of the layers that lose the most for
    their size. The decoder's most sensitive convolutions become float until its images keep PSNR. The kinds of the
    layers in `fixed` stay. Raises BundleError if even two digits for all other layers lose more than `budget`.
    """
    changed, layers = dict(plan), sensitivity.layers
    free = [site for site in sites if plan[site.key] in QUANTIZED and site.key not in fixed]
    inside = [site for site in free if site.graph == TRANSFORMER]
    changed.update({site.key: TWO_TO_ONE_DIGIT.get(plan[site.key], plan[site.key]) for site in inside})
    for site in sorted(inside, key=lambda s: -layers[s.key].kl_of_scales / math.prod(s.weight_shape)):
        if expected(changed, sensitivity).value <= budget:
            break
        changed[site.key] = ONE_TO_TWO_DIGITS[changed[site.key]]
    if (least := expected(changed, sensitivity).value) > budget:
        others = " that --set leaves" if fixed else ""
        raise BundleError(
            f"--budget {budget:g}: two digits for every layer{others} still cost a KL of {least:.2g}; allow more"
        )
    squares = {site.key: 10 ** (-(layers[site.key].psnr or 99) / 10) for site in free if site.graph == DECODER}
    for key in sorted(squares, key=lambda key: -squares[key]):
        if sum(squares.values()) <= 10 ** (-PSNR / 10):
            break
        changed[key] = FLOAT
        del squares[key]
    return changed


def expected(plan: Plan, sensitivity: Sensitivity) -> Estimate:
    """Return the mean KL of the scales that a plan should cost: the losses of layers nearly add up.

    Layers in two digits cost what all of them cost together. A layer in one digit counts as it was measured, whether
    its scale is calibrated or of a row.
    """
    layers = sensitivity.layers
    one_digit = [key for key, kind in plan.items() if kind in ONE_DIGIT and key in layers]
    counted = [ALL_DIGITS, *(key for key in one_digit if layers[key].kl)]  # without those of the decoder
    deviations = np.sum([layers[key].deviations for key in counted], axis=0)
    return Estimate.of(sum(layers[key].kl_of_scales for key in counted), deviations, sensitivity.images)
