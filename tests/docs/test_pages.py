"""Commands, Python, TOML, JSON, links and test names in the documentation are valid."""

import ast
import importlib
import re
import runpy
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from dinocli.app import COMMANDS, load_command
from dinocore.data.annotations import read_annotations
from dinocore.data.formats.layout import find_layout
from dinocore.presets import list_presets, load_config

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
BLOCK = re.compile(r"^( *)```([a-z]*)[^\n]*\n(.*?)^\1```", re.M | re.S)
PLACEHOLDERS = {"N": "1", "S": "1", "W": "1", "NUMBER": "1", "HxW": "64x64"}  # replaced by valid values
SKIPPED = {"-h", "--help", "…", "$resume", ">", "mine.toml"}
OLD = {"CHANGELOG.md"}  # describes past versions


class Line(NamedTuple):
    """A command in a page."""

    page: str
    text: str
    whole: bool  # in a code block, where no argument may be missing

    def __str__(self) -> str:
        return f"{self.page}: {self.text}"


def blocks(page: Path, *languages: str) -> Iterator[str]:
    """The code blocks of a page in these languages."""
    for block in BLOCK.finditer(page.read_text(encoding="utf-8")):
        if block[2] in languages:
            yield block[3]


def shell_commands(script: str) -> Iterator[str]:
    """The arguments of each `dino` command in a script."""
    for line in script.replace("\\\n", " ").splitlines():
        for part in re.split(r"&&|\|\||[|;]|\$\(", line.partition(" #")[0]):
            match = re.search(r"(?:^|\s)(?:-m dinocli|dino) (?!:)(.*)", part.strip().removeprefix("$ "))
            if match and not re.search(r"\b(docker|pip) ", part):
                yield match[1].strip().rstrip("&)'")


def commands() -> Iterator[Line]:
    for page in PAGES:
        if page.name in OLD:
            continue
        for script in blocks(page, "", "bash"):
            yield from (Line(page.name, text, True) for text in shell_commands(script))
        prose = BLOCK.sub("", page.read_text(encoding="utf-8"))
        yield from (Line(page.name, text, False) for text in re.findall(r"`dino ([^`]*)`", prose))


LINES = sorted(set(commands()))


def problem_of(line: Line) -> str:
    """What is wrong with a command, or an empty string."""
    try:
        name, *arguments = [PLACEHOLDERS.get(word, word) for word in shlex.split(line.text)]
    except ValueError as error:
        return str(error)
    if name in ("COMMAND", "--help", "--version"):
        return ""
    if name not in COMMANDS:
        return f"there is no command `{name}`"
    command = load_command(name)
    arguments = [word for word in arguments if word not in SKIPPED]
    try:
        context = command.make_context(name, arguments)
    except Exception as error:
        if not line.whole and type(error).__name__ == "MissingParameter":
            return ""
        return f"{type(error).__name__}: {getattr(error, 'message', error)}"
    params = context.params
    settings = params.get("overrides") or params.get("set") or []
    return preset_problem(params) or next(filter(None, map(setting_problem, settings)), "")


def preset_problem(params: dict) -> str:
    preset = params.get("preset")
    known = not preset or preset in list_presets() or preset.isupper() or preset.endswith(".toml")
    return "" if known else f"there is no preset `{preset}`"


def setting_problem(setting: str) -> str:
    if setting == "KEY=VALUE" or "…" in setting:
        return ""
    try:
        load_config("tiny", overrides=[setting])
    except Exception as error:
        return str(error)
    return ""


def test_every_command_in_the_documentation_is_valid(monkeypatch):
    for check in ("weights.fetch.catalogue.check_there", "data.formats.layout.check_is_folder"):
        monkeypatch.setattr(f"dinocore.{check}", lambda name: None)  # pages use example names
    problems = [f"{line}\n    {problem}" for line in LINES if (problem := problem_of(line))]
    assert len(LINES) > 100
    assert problems == []


def test_a_command_with_a_typo_is_reported():
    mistakes = [
        "predict a --treshold 1",
        "tarin",
        "train --preset r50",
        "train --set model.querys=3",
        "predict --gpus x a",
    ]
    assert all(problem_of(Line("", mistake, True)) for mistake in mistakes)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_in_a_page_compiles_and_its_imports_of_the_package_exist(page):
    for code in blocks(page, "python"):
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(("dinocore", "dinocli")):
                module = importlib.import_module(node.module)
                assert [a.name for a in node.names if not hasattr(module, a.name)] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_toml_and_json_in_a_page_can_be_read(page):
    for text in blocks(page, "toml"):
        assert tomllib.loads(text)


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as MkDocs and GitHub make them."""
    headings = re.findall(r"^#+ (.*)$", BLOCK.sub("", page.read_text(encoding="utf-8")), re.M)
    return {re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower()) for heading in headings}


def broken_links(page: Path) -> Iterator[str]:
    """Links of a page to files, images and headings that do not exist."""
    prose = BLOCK.sub("", page.read_text(encoding="utf-8"))
    for target in re.findall(r"\]\(([^)\s]+)\)", prose):
        path, _, anchor = target.partition("#")
        if re.match(r"[a-z]+:", target) or path == "commands.md":  # another site, or built with the site
            continue
        file = page.parent / path if path else page
        if not file.exists() or (anchor and anchor not in anchors(file)):
            yield target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_pages_lead_to_existing_files_and_headings(page):
    assert list(broken_links(page)) == []


def test_every_image_of_the_documentation_is_shown_somewhere():
    shown = " ".join(page.read_text(encoding="utf-8") for page in PAGES)
    assert [image.name for image in (ROOT / "docs/images").iterdir() if f"images/{image.name}" not in shown] == []


def test_the_readme_of_the_package_has_no_relative_links_or_images():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for rule in project["tool"]["hatch"]["metadata"]["hooks"]["fancy-pypi-readme"]["substitutions"]:
        text = re.sub(rule["pattern"], rule["replacement"], text)
    assert "docs/tutorial.md" in text
    assert [link for link in re.findall(r"\]\(([^)]*)\)", text) if not link.startswith(("https://", "#"))] == []


def test_the_tests_that_the_fault_catalogue_names_exist():
    text = (ROOT / "docs/reliability.md").read_text(encoding="utf-8")
    references = re.findall(r"`(?:tests/)?((?:\w+/)?test_\w+\.py)(?:::(test_\w+?)_?…?)?`", text)
    assert len(references) > 50
    missing = []
    for file, start in references:
        sources = [path.read_text(encoding="utf-8") for path in ROOT.glob(f"tests/**/{file}")]
        if not any(f"def {start}" in source for source in sources):
            missing.append(f"{file}::{start}")
    assert sorted(missing) == []


def test_the_script_of_the_tutorial_writes_a_dataset_that_can_be_read(tmp_path):
    namespace = runpy.run_path(str(ROOT / "docs/scripts/draw_parts.py"))
    namespace["main"](tmp_path, train=3, val=1)
    layout = find_layout(tmp_path)
    annotations = read_annotations(layout.train)
    assert layout.kind == "YOLO" and layout.val is not None
    assert [category.name for category in annotations.categories] == ["washer", "nut", "bolt"]
    assert len(annotations.image_ids) == 3 and (annotations.trainable()).all()
