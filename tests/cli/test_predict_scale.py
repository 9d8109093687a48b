"""`dino predict` at scale: file names, resuming, slices, several ranks, and videos."""

import json
import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from dinocli.commands.predict import parts
from dinocli.commands.predict.drawing import draw_detections
from dinocli.commands.predict.predict import so_far
from dinocli.commands.predict.request import PredictRequest
from dinocli.inputs import expand
from dinocli.progress import WorkProgress
from dinocore import build_model, load_config, load_detector
from dinocore.data.annotations import Category
from dinocore.data.synthetic.smear import draw_smear
from dinocore.detections_io import output_stems
from dinocore.presets import override
from dinocore.weights.file import save_weights

SMALL = [
    "model.backbone=resnet18", "model.backbone_weights=none", "model.hidden_dim=32", "model.num_heads=4",
    "model.ffn_dim=48", "model.num_queries=12", "model.num_encoder_layers=1", "model.num_decoder_layers=2",
    "data.train_scales=[64]", "data.crop_chance=0.0", "data.max_size=96", "data.eval_scale=64", "data.workers=0",
]  # fmt: skip


def one_line(text):
    return " ".join(text.split())


@pytest.fixture(scope="session")
def small_weights(tmp_path_factory):
    """Weights of a small untrained model; its detections are arbitrary but reproducible."""
    torch.manual_seed(0)
    config = load_config("r50-4scale", overrides=SMALL)
    path = tmp_path_factory.mktemp("weights") / "small.safetensors"
    categories = [Category(k, name) for k, name in enumerate(("RBC", "WBC", "Platelets"), 1)]
    config = override(config, ["model.num_classes=3"], ("model",))
    save_weights(path, build_model(config.model).state_dict(), config, categories, {})
    return path


@pytest.fixture(scope="session")
def image_file(image_folder):
    return sorted((image_folder / "val2017").iterdir())[0]


@pytest.fixture
def folders(tmp_path):
    """Folders of three images: two with the same name, and one with the name that the second would be given."""
    for k, name in enumerate(("x/a.jpg", "y/a.jpg", "z/a-2.jpg")):
        (tmp_path / name).parent.mkdir()
        Image.fromarray(draw_smear(5, k, (96, 72))[0]).save(tmp_path / name)
    return ["x", "y", "z"]


@pytest.mark.parametrize("kind, suffix", [("labelme", ".json"), ("yolo", ".txt")])
def test_results_of_images_with_the_same_name_do_not_overwrite_each_other(dino, small_weights, folders, kind, suffix):
    args = ("predict", *folders, "--weights", small_weights, "--format", kind, "--out", "out", "--save-images", "drawn")
    assert dino(*args).code == 0
    written = {path.name for path in Path("out").iterdir()} - {"classes.txt"}
    assert written == {f"a{suffix}", f"a-2{suffix}", f"a-3{suffix}"}
    assert {path.stem for path in Path("drawn").iterdir()} == {Path(name).stem for name in written}
    if kind == "labelme":
        targets = {Path("out", json.loads(path.read_text())["imagePath"]).resolve() for path in Path("out").iterdir()}
        assert targets == {Path(name).resolve() for name in ("x/a.jpg", "y/a.jpg", "z/a-2.jpg")}


def test_an_image_named_classes_does_not_overwrite_the_yolo_class_list():
    assert output_stems(["q/classes.jpg", "b.jpg", "-"], "yolo") == {
        "q/classes.jpg": "classes-2", "b.jpg": "b", "-": "stdin"
    }  # fmt: skip
    assert set(output_stems(["A.jpg", "b/a.jpg"]).values()) == {"A", "a-2"}, "some file systems ignore case"


def test_coco_output_lists_all_classes_even_without_detections(dino, small_weights, image_file):
    args = ("predict", image_file, "--weights", small_weights, "--threshold", "1", "--format", "coco")
    assert dino(*args, "--out", "c.json").code == 0
    document = json.loads(Path("c.json").read_text())
    assert [c["name"] for c in document["categories"]] == ["RBC", "WBC", "Platelets"]
    assert document["annotations"] == []


def test_a_folder_named_boxes_is_ignored_without_out(dino, small_weights, image_file):
    Path("boxes").mkdir()
    assert dino("predict", image_file, "--weights", small_weights).code == 0


@pytest.mark.parametrize("out, kind", [("a.xyz", "auto"), ("a.jpg", "auto"), ("a.csv", "json"), ("a.json", "csv")])
def test_an_out_suffix_that_contradicts_the_format_is_refused(dino, image_file, tmp_path, out, kind):
    result = dino("predict", image_file, "--out", out, "--format", kind)
    assert result.code == 2 and "try --out a." in result.err and list(tmp_path.iterdir()) == []
    assert ("--save-images" in result.err) == (out == "a.jpg")


def test_a_dash_is_refused_as_the_output_file(dino, image_file):
    result = dino("predict", image_file, "--out", "-")
    assert result.code == 2 and "--json" in result.err and not Path("-").exists()


def test_json_lines_are_chosen_by_the_suffix_and_can_be_resumed(dino, small_weights, image_folder):
    args = ("predict", image_folder / "val2017", "--weights", small_weights, "--out")
    assert dino(*args, "a.json").code == 0 and dino(*args, "a.jsonl").code == 0
    lines = Path("a.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == json.loads(Path("a.json").read_text())
    Path("a.jsonl").write_text(lines[0] + "\n")
    result = dino(*args, "a.jsonl", "--resume")
    assert "has 1 of 2 images" in result.err and Path("a.jsonl").read_text().splitlines() == lines


def test_an_incomplete_line_left_by_a_kill_is_dropped_and_results_are_in_input_order(dino, small_weights, folders):
    args = ("predict", *folders, "--weights", small_weights, "--threshold", "0", "--out", "a.jsonl")
    good = Path("x/a.jpg").read_bytes()
    Path("x/a.jpg").write_bytes(b"bad")
    assert dino(*args).code == 7 and len(Path("a.jsonl").read_text().splitlines()) == 2
    Path("x/a.jpg").write_bytes(good)
    complete = Path("a.jsonl").read_text()
    Path("a.jsonl").write_text(complete[:-40])
    result = dino(*args, "--resume")
    assert result.code == 0 and "has 1 of 3" in result.err
    rows = [json.loads(line) for line in Path("a.jsonl").read_text().splitlines()]
    assert [row["file"] for row in rows] == ["x/a.jpg", "y/a.jpg", "z/a-2.jpg"]
    assert f"wrote a.jsonl: {sum(len(row['detections']) for row in rows)} detections in 3 images" in result.err


@pytest.mark.parametrize("out", ["a.json", "a.jsonl"])
@pytest.mark.parametrize("ranks", [False, True])
def test_resume_refuses_results_of_other_weights_or_options(dino, small_weights, folders, monkeypatch, out, ranks):
    good = Path("x/a.jpg").read_bytes()
    Path("x/a.jpg").write_bytes(b"bad")
    Path("mine.safetensors").write_bytes(small_weights.read_bytes())
    args = ("predict", *folders, "--weights", "mine.safetensors", "--out", out)
    if ranks:
        for rank in (1, 0):
            as_rank(monkeypatch, rank)
            assert dino(*args).code == (7 if rank == 0 else 0)
        for name in ("RANK", "WORLD_SIZE"):  # one process resumes what two ranks started
            monkeypatch.delenv(name)
    else:
        assert dino(*args).code == 7
    partial = Path(out).read_text()
    Path("x/a.jpg").write_bytes(good)
    for options, difference in (
        (["--conf", "0.9"], "--threshold auto, not --threshold 0.9"),
        (["--slice", "64"], "no --slice, not --slice 64"),
        (["--max-dets", "7"], "--max-dets 300, not --max-dets 7"),
        (["--amp", "off"], "--amp auto, not --amp off"),
    ):
        result = dino(*args, *options, "--resume")
        assert result.code == 2 and f"{out} was started with {difference}" in one_line(result.err)
    result = dino("predict", *folders, "--weights", small_weights, "--out", out, "--resume")
    assert result.code == 2 and f"not --weights {small_weights}" in one_line(result.err)
    os.utime("mine.safetensors", (1, 1))
    result = dino(*args, "--resume")
    assert result.code == 2 and f"mine.safetensors has changed since {out} was started" in one_line(result.err)
    assert Path(out).read_text() == partial


def test_resume_reports_that_the_weights_and_options_of_a_complete_file_are_unknown(dino, small_weights, folders):
    args = ("--weights", small_weights, "--out", "a.json")
    assert dino("predict", *folders[:2], *args).code == 0
    result = dino("predict", *folders, *args, "--resume")
    assert "a.json has 2 of 3 images" in result.err and "are unknown" in one_line(result.err)
    result = dino("predict", *folders, *args, "--resume")
    assert "a.json has 3 of 3 images" in result.err and "are unknown" not in one_line(result.err)


@pytest.mark.parametrize("out", ["a.json", "a.jsonl"])
def test_resume_processes_changed_images_again(dino, small_weights, folders, out):
    args = ("predict", *folders, "--weights", small_weights, "--threshold", "0", "--out", out)
    assert dino(*args).code == 0
    old = Path(out).read_text()
    Image.fromarray(draw_smear(5, 9, (80, 60))[0]).save("y/a.jpg")
    later = Path(out).stat().st_mtime + 5
    os.utime("y/a.jpg", (later, later))
    result = dino(*args, "--resume")
    assert result.code == 0 and f"{out} has 2 of 3 images" in result.err
    assert f"1 image changed since {out} was written" in one_line(result.err)
    resumed = Path(out).read_text()
    assert dino(*args).code == 0 and Path(out).read_text() == resumed != old


@pytest.mark.parametrize("out", ["a.json", "a.jsonl"])
@pytest.mark.parametrize("incomplete", [False, True])
def test_resume_processes_images_replaced_by_older_files_again(dino, small_weights, folders, out, incomplete):
    good = Path("x/a.jpg").read_bytes()
    if incomplete:  # then --out lacks an image, and .OUT.resume has the size and time of each image
        Path("x/a.jpg").write_bytes(b"bad")
    args = ("predict", *folders, "--weights", small_weights, "--threshold", "0", "--out", out)
    assert dino(*args).code == (7 if incomplete else 0)
    old = Path(out).read_text()
    Path("x/a.jpg").write_bytes(good)
    os.utime("x/a.jpg", (1, 1))
    Image.fromarray(draw_smear(5, 9, (80, 60))[0]).save("older.jpg")
    os.utime("older.jpg", (1, 1))
    os.replace("older.jpg", "y/a.jpg")
    if incomplete:  # even if --out is newer
        later = Path(out).stat().st_mtime + 5
        os.utime(out, (later, later))
    result = dino(*args, "--resume")
    assert result.code == 0 and f"{out} has 1 of 3 images" in result.err
    assert f"{'1 image' if incomplete else '2 images'} changed since {out} was written" in one_line(result.err)
    resumed = Path(out).read_text()
    assert dino(*args).code == 0 and Path(out).read_text() == resumed != old


@pytest.mark.parametrize("out", ["a.json", "a.jsonl"])
def test_resume_does_not_lose_results_of_images_missing_from_the_command(dino, small_weights, folders, out):
    args = ("--weights", small_weights, "--out", out)
    assert dino("predict", *folders[:2], *args).code == 0
    old = Path(out).read_text()
    result = dino("predict", folders[2], *args, "--resume")
    assert result.code == 2 and Path(out).read_text() == old
    assert f"{out} has 2 images that this command does not name, such as x/a.jpg" in one_line(result.err)
    Path("y/a.jpg").unlink()
    result = dino("predict", folders[0], folders[2], *args, "--resume")
    assert result.code == 0, "a deleted image must not block --resume"
    assert Path(out).read_text().count('"file"') == 2


@pytest.mark.parametrize("out", ["a.json", "a.jsonl", None])
def test_an_image_deleted_before_drawing_does_not_affect_the_others(dino, small_weights, folders, monkeypatch, out):
    def delete_then_draw(source, *args):
        if source.parent.name == "y":
            source.unlink()
        draw_detections(source, *args)

    monkeypatch.setattr("dinocli.commands.predict.predict.draw_detections", delete_then_draw)
    result = dino(
        "predict", *folders, "--weights", small_weights, "--save-images", "drawn", *(["--out", out] if out else [])
    )
    assert result.code == 7 and "1 of 3 images could not be read" in one_line(result.err)
    assert "no image y/a.jpg" in one_line(result.err)
    assert len(list(Path("drawn").iterdir())) == 2
    if out:
        assert [name in Path(out).read_text() for name in ("x/a.jpg", "y/a.jpg", "z/a-2.jpg")] == [True, False, True]


def test_file_names_that_look_like_rich_markup_are_printed_literally(dino, small_weights, folders):
    names = ["[bold] a.jpg", "photo [edited].jpg", "a[/red].jpg", ":cat: b.jpg"]
    for name in names:
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_bytes(Path("x/a.jpg").read_bytes())
    result = dino("predict", *names, "--weights", small_weights, "--threshold", "0.99")
    assert result.code == 0, result.err
    assert all(name in result.out for name in names), result.out
    result = dino("predict", ":cat: [x].jpg", "--weights", small_weights)
    assert "no images in :cat: [x].jpg" in one_line(result.err)


@pytest.mark.parametrize("suffix", [".gif", ".tif", ".webp"])
def test_files_with_several_frames_give_a_warning_that_only_the_first_is_used(dino, small_weights, suffix):
    images = [Image.fromarray(draw_smear(5, k, (96, 72))[0]) for k in range(3)]
    images[0].save(f"one{suffix}")
    images[0].save(f"stack{suffix}", save_all=True, append_images=images[1:])
    images[0].save("phone.jpg", "MPO", save_all=True, append_images=images[1:])
    result = dino("predict", ".", "--weights", small_weights)
    assert result.code == 0
    assert f"warning: stack{suffix} holds several images, and only the first is looked at" in one_line(result.err)
    assert f"magick stack{suffix} stack-%d.png" in one_line(result.err)


def test_output_to_a_pipe_leaves_no_resume_file(dino, small_weights, folders):
    Path("bad.jpg").write_bytes(b"bad")
    os.mkfifo("pipe")
    reader = threading.Thread(target=lambda: Path("pipe").read_bytes())
    reader.start()
    result = dino("predict", "bad.jpg", *folders, "--weights", small_weights, "--out", "pipe", "--format", "json")
    reader.join()
    assert result.code == 7 and not Path(".pipe.resume").exists()


def test_an_existing_jsonl_file_is_kept_if_no_image_can_be_read(dino, small_weights):
    Path("bad.jpg").write_bytes(b"bad")
    Path("a.jsonl").write_text("older\n")
    assert dino("predict", "bad.jpg", "--weights", small_weights, "--out", "a.jsonl").code == 3
    assert Path("a.jsonl").read_text() == "older\n"


def test_jsonl_lines_are_written_after_each_image(dino, small_weights, folders, monkeypatch):
    from dinocli.commands.predict import lines

    line_counts, detect = [], lines.detect_files

    def detect_and_count(*args):
        for result in detect(*args):
            yield result
            line_counts.append(len(Path("a.jsonl").read_text().splitlines()))

    monkeypatch.setattr(lines, "detect_files", detect_and_count)
    monkeypatch.setattr(lines, "FLUSH_EVERY", -1)
    assert dino("predict", *folders, "--weights", small_weights, "--out", "a.jsonl").code == 0
    assert line_counts == [1, 2, 3]


def test_a_strongly_shrunk_image_gives_a_warning_that_suggests_slices(dino, small_weights, tmp_path):
    Image.new("RGB", (900, 90)).save(tmp_path / "ribbon.png")
    result = dino("predict", "ribbon.png", "--weights", small_weights)
    assert "ribbon.png is shrunk by a factor of 9.0" in result.err and "--slice auto" in result.err
    result = dino("predict", "ribbon.png", "--weights", small_weights, "--slice", "100")
    assert result.code == 0 and "shrunk" not in result.err
    result = dino("predict", "ribbon.png", "--weights", small_weights, "--slice", "500")
    assert result.code == 0 and "ribbon.png is shrunk by a factor of 5.3" in result.err, "a slice is 500 pixels wide"


def test_eval_warns_about_strongly_shrunk_images(dino, small_weights, tmp_path):
    row = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [9, 9, 40, 40], "area": 1600, "iscrowd": 0}
    image = {"id": 1, "file_name": "ribbon.png", "width": 900, "height": 90}
    names = [category.name for category in load_detector(small_weights, device="cpu").categories]
    content = {"images": [image], "annotations": [row], "categories": [{"id": 1, "name": names[0]}]}
    (tmp_path / "data").mkdir()
    Image.new("RGB", (900, 90)).save(tmp_path / "data" / "ribbon.png")
    (tmp_path / "data" / "annotations.json").write_text(json.dumps(content))
    arguments = ["eval", "--data", "data", "--split", "train", "--weights", small_weights, "--bootstrap", "0"]
    assert "ribbon.png is shrunk by a factor of 9.0" in dino(*arguments).err
    result = dino(*arguments, "--slice", "90")
    assert result.code == 0 and "shrunk" not in result.err


@pytest.mark.parametrize("command", ["predict", "eval"])
def test_an_overlap_without_slices_is_refused(command, dino, image_file):
    result = dino(command, *([image_file] if command == "predict" else []), "--overlap", "0.3")
    assert result.code == 2 and "add --slice auto" in result.err


def test_without_a_terminal_progress_is_printed_as_lines(dino, small_weights, image_folder, tmp_path, monkeypatch):
    monkeypatch.setattr("dinocli.progress.SECONDS_PER_LINE", 0.0)
    args = ("--weights", small_weights)
    for word, command in (
        ("predicting", ("predict", image_folder / "val2017", *args, "--out", "a.json")),
        ("evaluating", ("eval", "--data", image_folder, "--bootstrap", "0", *args)),
        ("decoding train", ("check-data", image_folder, "--decode")),
        ("writing", ("convert-data", image_folder, tmp_path / "made", "--to", "yolo")),
    ):
        result = dino(*command)
        assert re.search(rf"^{word} \d+/\d+", result.err, re.M), (command, result.err)


def test_invalid_slices_and_batch_sizes_are_refused_before_any_work(dino, image_file, tmp_path):
    for options in (["--slice", "big"], ["--slice", "640", "--overlap", "1"], ["--batch-size", "0"]):
        result = dino("predict", image_file, *options)
        assert result.code == 2 and options[-2] in result.err and list(tmp_path.iterdir()) == []


def test_video_options_are_refused_for_images(dino, image_file):
    assert "are for video" in dino("predict", image_file, "--track").err


# several ranks ---------------------------------------------------------------------------------------------------


def test_several_ranks_require_out(dino, image_file, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    result = dino("predict", image_file)
    assert result.code == 2 and "--out boxes.json" in result.err


def test_one_rank_of_two_writes_its_parts_and_the_other_merges_all(dino, small_weights, image_folder, monkeypatch):
    args = ("predict", image_folder / "train2017", "--weights", small_weights, "--amp", "off", "--conf", "0", "--out")
    assert dino(*args, "alone.json").code == 0
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert dino(*args, "both.json").code == 0 and not Path("both.json").exists()
    written = {path: path.stat().st_mtime_ns for path in Path("both.json.parts").glob("*/*.jsonl")}
    assert len(written) == 4
    assert dino(*args, "both.json").code == 0
    assert written == {path: path.stat().st_mtime_ns for path in written}, "a finished part was processed again"
    monkeypatch.setenv("RANK", "0")
    assert dino(*args, "both.json").code == 0 and not Path("both.json.parts").exists()
    both, alone = (json.loads(Path(name).read_text()) for name in ("both.json", "alone.json"))
    assert [row["file"] for row in both] == [row["file"] for row in alone] and len(alone) == 8
    for a, b in zip(both, alone, strict=True):
        scores = ([d["score"] for d in row["detections"]] for row in (a, b))
        assert np.allclose(*scores, atol=1e-4) and len(a["detections"]) == 36


def test_only_rank_0_shows_a_progress_bar(dino, small_weights, image_folder, monkeypatch):
    hidden = []

    class RecordingProgress(WorkProgress):
        def __init__(self, **options):
            hidden.append(options["hidden"])
            super().__init__(**options)

    monkeypatch.setattr("dinocli.commands.predict.predict.WorkProgress", RecordingProgress)
    monkeypatch.setattr("dinocli.commands.predict.parts._part_size", lambda images: 2)
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in ("1", "0"):
        monkeypatch.setenv("RANK", rank)
        assert dino("predict", image_folder / "train2017", "--weights", small_weights, "--out", "a.json").code == 0
    assert hidden == [True, True, False, False], "each of the two ranks processes two of the four parts"


def test_ranks_report_the_best_score_without_detections(dino, small_weights, image_folder, monkeypatch):
    args = (
        "predict",
        image_folder / "val2017",
        "--weights",
        small_weights,
        "--amp",
        "off",
        "--conf",
        "1",
        "--out",
        "a.json",
    )
    alone = dino(*args)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert dino(*args).code == 0
    monkeypatch.setenv("RANK", "0")
    both = dino(*args)
    lines = [[line for line in result.err.splitlines() if "the best score is" in line] for result in (alone, both)]
    assert lines[0] == lines[1] and len(lines[0]) == 1
    assert "wrote a.json: 0 detections in 2 images" in both.err


def as_rank(monkeypatch, rank, size=2):
    monkeypatch.setenv("WORLD_SIZE", str(size))
    monkeypatch.setenv("RANK", str(rank))


def test_an_unreadable_image_is_reported_once_by_rank_0(dino, small_weights, folders, monkeypatch):
    Path("y/a.jpg").write_bytes(b"bad")
    monkeypatch.setattr("dinocli.commands.predict.parts._part_size", lambda images: 2)
    as_rank(monkeypatch, 1)
    args = ("predict", *folders, "--weights", small_weights, "--out", "a.json")
    assert "y/a.jpg" not in dino(*args).err
    as_rank(monkeypatch, 0)
    result = dino(*args)
    assert result.code == 7 and "1 of 3 images" in result.err
    assert result.err.count("error[DATA-IMAGE-FORMAT]: y/a.jpg") == 1


def test_only_the_first_of_many_unreadable_images_are_named(dino, small_weights, folders, monkeypatch):
    for name in ("y/a.jpg", "z/a-2.jpg"):
        Path(name).write_bytes(b"bad")
    monkeypatch.setattr("dinocli.commands.predict.parts.MAX_ERRORS", 1)
    as_rank(monkeypatch, 0)
    monkeypatch.setattr("dinocli.commands.predict.parts.world_size", lambda: 1)  # rank 0 processes all parts
    result = dino("predict", *folders, "--weights", small_weights, "--out", "a.json")
    assert result.code == 7 and "y/a.jpg" in result.err and "z/a-2.jpg" not in result.err
    assert "1 more images could not be read" in result.err


@pytest.mark.parametrize("change", ["drawings", "image"])
def test_parts_of_another_request_are_not_reused(dino, small_weights, folders, monkeypatch, change):
    args = ["predict", *folders, "--weights", small_weights, "--out", "a.json"]
    as_rank(monkeypatch, 1)
    assert dino(*args).code == 0
    if change == "drawings":
        args += ["--save-images", "drawn"]
    else:
        Image.new("RGB", (80, 60)).save("y/a.jpg")  # another image with the same name
    assert dino(*args).code == 0
    assert len(list(Path("a.json.parts").iterdir())) == 2
    as_rank(monkeypatch, 0)
    assert dino(*args).code == 0
    if change == "drawings":
        assert len(list(Path("drawn").iterdir())) == 3
    else:
        assert [row["width"] for row in json.loads(Path("a.json").read_text())] == [96, 80, 96]


def test_a_rank_that_is_late_for_the_merge_exits_and_a_new_command_starts_over(
    dino, small_weights, folders, monkeypatch
):
    args = ("predict", *folders, "--weights", small_weights, "--out", "a.json")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    for rank in (1, 0):
        as_rank(monkeypatch, rank)
        assert dino(*args).code == 0
    as_rank(monkeypatch, 1)
    late = dino(*args)  # restarted by SLURM
    assert late.code == 0 and not Path("a.json.parts").exists()
    monkeypatch.delenv("SLURM_JOB_ID")
    marker, now = Path(".a.json.merged"), time.time()
    os.utime(marker, (now + 1000, now + 1000))
    slow = dino(*args)  # started before the merge
    assert slow.code == 0 and not Path("a.json.parts").exists()
    os.utime(marker, (now - 1000, now - 1000))
    for rank in (1, 0):
        as_rank(monkeypatch, rank)
        new = dino(*args)
        assert new.code == 0
    assert "wrote a.json" in new.err and not Path("a.json.parts").exists()


def set_width_7(path):
    """Set the width of the first image in a results file to 7, to show later whether this result was reused."""
    path.write_text(re.sub(r'"width": ?\d+', '"width": 7', path.read_text(), count=1))


def test_one_process_resumes_the_parts_of_two_ranks(dino, small_weights, folders, monkeypatch):
    args = ("predict", *folders, "--weights", small_weights, "--out", "a.json", "--conf", "0")
    as_rank(monkeypatch, 1)
    assert dino(*args).code == 0
    (part,) = Path("a.json.parts").glob("*/*.jsonl")
    set_width_7(part)
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name)
    alone = dino(*args)
    assert alone.code == 0 and "has 1 of 3 parts" in alone.err and not Path("a.json.parts").exists()
    assert [row["width"] for row in json.loads(Path("a.json").read_text())] == [96, 7, 96]


def test_two_ranks_resume_the_results_of_one_process(dino, small_weights, folders, monkeypatch):
    args = ("--weights", small_weights, "--out", "a.json", "--conf", "0")
    assert dino("predict", "y", *args).code == 0
    set_width_7(Path("a.json"))
    for rank in (1, 0):
        as_rank(monkeypatch, rank)
        result = dino("predict", *folders, *args, "--resume")
        assert result.code == 0 and ("has 1 of 3 images" in result.err) == (rank == 0)
    assert [row["width"] for row in json.loads(Path("a.json").read_text())] == [96, 7, 96]


def test_rank_0_does_not_wait_for_parts_that_another_rank_0_has_merged(dino, small_weights, folders, monkeypatch):
    def merge_meanwhile(_):
        marker, later = Path(".a.json.merged"), time.time() + 1000
        (folder,) = Path("a.json.parts").iterdir()
        Path("a.json").write_text("[]")
        marker.write_text(json.dumps({"key": folder.name, "run": "", "unreadable": 0}))
        os.utime(marker, (later, later))

    as_rank(monkeypatch, 0)
    monkeypatch.setattr(parts, "time", SimpleNamespace(sleep=merge_meanwhile))
    result = dino("predict", *folders, "--weights", small_weights, "--out", "a.json")
    assert result.code == 0 and "merged by another rank 0" in result.err


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs the parent death signal of Linux")
def test_a_rank_ends_when_its_launcher_is_killed():
    rank = "import dinocli.app as a, time; a._run = lambda: (print('up', flush=True), time.sleep(60)); a.main()"
    launcher = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {rank!r}])"
    environment = os.environ | {"TORCHELASTIC_RUN_ID": "dino"}
    process = subprocess.Popen([sys.executable, "-c", launcher], env=environment, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "up\n"
    start = time.monotonic()
    process.kill()
    assert process.communicate()[0] == "" and time.monotonic() - start < 30, "the pipe closes when the rank has exited"


# file names, resuming --------------------------------------------------------------------------------------------


def test_a_file_given_in_several_ways_is_processed_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("i").mkdir()
    for name in ("i/a.jpg", "i/b.jpg"):
        Image.new("RGB", (8, 8)).save(name)
    args = ["i/a.jpg", "./i/a.jpg", str(tmp_path / "i/a.jpg"), "i/../i", "i/*.jpg"]
    assert [item.name for item in expand(args)[0]] == ["i/a.jpg", "i/../i/b.jpg"]


@pytest.mark.parametrize("done, suggested", [(11, True), (12, False)])
def test_resume_is_suggested_only_if_images_are_left(done, suggested):
    request = PredictRequest(Path("a.json"), "json", None, None, 300, False, False)
    assert ("--resume" in so_far(done, 12, request)) == suggested


# videos -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def video(tmp_path):
    """Path of a video of 40 frames at 20 fps: a bright bar moves right over noise."""
    av = pytest.importorskip("av")
    path, noise = tmp_path / "video.mp4", np.random.default_rng(0)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=20)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        for k in range(40):
            pixels = noise.integers(0, 256, (64, 96, 3), dtype=np.uint8)
            pixels[10:20, k : k + 12] = 250
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return path


@pytest.mark.parametrize(
    "options, frames",
    [([], range(40)), (["--every", "7"], range(0, 40, 7)), (["--start", "1"], range(20, 40)),
     (["--start", "0.5", "--end", "1.5", "--every", "3"], range(12, 30, 3))],
)  # fmt: skip
def test_a_video_gives_a_line_for_each_requested_frame(dino, small_weights, video, options, frames):
    result = dino("predict", video, "--weights", small_weights, "--threshold", "0", "--out", "f.jsonl", *options)
    assert result.code == 0, result.err
    rows = [json.loads(line) for line in Path("f.jsonl").read_text().splitlines()]
    assert [row["frame"] for row in rows] == list(frames)
    assert all(row["seconds"] == pytest.approx(row["frame"] / 20, abs=1e-3) for row in rows)
    assert all(len(row["detections"]) == 36 for row in rows)


def test_a_video_without_detections_reports_the_best_score(dino, small_weights, video):
    result = dino("predict", video, "--weights", small_weights, "--threshold", "1", "--every", "20", "--out", "f.jsonl")
    assert "wrote f.jsonl: 0 detections in 2 frames" in result.err
    assert "no detection reaches the threshold 1.00; the best score is" in result.err


def test_save_video_writes_one_frame_per_processed_frame(dino, small_weights, video):
    import av

    assert dino("predict", video, "--weights", small_weights, "--save-video", "o/out.mp4", "--every", "2").code == 0
    with av.open("o/out.mp4") as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(frames) == 20 and frames[0].shape == (64, 96, 3)
    assert os.listdir("o") == ["out.mp4"]


def test_damage_in_a_video_is_reported_and_the_rest_is_processed(dino, small_weights, video):
    content = bytearray(video.read_bytes())
    middle = content.index(b"mdat") + 60_000
    content[middle : middle + 20_000] = bytes(20_000)
    video.write_bytes(content)
    result = dino("predict", video, "--weights", small_weights, "--out", "f.jsonl")
    assert result.code == 0 and "is damaged after frame" in result.err
    frames = [json.loads(line)["frame"] for line in Path("f.jsonl").read_text().splitlines()]
    assert 25 < len(frames) < 40 and frames[0] == 0 and frames[-1] == 39, "later frames keep their numbers"


def test_options_that_do_not_work_for_video_are_refused(dino, video, image_file):
    Path("link.mp4").symlink_to(video)
    for options, message in (
        (["--out", "a.json"], "a.jsonl"), (["--save-images", "d"], "--save-video"), (["--resume"], "--start"),
        (["--start", "2", "--end", "1"], "--end 1"), (["--save-video", "a.txt"], ".mp4"),
        ([image_file], "must be the only input"),
        ([video], "must be the only input"), (["--save-video", video.name], "is the input file"),
        (["--save-video", "link.mp4"], "is the input file"),
    ):  # fmt: skip
        content = video.read_bytes()
        result = dino("predict", video, *options)
        assert result.code == 2 and message in result.err, (options, result.err)
        assert video.read_bytes() == content


def test_an_existing_output_file_is_kept_if_no_frame_is_processed(dino, small_weights, video):
    Path("f.jsonl").write_text("older\n")
    args = ("predict", video, "--weights", small_weights, "--start", "9", "--out")
    assert dino(*args, "f.jsonl").code == dino(*args, "new.jsonl").code == 3
    assert Path("f.jsonl").read_text() == "older\n" and not Path("new.jsonl").exists()


@pytest.mark.parametrize("threshold", ["auto", "0"])
def test_a_tracked_video_has_the_track_of_each_detection(dino, small_weights, video, threshold):
    pytest.importorskip("trackers")
    args = ("predict", video, "--weights", small_weights, "--track", "--every", "10", "--out", "t.jsonl")
    result = dino(*args, "--threshold", threshold)
    assert result.code == 0, result.err
    rows = [json.loads(line) for line in Path("t.jsonl").read_text().splitlines()]
    assert len(rows) == 4 and all("track" in d for row in rows for d in row["detections"])
    assert len(rows[0]["detections"]) == (36 if threshold == "0" else 0)


def test_tracks_keep_their_identities_when_objects_cross():
    pytest.importorskip("trackers")
    from dinocore.predict import Detections
    from dinocore.stream.video import ObjectTracker

    track, pairs = ObjectTracker(25, 0.3), []
    for k in range(40):  # one object moves right, one left and slightly lower; at k = 20 their boxes overlap
        boxes = torch.tensor([[5.0 * k, 50, 5 * k + 40, 90], [200 - 5.0 * k, 66, 240 - 5 * k, 106]])
        order = [0, 1] if k % 2 else [1, 0]
        detections = Detections(torch.zeros(2, dtype=torch.int64), torch.tensor([0.9, 0.9]), boxes[order], ("a", "a"))
        identities = track(detections)
        pairs.append([identities[order.index(0)], identities[order.index(1)]])
    assert pairs[2][0] != pairs[2][1] and min(pairs[2]) >= 0
    assert all(pair == pairs[2] for pair in pairs[2:])


def test_drawings_do_not_overwrite_input_images(dino, small_weights, tmp_path):
    (tmp_path / "photos").mkdir()
    images = [tmp_path / "photos" / name for name in ("a.jpg", "b.png")]
    for image in images:
        Image.new("RGB", (64, 48), "white").save(image)
    before = images[0].read_bytes()
    for out in ("photos", "photos/../photos"):
        result = dino("predict", "photos", "--weights", small_weights, "--save-images", out)
        assert result.code == 2 and "would overwrite photos/a.jpg; choose another folder" in result.err
    assert images[0].read_bytes() == before


def test_drawings_inside_the_input_folder_are_not_read_by_the_next_command(dino, small_weights, tmp_path):
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (64, 48), "white").save(tmp_path / "photos/a.jpg")
    for _ in range(2):
        result = dino("predict", "photos", "--weights", small_weights, "--save-images", "photos/boxes", "--json")
        assert [item["file"] for item in json.loads(result.out)] == ["photos/a.jpg"]
    assert [path.name for path in (tmp_path / "photos/boxes").iterdir()] == ["a.jpg"]
