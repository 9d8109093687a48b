"""`dino inspect-matching`, `inspect-attention` and `inspect-proposals`: output, files and errors."""

import json
import re

import pytest
from PIL import Image

from dinocore.words import whole


def width(path):
    with Image.open(path) as figure:
        return figure.width


def test_matching_of_a_run_with_its_checkpoints(dino, run_folder, image_folder, tmp_path):
    result = dino(
        "inspect-matching",
        "--data",
        image_folder,
        "--run",
        run_folder,
        "--out",
        "m.png",
        "--report",
        "m.html",
        "--json",
    )
    assert result.code == 0, result.err
    output = json.loads(result.out)
    assert [stage["name"] for stage in output["stages"]] == ["first stage", "layer 0", "layer 1"]
    assert output["checkpoints"][0]["instability"] is None
    assert len(output["checkpoints"]) == len(list((run_folder / "checkpoints").glob("step-*")))
    assert width(tmp_path / "m.png") > 1000
    page = (tmp_path / "m.html").read_text()
    assert all(f'data-v="{row["iou"]}"' in page for row in output["stages"][-1]["answers"])
    assert all(f'data-v="{row["probability"]}"' in page for row in output["denoising"])
    table = dino("inspect-matching", "--data", image_folder, "--weights", run_folder)
    assert table.code == 0
    assert "must answer" in table.out and "no object" in table.out


def test_attention_of_a_query_and_of_a_pixel(dino, run_folder, image_folder, tmp_path):
    image_file = next((image_folder / "val2017").iterdir())
    outputs = ("--out", "a.png", "--report", "a.html", "--json")
    result = dino("inspect-attention", image_file, "--weights", run_folder, "--query", 3, *outputs)
    output = json.loads(result.out)
    assert (output["part"], output["index"], len(output["heads"])) == ("decoder", 3, 4)
    assert output["error"] < 1e-4
    assert width(tmp_path / "a.png") > 1000
    page = (tmp_path / "a.html").read_text()
    assert all(f'data-v="{point["weight"]}"' in page for head in output["heads"] for point in head)
    result = dino("inspect-attention", image_file, "--weights", run_folder, "--at", "10,20", "--head", 1)
    assert result.code == 0
    assert "encoder layer 0" in result.out


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["inspect-attention", "--at", "here"], 2),
        (["inspect-attention", "--at", "1,1", "--query", 1], 2),
        (["inspect-attention", "--level", 1], 2),
        (["inspect-attention", "--query", -1], 2),
        (["inspect-attention", "--at", "1,1", "--level", -1], 2),
        (["inspect-attention", "--out", "a.jpg"], 2),
        (["inspect-matching", "--split", "elsewhere"], 2),
        (["inspect-matching", "--split", "test"], 3),  # the synthetic data has none
        (["inspect-matching", "--out", "."], 2),
        (["inspect-matching", "--report", "."], 2),
        (["inspect-matching", "--run", "nowhere"], 4),
    ],
)
def test_invalid_arguments_are_refused_before_any_work(dino, arguments, code):
    result = dino(*arguments)
    assert (result.code, result.out) == (code, "")


def test_an_image_outside_the_dataset_is_refused(dino, run_folder, image_folder):
    result = dino("inspect-matching", "other.jpg", "--data", image_folder, "--weights", run_folder)
    assert result.code == 3
    assert "other.jpg" in result.err


@pytest.mark.slow
def test_the_default_data_is_that_which_the_weights_were_trained_on(dino, run_folder, image_folder, tmp_path):
    first = json.loads(dino("inspect-matching", "--data", image_folder, "--weights", run_folder, "--json").out)
    default = dino("inspect-matching", "--weights", run_folder, "--json")
    assert json.loads(default.out) == first
    assert "the data these weights were trained with" in default.err.replace("\n", " ")
    name = sorted((image_folder / "val2017").iterdir())[-1].name
    assert json.loads(dino("inspect-matching", name, "--weights", run_folder, "--json").out)["file"].endswith(name)

    attention = json.loads(dino("inspect-attention", "--weights", run_folder, "--json").out)
    assert attention["file"].startswith(str(image_folder / "val2017"))

    inside = image_folder / "val2017" / name
    proposals = json.loads(dino("inspect-proposals", inside, "--weights", run_folder, "--json").out)
    assert proposals["judged"] == 1 and proposals["recall"]
    (tmp_path / name).write_bytes(inside.read_bytes())
    outside = json.loads(dino("inspect-proposals", name, "--weights", run_folder, "--json").out)
    assert outside["judged"] == 0, "a file outside the dataset with the same name as one of its images"
    all_proposals = json.loads(dino("inspect-proposals", "--weights", run_folder, "--json").out)
    assert all_proposals["judged"] == len(all_proposals["pictures"]) == len(list((image_folder / "val2017").iterdir()))

    assert dino("inspect-mask", "--weights", run_folder, "--images", inside, "--json").code == 0


def test_moved_data_is_refused_and_synthetic_images_are_used_only_without_a_data_path(dino, run_folder, tmp_path):
    from dinocore.weights.file import load_weights, save_weights

    weights = load_weights(run_folder / "best.safetensors")
    for path, code, message in (("/gone", 3, "give --data DIR"), ("", 0, "images that dino draws")):
        config = weights.config.model_copy(update={"data": weights.config.data.model_copy(update={"path": path})})
        save_weights(tmp_path / "moved.safetensors", weights.tensors, config, weights.categories, {})
        result = dino("inspect-matching", "--weights", "moved.safetensors")
        assert result.code == code and message in result.err.replace("\n", " ")
        result = dino("inspect-attention", "--weights", "moved.safetensors")
        assert result.code == code and "--data" not in result.err
        assert "give an image: dino inspect-attention img.jpg" in result.err.replace("\n", " ")


def test_coordinates_are_not_rounded_to_minus_0():
    assert whole([-0.3, 0.2, 640.4, -3.6]) == "0 0 640 -4"


@pytest.mark.parametrize("command", ["inspect-proposals", "inspect-attention"])
def test_a_strongly_shrunk_panorama_gives_a_warning(dino, run_folder, tmp_path, command):
    Image.new("RGB", (4000, 250)).save(tmp_path / "wide.png")
    Image.new("RGB", (64, 48)).save(tmp_path / "small.png")
    messages = dino(command, tmp_path / "wide.png", "--weights", run_folder).err
    assert re.search(r"warning: .*wide.png is shrunk by a factor of \d+\.\d for the model", messages)
    assert "dino predict --slice auto" in messages
    assert "shrunk" not in dino(command, tmp_path / "small.png", "--weights", run_folder).err
