"""The documentation is true: the commands and targets that it names exist, its Python examples run."""

from __future__ import annotations

import doctest
import importlib
import re
import shlex
from pathlib import Path

import click
import pytest

from streams.cli import cli

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "docker-compose.yml", "CHANGELOG.md")]
PACKAGES = ("schemas", "labeling", "retrain", "streams")


def code(document: Path) -> list[str]:
    """Lines of shell blocks, and code in running text, without comments and prompts."""
    text = document.read_text(encoding="utf-8")
    blocks = re.findall(r"^```(?:sh|shell|bash|console)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    lines = [line.strip().removeprefix("$ ") for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    return lines + re.findall(r"`((?:flywheel|make) [^`\n]+)`", prose)


def commands(program: str) -> list[tuple[str, str]]:
    found = []
    for document in DOCUMENTS:
        for line in code(document):
            for part in re.split(r"&&|;|\|", line):
                if part.strip().startswith(f"{program} "):
                    found.append((document.name, part.strip()))
    return sorted(set(found))


@pytest.mark.parametrize(("document", "line"), commands("flywheel"))
def test_a_command_in_the_documents_exists_with_its_options(document: str, line: str) -> None:
    words = shlex.split(line.partition(" #")[0])[1:]
    command: click.Command = cli
    context = click.Context(command, info_name="flywheel")
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        name = words.pop(0)
        found = command.get_command(context, name)
        assert found is not None, f"{document}: {line}: no command '{name}'"
        command, context = found, click.Context(found, info_name=name, parent=context)
    known = {
        option for parameter in command.get_params(context) for option in [*parameter.opts, *parameter.secondary_opts]
    }
    for word in words:
        if re.match(r"--?[a-z]", word):
            assert word.partition("=")[0] in known, f"{document}: {line}: no option '{word}'"


@pytest.mark.parametrize(("document", "line"), commands("make"))
def test_a_target_in_the_documents_exists(document: str, line: str) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    wanted = [word for word in shlex.split(line.partition(" #")[0])[1:] if "=" not in word and not word.startswith("-")]
    assert set(wanted) <= targets, f"{document}: {line}"


def with_examples() -> list[str]:
    files = [file for package in PACKAGES for file in sorted((ROOT / package).rglob("*.py"))]
    chosen = [file.relative_to(ROOT).with_suffix("") for file in files if ">>> " in file.read_text(encoding="utf-8")]
    return [".".join(path.parts).removesuffix(".__init__") for path in chosen]


@pytest.mark.parametrize("name", with_examples())
def test_the_examples_in_docstrings_run(name: str) -> None:
    outcome = doctest.testmod(
        importlib.import_module(name), optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
    )
    assert outcome.attempted > 0
    assert outcome.failed == 0


def test_the_readme_names_the_two_commands_of_a_newcomer() -> None:
    assert {"make demo", "make test"} <= {line.partition(" #")[0].strip() for line in code(ROOT / "README.md")}
