"""All errors have the same structure, and all codes are documented."""

import ast
import pickle
import re
from pathlib import Path

import pytest

from dinocore.error_codes import CODES, ERROR, as_markdown
from dinocore.errors import ConfigError, DataError, DinoError, Interrupted

ROOT = Path(__file__).parents[1]


def test_the_page_of_error_codes_is_up_to_date():
    assert (ROOT / "docs" / "errors.md").read_text() == as_markdown()


def test_every_code_has_an_example_and_every_error_has_advice():
    assert all(code.meaning and code.example for code in CODES.values())
    without_fix = [name for name, code in CODES.items() if code.level == ERROR and not code.fix]
    assert [name for name in without_fix if name.startswith("DATA-")] == []


def test_every_code_in_the_source_is_listed_and_every_listed_one_is_used():
    used = set()
    for file in [*ROOT.glob("dinocore/**/*.py"), *ROOT.glob("dinocli/**/*.py")]:
        if file.name == "error_codes.py":
            continue
        texts = [node.value for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Constant)]
        used |= {text for text in texts if isinstance(text, str) and re.fullmatch(r"(DATA|MODEL)(-[A-Z]+)+", text)}
        used |= {text for text in texts if text in ("USAGE", "CONFIG", "DATA", "CHECKPOINT", "ENVIRONMENT", "DIVERGED",
                                                    "INTERRUPTED", "BUG", "INPUTS", "EXPORT")}  # fmt: skip
    built = {f"DATA-IMAGE-{kind}" for kind in ("BANDS", "DAMAGED", "FORMAT", "LARGE", "MISSING")}  # built in images.py
    assert used | built == set(CODES)


@pytest.mark.parametrize(
    ("error", "what", "fix"),
    [
        (ConfigError("there is no form `x`; choose a or b"), "there is no form `x`", "choose a or b"),
        (DataError("it is broken; and worse; copy it again"), "it is broken; and worse", "copy it again"),
        (DataError("a; b", code="DATA-JSON", where="x.json", fix="c"), "a; b", "c"),
        (DinoError("nothing to be done"), "nothing to be done", None),
    ],
)
def test_the_part_after_the_last_semicolon_is_the_fix_unless_one_is_given(error, what, fix):
    assert error.as_dict()["what"] == what and error.as_dict()["fix"] == fix


def test_an_error_gives_its_location_once_and_survives_pickling():
    error = DataError("it is cut off", code="DATA-JSON", where="x.json", fix="copy it again")
    assert str(error) == "x.json: it is cut off; copy it again"
    assert (
        str(DataError("x.json is cut off", where="x.json", fix="copy it again")) == "x.json is cut off; copy it again"
    )
    assert pickle.loads(pickle.dumps(error)).as_dict() == error.as_dict()
    assert Interrupted("stopped", 143).as_dict()["exit_code"] == 143
