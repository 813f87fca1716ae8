"""The documents say what is so: their dumps are golden texts, their commands, files and words exist."""

import argparse
import re
import shlex
from pathlib import Path

import pytest

from plait.api.cli import command_parser
from plait.tests.golden import FOLDER
from plait.tests.paths import ROOT

DOCUMENTS = [ROOT / f"{name}.md" for name in ("README", "ARCHITECTURE", "CONTRIBUTING")]
DOCUMENTS += sorted((ROOT / "docs").rglob("*.md"))
ROOMS = "ir|cost_model|planner|codegen|runtime|api|tests|docs|examples|benchmarks"
# `<!-- golden: test_walk/walk.txt local 3-5,9 -->`: lines 3 to 5 and 9 of a section (or of `all`) below
MARKER = re.compile(
    r"<!-- golden: (\S+) (\w+)(?: ([\d,-]+))? -->\n\n((?:    [^\n]*\n|\n(?=    ))*)"
)


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def golden_block(match: re.Match[str]) -> str:
    """The block that a marker asks for."""
    file, section, ranges, _ = match.groups()
    text = (FOLDER / file).read_text(encoding="utf-8")
    if section != "all":
        text = text.split(f"## {section}\n", 1)[1].split("\n\n## ")[0]
    lines = text.splitlines()
    if ranges:
        ends = [part.partition("-") for part in ranges.split(",")]
        lines = [x for first, _, last in ends for x in lines[int(first) - 1 : int(last or first)]]
    head = match[0].split("\n")[0]
    return "\n".join([head, "", *(f"    {line}".rstrip() for line in lines), ""])


@pytest.mark.parametrize("path", DOCUMENTS, ids=name)
def test_dumps_are_golden_texts(path, request):
    text = path.read_text(encoding="utf-8")
    current = MARKER.sub(golden_block, text)
    if request.config.getoption("--update-golden"):
        path.write_text(current, encoding="utf-8")
    assert text.count("<!-- golden") == len(MARKER.findall(text)), "a marker without a block"
    assert current == path.read_text(encoding="utf-8")


def code_lines(text: str) -> list[str]:
    """Lines of code blocks, indented or fenced; a backslash joins lines, comments are cut off."""
    lines, fenced = [], False
    for line in text.replace("\\\n", " ").splitlines():
        if line.startswith("```"):
            fenced = not fenced
        elif fenced or line.startswith("    "):
            lines.append(re.sub(r"\s#\s.*", "", line).strip())
    return lines


@pytest.fixture(scope="module")
def commands() -> dict[str, argparse.ArgumentParser]:
    actions = command_parser()._actions
    return next(a.choices for a in actions if isinstance(a, argparse._SubParsersAction))


@pytest.mark.parametrize("path", DOCUMENTS, ids=name)
def test_commands_exist(path, commands):
    for line in code_lines(path.read_text(encoding="utf-8")):
        if not line.startswith("plait "):
            continue
        command, *arguments = shlex.split(line.split("|")[0].removeprefix("plait "))
        assert command in commands, line
        known = commands[command]._option_string_actions
        for argument in arguments[: arguments.index("--") if "--" in arguments else None]:
            assert not argument.startswith("-") or argument.partition("=")[0] in known, line


@pytest.mark.parametrize("path", DOCUMENTS, ids=name)
def test_make_targets_exist(path):
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    used = set(
        re.findall(r"^make ([a-z-]+)", "\n".join(code_lines(path.read_text())), re.MULTILINE)
    )
    assert used <= targets


@pytest.mark.parametrize("path", DOCUMENTS, ids=name)
def test_files_exist(path):
    """What looks like a path of the house, in backticks or as a link, is one (with or without .py)."""
    text = path.read_text(encoding="utf-8")
    paths = set(re.findall(rf"`((?:{ROOMS})/[\w/.*-]*)`", text)) | {
        link for link in re.findall(r"\]\(([^)#:\s]+)", text) if (path.parent / link) != path
    }
    missing = [p for p in sorted(paths) if not exists(ROOT, p) and not exists(path.parent, p)]
    assert not missing


def exists(folder: Path, path: str) -> bool:
    if "*" in path:
        return any(folder.glob(path))
    return (folder / path).exists() or (folder / f"{path}.py").exists()


def test_the_glossary_of_the_site_is_that_of_contributors():
    row = re.compile(r"^\| .+ \| .+ \|$", re.MULTILINE)
    glossary = set(row.findall((ROOT / "docs" / "glossary.md").read_text(encoding="utf-8")))
    assert glossary
    assert glossary <= set(row.findall((ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")))


def test_the_site_lists_documents_that_exist():
    listed = set(re.findall(r"([\w/]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE))
    assert listed == {
        path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")
    }
