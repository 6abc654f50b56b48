"""The names of a bundle's graphs and of their tensors, each defined once. `export.graphs.definitions` has the shapes.

The C++ runtime repeats those that it uses where it uses them, most in `src/backends/wiring.cpp`.
"""

from __future__ import annotations

CONDITION, TRANSFORMER, DECODER, ENCODER = "condition", "transformer", "decoder", "encoder"
TINY_DECODER = "decoder_tiny"  # imitates `decoder` at a fraction of its work; not every bundle has one
BRIDGE, SMOOTH_BRIDGE = "bridge", "bridge_smooth"
REQUIRED_GRAPHS = (CONDITION, TRANSFORMER, BRIDGE, DECODER)
# without the static steps
GRAPHS = (CONDITION, TRANSFORMER, BRIDGE, SMOOTH_BRIDGE, DECODER, TINY_DECODER, ENCODER)
STEP_PREFIX = f"{TRANSFORMER}_"  # begins the name of every static step

# condition
LABELS = "labels"
MODULATION, HEAD_MODULATION = "modulation", "head_modulation"
X = "x"  # the transformer's input; here that of the first scale
# transformer, which also has `modulation_of`, `past` and `new`
LOGITS = "logits"
CACHE_PREFIXES = ("past_", "new_")
# bridges
UNIFORMS, NOISE = "uniforms", "noise"  # random numbers of the plain and of the smooth bridge
SHARPNESS, TEMPERATURE = "sharpness", "temperature"  # smooth bridge only
GUIDANCE, TOP_K, TOP_P = "guidance", "top_k", "top_p"
KEEP, KEPT_TOKENS = "keep", "kept_tokens"
UPSAMPLE, DOWNSAMPLE, PHI, NEXT_POSITIONS = "upsample", "downsample", "phi", "next_positions"
DRAWN, TOKENS = "drawn", "tokens"  # before and after `keep`; the encoder's output is called TOKENS too
F_HAT, F_HAT_OUT, X_NEXT = "f_hat", "f_hat_out", "x_next"
# decoders and encoder
IMAGE, FINITE = "image", "finite"


def static_step(batch: int, scale: int) -> str:
    """Return the name of the transformer's graph with constant shapes for a batch size and a scale."""
    return f"{STEP_PREFIX}b{batch}_{scale:02d}"


def modulation_of(block: int) -> str:
    """Return the name of the transformer's input that modulates one block."""
    return f"{MODULATION}_{block:02d}"


def cached(kind: str, block: int) -> str:
    """Return the name of a block's cache of keys ("k") or values ("v")."""
    return f"{kind}_{block:02d}"


def past(kind: str, block: int) -> str:
    """Return the name of the transformer's input with the keys or values of all earlier scales."""
    return f"past_{cached(kind, block)}"


def new(kind: str, block: int) -> str:
    """Return the name of the transformer's output with the keys or values of its own scale."""
    return f"new_{cached(kind, block)}"


def caches(depth: int) -> list[tuple[str, int]]:
    """Return (kind, block) of every cache in the transformer's order: the keys of all blocks, then the values."""
    return [(kind, block) for kind in "kv" for block in range(depth)]


def channel_scaling(output: str) -> str:
    """Return the weight file's name of the factors by which an INT8 bundle multiplies an output of `condition`."""
    return f"{output}.smoothing"
