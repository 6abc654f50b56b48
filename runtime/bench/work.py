"""Count the work of an image: the FLOP of its matrix products and convolutions, from the sizes in the manifest."""

from __future__ import annotations

from ..bundle.manifest import Model


def transformer_flop(model: Model) -> int:
    """Return the transformer's FLOP at all scales for one image: a pass with the label and one without."""
    width, offset, flop = model.width, 0, 0
    for side in model.patch_nums:
        tokens = side * side
        linear = 8 * width * width + 4 * width * round(width * model.mlp_ratio)  # qkv, projection, feed-forward
        attention = 4 * width * (offset + tokens)  # scores, then the weighted sum
        flop += tokens * (model.depth * (linear + attention) + 2 * width * model.vocab_size)
        offset += tokens
    return 2 * flop


def decoder_flop(model: Model) -> int:
    """Return the decoder's FLOP for one image."""
    widths = [model.ch * multiplier for multiplier in model.ch_mult]
    side, channels, last = model.grid, widths[-1], len(widths) - 1
    flop = _convolution(side, model.code_size, model.code_size) + _convolution(side, model.code_size, channels)
    flop += 2 * _residual(side, channels, channels) + _attention(side, channels)
    for level in range(last, -1, -1):
        for _ in range(model.num_res_blocks + 1):
            flop += _residual(side, channels, widths[level])
            channels = widths[level]
            flop += _attention(side, channels) if level == last else 0
        if level:
            side *= 2
            flop += _convolution(side, channels, channels)
    return flop + _convolution(side, channels, 3)


def _convolution(side: int, channels_in: int, channels_out: int, kernel: int = 3) -> int:
    return 2 * side**2 * kernel**2 * channels_in * channels_out


def _residual(side: int, channels_in: int, channels_out: int) -> int:
    shortcut = _convolution(side, channels_in, channels_out, 1) if channels_in != channels_out else 0
    return _convolution(side, channels_in, channels_out) + _convolution(side, channels_out, channels_out) + shortcut


def _attention(side: int, channels: int) -> int:
    """Return the FLOP of attention over the pixels of a map: qkv and projection, scores, weighted sum."""
    return 4 * _convolution(side, channels, channels, 1) + 4 * side**4 * channels
