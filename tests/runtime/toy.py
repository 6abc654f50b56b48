"""A bundle of toy graphs, and the same computation in numpy without any buffers.

The graphs mix everything that the loop passes between stages (labels, earlier keys and values in their order, f_hat,
uniforms, settings, constants), so a wrong row, a stale array or a missed input changes the tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper, parser
from safetensors.numpy import save_file

from runtime.bundle.manifest import WEIGHTS, File, Graph, Manifest, Model, Provenance, Scale, Tensor
from runtime.uniforms import uniforms

V, NUM_CLASSES, SIDES, PIXELS = 64, 5, (1, 2, 3), 9
CLASS_FILE = "tench, Tinca tinca\ngoldfish\ncrane\ncrane, hoist\ngolden retriever\n"
RAMP = np.linspace(1, 3, V, dtype=np.float32)

# M is 2B and N is L_next, which the textual format cannot spell.
GRAPHS = {
    "condition": """
        (int64[B] labels) => (float[2,6,M,64] modulation, float[2,M,64] head_modulation, float[1,M,64] x) {
            shape = Shape(labels)
            nothing = ConstantOfShape<value = int64[1] {5}>(shape)
            both = Concat<axis = 0>(labels, nothing)
            number = Cast<to = 1>(both)
            column = Unsqueeze(number, axes_02)
            value = Sin(column)
            x = Mul(value, ones_x)
            modulation = Mul(value, ones_modulation)
            head_modulation = Mul(value, ones_head)
        }""",
    "transformer": """
        (float[L,M,64] x, float[6,M,64] modulation_00, float[6,M,64] modulation_01, float[2,M,64] head_modulation,
         float[S,M,1,64] past_k_00, float[S,M,1,64] past_k_01,
         float[S,M,1,64] past_v_00, float[S,M,1,64] past_v_01)
        => (float[L,M,64] logits, float[L,M,1,64] new_k_00, float[L,M,1,64] new_k_01,
            float[L,M,1,64] new_v_00, float[L,M,1,64] new_v_01) {
            rows = Unsqueeze(x, axis_2)
            new_k_00 = Sin(rows)
            new_k_01 = Cos(rows)
            new_v_00 = Mul(rows, half)
            new_v_01 = Mul(rows, rows)
            k_00 = Concat<axis = 0>(past_k_00, new_k_00)
            k_01 = Concat<axis = 0>(past_k_01, new_k_01)
            v_00 = Concat<axis = 0>(past_v_00, new_v_00)
            v_01 = Concat<axis = 0>(past_v_01, new_v_01)
            all = Concat<axis = 2>(k_00, k_01, v_00, v_01)
            steps = CumSum(all, axis_0)
            history = ReduceMean<keepdims = 0>(steps, axes_023)
            column = Unsqueeze(history, axes_02)
            sum = Add(x, column)
            mean = ReduceMean(sum, axis_2)
            steep = Mul(mean, ramp)
            logits = Sin(steep)
        }""",
    "bridge": """
        (float[L,M,64] logits, float[B,2,3,3] f_hat, float[B,L] uniforms, float[1] guidance, int64[1] top_k,
         float[1] top_p, bool[B,L] keep, int32[B,L] kept_tokens, float[L,9] upsample, int64[1] phi,
         float[9,N] downsample, int64[N] next_positions)
        => (int32[B,L] drawn, int32[B,L] tokens, float[B,2,3,3] f_hat_out, float[N,M,64] x_next) {
            conditional, unconditional = Split<axis = 1, num_outputs = 2>(logits)
            difference = Sub(conditional, unconditional)
            more = Mul(guidance, difference)
            guided = Add(conditional, more)
            batched = Transpose<perm = [1, 0, 2]>(guided)
            u = Unsqueeze(uniforms, axis_2)
            tilted = Mul(u, ramp)
            k = Cast<to = 1>(top_k)
            filters = Mul(k, top_p)
            bent = Mul(tilted, filters)
            scores = Sub(batched, bent)
            best = ArgMax<axis = 2, keepdims = 0>(scores)
            index = Cast<to = 6>(best)
            sum = ReduceSum<keepdims = 0>(batched, axis_2)
            size = Abs(sum)
            finite = Less(size, largest)
            drawn = Where(finite, index, minus_one)
            tokens = Where(keep, kept_tokens, drawn)
            codes = Cast<to = 1>(tokens)
            enlarged = MatMul(codes, upsample)
            number = Cast<to = 1>(phi)
            smoothed = Add(enlarged, number)
            map = Reshape(smoothed, f_hat_shape)
            f_hat_out = Add(f_hat, map)
            flat = ReduceMean<keepdims = 0>(f_hat_out, axis_1)
            pixels = Reshape(flat, pixels_shape)
            features = MatMul(pixels, downsample)
            rows = Transpose(features)
            positions = Cast<to = 1>(next_positions)
            position = Unsqueeze(positions, axis_1)
            placed = Add(rows, position)
            twice = Concat<axis = 1>(placed, placed)
            column = Unsqueeze(twice, axis_2)
            value = Sin(column)
            x_next = Mul(value, ones_x)
        }""",
    "decoder": """
        (float[B,2,3,3] f_hat) => (uint8[B,6,6,3] image, bool[B] finite) {
            sum = ReduceSum<keepdims = 0>(f_hat, axes_123)
            size = Abs(sum)
            finite = Less(size, largest)
            flat = ReduceMean<keepdims = 0>(f_hat, axis_1)
            tiled = Tile(flat, two_by_two)
            pixel = Unsqueeze(tiled, axis_3)
            colour = Tile(pixel, three_colours)
            image = Cast<to = 2>(colour)
        }""",
}
TINY = GRAPHS["decoder"].replace(
    "image = Cast<to = 2>(colour)", "darker = Mul(colour, half)\nimage = Cast<to = 2>(darker)"
)
HALF = 0.5
CONSTANTS = {
    "ramp": RAMP,
    "ones_x": np.ones((1, 1, 64), np.float32),
    "ones_modulation": np.ones((2, 6, 1, 64), np.float32),
    "ones_head": np.ones((2, 1, 64), np.float32),
    "axis_0": np.int64(0),
    "axis_1": np.array([1]),
    "axis_2": np.array([2]),
    "axis_3": np.array([3]),
    "axes_123": np.array([1, 2, 3]),
    "largest": np.finfo(np.float32).max,
    "minus_one": np.int32(-1),
    "axes_02": np.array([0, 2]),
    "axes_023": np.array([0, 2, 3]),
    "two_by_two": np.array([1, 2, 2]),
    "three_colours": np.array([1, 1, 1, 3]),
    "f_hat_shape": np.array([-1, 1, 3, 3]),
    "pixels_shape": np.array([-1, PIXELS]),
}


def write_bundle(folder: Path, half: float = HALF, tiny: bool = False, class_file: str = CLASS_FILE) -> Manifest:
    """Write the toy bundle and return its manifest. Another `half` makes another model of the same VQVAE.

    With `tiny` it has a tiny decoder, whose pixels are `half` as bright.
    """
    folder.mkdir(parents=True)
    tensors = resize_matrices()
    save_file(tensors, folder / WEIGHTS)
    (folder / "classes.txt").write_text(class_file, encoding="utf-8")
    texts = GRAPHS | ({"decoder_tiny": TINY} if tiny else {})
    graphs = {name: _write_graph(folder, name, text, {"half": np.float32(half)}) for name, text in texts.items()}
    manifest = Manifest(
        schema_version=3,
        step_constants=(),
        model=Model(
            *("toy", 2, 64, 1, V, 2, NUM_CLASSES, SIDES, 6, 32, (1, 2), 1, False, True),
            *(1e-6, 4.0, 0.5, 4, False, 3),
        ),
        precision="fp32",
        classes="classes.txt",
        scales=tuple(
            Scale(p, p * p, sum(q * q for q in SIDES[:k]), k, f"up.{k}", f"down.{k}" if k else None)
            for k, p in enumerate(SIDES)
        ),
        graphs=graphs,
        files={path.name: File.of(path) for path in sorted(folder.iterdir())},
        provenance=Provenance("2026-01-01T00:00:00Z", {"vqvae_sha256": "0" * 64}, {"onnx": onnx.__version__}, {}),
    )
    manifest.write(folder)
    return manifest


def resize_matrices() -> dict[str, np.ndarray]:
    draw = np.random.default_rng(0).random
    up = {f"up.{k}": draw((p * p, PIXELS), np.float32) for k, p in enumerate(SIDES)}
    down = {f"down.{k}": draw((PIXELS, p * p), np.float32) for k, p in enumerate(SIDES) if k}
    return up | down


def reference(
    label: int,
    seed: int,
    cfg: float,
    filters: float,
    half: float = HALF,
    guidance_scales: int = len(SIDES),
    lead: Sequence[np.ndarray] = (),
) -> tuple[list[np.ndarray], np.ndarray]:
    """Return the token maps (p*p,) of one image, and the image (6, 6, 3) uint8.

    `filters` is top_k * top_p. From `guidance_scales` on the logits are those with label. `lead` are the tokens of the
    first scales, which are not drawn.
    """
    matrices, draws = resize_matrices(), uniforms(seed, [p * p for p in SIDES])
    x = np.sin(np.array([[label, NUM_CLASSES]], np.float32))  # (L, 2): every channel is the same
    past: list[np.ndarray] = [np.empty((0, 2), np.float32)] * 4  # (S, 2) each
    f_hat = np.zeros(PIXELS, np.float32)
    maps = []
    for k, p in enumerate(SIDES):
        new = [np.sin(x), np.cos(x), x * np.float32(half), x * x]
        past = [np.concatenate(pair) for pair in zip(past, new, strict=True)]
        history = np.mean([np.cumsum(rows, axis=0).mean(axis=0) for rows in past], axis=0)  # (2,)
        logits = np.sin((x + history)[..., None] * RAMP)  # (L, 2, V)
        guided = logits[:, 0]  # (L, V)
        if k < guidance_scales:
            guided = guided + cfg * k / 2 * (logits[:, 0] - logits[:, 1])
        tokens = (guided - draws[k][:, None] * RAMP * filters).argmax(axis=1)  # (L,)
        tokens = lead[k] if k < len(lead) else tokens
        f_hat = f_hat + tokens.astype(np.float32) @ matrices[f"up.{k}"] + k
        maps.append(tokens.astype(np.int32))
        if k + 1 < len(SIDES):
            following = sum(q * q for q in SIDES[: k + 1])
            features = f_hat @ matrices[f"down.{k + 1}"]
            x = np.sin(features + following + np.arange(len(features)))[:, None].repeat(2, 1).astype(np.float32)
        assert len(maps[-1]) == p * p
    image = np.tile(f_hat.reshape(3, 3), (2, 2)).astype(np.uint8)
    return maps, image[..., None].repeat(3, 2)


def _write_graph(folder: Path, name: str, text: str, constants: Mapping[str, np.generic]) -> Graph:
    model = parser.parse_model(f'<ir_version: 10, opset_import: ["" : 20]> {name} {text}')
    used = {source for node in model.graph.node for source in node.input}
    model.graph.initializer.extend(
        numpy_helper.from_array(np.asarray(value), key) for key, value in (CONSTANTS | constants).items() if key in used
    )
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, folder / f"{name}.onnx")
    return Graph(f"{name}.onnx", _tensors(model.graph.input), _tensors(model.graph.output))


def _tensors(values: list[onnx.ValueInfoProto]) -> tuple[Tensor, ...]:
    names = {"M": "2B", "N": "L_next"}
    return tuple(
        Tensor(
            value.name,
            onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type).name,
            tuple(
                names.get(size.dim_param, size.dim_param) or size.dim_value for size in value.type.tensor_type.shape.dim
            ),
        )
        for value in values
    )
