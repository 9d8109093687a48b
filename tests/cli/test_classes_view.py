"""The table of carried-over classes is readable for a few classes and for eighty."""

from rich.console import Console

from dinocli.commands.train.view import carried_over_lines, carried_over_table
from dinocore.weights.convert.coco import NAMES


def rendered_lines(classes, width=80):
    console = Console(width=width, color_system=None)
    with console.capture() as capture:
        console.print(carried_over_table(classes))
    return [line.rstrip() for line in capture.get().splitlines()]


def test_few_classes_have_a_line_each():
    lines = rendered_lines({"RBC": "rbc", "[new]": None})
    assert [line.split() for line in lines] == [["class", "starts", "from"], ["RBC", "rbc"], ["[new]", "new"]]


def test_eighty_classes_fold_into_two_lists():
    classes: dict[str, str | None] = {name: name if k % 2 else None for k, name in enumerate(NAMES)}
    lines = rendered_lines(classes | {"cell_phone": "cell phone"})
    assert len(lines) < 20 and max(map(len, lines)) <= 80
    assert lines[0].startswith("classes carried over   41   bicycle, motorcycle")
    text = " ".join(" ".join(lines).split())
    assert "cell_phone (from cell phone)" in text and "classes new 40 person, car" in text
    assert carried_over_lines({"a": None}) == ["classes new, 1: a"]
