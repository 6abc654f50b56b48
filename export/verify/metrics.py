"""The metrics of the report: differences of two results, accumulated over calls of `add`."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from export.verify.fidelity import ScaleFidelity, psnr

WINDOW, SIGMA = 11, 1.5  # window of SSIM, in pixels
CANDIDATES = 5  # tokens compared for the top-5 agreement


@dataclass
class Difference:
    """The difference of floating-point tensors: maximum, mean, relative error, cosine."""

    largest: float = 0.0
    absolute: float = 0.0  # summed
    square_error: float = 0.0
    square_expected: float = 0.0
    square_found: float = 0.0
    product: float = 0.0
    values: int = 0

    def add(self, expected: np.ndarray, found: np.ndarray) -> None:
        a, b = (array.astype(np.float64).ravel() for array in (expected, found))
        error = b - a
        self.largest = float(np.fmax(self.largest, np.abs(error).max(initial=0)))
        self.absolute += float(np.abs(error).sum())
        self.square_error += float(error @ error)
        self.square_expected += float(a @ a)
        self.square_found += float(b @ b)
        self.product += float(a @ b)
        self.values += error.size

    @property
    def relative(self) -> float:
        """The norm of the error over the norm of the expected values."""
        return math.sqrt(self.square_error / self.square_expected) if self.square_expected else math.inf

    def metrics(self) -> dict[str, float]:
        norms = math.sqrt(self.square_expected * self.square_found)
        return {
            "max": math.nan if math.isnan(self.square_error) else self.largest,
            "mean": self.absolute / self.values,
            "relative": self.relative if self.square_error else 0.0,
            "cosine": self.product / norms if norms else float(self.square_error == 0),
        }


@dataclass
class LogitDifference:
    """The difference of logits after guidance, and of their distributions."""

    side: int
    difference: Difference = field(default_factory=Difference)
    shared: float = 0.0  # share of the five most probable tokens that both have, summed over contexts

    def __post_init__(self) -> None:
        self.fidelity = ScaleFidelity(self.side)

    def add(self, expected: np.ndarray, found: np.ndarray) -> None:
        """Add the logits expected and found, both (B, L, V)."""
        self.difference.add(expected, found)
        self.fidelity.add(expected, found)
        best, chosen = (np.argpartition(x, -CANDIDATES, axis=-1)[..., -CANDIDATES:] for x in (expected, found))
        self.shared += float((best[..., :, None] == chosen[..., None, :]).sum()) / CANDIDATES

    def metrics(self) -> dict[str, float]:
        return {
            **self.difference.metrics(),
            "top1": self.fidelity.agreement,
            "top5": self.shared / self.fidelity.tokens,
            "kl": self.fidelity.kl,
        }


@dataclass
class Share:
    """The share of tokens that are equal."""

    same: int = 0
    tokens: int = 0

    def add(self, expected: np.ndarray, found: np.ndarray) -> None:
        self.same += int((expected == found).sum())
        self.tokens += expected.size

    @property
    def share(self) -> float:
        return self.same / self.tokens if self.tokens else 1.0


@dataclass
class PictureDifference:
    """The difference of images (B, H, W, 3) uint8: maximum, PSNR, SSIM."""

    largest: int = 0
    square_error: float = 0.0
    values: int = 0
    similarity: float = 0.0  # summed
    pictures: int = 0

    def add(self, expected: np.ndarray, found: np.ndarray) -> None:
        error = expected.astype(np.int64) - found
        self.largest = max(self.largest, int(np.abs(error).max()))
        self.square_error += float((error**2).sum())
        self.values += error.size
        self.similarity += sum(ssim(a, b) for a, b in zip(expected, found, strict=True))
        self.pictures += len(expected)

    def metrics(self) -> dict[str, float]:
        return {
            "max": self.largest,
            "psnr": psnr(self.square_error / self.values),
            "ssim": self.similarity / self.pictures,
        }


def ssim(a: np.ndarray, b: np.ndarray) -> float:
    """Return the structural similarity of two images (H, W, 3) uint8, mean of the channels (Wang et al., 2004)."""
    rows, columns = (_gaussian_band(size) for size in a.shape[:2])

    def blurred(channels: np.ndarray) -> np.ndarray:
        result: np.ndarray = rows @ channels @ columns.T  # (3, H - 10, W - 10)
        return result

    x, y = (picture.transpose(2, 0, 1).astype(np.float64) for picture in (a, b))
    mean_x, mean_y = blurred(x), blurred(y)
    variance_x, variance_y = blurred(x * x) - mean_x**2, blurred(y * y) - mean_y**2
    covariance = blurred(x * y) - mean_x * mean_y
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    return float((luminance * (2 * covariance + c2) / (variance_x + variance_y + c2)).mean())


def _gaussian_band(size: int) -> np.ndarray:
    """Return a matrix (size - 10, size) whose rows are Gaussian windows; a smaller image is one window."""
    width = min(WINDOW, size)
    offsets = np.arange(width) - (width - 1) / 2
    weights = np.exp(-(offsets**2) / (2 * SIGMA**2))
    band = np.zeros((size - width + 1, size))
    for i in range(len(band)):
        band[i, i : i + width] = weights / weights.sum()
    return band
