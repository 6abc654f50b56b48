"""Every option of every command has a range, and a wrong value gives one line of error before any work."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from runtime.cli import Number
from runtime.errors import LENGTH, UNPRINTABLE

MODULES = [
    *("runtime.generate", "runtime.edit", "runtime.sample_set", "runtime.bench.__main__", "calibration.__main__"),
    *("calibration.ablation", "export.__main__", "export.engine.__main__", "export.fidelity", "export.gpu_check"),
    "export.verify.__main__",
]
COMMANDS: dict[str, click.Command] = {name: import_module(name).main for name in MODULES}
ABSURD = [
    "nan",
    "inf",
    "-1",
    "-1e400",
    "1e-400",
    "1e39",
    "9" * 5000,
    "18446744073709551616",
    "٣",
    "1_0",
    "",
    "0x1",
    "1\n2",
    "\x1b[2J",
]
TEXTS = {
    "--batches": [
        "0",
        "1,",
        "1,x",
        "-1",
        "100000000000000000000",
        "1025",
        "9" * 5000,
        ",".join(map(str, range(1, 99))),
    ],
    "--shard": ["0/1", "2/1", "1", "a/b", "9" * 5000 + "/1", "1/٣", "-1/-1"],
}


def one_line(result: Result, code: int) -> str:
    """Return the message, after checking that the output has nothing else."""
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exc_info
    assert result.exit_code == code, result.output
    assert result.output.endswith("\n") and result.output.startswith("Error: ")
    message = result.output[:-1]
    assert len(message) <= LENGTH and not UNPRINTABLE.search(message)
    return message


def options() -> Iterator[tuple[str, str, click.ParamType]]:
    for module, command in COMMANDS.items():
        for option in command.params:
            if isinstance(option, click.Option):
                yield module, option.opts[-1] if len(option.opts) == 1 else option.opts[0], option.type


def test_numbers_have_a_range() -> None:
    for module, option, kind in options():
        assert not isinstance(kind, (click.types.IntParamType, click.types.FloatParamType)), f"{module} {option}"


@pytest.mark.parametrize(
    ("module", "option"), [(module, option) for module, option, kind in options() if isinstance(kind, Number)]
)
def test_absurd_numbers(module: str, option: str) -> None:
    for value in ABSURD:
        message = one_line(CliRunner().invoke(COMMANDS[module], [f"{option}={value}"]), 2)
        assert f"'{option}'" in message and "expected a" in message


@pytest.mark.parametrize(("module", "option"), [(m, option) for m, option, _ in options() if option in TEXTS])
def test_absurd_texts(module: str, option: str) -> None:
    needed = {"export.__main__": ["--model", "x"], "runtime.sample_set": ["--bundle", "x"]}
    bundle = ["--bundle", "x"] if module.startswith("runtime.bench") else ["x"]
    arguments = needed.get(module, bundle) + ([] if "bench" in module or "engine" in module else ["--out", "y"])
    for value in TEXTS[option]:
        message = one_line(CliRunner().invoke(COMMANDS[module], [*arguments, f"{option}={value}"]), 2)
        assert f"{option}: expected" in message


@pytest.mark.parametrize("value", ["", "a\0b"])
def test_paths_that_are_none(value: str) -> None:
    for module, command in COMMANDS.items():
        for option in command.params:
            if isinstance(option, click.Option) and isinstance(option.type, click.Path):
                message = one_line(CliRunner().invoke(command, [f"{option.opts[0]}={value}"]), 2)
                assert f"'{option.opts[0]}': expected a path" in message, module


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--label", "9" * 5000], "label: expected 0 to 5"),
        (["--label", "x" * 100_000], "no class has this name"),
        (["--label", "\x1b[2J\n"], "no class has this name"),
        (["--label", "٣"], "no class has this name"),
        (["--label", "1", "--top-p", "1e-7"], "top_p: expected 0 (all) or 1e-06 to 1"),
        (["--label", "1", "--out", "x" * 5000 + ".png"], "File name too long"),
        (["--label", "1", "--bundle", "\x1b[2J\n"], "not a bundle"),
        (["--label", "1", "--bundle", "x\udcff"], "x\\udcff: no manifest.json"),
    ],
)
def test_absurd_values_of_generate(
    toy_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    common = ["--bundle", str(toy_bundle), "--top-k", "5"]
    assert message in one_line(CliRunner().invoke(COMMANDS["runtime.generate"], [*common, *arguments]), 1)
    assert not list(tmp_path.iterdir())


def test_usage_errors_are_one_line_and_say_where_help_is() -> None:
    for arguments in (["--no-such\n\x1b[31m"], ["too", "many"], ["--seed"], ["--backend", "x" * 9999]):
        message = one_line(CliRunner().invoke(COMMANDS["runtime.generate"], ["--bundle", "x", *arguments]), 2)
        assert "--help lists the options" in message


@pytest.mark.skipif(sys.platform != "linux", reason="names that are not UTF-8 are those of Linux")
@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_names_that_the_output_cannot_show(toy_bundle: Path, tmp_path: Path, encoding: str) -> None:
    out = bytes(tmp_path) + b"/caf\xc3\xa9\xff.png"
    command = [sys.executable, "-m", "runtime.generate", "--bundle", bytes(toy_bundle), "--label", "1", "--top-k", "5"]
    result = subprocess.run(
        [*command, "--out", out], capture_output=True, env={"PYTHONIOENCODING": encoding, "PATH": ""}, check=False
    )
    assert (result.returncode, result.stderr) == (0, b"")
    assert b".png: 1 image(s)" in result.stdout
