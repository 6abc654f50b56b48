"""Training of the demo model on synthetic images: without the font, in seconds."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

torch = pytest.importorskip("torch", reason="training needs torch")

from examples.demo_model import loop  # noqa: E402
from examples.demo_model import train as commands  # noqa: E402
from examples.demo_model.classes import CLASSES, label_of  # noqa: E402
from examples.demo_model.data import MASTER_SIZE, EmojiSet, augment, plain, split  # noqa: E402
from examples.demo_model.group_norm import FastGroupNorm  # noqa: E402
from examples.demo_model.loop import Batch, Budget, Settings, Stage, begin, load_average, train  # noqa: E402
from examples.demo_model.sampling import Sampler  # noqa: E402
from examples.demo_model.tokens import TokenSet, encode_augmented, encode_plain  # noqa: E402
from examples.demo_model.train import pictures_and_labels, train_decoder, train_var, train_vqvae  # noqa: E402
from examples.demo_model.var_stage import VARStage, teacher_features  # noqa: E402
from examples.demo_model.vqvae_stage import VQVAEStage, quantise  # noqa: E402
from export.checkpoint.recipe import Recipe  # noqa: E402
from export.checkpoint.weights import checkpoint_weights  # noqa: E402
from runtime.errors import SettingsError  # noqa: E402
from runtime.files.atomic import sha256  # noqa: E402

CPU = torch.device("cpu")
RECIPE = Recipe(
    name="tiny",
    depth=1,
    patch_nums=(1, 2, 8),
    ch=32,
    var_checkpoint="var",
    vae_checkpoint="vae",
    num_classes=3,
    vocab_size=64,
    ch_mult=(1, 1, 1, 1),
    num_res_blocks=1,
)


@pytest.fixture(scope="module")
def emoji() -> EmojiSet:
    """Thirty discs on white in three colours, two tones of each, one colour for each of the first three classes."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:MASTER_SIZE, :MASTER_SIZE]
    images = np.full((30, 3, MASTER_SIZE, MASTER_SIZE), 255, np.uint8)
    labels = np.repeat(np.arange(3), 10)
    groups = ("face-smiling", "grin"), ("cat-face", "joy_cat"), ("animal-mammal", "cat2")
    for image, label in zip(images, labels, strict=True):
        centre = rng.uniform(40, 88, 2)
        disc = (x - centre[0]) ** 2 + (y - centre[1]) ** 2 < rng.uniform(20, 40) ** 2
        image[:, disc] = 40
        image[label, disc] = 220
    bases = np.array([f"{i // 2:04X}" for i in range(30)])
    codepoints = np.array([f"{base}-{i % 2}" for i, base in enumerate(bases)])
    subcategories, short_names = np.array(groups)[labels].T
    return EmojiSet(images, codepoints, bases, subcategories, short_names)


class CutShort(Budget):
    """The same schedule, stopped after two steps."""

    def used(self, step: int, seconds: float) -> float:
        return 1.0 if step == 2 else super().used(step, seconds)


@pytest.fixture(autouse=True)
def one_thread():
    """One thread sums in one order, so that two runs can be compared bit for bit."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def states_equal(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    theirs = other.state_dict()
    return all(torch.equal(tensor, theirs[name]) for name, tensor in one.state_dict().items())


def test_no_held_out_emoji_is_trained_on(emoji: EmojiSet) -> None:
    trained, held_out = split(emoji)
    assert set(held_out.labels) == set(trained.labels) == {0, 1, 2}
    assert not set(held_out.bases) & set(trained.bases), "tones of one emoji must not fall on both sides"


def test_the_split_does_not_depend_on_the_order_of_the_emoji(emoji: EmojiSet) -> None:
    reverse = EmojiSet(**{field.name: getattr(emoji, field.name)[::-1] for field in fields(emoji)})
    assert set(split(reverse)[1].codepoints) == set(split(emoji)[1].codepoints)


def test_every_class_has_a_name_of_its_own() -> None:
    names = [name for row in CLASSES for name in row.names.split(", ")]
    assert len(set(names)) == len(names)
    assert label_of("country-flag", "flag-fr") == [row.names for row in CLASSES].index("flag")
    assert label_of("lock", "key") == -1
    assert Recipe.load("var_demo").num_classes == len(CLASSES)


def test_augmented_pictures_keep_their_white_background(emoji: EmojiSet) -> None:
    masters = torch.from_numpy(emoji.images)
    pictures = augment(masters, torch.from_numpy(emoji.mirror), torch.Generator().manual_seed(0), recolour=0.5)
    assert pictures.shape == plain(masters).shape
    assert (pictures[:, :, :2] == 1).all()
    assert pictures.min() >= -1


def test_a_class_of_few_emoji_is_drawn_as_often_as_a_large_one(emoji: EmojiSet) -> None:
    few = emoji.select(np.arange(30) >= 8)  # class 0 keeps two of ten
    _, labels, _ = Sampler(few, CPU, power=0).draw(3000, torch.Generator().manual_seed(0))
    assert torch.bincount(labels).min() > 900


def test_training_quantises_as_inference_does() -> None:
    torch.manual_seed(0)
    stage = VQVAEStage(RECIPE)
    features = torch.randn(2, 32, 8, 8)
    f_hat, _, tokens, _ = quantise(stage.vqvae.quantize, features)
    inference = stage.vqvae.quantize.tokenize(features)
    assert torch.equal(tokens, torch.cat([chosen.flatten() for chosen in inference]))
    summed = sum(stage.vqvae.quantize.contribution(k, stage.vqvae.quantize.lookup(t)) for k, t in enumerate(inference))
    torch.testing.assert_close(f_hat, summed)


def test_one_masked_pass_predicts_what_the_scales_predict_one_by_one() -> None:
    torch.manual_seed(0)
    stage = VARStage(RECIPE).eval()
    torch.nn.init.normal_(stage.var.head.weight)
    features = torch.randn(RECIPE.tokens - 1, 2, 32)
    labels = torch.tensor([0, 2])
    with torch.no_grad():
        together = stage._logits(features, labels)  # (T, B, V)
        modulation, head_modulation, x = stage.var.condition(labels)
        past = [[torch.zeros(0, 2, RECIPE.heads, RECIPE.head_size)] for _ in "kv"]
        for scale in RECIPE.scales:
            span = slice(scale.offset, scale.offset + scale.tokens)
            if scale.offset:
                x = stage.var.embed(features[scale.offset - 1 : span.stop - 1], stage.var.positions()[span])
            logits, *new = stage.var(x, modulation, head_modulation, *past)
            past = [[torch.cat((old[0], fresh[0]))] for old, fresh in zip(past, new, strict=True)]
            torch.testing.assert_close(together[span], logits, atol=0.1, rtol=0.1)  # bfloat16 in the masked pass


def test_fast_group_norm_has_the_gradient_of_group_norm() -> None:
    torch.manual_seed(0)
    plain_norm, fast = torch.nn.GroupNorm(32, 64), FastGroupNorm(32, 64)
    torch.nn.init.normal_(plain_norm.weight)
    fast.load_state_dict(plain_norm.state_dict())
    inputs = [torch.randn(2, 64, 4, 4).requires_grad_()]
    inputs.append(inputs[0].detach().clone().requires_grad_())
    weights = torch.randn(2, 64, 4, 4)
    for norm, x in zip((plain_norm, fast), inputs, strict=True):
        (norm(x) * weights).sum().backward()
    torch.testing.assert_close(inputs[1].grad, inputs[0].grad)
    torch.testing.assert_close(fast.weight.grad, plain_norm.weight.grad)
    torch.testing.assert_close(fast.bias.grad, plain_norm.bias.grad)


def test_a_resumed_training_ends_where_an_uninterrupted_one_does(emoji: EmojiSet, tmp_path: Path) -> None:
    def run(train_stage: Callable[..., Stage], name: str) -> Stage:
        whole = train_stage(Budget(steps=4), tmp_path / f"{name}_whole.pt")
        train_stage(CutShort(steps=4), tmp_path / f"{name}_parts.pt")
        resumed = train_stage(Budget(steps=4), tmp_path / f"{name}_parts.pt")
        assert states_equal(whole, resumed)
        return whole

    vqvae = run(lambda budget, path: train_vqvae(RECIPE, emoji, budget, path, CPU, batch=4), "vqvae").vqvae
    images = encode_augmented(vqvae, emoji, 8, CPU, 0, print)
    held_out = encode_plain(vqvae, *pictures_and_labels(emoji, CPU))
    run(lambda budget, path: train_var(RECIPE, vqvae, images, held_out, budget, path, CPU, batch=4), "var")


def test_a_step_without_the_last_scale_has_the_same_loss_on_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    stage = VARStage(RECIPE).eval()
    torch.nn.init.normal_(stage.var.head.weight)
    tokens, features = torch.randint(64, (2, RECIPE.tokens)), torch.randn(RECIPE.tokens - 1, 2, 32)
    losses = {}
    for share in (0.0, 1.0):
        monkeypatch.setattr(f"{VARStage.__module__}._COARSE_SHARE", share)
        torch.manual_seed(1)
        losses[share] = stage.loss(tokens, features, torch.tensor([0, 2]))[1]
    assert set(losses[0.0]) == {"coarse", "fine"}
    assert set(losses[1.0]) == {"coarse"}
    assert losses[1.0]["coarse"] == pytest.approx(losses[0.0]["coarse"], rel=1e-2)  # bfloat16


def test_the_last_stage_changes_the_decoder_only(emoji: EmojiSet, tmp_path: Path) -> None:
    before = VQVAEStage(RECIPE).vqvae
    after = train_decoder(copy.deepcopy(before), emoji, Budget(steps=2), tmp_path / "decoder.pt", CPU, batch=4).vqvae
    changed = {
        name for name, tensor in after.state_dict().items() if not torch.equal(tensor, before.state_dict()[name])
    }
    assert changed == {name for name in after.state_dict() if name.split(".")[0] in ("decoder", "post_quant_conv")}


TOML = """
depth = 1
patch_nums = [1, 2, 8]
ch = 32
var_checkpoint = "var.safetensors"
vae_checkpoint = "vae.safetensors"
checkpoints = "weights"
num_classes = 29
vocab_size = 64
ch_mult = [1, 1, 1, 1]
num_res_blocks = 1
"""


def test_two_transformers_share_a_vqvae(emoji: EmojiSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is trained on the tokens of the one VQVAE, and a bundle can be exported from what `pack` writes."""
    monkeypatch.setattr(commands, "load_emoji", lambda: emoji)
    monkeypatch.setattr(commands, "CLASS_FILE", tmp_path / "classes.txt")
    large, small = tmp_path / "large.toml", tmp_path / "small.toml"
    large.write_text(TOML)
    small.write_text(TOML.replace("var.saf", "small.saf") + "width = 32\n")

    def command(stage: str, recipe: Path, *options: str) -> Result:
        arguments = [stage, "--model", str(recipe), "--folder", str(tmp_path), *options]
        return CliRunner().invoke(commands.main, arguments)

    def trained(stage: str, recipe: Path) -> None:
        assert command(stage, recipe, "--steps", "1", "--threads", "1", "--device", "cpu").exit_code == 0

    trained("vqvae", large)
    trained("decoder", large)
    missing = command("var", large, "--steps", "1")
    assert missing.exit_code == 1
    assert "tokens.safetensors: not found; run `python -m examples.demo_model.train tokens` with" in missing.output
    assert command("tokens", large, "--images", "40", "--device", "cpu").exit_code == 0
    trained("var", large)
    trained("var", small)
    shared = []
    for recipe in (large, small):
        assert command("pack", recipe, "--out", str(tmp_path / "weights")).exit_code == 0
        loaded = Recipe.load(str(recipe))
        shared.append(checkpoint_weights(loaded, None, None).source["vae_checkpoint"])
    assert shared[0] == shared[1]
    packed = {path.name: path.read_bytes() for path in (tmp_path / "weights").iterdir()}
    assert len(packed) == 3

    # What is shipped can be trained further: its checkpoints pack to the same bytes, and a step changes them.
    again = tmp_path / "again"
    for stage in ("unpack", "pack"):
        options = ["--folder", str(again), *(["--out", str(again / "out")] if stage == "pack" else [])]
        assert CliRunner().invoke(commands.main, [stage, "--model", str(large), *options]).exit_code == 0
    assert {path.name: path.read_bytes() for path in (again / "out").iterdir()}.items() <= packed.items()
    kept = CliRunner().invoke(commands.main, ["unpack", "--model", str(large), "--folder", str(again)])
    assert kept.output.splitlines() == [f"{again / name}.pt: exists, kept" for name in ("vqvae", "decoder", "large")]
    codes = [torch.load(again / "vqvae.pt")["stage"]["vqvae.quantize.embedding.weight"]]
    assert command("vqvae", large, "--steps", "2", "--folder", str(again), "--device", "cpu").exit_code == 0
    codes.append(torch.load(again / "vqvae.pt")["stage"]["vqvae.quantize.embedding.weight"])
    assert not torch.equal(*codes)
    torch.testing.assert_close(*codes, atol=0.01, rtol=0)  # no code was replaced
    other = command("pack", large, "--folder", str(again), "--out", str(again / "out"))
    assert (other.exit_code, "of another VQVAE than vqvae.pt; remove it" in other.output) == (1, True)


def test_checkpoints_of_other_tokens_are_refused(tmp_path: Path) -> None:
    stage, path = VARStage(Recipe.load("var_demo_small")), tmp_path / "var.pt"
    begin(stage, path, "one")
    load_average(stage, path, "one")
    with pytest.raises(SettingsError, match="trained on tokens of another VQVAE; remove it"):
        load_average(stage, path, "another")
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(SettingsError, match="truncated, or a checkpoint of another model; remove it"):
        load_average(stage, path, "one")


@pytest.mark.parametrize("option", [("--steps", "0"), ("--minutes", "-1"), ("--threads", "0"), ("--device", "tpu")])
def test_values_out_of_range(option: tuple[str, str]) -> None:
    result = CliRunner().invoke(commands.main, ["var", *option])
    assert (result.exit_code, f"'{option[0]}'" in result.output) == (2, True)


def test_a_checkpoint_on_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch would hide the cause, if it wrote to the file itself."""
    with open("/dev/full", "wb", buffering=0) as full:
        monkeypatch.setattr(loop, "atomic_file", lambda path: nullcontext(full))
        with pytest.raises(OSError, match="No space left on device"):
            begin(VQVAEStage(RECIPE), tmp_path / "vqvae.pt")


def test_pack_names_the_missing_stage(tmp_path: Path) -> None:
    result = CliRunner().invoke(commands.main, ["pack", "--folder", str(tmp_path), "--out", str(tmp_path / "out")])
    assert (
        result.output
        == f"Error: {tmp_path / 'vqvae.pt'}: not found; run `python -m examples.demo_model.train vqvae` first\n"
    )
    assert not (tmp_path / "out").exists()


def test_checkpoints_are_more_frequent_than_validations(emoji: EmojiSet, tmp_path: Path) -> None:
    """A validation takes as long as many steps. A checkpoint is cheap, and what is lost without it is not."""
    held_out = plain(torch.from_numpy(emoji.images[:2])), torch.zeros(2, dtype=torch.long)
    path, saved, log = tmp_path / "stage.pt", [], []

    def draw(generator: torch.Generator) -> Batch:
        saved.append(path.exists())
        return held_out

    settings = Settings(1e-3, 0.0, save_every=0, validate_every=60)
    train(VQVAEStage(RECIPE), draw, held_out, Budget(steps=3), settings, path, log.append)
    assert saved == [False, True, True]
    assert [line.split(" held-out")[0] for line in log] == ["step 3"]


def test_tokens_of_a_picture_fit_the_recipe(emoji: EmojiSet) -> None:
    stage = VQVAEStage(RECIPE)
    tokens = encode_plain(stage.vqvae, *pictures_and_labels(emoji.select(np.arange(30) < 2), CPU)).tokens
    assert tokens.shape == (2, RECIPE.tokens)
    features = teacher_features(stage.vqvae.quantize, tokens.split([scale.tokens for scale in RECIPE.scales], 1))
    assert features.shape == (RECIPE.tokens - 1, 2, RECIPE.code_size)
    assert int(tokens.max()) < RECIPE.vocab_size


def test_tokens_of_another_vqvae_are_refused(tmp_path: Path) -> None:
    checkpoint, path = tmp_path / "vqvae.pt", tmp_path / "tokens.safetensors"
    checkpoint.write_bytes(b"one")
    tokens = torch.arange(6).view(2, 3)
    TokenSet(tokens, torch.tensor([-1, 4])).save(path, sha256(checkpoint))
    read = TokenSet.load(path, sha256(checkpoint), 3)
    assert torch.equal(read.tokens, tokens.int())
    assert read.labels.tolist() == [-1, 4]
    with pytest.raises(SettingsError, match="expected 4 tokens in an image, found 3; run `python -m"):
        TokenSet.load(path, sha256(checkpoint), 4)
    checkpoint.write_bytes(b"another")
    with pytest.raises(SettingsError, match="has changed since it was made; run `python -m"):
        TokenSet.load(path, sha256(checkpoint), 3)
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(SettingsError, match="damaged"):
        TokenSet.load(path, sha256(checkpoint), 3)
