"""python -m export.fidelity: how near one bundle comes to another, scale by scale."""

from __future__ import annotations

from pathlib import Path

import click

from runtime import limits
from runtime.cli import FILE, Number, command, reports_errors
from runtime.drawing import sampling_options
from runtime.progress import progress_bar
from runtime.sampling import Sampling


@command()
@click.argument("reference", type=FILE)
@click.argument("candidate", type=FILE)
@click.option(
    "--tokens", type=Number(int, limits.TESTED_TOKENS), default=2000, help="Number of tokens to compare at each scale."
)
@click.option("--seed", type=Number(int, limits.SEED), default=0, help="Seed of the images that REFERENCE draws.")
@click.option(
    "--simulate-fp16", is_flag=True, help="Round on the CPU as FP16 hardware does. CANDIDATE must be an FP16 bundle."
)
@sampling_options(Sampling(), shortcuts=False)
@reports_errors
def main(reference: Path, candidate: Path, tokens: int, seed: int, simulate_fp16: bool, sampling: Sampling) -> None:
    """Compare the logits of one bundle with those of another, at every scale.

    Both see the tokens that REFERENCE drew (teacher forcing), so that an error shows at the scale where it is made.
    """
    from export.graphs.simulate import simulate
    from export.verify.fidelity import compare, other_settings, table
    from export.verify.magnitudes import check, largest_magnitudes
    from runtime.bundle.manifest import Manifest
    from runtime.files.atomic import scratch_directory
    from runtime.pipeline import Pipeline

    fp16 = candidate
    with scratch_directory(candidate) as scratch, progress_bar() as progress:
        if simulate_fp16:
            simulate(candidate, scratch / "bundle")
            candidate = scratch / "bundle"
        pipeline = Pipeline(candidate, finite=False)
        result = compare(Pipeline(reference), pipeline, tokens, seed, progress, sampling)
        click.echo(table(result))
        if note := other_settings(pipeline.manifest, sampling):
            click.echo(f"{fp16}: {note}")
        if simulate_fp16:
            found = largest_magnitudes(fp16, range(0, Manifest.load(fp16, verify=False).model.num_classes, 250))
            name = max(found, key=lambda key: found[key])
            click.echo(f"largest FP16 magnitude: {found[name]:.1f} ({name})")
            check(found)


if __name__ == "__main__":
    main()
