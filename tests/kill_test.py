"""Kill every command that writes, at random moments, and check what is left: python -m tests.kill_test --kills 300

After each kill, each output is absent or complete. After one more run of each command, nothing half-written is left.
The commands run in forks of one process that has imported everything, so that the kills hit work, not imports.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory

import click
import numpy as np
from PIL import Image

from calibration.record import Calibration
from export.bundle import export_bundle
from export.checkpoint.recipe import Recipe
from export.checkpoint.weights import formula_weights
from runtime.bundle.engine_record import EngineRecord
from runtime.bundle.manifest import Manifest

TINY = Path(__file__).parent / "data" / "tiny.toml"
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGHUP, signal.SIGINT)


@dataclass(frozen=True)
class Command:
    """A command line, and a check of its output, which raises if the output is not complete."""

    module: str
    arguments: tuple[object, ...]
    output: Path
    check: Callable[[Path], object]
    kept: bool = True  # whether the output of an earlier run stays until the next run replaces it


def commands(folder: Path, engines: bool) -> list[Command]:
    """Return every command that writes. They read the bundles in `folder`, and write there."""
    fp32, fp16, work = folder / "fp32", folder / "fp16", folder / "out"
    exported = ("--model", TINY, "--random-weights", 1, "--out", work / "bundle")
    calibrated = (fp32, "--target", "cpu", "--images", 8, "--out", work / "int8")
    drawn = ("--bundle", fp32, "--per-class", 8, "--batch", 4, "--top-k", 9, "--out", work / "set")
    edited = ("--bundle", fp32, "--image", folder / "photo.png", "--box", "0,0,0.5,1", "--label", "1,2,3", "--top-k", 9)
    files = ("--out", work / "edit.png", "--dump", work / "edit.npz", "--animation", work / "edit.webp")
    verified = (fp16, "--against", fp32, "--pictures", 2, "--report", work / "report")
    found = [
        Command("export.__main__", exported, work / "bundle", Manifest.load),
        Command("calibration.__main__", calibrated, work / "int8", Manifest.load),
        Command("calibration.__main__", calibrated, fp32 / "calibration.json", Calibration.load),
        Command("runtime.sample_set", drawn, work / "set", _check_set, kept=False),
        Command("runtime.edit", (*edited, *files), work / "edit.png", _check_picture),
        Command("runtime.edit", (*edited, *files), work / "edit.npz", lambda path: dict(np.load(path))),
        Command("runtime.triton", (work / "repository", "--bundle", fp32), work / "repository", _check_repository),
        Command("export.verify.__main__", verified, work / "report", lambda path: json.loads(_text(path))),
    ]
    if engines:
        built = (fp16, "--force", "--out", work / "engines")
        found.append(Command("export.engine.__main__", built, work / "engines", _check_engines))
    return found


def _text(report: Path) -> str:
    return (report / "report.json").read_text()


def _check_picture(path: Path) -> None:
    with Image.open(path) as picture:
        picture.load()


def _check_set(folder: Path) -> None:
    for path in folder.glob("[!.]*.png"):
        _check_picture(path)
    if (folder / "settings.json").exists():
        json.loads((folder / "settings.json").read_text())
    if (folder / "samples.npz").exists():
        np.load(folder / "samples.npz")["arr_0"]


def _check_repository(folder: Path) -> None:
    assert (folder / "var_edge" / "config.pbtxt").read_text().endswith("]\n")
    Manifest.load(folder / "var_edge" / "bundle")


def _check_engines(folder: Path) -> None:
    Manifest.load(folder)
    EngineRecord.load(folder)


def start(command: Command, log: Path) -> int:
    """Run a command in a fork; return its process number."""
    if child := os.fork():
        return child
    for number in SIGNALS[1:]:  # as a shell would start it
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    with log.open("a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    code = 1
    try:
        import_module(command.module).main([str(argument) for argument in command.arguments])
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    finally:
        sys.stdout.flush()
        os._exit(code)


def ended(child: int) -> int:
    """Return the exit code of a process; negative for a signal that it did not catch."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def leftovers(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.var-edge"))


def run(kills: int, seed: int, engines: bool, only: str = "", say: Callable[[str], object] = print) -> Counter[str]:
    """Kill the commands in turn; return how often each signal had which result. Raises AssertionError."""
    draw, counts = random.Random(seed), Counter[str]()
    known: set[Path] = set()  # files left by earlier kills
    with TemporaryDirectory(prefix="kill-test-") as name:
        folder = Path(name)
        recipe = Recipe.load(str(TINY))
        for precision in ("fp32", "fp16"):
            export_bundle(recipe, formula_weights(recipe, 0), folder / precision, precision)
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(folder / "photo.png")
        (folder / "out").mkdir()
        log = folder / "log"
        wanted = [command for command in commands(folder, engines) if only in command.module]
        seconds: dict[str, float] = {}
        for command in wanted:
            begin = time.monotonic()
            code = ended(start(command, log))
            assert code == 0, f"{command.module}: {code}: {log.read_text()[-600:]}"
            seconds.setdefault(command.module, time.monotonic() - begin)
        for i in range(kills):
            command, number = wanted[i % len(wanted)], draw.choice(SIGNALS)
            if not command.kept:
                shutil.rmtree(command.output, ignore_errors=True)
            if command.output.name == "calibration.json":
                command.output.unlink(missing_ok=True)
            child = start(command, log)
            time.sleep(draw.random() * seconds[command.module])
            os.kill(child, number)
            code = ended(child)
            left = leftovers(folder)
            for each in wanted:
                if each.output.exists() or (each.kept and each.output.name != "calibration.json"):
                    each.check(each.output)
            caught = code == 128 + number
            aborted = code == 1 and number == signal.SIGINT  # by click, before and after the command itself
            expected = aborted or code in (0, -number, 128 + number)
            assert expected, f"{command.module}: {code}: {log.read_text()[-600:]}"
            how = "ended before" if code == 0 else "cleaned up" if caught else "killed at once"
            counts[f"{number.name}: {how}, {'left something' if left else 'left nothing'}"] += 1
            if caught and number != signal.SIGKILL:
                assert known.issuperset(left), f"{command.module}, {number.name}: left {set(left) - known}"
            known = set(left)
            if (i + 1) % 50 == 0:
                say(f"{i + 1} kills: everything at its name is good, {len(left)} left over until the next run")
        for command in wanted:
            code = ended(start(command, log))
            assert code == 0, f"{command.module}: {code}: {log.read_text()[-600:]}"
        assert not leftovers(folder), leftovers(folder)
        say("one more run of each command: nothing is left over")
    return counts


@click.command()
@click.option("--kills", default=300, show_default=True, help="How many processes to kill.")
@click.option("--seed", default=0, show_default=True, help="Seed of the moments and signals.")
@click.option("--engines/--no-engines", default=True, show_default=True, help="Also build engines (TensorRT for RTX).")
def main(kills: int, seed: int, engines: bool) -> None:
    """Kill every command that writes at random moments and check what is left."""
    for what, count in sorted(run(kills, seed, engines).items()):
        click.echo(f"{count:4} x {what}")


if __name__ == "__main__":
    main()
