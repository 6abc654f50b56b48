"""Count the work of an image: the FLOP of its matrix products and convolutions, from the sizes in the manifest."""

from __future__ import annotations

from ..bundle.manifest import Model


def transformer_flop(model: Model, guidance_scales: int | None = None, scales: int | None = None) -> int:
    """Return the transformer's FLOP at the first `scales` scales for one image.

    A scale is a pass with the label and, at the first `guidance_scales`, one without. None: all scales.
    """
    width, offset, flop = model.width, 0, 0
    guided = len(model.patch_nums) if guidance_scales is None else guidance_scales
    for k, side in enumerate(model.patch_nums[:scales]):
        tokens, passes = side * side, 2 if k < guided else 1
        linear = 8 * width * width + 4 * width * round(width * model.mlp_ratio)  # qkv, projection, feed-forward
        attention = 4 * width * (offset + tokens)  # scores, then the weighted sum
        flop += passes * tokens * (model.depth * (linear + attention) + 2 * width * model.vocab_size)
        offset += tokens
    return flop


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


def tiny_decoder_flop(model: Model) -> int:
    """Return the tiny decoder's FLOP for one image."""
    widths = [8 * max(1, round(0.4 * model.ch * multiplier / 8)) for multiplier in reversed(model.ch_mult)]
    side, last = model.grid, len(widths) - 2
    flop = _convolution(side, model.code_size, widths[0])
    for level, width in enumerate(widths[:-1]):
        blocks = 1 if level else 2
        flop += blocks * _residual(side, width, width)
        side *= 1 if level == last else 2
        flop += _convolution(side, width, 12 if level == last else widths[level + 1])
    return flop


def _convolution(side: int, channels_in: int, channels_out: int, kernel: int = 3) -> int:
    return 2 * side**2 * kernel**2 * channels_in * channels_out


def _residual(side: int, channels_in: int, channels_out: int) -> int:
    shortcut = _convolution(side, channels_in, channels_out, 1) if channels_in != channels_out else 0
    return _convolution(side, channels_in, channels_out) + _convolution(side, channels_out, channels_out) + shortcut


def _attention(side: int, channels: int) -> int:
    """Return the FLOP of attention over the pixels of a map: qkv and projection, scores, weighted sum."""
    return 4 * _convolution(side, channels, channels, 1) + 4 * side**4 * channels
