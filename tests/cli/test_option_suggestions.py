"""The error about an unknown option suggests the option that was meant."""

import pytest

from dinocli.app import COMMANDS, load_command
from dinocli.options import SAME


def options_of(command: str) -> list[str]:
    return [option.opts[0] for option in load_command(command).params]


@pytest.mark.parametrize(
    ("line", "suggestion"),
    [
        ("train --out runs/a", "--output-dir"),
        ("train --output_dir=runs/a", "--output-dir"),
        ("predict a.jpg --output-dir b.json", "--out"),
        ("train --learning-rate 1e-4", "--lr"),
        ("train --batch 4", "--batch-size"),
        ("benchmark --batch-size 4", "--batch"),
        ("train --Epochs 3", "--epochs"),
        ("train --epoch 3", "--epochs"),
        ("train --checkpoint a.safetensors", "--weights"),
        ("predict a.jpg --save", "--save-images or --save-video"),
        ("inspect-mask --dn-group 5", "--dn-groups"),
    ],
)
def test_an_unknown_option_gets_a_suggestion(dino, line, suggestion):
    result = dino(*line.split())
    assert result.code == 2
    assert f"did you mean {suggestion}? See dino {line.split()[0]} --help" in result.err


@pytest.mark.parametrize("line", ["train --imgsz 640", "eval -x", "--foo", "serve --gamma 2"])
def test_an_option_unlike_all_others_gets_no_suggestion(dino, line):
    result = dino(*line.split())
    assert result.code == 2
    assert "No such option" in result.err and "did you mean" not in result.err


def test_each_group_of_synonyms_contains_an_existing_option():
    known = {option for command in COMMANDS for option in options_of(command)}
    assert [names for names in SAME if not known & set(names)] == []


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_has_at_most_one_option_of_each_group_of_synonyms(name):
    known = set(options_of(name))
    assert [names for names in SAME if len({*names} & known) > 1] == []
