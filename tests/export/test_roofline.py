"""The limits in docs/benchmarks/limits.md follow from the sizes of the models, and the command prints them."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from export.checkpoint.recipe import Recipe, model_of
from export.roofline import DEVICES, FP16, FP32, INT8, Work, main, stages
from runtime.bench.work import decoder_flop, transformer_flop
from runtime.bundle.weight_file import weight_bytes

PAGE = Path(__file__).parents[2] / "docs" / "benchmarks" / "limits.md"
D16 = Recipe.load("var_d16").model
SIDES = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)
TOKENS = 680  # of all scales
SEEN = 1710  # tokens that the ten scales attend to: 1 + 5 + 14 + 30 + 55 + 91 + 155 + 255 + 424 + 680


def transformer(precision: str) -> list[Work]:
    return list(stages(D16, precision))[1:-1]


def test_the_products_of_d16_are_those_derived_by_hand() -> None:
    linear = 2 * 2 * TOKENS * 16 * 12 * 1024**2  # 547.6 GFLOP: qkv, projection and feed-forward are 12 C² a block
    head = 2 * 2 * TOKENS * 1024 * 4096
    seen = sum(side**2 * sum(s**2 for s in SIDES[: k + 1]) for k, side in enumerate(SIDES))
    attention = 2 * 16 * 2 * 2 * 1024 * seen  # scores and weighted sums, in both halves of the batch
    works = transformer(FP16)
    assert sum(work.flop[FP32] for work in works) == head
    assert sum(work.flop[FP16] for work in works) == linear + attention
    assert linear + head + attention == transformer_flop(D16)
    quantized = transformer(INT8)
    assert sum(work.flop[INT8] for work in quantized) == linear * (12 + 4) // 12  # fc2, 4 of the 12 C², twice
    assert sum(work.flop[FP16] for work in quantized) == attention


def test_the_bytes_of_d16_are_those_derived_by_hand() -> None:
    works = transformer(FP16)
    blocks = 16 * (2 * (12 * 1024**2 + 9 * 1024) + 4 * 2 * 16)  # weights and biases in FP16, scales of q and k
    assert sum(work.weights for work in works) == 10 * (blocks + 4 * 1025 * 4096)  # 4.2 GB, the head in FP32
    assert sum(work.cache for work in works) == 16 * 2 * 2 * (2 * 1024) * (SEEN + TOKENS)  # FP16 keys and values, 2B
    last = 512 * (16 * 68 * 1024 + 12 * 1024 + 2 * 4 * 4096)  # 68 C bytes a block and row; head; logits in and out
    small = 4 * 2 * 98 * 1024 + 4 * 256 * (256 + 4) + 2 * 4 * 32 * 256 + 4 * 2 * 1024 * 4  # modulation, bridge
    assert works[-1].activations == last + small


@pytest.mark.parametrize("model", ["var_d16", "var_d30", "var_d36", "var_demo"])
def test_the_decoder_is_counted_as_the_benchmark_counts_it(model: str) -> None:
    for precision in (FP16, INT8):
        decoder = list(stages(Recipe.load(model).model, precision))[-1]
        assert sum(decoder.flop.values()) == decoder_flop(Recipe.load(model).model)


def test_weights_are_those_of_a_bundle(fp16_demo_bundle: Path) -> None:
    works = list(stages(model_of(str(fp16_demo_bundle)), FP16))
    for graph, work in (("transformer", works[1]), ("decoder", works[-1])):
        assert work.weights == weight_bytes(fp16_demo_bundle, [f"{graph}.onnx"])
    condition = weight_bytes(fp16_demo_bundle, ["condition.onnx"])
    assert 0.98 * condition < works[0].weights < condition  # of the class embedding it reads two rows


def test_a_batch_reads_the_weights_once() -> None:
    one, eight = (list(stages(D16, FP16, batch)) for batch in (1, 8))
    assert [work.weights for work in one[:-1]] == [work.weights for work in eight[:-8]]
    assert sum(sum(work.flop.values()) for work in eight) == 8 * sum(sum(work.flop.values()) for work in one)


def test_the_least_time_is_the_longer_of_bytes_and_products() -> None:
    device = DEVICES[0]
    bytes_only = Work("", weights=device.bandwidth, activations=device.bandwidth)
    assert (bytes_only.seconds(device, False), bytes_only.seconds(device, True)) == (1, 2)
    assert Work("", weights=1, flop={FP16: 3 * device.peak[FP16]}).seconds(device, True) == 3


def test_the_page_is_what_the_command_prints() -> None:
    result = CliRunner().invoke(main, ["var_d16", "var_d30"])
    assert result.exit_code == 0
    assert result.stdout == PAGE.read_text(encoding="utf-8"), (
        "write it again: python -m export.roofline var_d16 var_d30 > docs/benchmarks/limits.md"
    )


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, [str(tmp_path)])
    assert result.exit_code == 1
    assert "no manifest.json, so not a bundle" in result.stderr
    result = CliRunner().invoke(main, ["var_d17"])
    assert result.exit_code == 1
    assert "no recipe 'var_d17'" in result.stderr
