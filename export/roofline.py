"""python -m export.roofline: what bounds the time of an image on a GPU: its bytes, its products, the device's peaks.

The bytes are those of kernels that are fused as the engines' are (`report.md`): each tensor between two kernels is
written once and read once. The letters are those of docs/how-it-works.md.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import click

from export import sizes
from export.checkpoint.recipe import Recipe
from export.sizes import decoder_layers
from runtime.bundle.manifest import Manifest, Model
from runtime.cli import command, reports_errors

FP32, FP16, INT8 = "fp32", "fp16", "int8"  # types of products; the last two also name the precisions of a bundle
BYTES = {FP32: 4, FP16: 2, INT8: 1}
KINDS = {FP16: sizes.FP16, INT8: sizes.INT8}  # of bundles
BATCHES = (1, 8)


@dataclass(frozen=True)
class Device:
    """A GPU and its published peaks, without sparsity."""

    name: str
    bandwidth: float  # bytes per second
    peak: dict[str, float]  # FLOP per second by type of product; FP32 without tensor cores
    source: str


DEVICES = (
    Device(
        "Jetson Orin Nano 8GB, 25 W",
        102e9,
        {FP32: 2.1e12, FP16: 17e12, INT8: 33e12},
        "announcement of Jetson Orin Nano Super, December 2024; FP32: 1024 cores, 1.02 GHz",
    ),
    Device(
        "Jetson AGX Orin 64GB, MAXN",
        204.8e9,
        {FP32: 5.3e12, FP16: 42.5e12, INT8: 85e12},
        "Jetson AGX Orin Technical Brief 1.2: the GPU's 170 sparse TOPS halved; FP16: half of INT8",
    ),
    Device(
        "Jetson Thor T5000",
        273e9,
        {FP32: 8.06e12, FP16: 258.5e12, INT8: 517e12},
        "data sheet: 1035 sparse TFLOPS in 8 bits halved; FP16: half of it; FP32: 2560 cores, 1.57 GHz",
    ),
    Device(
        "GeForce RTX 4090",
        1008e9,
        {FP32: 82.6e12, FP16: 165.2e12, INT8: 660.6e12},
        "NVIDIA Ada GPU Architecture, appendix A; FP16 with FP32 accumulation",
    ),
    Device(
        "H100 SXM",
        3350e9,
        {FP32: 66.9e12, FP16: 989.4e12, INT8: 1978.9e12},
        "NVIDIA H100 Tensor Core GPU Architecture, table 2, and data sheet",
    ),
)


@dataclass(frozen=True)
class Work:
    """What one stage does: FLOP of its products by type, and bytes that it moves."""

    stage: str
    weights: float
    cache: float = 0.0  # keys and values
    activations: float = 0.0
    flop: dict[str, float] = field(default_factory=dict)

    def seconds(self, device: Device, activations: bool) -> float:
        """Return the least time on a device, where memory and products overlap; `activations`: move through memory."""
        moved = self.weights + self.cache + (self.activations if activations else 0)
        return max(moved / device.bandwidth, self.products(device))

    def products(self, device: Device) -> float:
        """Return the seconds of the products at the device's peaks."""
        return sum(flop / device.peak[kind] for kind, flop in self.flop.items())


def stages(model: Model, precision: str, batch: int = 1) -> Iterator[Work]:
    """Yield the stages of a batch in the order they run. INT8 is the default plan of calibration.

    The bridge counts as part of its scale. The decoder runs once for each image.
    """
    yield _condition(model, precision, batch)
    offset = 0
    for k, side in enumerate(model.patch_nums):
        following = model.patch_nums[(k + 1) % len(model.patch_nums) or 1] ** 2
        yield _step(model, precision, 2 * batch, side * side, offset, following)
        offset += side * side
    yield from [_decoder(model)] * batch


def _condition(model: Model, precision: str, batch: int) -> Work:
    width, rows = model.width, 2 * batch
    outputs = 6 * width * (1 if model.shared_aln else model.depth) + 2 * width
    digits = 2 if precision == INT8 else 1  # INT8 takes the operand as two digits
    modulation = 4 * rows * (6 * width * model.depth + 2 * width)
    return Work(
        "condition",
        weights=sum(layer.bytes(KINDS[precision].linear) for layer in sizes.modulation(model)),
        activations=modulation + 2 * 2 * rows * outputs,
        flop={precision: digits * 2 * rows * width * outputs},
    )


def _step(model: Model, precision: str, columns: int, tokens: int, past: int, following: int) -> Work:
    """Return the work of one scale with `columns` (2B), `tokens` (L), `past` (S) and `following` (L_next) tokens."""
    width, hidden, rows = model.width, round(model.width * model.mlp_ratio), tokens * columns
    one = BYTES[precision]  # bytes of an element of a product's operand and of its weight
    fc2 = width * hidden
    linear = 4 * width * width + 2 * fc2  # qkv, projection, fc1, fc2
    digits = fc2 if precision == INT8 else 0  # fc2 takes its operand as two digits
    norm = 4 * width + 2 * width + 4 * width + one * width  # reads the residual stream and a product, writes both
    block = {
        "qkv": one * width + 6 * width,
        "normalise q and k": 6 * width + 2 * width,  # the new keys and values count as cache
        "attention": 2 * width + one * width,
        "projection": one * width + 2 * width,
        "residual, norm": norm,
        "fc1": one * width + 2 * hidden,
        "fc2": 2 * hidden + 2 * width,
        "residual, next norm": norm,
    }
    head = 4 * width + 8 * width + 4 * model.vocab_size  # first norm, operand in FP32, logits
    modulation = 4 * columns * (6 * width * model.depth + 2 * width)
    resize, f_hat = 4 * model.grid**2 * (tokens + following), 4 * model.code_size * model.grid**2 * columns // 2
    bridge = 4 * model.vocab_size * rows + resize + 2 * f_hat + 4 * width * columns * following
    attention = 2 * 2 * width * (past + tokens)
    flop = {FP32: 2.0 * rows * width * model.vocab_size, FP16: float(rows * model.depth * attention)}
    flop[precision] = flop.get(precision, 0.0) + 2 * rows * model.depth * (linear + digits)
    return Work(
        f"{tokens} tokens",
        weights=sizes.blocks(model, KINDS[precision]) + sizes.head(model),
        cache=model.depth * 2 * 2 * width * columns * (past + tokens + tokens),
        activations=rows * (model.depth * sum(block.values()) + head) + modulation + bridge,
        flop=flop,
    )


def _decoder(model: Model) -> Work:
    """Return the work of the decoder, which the default plan of INT8 leaves in FP16."""
    activations = flop = 0.0
    one = BYTES[FP16]
    for layer in decoder_layers(model):
        pixels = layer.side**2
        if layer.normed:
            activations += 2 * one * pixels * layer.inputs
        if layer.resized:
            activations += (one / 4 + one) * pixels * layer.inputs
        activations += one * pixels * (layer.inputs + layer.outputs * (1 + layer.added))
        flop += 2 * pixels * layer.size
    pixels, width, count = model.grid**2, model.ch * model.ch_mult[-1], model.num_res_blocks + 2
    maps = 2 * pixels * width * (3 + 3 + 2 + 1 + 1)  # split q, k, v: read and write; scores; weighted sum
    activations += count * (maps + 2 * pixels**2 * 4) + 4 * pixels * model.code_size + 5 * model.image_size**2 * 3
    flop += count * 4 * pixels**2 * width
    return Work("decoder", sizes.decoder(model, sizes.FP16), activations=activations, flop={FP16: flop})


PAGE = """\
# What bounds the speed

```sh
python -m export.roofline {names} > docs/benchmarks/limits.md     # writes this page
```

Computed from the sizes of a model and the published peaks of a GPU; nothing here is measured. An engine that reads
weights, keys and values from memory cannot be faster than the lower number of a range. What today's engines move
besides is in [Kernels](engines.md#kernels). The command also takes the directory of a bundle.

## The work of an image

Each scale reads the weights, reads keys and values of all scales so far, and writes its own. Activations are the
tensors between two kernels, fused as [the engines](engines.md) are; a large L2 cache keeps many of them out of memory.
INT8 is the [default plan](../int8.md), where `fc2` and the condition take two products and the decoder is in FP16.

| model | precision | batch | weights | keys, values | activations | decoder, all bytes | transformer | decoder |
|---|---|---|---|---|---|---|---|---|
{work}

## The least time of an image

For each stage the longer of two: its bytes at the peak bandwidth, its products at the peak rate. The range is from all
activations in caches to all in memory. *Products* is the part of the lower number that waits for products.

| device | model | precision | batch 1, ms per image | products | batch 8, ms per image | products |
|---|---|---|---|---|---|---|
{times}

The head is a product in FP32, which no tensor core computes. Activations cost time only where their bytes take longer
than the products.

## The devices

Dense peaks, without sparsity.

| device | memory | FP32 | FP16 | INT8 |
|---|---|---|---|---|
{devices}

Sources:

{sources}
"""


def page(models: Sequence[Model]) -> str:
    """Return docs/benchmarks/limits.md."""
    kinds = [(model, precision) for model in models for precision in (FP16, INT8)]
    return PAGE.format(
        names=" ".join(model.name for model in models),
        work="\n".join(_work_row(*kind, batch) for kind in kinds for batch in BATCHES),
        times="\n".join(_time_row(device, *kind) for device in DEVICES for kind in kinds),
        devices="\n".join(_device_row(device) for device in DEVICES),
        sources="\n".join(f"- {device.name}: {device.source}" for device in DEVICES),
    )


def _work_row(model: Model, precision: str, batch: int) -> str:
    """Return a row of the table of work, for one image of a batch."""
    works = list(stages(model, precision, batch))
    before, decoder = works[:-batch], works[-1]
    weights, cache, activations = (
        sum(getattr(work, kind) for work in before) / batch / 1e9 for kind in ("weights", "cache", "activations")
    )
    flop = sum(sum(work.flop.values()) for work in before) / batch / 1e9
    moved = (decoder.weights + decoder.activations) / 1e9
    return (
        f"| {model.name} | {precision.upper()} | {batch} | {weights:.2f} GB | {cache:.2f} GB | {activations:.2f} GB"
        f" | {moved:.2f} GB | {flop:.0f} GFLOP | {sum(decoder.flop.values()) / 1e9:.0f} GFLOP |"
    )


def _time_row(device: Device, model: Model, precision: str) -> str:
    cells = []
    for batch in BATCHES:
        works = list(stages(model, precision, batch))
        low, high = (sum(work.seconds(device, all_) for work in works) / batch for all_ in (False, True))
        bound = sum(work.products(device) for work in works if work.seconds(device, False) == work.products(device))
        cells.append(f"{low * 1e3:.1f} to {high * 1e3:.1f} | {bound / batch / low:.0%}")
    return f"| {device.name} | {model.name} | {precision.upper()} | {' | '.join(cells)} |"


def _device_row(device: Device) -> str:
    peaks = " | ".join(f"{device.peak[kind] / 1e12:g} T" for kind in (FP32, FP16, INT8))
    return f"| {device.name} | {device.bandwidth / 1e9:g} GB/s | {peaks} |"


def model_of(name: str) -> Model:
    """Return the model of a bundle's directory, or of a recipe. Raises BundleError, SettingsError."""
    if Path(name).is_dir():
        return Manifest.load(Path(name), verify=False).model
    return Recipe.load(name).model


@command()
@click.argument("models", nargs=-1, required=True)
@reports_errors
def main(models: tuple[str, ...]) -> None:
    """Compute what bounds the speed of models on GPUs.

    MODELS are directories of bundles or names of recipes. Prints a page of Markdown: bytes and products of an image,
    and the least time that they take on each device.
    """
    click.echo(page([model_of(name) for name in models]), nl=False)


if __name__ == "__main__":
    main()
