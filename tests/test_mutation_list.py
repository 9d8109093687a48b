"""benchmarks/mutations.py fits the code."""

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
    stale = [one.what for one in mutations if (ROOT / one.file).read_text().count(one.old) != 1]
    missing = [path for one in mutations for path in one.tests.split() if not (ROOT / path.partition("::")[0]).exists()]
    assert (stale, missing) == ([], [])
