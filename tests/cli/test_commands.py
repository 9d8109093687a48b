"""Commands end to end: results, invalid inputs, exit codes, stdout and stderr."""

import csv
import io
import json
import os
import shutil
import signal
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from dinocli.commands.train.train import TrainRequest, with_moved_drops
from dinocli.signals import StopRequest
from dinocore.data.split import Category
from dinocore.presets import load_config
from dinocore.stream import images as image_stream
from dinocore.system.extras import install_line
from dinocore.weights.file import load_weights, save_weights


@pytest.fixture
def image_file(image_folder):
    return next((image_folder / "val2017").iterdir())


# train -----------------------------------------------------------------------------------------------------------


def test_train_logs_its_data_progress_and_metrics(run_folder):
    log = (run_folder / "log.txt").read_text()
    assert "8 for training, 2 for evaluation" in log and "3: RBC, WBC, Platelets" in log
    assert "epoch 1/1" in log and "AP50" in log and "step 2: saved" in log


def test_resume_auto_of_a_finished_run_has_nothing_left_to_do(dino, run_folder):
    result = dino("train", "--resume", "auto", "--output-dir", run_folder)
    assert result.code == 0 and "done in" in result.err


def test_resume_continues_with_more_epochs(dino, run_folder, tmp_path):
    copy = tmp_path / "again"
    shutil.copytree(run_folder, copy)
    result = dino("train", "--resume", copy / "checkpoints" / "step-00000002", "--epochs", "2")
    assert result.code == 0, result.err
    steps = [json.loads(line)["step"] for line in (copy / "metrics.jsonl").read_text().splitlines() if "loss" in line]
    assert steps == [1, 2, 3, 4]


def test_resume_accepts_a_run_folder_and_refuses_a_missing_one(dino, run_folder):
    result = dino("train", "--resume", run_folder)
    assert result.code == 0 and "done in" in result.err
    result = dino("train", "--resume", "nowhere")
    assert result.code == 4 and "no checkpoint nowhere" in result.err


def test_weights_are_saved_without_any_objects_to_evaluate_on(dino, settings, tmp_path):
    assert dino("sample-data", "one", "-n", "1", "--size", "96x72").code == 0
    result = dino("train", "--preset", "r50-4scale", "--data", "one", "--output-dir", "run", "--epochs", "1", *settings)
    assert result.code == 0 and (tmp_path / "run" / "best.safetensors").is_file()


def test_a_missing_data_folder_with_special_characters_is_reported(dino, tmp_path):
    folder = tmp_path / 'a\\new"""é'
    result = dino("train", "--data", folder)
    assert result.code == 3 and f"the data folder {folder} does not exist" in result.err


def test_a_truncated_checkpoint_is_refused_with_its_file_name(dino, run_folder, tmp_path):
    copy = tmp_path / "cut"
    shutil.copytree(run_folder, copy)
    file = copy / "checkpoints" / "step-00000002" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    result = dino("train", "--resume", copy / "checkpoints" / "step-00000002")
    assert result.code == 4 and "model.safetensors" in result.err


@pytest.mark.parametrize(
    "arguments, code, message",
    [
        (["--preset", "r50-4scal"], 2, "did you mean `r50-4scale`"),
        (["--set", "train.epoch=3"], 2, "did you mean `train.epochs`"),
        (["--set", "train.lr=fast"], 2, "train.lr"),
        (["--data", "nowhere"], 3, "does not exist"),
        (["--device", "cuda"], 5, "available: cpu"),
        (["--weights", "nowhere.safetensors"], 4, "does not exist"),
        (["--resume", "auto"], 4, "is not a run folder"),
        (["--epochs", "0"], 2, "train.epochs"),
        (["--config", "nowhere.toml"], 2, "nowhere.toml"),
    ],
)
def test_invalid_arguments_of_train_leave_no_files(dino, tmp_path, image_folder, arguments, code, message):
    options = arguments if "--data" in arguments else ["--data", image_folder, *arguments]
    result = dino("train", "--output-dir", "new", *options)
    assert result.code == code, result.err
    assert message in result.err and "Traceback" not in result.err and result.out == ""
    assert list(tmp_path.iterdir()) == []


def test_a_nonempty_output_folder_is_refused_and_not_changed(dino, tmp_path, image_folder, settings):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    result = dino("train", "--data", image_folder, "--output-dir", "mine", *settings)
    assert result.code == 2 and "--resume auto" in result.err and "--overwrite" in result.err
    assert [file.name for file in (tmp_path / "mine").iterdir()] == ["thesis.txt"]


def test_an_annotation_of_an_unknown_image_is_found_before_the_first_step(dino, image_folder, tmp_path, settings):
    shutil.copytree(image_folder, tmp_path / "data")
    file = tmp_path / "data" / "annotations" / "instances_train2017.json"
    content = json.loads(file.read_text())
    content["annotations"][0]["image_id"] = 777
    file.write_text(json.dumps(content))
    result = dino("train", "--data", "data", "--output-dir", "new", *settings)
    assert result.code == 3 and "777" in result.err and not (tmp_path / "new").exists()


# predict ---------------------------------------------------------------------------------------------------------


def test_predict_writes_the_documented_json(dino, run_folder, image_file, tmp_path):
    result = dino("predict", image_file, "--weights", run_folder, "--out", "new/boxes.json", "--threshold", "0")
    assert result.code == 0 and result.out == ""
    (entry,) = json.loads((tmp_path / "new" / "boxes.json").read_text())
    assert list(entry) == ["file", "width", "height", "detections"]
    assert (entry["file"], entry["width"], entry["height"]) == (str(image_file), 96, 72)
    assert list(entry["detections"][0]) == ["label", "category_id", "score", "box_xyxy"]
    scores = [d["score"] for d in entry["detections"]]
    assert scores == sorted(scores, reverse=True) and len(scores) == 36
    assert {(d["label"], d["category_id"]) for d in entry["detections"]} <= {("RBC", 1), ("WBC", 2), ("Platelets", 3)}
    assert all(
        0 <= x0 <= x1 <= 96 and 0 <= y0 <= y1 <= 72 for x0, y0, x1, y1 in (d["box_xyxy"] for d in entry["detections"])
    )


def test_the_newest_run_is_used_and_reported(dino, run_folder, image_file, monkeypatch):
    monkeypatch.chdir(run_folder.parents[1])
    result = dino("predict", image_file, "--json", "--threshold", "1")
    assert "the newest run" in result.err
    assert json.loads(result.out)[0]["detections"] == []


def test_a_bad_image_does_not_affect_the_others(dino, run_folder, image_folder, tmp_path):
    shutil.copytree(image_folder / "val2017", tmp_path / "many")
    (tmp_path / "many" / "bad.jpg").write_bytes(b"no image")
    (tmp_path / "many" / "notes.txt").write_text("not an image")
    result = dino("predict", "many", "--weights", run_folder, "--out", "boxes.json", "--save-images", "drawn")
    assert result.code == 7
    assert "bad.jpg" in result.err and "skipped 1 non-image file" in result.err
    assert len(json.loads((tmp_path / "boxes.json").read_text())) == 2
    assert len(list((tmp_path / "drawn").iterdir())) == 2


@pytest.mark.parametrize("entry", ["config", "categories", "facts", "schema"])
def test_weights_with_damaged_metadata_are_refused(dino, run_folder, image_file, tmp_path, entry):
    content = (run_folder / "best.safetensors").read_bytes()
    start = content.index(f'"{entry}":"'.encode()) + len(entry) + 4
    (tmp_path / "damaged.safetensors").write_bytes(content[:start] + b"?" + content[start + 1 :])
    result = dino("predict", image_file, "--weights", "damaged.safetensors")
    assert result.code == 4 and f"its `{entry}` cannot be read" in result.err


def test_an_unknown_precision_is_refused(dino, run_folder, image_file):
    result = dino("predict", image_file, "--weights", run_folder, "--amp", "fp8")
    assert result.code == 2 and "choose auto, off, bf16, fp16" in result.err


def test_a_broken_stdout_pipe_is_not_an_error(dino, run_folder, image_file, monkeypatch):
    from dinocli import console

    def fail(text):
        raise BrokenPipeError

    monkeypatch.setattr(console.stdout, "_file", SimpleNamespace(write=fail, flush=lambda: None, isatty=lambda: False))
    monkeypatch.setattr("os.dup2", lambda *_: None)
    monkeypatch.setattr(sys.stdout, "fileno", lambda: 1, raising=False)
    assert dino("predict", image_file, "--weights", run_folder).code == 0


def test_globs_names_on_stdin_and_an_image_on_stdin_are_accepted(dino, run_folder, image_folder, monkeypatch):
    by_glob = dino("predict", f"{image_folder}/val2017/*.jpg", "--weights", run_folder, "--json")
    files = sorted((image_folder / "val2017").iterdir())
    names = "\n".join(map(str, files)).encode()
    for content, expected in ((names, 2), (files[0].read_bytes(), 1)):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
        results = json.loads(dino("predict", "-", "--weights", run_folder, "--json").out)
        assert len(results) == expected
        assert results[0]["detections"] == json.loads(by_glob.out)[0]["detections"]


def test_every_format_has_the_same_content(dino, run_folder, image_file, tmp_path):
    for kind, out in (("json", "a.json"), ("coco", "b.json"), ("csv", "c.csv"), ("yolo", "d"), ("labelme", "e")):
        result = dino(
            "predict",
            image_file,
            "--weights",
            run_folder,
            "--format",
            kind,
            "--out",
            out,
            "--conf",
            "0",
            "--max-dets",
            "5",
        )
        assert result.code == 0, result.err
    detections = json.loads((tmp_path / "a.json").read_text())[0]["detections"]
    assert len(detections) == 5
    coco = json.loads((tmp_path / "b.json").read_text())["annotations"]
    assert [a["bbox"][:2] for a in coco] == [d["box_xyxy"][:2] for d in detections]
    with (tmp_path / "c.csv").open() as file:
        assert [float(row["score"]) for row in csv.DictReader(file)] == [d["score"] for d in detections]
    line = (tmp_path / "d" / f"{image_file.stem}.txt").read_text().splitlines()[0].split()
    center = [
        (detections[0]["box_xyxy"][i] + detections[0]["box_xyxy"][i + 2]) / 2 / side for i, side in ((0, 96), (1, 72))
    ]
    assert [float(x) for x in line[1:3]] == pytest.approx(center, abs=1e-5)
    labelme = json.loads((tmp_path / "e" / f"{image_file.stem}.json").read_text())
    assert [shape["label"] for shape in labelme["shapes"]] == [d["label"] for d in detections]


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_an_interrupted_prediction_keeps_its_results_and_resume_processes_the_rest(
    dino, image_folder, run_folder, monkeypatch, number
):
    read_image, names = image_stream.read_image, []

    def read_and_interrupt(path, config):
        names.append(path.name)
        if len(names) == 3:
            os.kill(os.getpid(), number)
        return read_image(path, config)

    monkeypatch.setattr(image_stream, "read_image", read_and_interrupt)
    command = ("predict", image_folder / "train2017", "--weights", run_folder, "--out", "boxes.json")
    result = dino(*command)
    assert result.code == {signal.SIGINT: 130, signal.SIGTERM: 143}[number] and "--resume" in result.err
    assert "interrupted after 3 of 8 images" in result.err and len(json.loads(Path("boxes.json").read_text())) == 3
    assert Path(".boxes.json.resume").is_file()
    result = dino(*command, "--resume")
    assert result.code == 0 and "boxes.json has 3 of 8 images" in result.err
    assert len(names) == len(set(names)) == 8, "an image was processed twice"
    assert not Path(".boxes.json.resume").exists(), "not removed after the last image"
    resumed = Path("boxes.json").read_text()
    assert dino(*command).code == 0 and Path("boxes.json").read_text() == resumed, "differs from an uninterrupted run"


def test_resume_refuses_other_files_and_formats(dino, image_file):
    Path("boxes.json").write_text('[{"file": 7}]')
    result = dino("predict", image_file, "--out", "boxes.json", "--resume")
    assert result.code == 3 and "error[DATA-RESULTS]" in result.err
    assert dino("predict", image_file, "--out", "boxes.csv", "--format", "csv", "--resume").code == 2
    assert dino("predict", image_file, "--resume").code == 2


def test_the_error_of_a_single_bad_image_has_its_code_and_file(dino):
    Path("empty.jpg").write_text("")
    for name, code in (("empty.jpg", "DATA-IMAGE-FORMAT"), ("gone.jpg", "DATA-IMAGE-MISSING")):
        result = dino("predict", name, "--json")
        error = json.loads(result.out)["error"]
        assert result.code == 3 and (error["code"], error["where"]) == (code, name) and error["fix"]


def test_system_files_in_an_image_folder_are_skipped(dino, run_folder, image_file, tmp_path):
    for name in ("a.jpg", "._a.jpg", ".thumbnails/a.jpg", "@eaDir/a.jpg/SYNOPHOTO_THUMB_S.jpg", "__MACOSX/._a.jpg"):
        (tmp_path / "usb" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(image_file, tmp_path / "usb" / name)
    result = dino("predict", "usb", "--weights", run_folder, "--json")
    assert result.code == 0, result.err
    assert [item["file"] for item in json.loads(result.out)] == ["usb/a.jpg"] and "skipped" not in result.err


@pytest.mark.parametrize(
    "arguments, code, message",
    [
        (["missing.jpg"], 3, "missing.jpg"),
        (["."], 3, "no images"),
        (["IMAGE", "--out", "."], 2, "is a folder"),
        (["IMAGE", "--format", "xml"], 2, "labelme"),
        (["IMAGE", "--format", "csv"], 2, "add --out FILE, or drop --format"),
        (["IMAGE", "--format", "yolo"], 2, "add --out DIR, or drop --format"),
        (["IMAGE", "--device", "tpu"], 5, "available: cpu"),
        (["IMAGE", "--weights", "none.safetensors"], 4, "does not exist"),
        (["IMAGE", "--threshold", "2"], 2, "threshold"),
    ],
)
def test_invalid_arguments_of_predict_are_refused(dino, image_file, tmp_path, arguments, code, message):
    result = dino("predict", *(image_file if a == "IMAGE" else a for a in arguments))
    assert result.code == code and message in result.err, result.err
    assert result.out == "" and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "arguments, position",
    [
        (["train", "--output-dir", ""], "after --output-dir"),
        (["predict", "a.jpg", "--out="], "after --out"),
        (["eval", "--weights", ""], "after --weights"),
        (["check-data", ""], "first argument"),
        (["predict", "a.jpg", ""], "after a.jpg"),
    ],
)
def test_an_empty_argument_is_refused_instead_of_meaning_the_current_folder(dino, tmp_path, arguments, position):
    result = dino(*arguments)
    assert result.code == 2 and f"{position} is empty" in result.err.replace("the argument ", ""), result.err
    assert "check that the shell variables in your command are set" in result.err and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("schedule", "drops"), [("step", (3,)), ("cosine", (11,))])
def test_lr_drop_epochs_move_with_the_run_length_for_the_step_schedule_only(schedule, drops):
    request = TrainRequest("r50-4scale", None, [], None, None, False, False, "cpu", StopRequest())
    recipe = load_config("r50-4scale", overrides=f'train.lr_schedule="{schedule}"')
    assert with_moved_drops(recipe.replace("train.epochs", 4), recipe, request).train.lr_drop_epochs == drops


def test_lr_drop_epochs_without_the_step_schedule_give_a_warning(dino):
    settings = ("train.lr_drop_epochs=[3]", "data.path='none'")  # the warning precedes the data error
    options = [part for setting in settings for part in ("--set", setting)]
    for schedule, warned in (("cosine", True), ("step", False)):
        result = dino("train", *options, "--set", f"train.lr_schedule={schedule}", "--output-dir", "run")
        assert result.code == 3 and ("which has no drops" in " ".join(result.err.split())) is warned, result.err


def test_a_setting_given_twice_is_refused(dino, tmp_path):
    result = dino("train", "--epochs", "50", "--set", "train.epochs=20")
    assert result.code == 2 and "`train.epochs` is set twice" in result.err and list(tmp_path.iterdir()) == []


def test_a_video_that_cannot_be_opened_is_refused_with_a_command_to_extract_frames(dino, tmp_path):
    (tmp_path / "a.mp4").write_bytes(bytes(64))
    assert "ffmpeg -i a.mp4" in dino("predict", "a.mp4").err


def test_out_of_memory_exits_with_5(dino):
    result = dino("benchmark", "--size", "9999999x9999999")
    assert result.code == 5 and "out of memory" in result.err and "Traceback" not in result.err


def test_sample_data_too_large_for_the_disk_is_refused(dino, tmp_path):
    result = dino("sample-data", "many", "-n", "999999999999")
    assert result.code == 5 and "GB left" in result.err and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "command",
    [["inspect-mask", "--out", "f/a.png"], ["inspect-proposals", "a.jpg", "--report", "f/a.html"],
     ["convert", "a.pth", "--out", "f/a.safetensors"], ["benchmark", "--profile", "f/a.json"]],
)  # fmt: skip
def test_an_output_path_below_a_file_is_refused_before_any_work(dino, tmp_path, command):
    (tmp_path / "f").touch()
    result = dino(*command)
    assert result.code == 5 and result.err.count("\n") == 1 and "f cannot be written" in result.err and not result.out


def test_compilation_of_kernels_is_announced_once(dino, monkeypatch, capsys):
    from numba import njit

    from dinocore.model.ops.numba import kernels

    monkeypatch.setattr(kernels.COMPILE_ANNOUNCER, "warned", False)
    dino("presets", "tiny")  # sets up logging to stderr
    counts = []
    for module in ("another", "dinocore.mine", "dinocore.mine"):
        exec("def double(x):\n    return 2 * x", namespace := {"__name__": module})
        njit(namespace["double"])(1)
        counts.append(capsys.readouterr().err.count("compiling deformable attention"))
    assert counts == [0, 1, 0]


@pytest.mark.parametrize("content", [b"", b"<html>not found</html>", b"\x00" * 64])
def test_a_file_that_is_not_a_weights_file_exits_with_4(dino, image_file, tmp_path, content):
    (tmp_path / "w.safetensors").write_bytes(content)
    result = dino("predict", image_file, "--weights", "w.safetensors")
    assert result.code == 4 and "w.safetensors" in result.err


def test_non_finite_weights_are_refused(dino, image_file, run_folder, tmp_path):
    weights = load_weights(run_folder / "best.safetensors")
    weights.tensors["tokenizer.level_embed"][0, 0] = torch.nan
    save_weights(tmp_path / "w.safetensors", weights.tensors, weights.config, weights.categories, {})
    result = dino("predict", image_file, "--weights", "w.safetensors")
    assert result.code == 4 and "tokenizer.level_embed" in result.err


# eval ------------------------------------------------------------------------------------------------------------


def test_eval_reports_the_twelve_coco_metrics_as_json_and_as_a_table(dino, run_folder, image_folder, tmp_path):
    output = json.loads(dino("eval", "--weights", run_folder, "--json", "--out", "results.json").out)
    names = ["AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl"]
    assert [key for key in output if key in names] == names
    assert list(output["classes"]) == ["RBC", "WBC", "Platelets"]
    assert {r["category_id"] for r in json.loads((tmp_path / "results.json").read_text())} <= {1, 2, 3}
    table = dino("eval", "--weights", run_folder, "--data", image_folder).out
    assert f"{output['AP50']:.4f}" in table and "Platelets" in table


def test_eval_equals_pycocotools_on_the_same_files(dino, run_folder, image_folder, tmp_path, capsys):
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    output = json.loads(dino("eval", "--weights", run_folder, "--json", "--out", "results.json").out)
    ground_truth = COCO(str(image_folder / "annotations" / "instances_val2017.json"))
    evaluator = COCOeval(ground_truth, ground_truth.loadRes(str(tmp_path / "results.json")), "bbox")
    evaluator.evaluate()
    evaluator.accumulate()
    evaluator.summarize()
    capsys.readouterr()
    assert [output[key] for key in ("AP", "AP50", "AR100", "ARl")] == [evaluator.stats[i] for i in (0, 1, 8, 11)]


def test_eval_reports_its_backend_and_accepts_another(dino, run_folder, image_folder):
    arguments = ("eval", "--weights", run_folder, "--data", image_folder)
    default = json.loads(dino(*arguments, "--json").out)
    other = json.loads(dino(*arguments, "--json", "--set", "eval.backend=pycocotools").out)
    assert (default.pop("backend"), other.pop("backend")) == ("hotcoco", "pycocotools") and default == other
    assert "2 images evaluated (hotcoco)" in dino(*arguments).out
    evaluation = next(line for line in (run_folder / "metrics.jsonl").read_text().splitlines() if '"AP"' in line)
    assert json.loads(evaluation)["backend"] == "hotcoco"


def test_a_missing_backend_is_reported_before_any_work(dino, run_folder, image_folder, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "hotcoco", None)
    options = ("--data", image_folder, "--set", "eval.backend=hotcoco")
    train = ("train", "--preset", "tiny", "--output-dir", tmp_path / "run")
    for command in (("eval", "--weights", run_folder), train):
        result = dino(*command, *options)
        assert result.code == 5 and install_line("fast").replace(" ", "") in "".join(result.err.split())
    assert not (tmp_path / "run").exists()


def test_eval_refuses_model_settings(dino, run_folder):
    result = dino("eval", "--weights", run_folder, "--set", "model.num_queries=3")
    assert result.code == 2 and "only settings of data and eval can" in result.err.replace("\n", " ")


def test_eval_counts_a_bad_image_and_continues(dino, run_folder, image_folder, tmp_path):
    shutil.copytree(image_folder, tmp_path / "data")
    next((tmp_path / "data" / "val2017").iterdir()).write_bytes(b"broken")
    result = dino("eval", "--weights", run_folder, "--data", "data", "--json")
    assert result.code == 7 and len(json.loads(result.out)["failed"]) == 1


def test_eval_refuses_data_with_other_classes(dino, run_folder, tmp_path):
    (tmp_path / "data").mkdir()
    Image.new("RGB", (32, 32)).save(tmp_path / "data" / "a.png")
    content = {"images": [{"id": 1, "file_name": "a.png"}], "categories": [{"id": 44, "name": "cat"}],
               "annotations": [{"id": 1, "image_id": 1, "category_id": 44, "bbox": [1, 1, 9, 9]}]}  # fmt: skip
    (tmp_path / "data" / "annotations.json").write_text(json.dumps(content))
    result = dino("eval", "--weights", run_folder, "--data", "data", "--split", "train")
    assert result.code == 3 and "RBC" in result.err


def test_a_results_file_is_evaluated_and_compared_like_the_model_that_wrote_it(dino, run_folder, image_folder):
    model = json.loads(dino("eval", "--weights", run_folder, "--json", "--out", "r.json", "--bootstrap", 20).out)
    result = dino(
        "eval", "--results", "r.json", "--data", image_folder, "--json", "--report", "r.html", "--bootstrap", 20
    )
    stored = json.loads(result.out)
    assert {"weights", "measured"} == model.keys() - stored.keys() and all(
        model[key] == stored[key] for key in ("AP", "tide", "worst")
    )
    assert "Predictions and annotations" in Path("r.html").read_text()
    command = ("eval", "--compare", "r.json", run_folder, "--data", image_folder, "--bootstrap", 20)
    compared = json.loads(dino(*command, "--json", "--report", "c.html").out)
    assert "Precision and recall, IoU 0.50" in Path("c.html").read_text()
    assert {key: compared["sides"]["b"][key] for key in ("AP", "tide")} == {key: model[key] for key in ("AP", "tide")}
    assert compared["summary"]["AP"] == {"a": model["AP"], "b": model["AP"], "change": 0, "interval": [0, 0]}
    assert "B - A" in dino(*command).out


def test_results_are_written_with_the_category_ids_of_the_evaluated_data(dino, run_folder, image_folder, tmp_path):
    data = Path(shutil.copytree(image_folder, tmp_path / "other"))
    for file in data.glob("annotations/*.json"):
        document = json.loads(file.read_text())
        ids = [row["id"] for row in document["categories"]]
        new_ids = dict(zip(ids, [*ids[1:], ids[0]], strict=True))  # each class gets another one's id
        for row in document["categories"]:
            row["id"] = new_ids[row["id"]]
        for row in document["annotations"]:
            row["category_id"] = new_ids[row["category_id"]]
        file.write_text(json.dumps(document))
    arguments = ("--data", data, "--bootstrap", 0, "--json")
    model = json.loads(dino("eval", "--weights", run_folder, *arguments, "--out", "r.json").out)
    file = json.loads(dino("eval", "--results", "r.json", *arguments).out)
    assert model["AP"] == file["AP"] == json.loads(dino("eval", "--weights", run_folder, "--json").out)["AP"]


def test_models_with_different_category_ids_are_compared_by_class_name(dino, run_folder, image_folder):
    weights = load_weights(run_folder / "best.safetensors")
    renumbered = [Category(category.id + 100, category.name) for category in weights.categories]
    save_weights(Path("other.safetensors"), weights.tensors, weights.config, renumbered, weights.facts)
    arguments = ("--data", image_folder, "--bootstrap", 0, "--json")
    compared = json.loads(dino("eval", "--compare", run_folder, "other.safetensors", *arguments).out)
    score = json.loads(dino("eval", "--weights", run_folder, *arguments).out)["AP"]
    assert compared["summary"]["AP"] == {"a": score, "b": score, "change": 0, "interval": None}
    save_weights(Path("more.safetensors"), weights.tensors, weights.config, renumbered[:1] * 2 + renumbered[2:], {})
    assert dino("eval", "--compare", run_folder, "more.safetensors", *arguments).code == 2


@pytest.mark.parametrize(
    "content, arguments, code, message",
    [
        (None, ["--data", "DATA"], 3, "cannot be read"),
        ('[{"image_id": 1}]', ["--data", "DATA"], 3, "it lacks `category_id`, `bbox`, `score`"),
        (
            '[{"image_id": 987, "category_id": 1, "bbox": [1, 1, 2, 2], "score": 1}]',
            ["--data", "DATA"],
            3,
            "doesn't have",
        ),
        ("[]", [], 2, "give --data"),
        ("[]", ["--data", "DATA", "--weights", "bundled"], 2, "cannot be used together"),
        ("[]", ["--data", "DATA", "--out", "x.json"], 2, "drop it"),
        ("[]", ["--data", "DATA", "--compile"], 2, "--compile cannot be used with a results file"),
        ("[]", ["--data", "DATA", "--device", "cpu"], 2, "--device cannot be used with a results file"),
        ("[]", ["--data", "DATA", "--precision", "int8"], 2, "--amp cannot be used with a results file"),
        ("[]", ["--data", "DATA", "--report", "."], 2, "is a folder"),
    ],
)
def test_results_that_cannot_be_evaluated_are_refused(dino, image_folder, content, arguments, code, message):
    if content is not None:
        Path("r.json").write_text(content)
    result = dino("eval", "--results", "r.json", *(image_folder if part == "DATA" else part for part in arguments))
    assert result.code == code and message in result.err.replace("\n", " ") and "Traceback" not in result.err


def test_two_category_ids_with_the_same_name_are_evaluated_as_one_class(dino, tmp_path):
    (tmp_path / "data").mkdir()
    Image.new("RGB", (32, 32)).save(tmp_path / "data" / "a.png")
    boxes = {1: [1, 1, 9, 9], 2: [15, 15, 9, 9]}
    rows = [{"id": k, "image_id": 1, "category_id": k, "bbox": box} for k, box in boxes.items()]
    names = [{"id": k, "name": name} for k, name in ((1, "cat"), (2, "cat"), (3, "dog"))]
    content = {"images": [{"id": 1, "file_name": "a.png"}], "categories": names, "annotations": rows}
    (tmp_path / "data" / "annotations.json").write_text(json.dumps(content))
    Path("r.json").write_text(json.dumps([row | {"score": 0.9} for row in rows]))
    result = dino("eval", "--results", "r.json", "--data", "data", "--split", "train", "--bootstrap", 0, "--json")
    assert result.code == 0 and json.loads(result.out)["AP"] == pytest.approx(1.0)
    Path("r.json").write_text(json.dumps([rows[0] | {"score": 0.9, "category_id": 4}]))
    result = dino("eval", "--results", "r.json", "--data", "data", "--split", "train", "--bootstrap", 0)
    assert result.code == 3 and "category_id 4" in result.err.replace("\n", " ")


def test_results_with_unknown_ids_or_nan_are_refused_with_counts(dino, image_folder):
    """If category ids start at 0 instead of 1, most are still valid, so the others must not be silently ignored."""
    row = {"image_id": 9, "category_id": 1, "bbox": [1, 1, 2, 2], "score": 0.5}
    known_id = json.loads((image_folder / "annotations" / "instances_val2017.json").read_text())["images"][0]["id"]
    valid = row | {"image_id": known_id}

    def evaluate(rows, *options):
        Path("r.json").write_text(json.dumps(rows))
        return dino("eval", "--results", "r.json", "--data", image_folder, "--bootstrap", 0, "--json", *options)

    result = evaluate([valid, valid | {"category_id": 0}, valid | {"category_id": 4}, valid | {"image_id": 987}])
    error = json.loads(result.out)["error"]
    assert result.code == 3 and error["code"] == "DATA-RESULTS" and error["where"] == "r.json"
    assert "1 of 4 results are of 1 image (image_id 987)" in error["what"]
    assert "2 of 4 results are of 2 classes (category_id 0, 4)" in error["what"]
    result = evaluate([valid, valid | {"image_id": 987}], "--set", "data.allow_orphans=true")
    assert result.code == 0 and "skipped, 1 of 2 results" in result.err.replace("\n", " ")
    result = evaluate([valid, valid | {"score": float("nan")}, valid | {"bbox": [1, 1, float("inf"), 2]}])
    message = f"2 of 3 results have a box or score that is not finite, the first one of image {known_id}"
    assert result.code == 3 and message in result.err.replace("\n", " ")


# inspect-proposals, presets, sample-data ---------------------------------------------------------------------------


def test_inspect_proposals_reports_the_proposals_of_the_model(dino, run_folder, image_file, image_folder, tmp_path):
    from dinocore import load_detector

    arguments = ["inspect-proposals", image_file, "--weights", run_folder, "--amp", "off", "--json", "--top", "100"]
    report = json.loads(dino(*arguments, "--data", image_folder, "--out", "p.png").out)
    rows = report["pictures"][0]["proposals"]
    detector = load_detector(run_folder / "best.safetensors", amp="off")
    output = detector.forward(detector.batch(image_file))
    assert [row["level"] for row in rows] == output.proposals.level[0].tolist()
    scores = output.proposals.logits[0].sigmoid().amax(-1).tolist()
    assert [row["score"] for row in rows] == pytest.approx(scores, abs=1e-5)
    assert report["recall"][0]["iou"] == 0.5 and list(report["recall"][0]["shares"]) == ["10", "12"]
    assert [step["name"] for step in report["layers"]] == ["anchor", "proposal", "layer 0", "layer 1"]
    with Image.open(tmp_path / "p.png") as drawn:
        assert drawn.size[0] == 3 * (420 + 12) + 12


@pytest.mark.parametrize("view", ["scores", "layers"])
def test_other_views_of_proposals_and_the_report(dino, run_folder, image_file, image_folder, tmp_path, view):
    arguments = ["inspect-proposals", image_file, "--weights", run_folder, "--data", image_folder, "--view", view]
    result = dino(*arguments, "--out", "p.png", "--report", "p.html")
    assert result.code == 0 and "fraction of objects covered" in result.out and "layer 1" in result.out
    assert (tmp_path / "p.html").read_text().count("data:image") == 3
    assert dino(*arguments[:-1], "nonsense").code == 2


def test_a_bad_image_does_not_affect_the_proposals_of_the_others(dino, run_folder, image_file, tmp_path):
    (tmp_path / "bad.jpg").write_bytes(b"no image")
    result = dino("inspect-proposals", "bad.jpg", image_file, "--weights", run_folder, "--top", "2", "--json")
    assert result.code == 7 and "bad.jpg" in result.err
    assert [entry["file"] for entry in json.loads(result.out)["pictures"]] == [str(image_file)]
    assert dino("inspect-proposals", "bad.jpg", "--weights", run_folder).code == 3


def test_inspect_proposals_refuses_a_model_with_static_queries(dino, image_folder, settings, tmp_path, image_file):
    arguments = ["--preset", "r50-4scale", "--data", image_folder, "--epochs", "1", "--batch-size", "8"]
    assert dino("train", *arguments, *settings, "--set", "model.queries=static", "--output-dir", "s").code == 0
    result = dino("inspect-proposals", image_file, "--weights", "s")
    assert result.code == 2 and "static" in result.err


def test_presets_are_listed_and_printed_in_full(dino, tmp_path):
    assert "r50-5scale-36e" in dino("presets").out
    text = dino("presets", "tiny").out
    (tmp_path / "mine.toml").write_text(text)
    assert dino("presets", "mine.toml").out == text
    assert json.loads(dino("presets", "tiny", "--json").out)["model"]["num_levels"] == 3


def test_sample_data_refuses_a_nonempty_folder_and_an_invalid_size(dino, tmp_path):
    assert dino("sample-data", "out", "--num-images", "2", "--size", "96x72").code == 0
    again = dino("sample-data", "out", "--num-images", "2")
    assert again.code == 2 and "not empty" in again.err
    assert dino("sample-data", "other", "--size", "big").code == 2


def test_version_and_help(dino):
    assert dino("--version").out.startswith("dino 0.")
    assert "inspect-mask" in dino("--help").out
    assert dino("nonsense").code == 2
