"""The documentation names what exists: links, anchors, files, tests, commands, their options, make targets."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import click
import pytest

ROOT = Path(__file__).parents[1]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted(ROOT.glob("docs/**/*.md")), ROOT / "tests" / "data" / "README.md"]
WIDTH = 120
OURS = "calibration|docker|docs|examples|export|packages|runtime|tests"  # folders of this repository
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
NAMED = re.compile(rf"(?<![\w/.$-])((?:{OURS})/[\w./-]*\w(?:/|\.(?:py|toml|txt|md|h|hpp|cpp|c|cc))(?!\w))(?:::(\w+))?")
MODULE = re.compile(r"(?:python|\.venv/bin/python) -m ([\w.]+)(.*)")
COMMAND_END = re.compile(r"\s#|[;|>`]|&&")  # a comment, another command, the end of a code span


def faults(page: Path, text: str) -> Iterator[str]:
    """Return the faults of a page, one line each."""
    for number, line in enumerate(text.splitlines(), 1):
        if len(line) > WIDTH:
            yield f"line {number} has {len(line)} characters"
    prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    for target in LINK.findall(re.sub(r"`[^`\n]*`", "", prose)):
        yield from _link_faults(page, text, target)
    for path, test in NAMED.findall(text):
        if "NAME" in path:  # a placeholder
            continue
        if not (ROOT / path).exists():
            yield f"no file {path}"
        elif test and f"def {test}(" not in (ROOT / path).read_text():
            yield f"no test {test} in {path}"
    for module, arguments in MODULE.findall(_joined(text)):
        yield from _command_faults(module, COMMAND_END.split(arguments)[0])
    for target in re.findall(r"(?:^|`)make ([a-z][a-z-]*)", text, re.MULTILINE):
        if not re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE):
            yield f"no target make {target}"


def _link_faults(page: Path, text: str, target: str) -> Iterator[str]:
    if re.match(r"[a-z]+:", target):  # another site
        return
    file, _, anchor = target.partition("#")
    path = page.parent / file if file else page
    if file and not path.exists():
        yield f"link to {target}: no such file"
    elif anchor and anchor not in _anchors(path.read_text() if file else text):
        yield f"link to {target}: no such heading"


def _anchors(text: str) -> set[str]:
    """Return the anchors of the headings of a page, as the usual hosts of repositories make them."""
    code = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", code, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def _joined(text: str) -> str:
    """Join continued lines, replace line breaks within code spans by blanks, and expand `$E`."""
    text = re.sub(r"\\\n\s*", " ", text)
    text = re.sub(r"(?<![`\w])`[^`\n]+\n[^`\n]+`(?!`)", lambda span: span[0].replace("\n", " "), text)
    for name, value in re.findall(r"^([A-Z]+)=\"(.+)\"$", text, re.MULTILINE):
        text = text.replace(f"${name} ", f"{value} ")
    return text


def _command_faults(module: str, arguments: str) -> Iterator[str]:
    if find_spec(module.partition(".")[0]) is None:
        yield f"no module {module}"
        return
    command = _command(module)
    if command is None:
        yield f"python -m {module} is no command"
    if not isinstance(command, click.Command):
        return
    words = arguments.split()
    if isinstance(command, click.Group) and words:
        found = command.commands.get(words[0])
        if found is None:
            yield f"python -m {module} has no command {words[0]}"
            return
        command = found
    known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
    for option in re.findall(r"(?<![\w-])--[a-z][\w-]*", arguments):
        if option not in known | {"--help", "--version"}:
            yield f"python -m {module} has no option {option}"


@cache
def _command(module: str) -> click.Command | bool | None:
    """Return the click command that `python -m module` runs; True if it is no click command, None without a command."""
    try:
        spec = find_spec(module)
        name = module if spec is None or spec.submodule_search_locations is None else f"{module}.__main__"
        spec = find_spec(name)
    except ModuleNotFoundError:
        return None
    if spec is None or spec.origin is None or "__main__" not in Path(spec.origin).read_text() + name:
        return None
    if not re.match(OURS, module):
        return True
    main = getattr(importlib.import_module(name), "main", None)
    return main if isinstance(main, click.Command) else True


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_page_names_what_exists(page: Path) -> None:
    assert list(faults(page, page.read_text())) == []


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("x" * 121, "line 1 has 121 characters"),
        ("[a](gone.md)", "link to gone.md: no such file"),
        ("![a](images/gone.png)", "link to images/gone.png: no such file"),
        ("[a](int8.md#gone)", "link to int8.md#gone: no such heading"),
        ("# Here\n[a](#there)", "link to #there: no such heading"),
        ("```\n# code\n```\n[a](#code)", "link to #code: no such heading"),
        ("see `runtime/gone.py`", "no file runtime/gone.py"),
        ("see `export/gone/`", "no file export/gone/"),
        ("`tests/test_docs.py::test_gone`", "no test test_gone in tests/test_docs.py"),
        ("`python -m export.gone`", "python -m export.gone is no command"),
        ("`python -m runtime.errors`", "python -m runtime.errors is no command"),
        ("`python -m gone`", "no module gone"),
        ("python -m export --model m \\\n  --gone 1", "python -m export has no option --gone"),
        ("`python -m runtime.generate\n--gone 1`", "python -m runtime.generate has no option --gone"),
        ('E="python -m runtime.edit --mask m"\n$E --gone', "python -m runtime.edit has no option --gone"),
        ("python -m examples.demo_model.train gone", "python -m examples.demo_model.train has no command gone"),
        ("python -m examples.demo_model.train var --gone", "python -m examples.demo_model.train has no option --gone"),
        ("run `make gone`", "no target make gone"),
    ],
)
def test_what_is_wrong_is_found(text: str, fault: str) -> None:
    assert list(faults(ROOT / "docs" / "page.md", text)) == [fault]


def test_the_contract_for_batches_is_the_same_everywhere() -> None:
    contract = "A picture drawn in a batch has exactly the tokens it has alone; its pixels differ by at most 1/255."
    for page in (ROOT / "README.md", ROOT / "docs" / "how-it-works.md"):
        assert contract in re.sub(r"\s+", " ", page.read_text()), page


def test_the_map_names_every_page() -> None:
    named = set(LINK.findall((ROOT / "docs" / "index.md").read_text()))
    pages = {str(page.relative_to(ROOT / "docs")) for page in ROOT.glob("docs/**/*.md")} - {"index.md"}
    assert pages <= named


def test_the_python_reference_renders_without_a_warning() -> None:
    pytest.importorskip("pdoc", reason="pdoc is not installed, which renders the docstrings: pip install pdoc")
    subprocess.run([sys.executable, ROOT / "docs" / "api.py"], check=True, cwd=ROOT)
