"""The tolerances, in one table: precision, stage, metric, limit. A metric that is not listed is shown, not judged."""

from __future__ import annotations

import math
from collections.abc import Mapping

from runtime.bundle.precision import Precision

GUIDANCE = "guidance at"  # begins the name of the stage of the scales without guidance
# For all other metrics less is better.
AT_LEAST = ("cosine", "top1", "top5", "tokens", "drawn", "explained", "equal", "psnr", "ssim")

# relative: norm of the error over the norm of the tensor. kl: mean over contexts, in nats. drawn: share of the draws
# that follow from the stage's own logits. explained: share of the draws where images first diverge from the reference's
# that the measured error of their logits explains (see `export.verify.draws`). A generation's relative is that error.
LIMITS: Mapping[str, Mapping[str, Mapping[str, float]]] = {
    "fp32": {
        "condition": {"relative": 1e-5},
        "transformer": {"relative": 5e-5, "kl": 1e-8},
        "keys and values": {"relative": 5e-5},
        "bridge": {"relative": 1e-5, "drawn": 1.0},
        "decoder": {"psnr": 65, "ssim": 0.9999},
        "tiny decoder": {"psnr": 65, "ssim": 0.9999},
        "encoder": {"tokens": 0.99},
        "generation": {"relative": 5e-5, "explained": 1.0},
        "smooth bridge": {"relative": 2e-4},
        "smooth generation": {"psnr": 50},
    },
    "fp16": {
        "condition": {"relative": 3e-3},
        "transformer": {"relative": 1e-2, "kl": 2e-4},
        "keys and values": {"relative": 1e-2},
        "bridge": {"relative": 1e-5, "drawn": 1.0},
        "decoder": {"psnr": 48, "ssim": 0.998},
        "tiny decoder": {"psnr": 48, "ssim": 0.998},
        "encoder": {"tokens": 0.9},
        "generation": {},
        "smooth bridge": {"relative": 0.08},
        "smooth generation": {},
    },
    "int8": {
        "condition": {"relative": 0.01},
        "transformer": {"relative": 0.12, "kl": 0.05},
        "keys and values": {"relative": 0.06},
        "bridge": {"relative": 1e-5, "drawn": 1.0},
        "decoder": {"psnr": 32, "ssim": 0.93},
        "tiny decoder": {"psnr": 48, "ssim": 0.998},  # calibration leaves it in FP16 or FP32
        "encoder": {"tokens": 0.9},
        "generation": {},
        "smooth bridge": {"relative": 0.3},
        "smooth generation": {},
    },
}

# Relative errors of tensors inside a graph that no sound bundle reaches, for --bisect.
INSIDE = {"fp32": 1e-3, "fp16": 0.01, "int8": 0.2}


def limits(precision: Precision, stage: str) -> Mapping[str, float]:
    """Return the limits of the stage's metrics. Static steps and scales without guidance have the transformer's."""
    return LIMITS[precision.kind]["transformer" if stage.startswith(("static step", GUIDANCE)) else stage]


def misses(precision: Precision, stage: str, metrics: Mapping[str, float]) -> list[str]:
    """Return the metrics out of tolerance as text: "kl 0.3, at most 0.04"."""
    found = []
    for name, limit in limits(precision, stage).items():
        value = metrics[name]
        within = value >= limit if name in AT_LEAST else value <= limit
        if not within or math.isnan(value):
            found.append(f"{name} {value:.4g}, {'at least' if name in AT_LEAST else 'at most'} {limit:g}")
    return found
