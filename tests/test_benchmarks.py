"""The scripts in benchmarks/ are up to date with the code."""

import ast
import importlib
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture
def mutations(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    monkeypatch.delitem(sys.modules, "mutations", raising=False)
    import mutations

    return mutations.MUTATIONS


def test_each_mutation_replaces_code_that_occurs_once_and_names_existing_tests(mutations):
    stale = [mutation.what for mutation in mutations if (ROOT / mutation.file).read_text().count(mutation.old) != 1]
    missing = [
        path
        for mutation in mutations
        for path in mutation.tests.split()
        if not (ROOT / path.partition("::")[0]).exists()
    ]
    assert (stale, missing) == ([], [])


def test_names_that_benchmarks_import_from_the_package_exist():
    missing = []
    for file in sorted((ROOT / "benchmarks").glob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in ("dinocore", "dinocli"):
                module = importlib.import_module(node.module)
                folder = Path(module.__file__).parent
                submodules = {path.stem for path in folder.iterdir()} if hasattr(module, "__path__") else set()
                missing += [f"{file.name}: {node.module}.{name.name}" for name in node.names
                            if not hasattr(module, name.name) and name.name not in submodules]  # fmt: skip
    assert missing == []
