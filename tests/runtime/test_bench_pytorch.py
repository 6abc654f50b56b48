"""Comparing with PyTorch, and counting the work as PyTorch counts it."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch._inductor.config as inductor
from torch.utils.flop_counter import FlopCounterMode

from export.bench import COMPILED, EAGER, pytorch_rivals
from export.checkpoint.provenance import recipe_of
from export.checkpoint.recipe import Recipe
from export.checkpoint.weights import CheckpointError, checkpoint_weights, empty_models, formula_weights
from export.model.tiny_decoder import TinyDecoder
from runtime.bench.benchmark import benchmark
from runtime.bench.report import Settings
from runtime.bench.work import decoder_flop, tiny_decoder_flop, transformer_flop
from runtime.bundle.manifest import Manifest, Model
from tests.conftest import DATA

SETTINGS = Settings("auto", 2, (1, 3), 2, "3", 0, 4.0, 20, 0.9, False, "pytorch")


@pytest.fixture
def no_compiler() -> Iterator[None]:
    torch.compiler.reset()
    with inductor.patch({"cpp.cxx": ("/no/such/compiler",)}):
        yield


@pytest.mark.usefixtures("no_compiler")
def test_eager_pytorch_draws_the_same_pictures(tiny_bundle: Path) -> None:
    report = benchmark(tiny_bundle, SETTINGS)
    for times in report.batches:
        (eager,) = times.rivals
        assert (eager.name, eager.differing_pictures, len(eager.seconds.samples)) == (EAGER, 0, 2)
    assert list(report.left_out) == [COMPILED]
    assert "\n" not in report.left_out[COMPILED]


@pytest.mark.full
def test_compiled_pytorch_draws_the_same_pictures(tiny_bundle: Path) -> None:
    torch.compiler.reset()
    report = benchmark(tiny_bundle, SETTINGS)
    assert not report.left_out
    for times in report.batches:
        assert [(rival.name, rival.differing_pictures) for rival in times.rivals] == [(EAGER, 0), (COMPILED, 0)]


def test_recipe_comes_back_from_the_manifest(tiny_bundle: Path) -> None:
    tiny, found = Recipe.load(str(DATA / "tiny.toml")), recipe_of(Manifest.load(tiny_bundle))
    where = {"folder": None, "var_checkpoint": "", "vae_checkpoint": "", "classes": None}
    assert dataclasses.replace(tiny, **where) == dataclasses.replace(found, **where)


@pytest.mark.usefixtures("no_compiler")
def test_other_weights_than_the_bundles_are_refused(tiny_bundle: Path, tmp_path: Path) -> None:
    recipe, files = Recipe.load(str(DATA / "tiny.toml")), {}
    for seed in (0, 1):
        for kind, model in zip(("var", "vae"), empty_models(recipe), strict=True):
            weights, files[kind, seed] = formula_weights(recipe, seed), tmp_path / f"{kind}_{seed}.pth"
            state = {name: torch.from_numpy(weights.read(name)) for name in model.state_dict()}
            torch.save(state, files[kind, seed])
    manifest = Manifest.load(tiny_bundle)
    source = checkpoint_weights(recipe, files["var", 0], files["vae", 0]).source
    manifest = dataclasses.replace(manifest, provenance=dataclasses.replace(manifest.provenance, source=source))

    draws, _ = pytorch_rivals(manifest, 3, SETTINGS, 2, (files["var", 0], files["vae", 0]))
    assert EAGER in draws
    with pytest.raises(CheckpointError, match=r"vae_1\.pth: not what the bundle was made of.*--vae-checkpoint FILE"):
        pytorch_rivals(manifest, 3, SETTINGS, 2, (files["var", 0], files["vae", 1]))
    with pytest.raises(CheckpointError, match=r"found no var_0\.pth"):
        pytorch_rivals(manifest, 3, SETTINGS, 2, (None, None))


@pytest.mark.parametrize("name", ["var_d16", "var_demo", str(DATA / "tiny.toml")])
def test_work_is_what_pytorch_counts(name: str) -> None:
    recipe = Recipe.load(name)
    model = Model(**{field.name: getattr(recipe, field.name) for field in dataclasses.fields(Model)})
    var, vqvae = empty_models(recipe)

    def counted(guided: int, scales: int) -> int:
        """Count the first scales, the `guided` ones with two columns and the others with one."""
        with torch.device("meta"), FlopCounterMode(display=False) as counter:
            for k, scale in enumerate(recipe.scales[:scales]):
                columns = 2 if k < guided else 1
                modulation = torch.empty(recipe.depth, 6, columns, recipe.width)
                x = torch.empty(scale.tokens, columns, recipe.width)
                past = torch.empty(scale.offset, columns, recipe.heads, recipe.head_size)
                var(x, modulation, modulation[0, :2], [past] * recipe.depth, [past] * recipe.depth)
        return int(counter.get_total_flops())

    count = len(recipe.scales)
    assert transformer_flop(model) == counted(count, count)
    assert transformer_flop(model, 2) == counted(2, count)
    assert transformer_flop(model, 1, 2) == counted(1, 2)
    assert transformer_flop(model, None, 0) == 0
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        vqvae.decode(torch.empty(1, recipe.code_size, recipe.grid, recipe.grid))
    assert decoder_flop(model) == counter.get_total_flops()
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        TinyDecoder(model)(torch.empty(1, recipe.code_size, recipe.grid, recipe.grid))
    assert tiny_decoder_flop(model) == counter.get_total_flops()
