"""The weights of each graph of a bundle in bytes, for every kind of bundle, computed from the sizes of the model.

Nothing is traced or read: the sizes are known before an export. The tests hold them against bundles, byte for byte. The
letters are those of docs/how-it-works.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from export.checkpoint.recipe import NO_PHI, phi_indices
from runtime.bundle import names
from runtime.bundle.manifest import Model


@dataclass(frozen=True)
class Storage:
    """How a product is stored: bytes of an element of its weight and of its bias, and what INT8 adds."""

    weight: int
    bias: int
    channel: int = 0  # for each output channel: scales
    product: int = 0  # once: scales and zero points of its operand and its result
    norm: int = 4  # of an element of the norm before it


FLOAT, HALF = Storage(4, 4), Storage(2, 2)


@dataclass(frozen=True)
class Kind:
    """A kind of bundle: how its products are stored, by the place where they are.

    The head and the products of the bridge are FP32 in every bundle.
    """

    name: str
    linear: Storage  # AdaLN, qkv, projection, feed-forward
    convolution: Storage  # of the decoder, but not the next
    delicate: Storage  # of the decoder: first and last convolution, attention
    encoder: Storage
    cache: str  # dtype of keys and values
    nodes: tuple[int, int]  # bytes of a block in the ONNX file of all scales, and in that of one scale; measured
    channels_scaled: bool = False  # `condition` divides the modulation

    @property
    def title(self) -> str:
        """The name in a table, such as "INT8 mixed"."""
        precision, _, scales = self.name.partition(" ")
        return f"{precision.upper()} {scales}".rstrip()

    @property
    def is_int8(self) -> bool:
        return self.linear.weight == 1


# The biases beside row scales are FP32. `int8` and `int8_mixed` are for TensorRT, `int8_cpu` is for ONNX Runtime.
FP32 = Kind("fp32", FLOAT, FLOAT, FLOAT, FLOAT, "float32", (5400, 7000))
FP16 = Kind("fp16", HALF, HALF, HALF, HALF, "float16", (6200, 8300))
ROWS = Storage(1, 4, channel=2)
INT8 = Kind("int8", ROWS, HALF, HALF, HALF, "float16", (14600, 20100))
INT8_MIXED = Kind(
    "int8 mixed", ROWS, Storage(1, 2, channel=2, product=4 + 2), HALF, HALF, "float16", (14600, 20100), True
)
INT8_CPU = Kind(
    "int8",
    Storage(1, 4, channel=4),
    Storage(1, 4, channel=4 + 4, product=2 * (4 + 1)),  # scales of weight and bias, which is INT32
    FLOAT,
    Storage(2, 2, norm=2),
    "float32",
    (13300, 18200),
    True,
)


OTHER_FILES = 160_000  # bytes of the other graphs, class names, report


@dataclass(frozen=True)
class Layer:
    """A product with a weight; a convolution of decoder or encoder has a map of side `side` as its result."""

    inputs: int
    outputs: int
    kernel: int = 1
    side: int = 1
    normed: bool = False  # a GroupNorm makes its operand
    added: bool = False  # the residual is added to its result
    resized: bool = False  # its operand is the map before, enlarged
    delicate: bool = False  # stays float if convolutions become INT8

    @property
    def size(self) -> int:
        """The number of elements of the weight."""
        return self.kernel**2 * self.inputs * self.outputs

    def bytes(self, storage: Storage) -> int:
        norm = 2 * self.inputs * storage.norm if self.normed else 0  # weight and bias
        return self.size * storage.weight + self.outputs * (storage.bias + storage.channel) + storage.product + norm


def graph_weights(model: Model, kind: Kind) -> dict[str, int]:
    """Return the bytes of the tensors that each graph loads, by its name. Some tensors are in two graphs."""
    codes = model.vocab_size * model.code_size
    phi = 9 * model.code_size**2 + model.code_size
    before_last = set(phi_indices(len(model.patch_nums), phi_count(model))[:-1]) if phi_count(model) else ()
    return {
        names.CONDITION: _units(kind) + _condition(model, kind),
        names.TRANSFORMER: _units(kind) + blocks(model, kind) + head(model),
        names.BRIDGE: 4 * (codes + phi_count(model) * phi + model.width * (model.code_size + 1 + model.tokens)),
        names.DECODER: decoder(model, kind) + (1 if kind is INT8_MIXED else 0),
        # The codes once more, transposed, and if they are not normalised their squares, for the distances to all of
        # them. What the last scale adds is not needed.
        names.ENCODER: _stored(encoder_layers(model), kind.encoder)
        + 4 * (2 * codes + model.vocab_size * (not model.using_znorm) + len(before_last) * phi),
    }


def loaded_weights(model: Model, kind: Kind) -> int:
    """Return the bytes of the weights that drawing loads: those of all graphs but the encoder."""
    return sum(size for name, size in graph_weights(model, kind).items() if name != names.ENCODER)


def weight_file(model: Model, kind: Kind) -> int:
    """Return the bytes of all tensors in the weight file of a bundle, each once."""
    in_two_graphs = 4 * model.vocab_size * model.code_size + _units(kind) + (1 if kind is INT8_MIXED else 0)
    return sum(graph_weights(model, kind).values()) - in_two_graphs + resizes(model)


def bundle(model: Model, kind: Kind) -> int:
    """Return the bytes of all files of a bundle, within 1 %: the graphs are smaller than their weights by far."""
    blocks = model.depth * (kind.nodes[0] + kind.nodes[1] * len(model.patch_nums))
    manifest = 600 * model.depth * (1 + len(model.patch_nums))
    return weight_file(model, kind) + blocks + manifest + OTHER_FILES + 13_000 * model.depth


def _units(kind: Kind) -> int:
    """Return the bytes of the scale 1, for Q and for DQ, and of the zero point, which INT8 products share."""
    return (4 + (4 if kind is INT8_CPU else 2) + 1) if kind.is_int8 else 0


def modulation(model: Model) -> Iterator[Layer]:
    """Yield the products of AdaLN."""
    yield from [Layer(model.width, 6 * model.width)] * (1 if model.shared_aln else model.depth)
    yield Layer(model.width, 2 * model.width)


def blocks(model: Model, kind: Kind) -> int:
    """Return the bytes of all blocks of the transformer."""
    scales = 4 * 2 * model.heads * model.attn_l2_norm  # of q and k
    return model.depth * (scales + sum(layer.bytes(kind.linear) for layer in block(model)))


def block(model: Model) -> tuple[Layer, ...]:
    """Return the products of a block: qkv, projection, fc1, fc2."""
    width, hidden = model.width, round(model.width * model.mlp_ratio)
    return Layer(width, 3 * width), Layer(width, width), Layer(width, hidden), Layer(hidden, width)


def head(model: Model) -> int:
    return Layer(model.width, model.vocab_size).bytes(FLOAT)


def decoder(model: Model, kind: Kind) -> int:
    return sum(layer.bytes(kind.delicate if layer.delicate else kind.convolution) for layer in decoder_layers(model))


def resizes(model: Model) -> int:
    """Return the bytes of the resize matrices, which the runtime passes to the bridge."""
    return 4 * model.grid**2 * (2 * model.tokens - model.patch_nums[0] ** 2)


def phi_count(model: Model) -> int:
    """Return the number of phi convolutions; 0 if `quant_resi` is 0."""
    return 0 if model.quant_resi <= NO_PHI else model.share_quant_resi or len(model.patch_nums)


def _condition(model: Model, kind: Kind) -> int:
    embeddings = model.num_classes + 1 + model.patch_nums[0] ** 2
    per_block = model.depth * 6 * (model.shared_aln + kind.channels_scaled)
    return 4 * model.width * (embeddings + per_block) + _stored(modulation(model), kind.linear)


def _stored(layers: Iterable[Layer], storage: Storage) -> int:
    return sum(layer.bytes(storage) for layer in layers)


def decoder_layers(model: Model) -> Iterator[Layer]:
    """Yield the convolutions of the decoder in order; `export.model.vqvae.Decoder` is the model."""
    widths = [model.ch * multiplier for multiplier in model.ch_mult]
    side, channels = model.grid, widths[-1]
    yield Layer(model.code_size, model.code_size, model.quant_conv_ks, side, delicate=True)
    yield Layer(model.code_size, channels, 3, side, delicate=True)
    yield from _middle(side, channels)
    for level in reversed(range(len(widths))):
        for _ in range(model.num_res_blocks + 1):
            yield from _residual(side, channels, widths[level])
            channels = widths[level]
            if level == len(widths) - 1:
                yield from _attention(side, channels)
        if level:
            side *= 2
            yield Layer(channels, channels, 3, side, resized=True)
    yield Layer(channels, 3, 3, side, normed=True, delicate=True)


def encoder_layers(model: Model) -> Iterator[Layer]:
    """Yield the convolutions of the encoder in order; `export.model.vqvae.Encoder` is the model."""
    widths = [model.ch * multiplier for multiplier in model.ch_mult]
    side, channels = model.image_size, model.ch
    yield Layer(3, channels, 3, side)
    for level, width in enumerate(widths):
        last = level == len(widths) - 1
        for _ in range(model.num_res_blocks):
            yield from _residual(side, channels, width)
            channels = width
            if last:
                yield from _attention(side, channels)
        if not last:
            side //= 2
            yield Layer(channels, channels, 3, side)
    yield from _middle(side, channels)
    yield Layer(channels, model.code_size, 3, side, normed=True)
    yield Layer(model.code_size, model.code_size, model.quant_conv_ks, side)


def _middle(side: int, channels: int) -> Iterator[Layer]:
    yield from _residual(side, channels, channels)
    yield from _attention(side, channels)
    yield from _residual(side, channels, channels)


def _residual(side: int, before: int, after: int) -> Iterator[Layer]:
    yield Layer(before, after, 3, side, normed=True)
    yield Layer(after, after, 3, side, normed=True, added=True)
    if before != after:
        yield Layer(before, after, 1, side)


def _attention(side: int, channels: int) -> Iterator[Layer]:
    yield Layer(channels, 3 * channels, 1, side, normed=True, delicate=True)
    yield Layer(channels, channels, 1, side, added=True, delicate=True)
