"""`dino export`, and commands with an exported file."""

import json
import sys
from pathlib import Path

import pytest
from PIL import Image

from dinocli.commands.export import _images
from dinocore.config import DataConfig
from dinocore.data.synthetic.sample import write_sample_data
from dinocore.errors import CheckpointError
from dinocore.export import export, write
from dinocore.export.export import (
    Request,
    comparison_config,
    describe,
    export_weights,
    pick_threshold,
    threshold_origin,
)  # fmt: skip
from dinocore.export.graph import Canvases
from dinocore.export.runtime import ExportedDetector
from dinocore.presets import load_config
from dinocore.system.extras import install_line
from dinocore.weights.file import Weights
from dinocore.weights.untrusted import read_pickle, read_safetensors

from .conftest import small


@pytest.mark.parametrize(
    ("options", "code", "error_message"),
    [
        (["--out", "m.onnx", "--format", "tflite"], 2, "unknown format `tflite`; choose onnx, openvino"),
        (["--out", "m.bin"], 2, "must end in .onnx; try --out m.onnx"),
        (["--out", "m.xml"], 2, "m.xml does not match --format onnx; add --format openvino, or try m.onnx"),
        (["--out", "m.pt2"], 2, "add --format torch-export or --format aoti, or try m.onnx"),
        (["--out", "m.onnx", "--format", "aoti"], 2, "add --format onnx, or try m.pt2"),
        (["--out", "m.onnx", "--precision", "int4"], 2, "unknown precision `int4`"),
        (["--out", "m.xml", "--format", "openvino", "--precision", "int8"], 2, "int8 only works with ONNX"),
        (["--out", "m.onnx", "--pixels", "bgr"], 2, "--pixels bgr is not known"),
        (["--out", "m.onnx", "--size", "100"], 2, "--size 100 is not a size"),
        (["--out", "m.onnx", "--size", "224x224-"], 2, "--size 224x224- is neither a size nor a range of sizes"),
        (["--out", "m.onnx", "--size", "320x320-224x224"], 2, "must go from the smallest to the largest; got 320x320"),
        (["--out", "m.onnx", "--size", "320x427"], 2, "must be a multiple of 32"),
    ],
)
def test_invalid_export_options_are_refused_before_any_work(dino, options, code, error_message):
    pytest.importorskip("onnxscript")
    pytest.importorskip("openvino")
    result = dino("export", "bundled", *options)
    assert result.code == code
    assert error_message in result.err


def test_with_many_images_the_first_four_are_used_for_the_comparison_and_reported(tmp_path, capsys):
    write_sample_data(tmp_path, num_images=9, seed=1, size=(96, 64))
    paths = [str(tmp_path / "train2017")]
    assert len(_images(paths, DataConfig())) == 4
    assert "comparing on the first 4 of 7 images" in capsys.readouterr().err
    assert len(_images([str(file) for file in sorted((tmp_path / "val2017").iterdir())], DataConfig())) == 2
    assert not capsys.readouterr().err


def test_a_missing_package_is_reported_with_its_extra(dino, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    result = dino("export", "bundled", "--out", "m.onnx")
    assert result.code == 5
    assert install_line("export").replace(" ", "") in "".join(result.err.split())


def test_predict_accepts_an_exported_file(dino, write_exported, tmp_path):
    Image.new("RGB", (200, 100), "white").save(tmp_path / "a.png")
    result = dino("predict", tmp_path / "a.png", "--weights", write_exported(), "--json")
    assert result.code == 0, result.err
    (row,) = json.loads(result.out)
    assert [d["label"] for d in row["detections"]] == ["disc"]
    assert row["detections"][0]["box_xyxy"] == pytest.approx([20, 20, 100, 60], abs=1)


def test_eval_accepts_an_exported_file_and_requires_data(dino, write_exported, tmp_path):
    write_sample_data(tmp_path / "data", num_images=5, seed=1, size=(128, 96))
    info = {"names": ["RBC", "WBC"], "ids": [1, 2]}
    file = write_exported(info)
    result = dino("eval", "--weights", file, "--data", tmp_path / "data", "--json", "--bootstrap", 0, "--out", "r.json")
    assert result.code == 0, result.err
    rows = json.loads((tmp_path / "r.json").read_text())
    assert rows[0]["bbox"] == pytest.approx([12.8, 19.2, 51.2, 38.4], abs=1)
    assert 0 <= json.loads(result.out)["AP"] < 0.5
    without_data = dino("eval", "--weights", file)
    assert without_data.code == 2
    assert "give --data" in without_data.err


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (["--precision", "bf16"], "has a fixed device and precision"),
        (["--compile"], "is already compiled; drop --compile"),
    ],
)
def test_predict_refuses_options_that_an_exported_file_does_not_support(
    dino, write_exported, tmp_path, option, message
):
    Image.new("RGB", (64, 48)).save(tmp_path / "a.png")
    result = dino("predict", tmp_path / "a.png", "--weights", write_exported(), *option)
    assert result.code == 2 and message in " ".join(result.err.split())


def test_benchmark_measures_an_exported_file(dino, write_exported):
    file = write_exported()
    timing = json.loads(dino("benchmark", "--weights", file, "--batch", 2, "--repeats", 3, "--json").out)
    assert 0 < timing["latency_p50_s"] <= timing["latency_p90_s"]
    assert timing["images_per_s"] == pytest.approx(2 / timing["latency_p50_s"])
    assert timing["size"] == "96x128"
    for option in ("--size=64x64", "--device=cuda", "--objects=3", "--set=model.num_queries=9", "--train"):
        result = dino("benchmark", "--weights", file, option)
        assert result.code == 2 and "only --batch, --repeats and --json go with it" in " ".join(result.err.split()), (
            option
        )


def test_benchmark_reports_a_file_that_fails_to_run(dino, write_exported):
    result = dino("benchmark", "--weights", write_exported(), "--batch", 65, "--repeats", 1)
    assert result.code == 3, result.err
    assert "failed to run: this model needs images (1 to 64, H, W, 3)" in " ".join(result.err.split())


def test_foreign_files_exit_with_the_code_for_bad_weights(dino, write_exported, tmp_path):
    Image.new("RGB", (20, 20)).save(tmp_path / "a.png")
    result = dino("predict", tmp_path / "a.png", "--weights", write_exported(None))
    assert result.code == 4
    assert "not written by this version of `dino export`" in result.err
    broken = tmp_path / f"broken{write_exported().suffix}"
    broken.write_bytes(b"\x08\x07nothing")
    assert dino("predict", tmp_path / "a.png", "--weights", broken).code == 4


def test_info_shows_the_metadata_of_an_exported_file(dino, write_exported):
    file = write_exported({"thresholds": [0.25, 0.5], "preset": "tiny"})
    output = " ".join(dino("info", file).out.split())
    assert "preset tiny" in output and "canvas 96 x 128" in output and "classes disc, ring" in output
    assert "thresholds disc 0.25, ring 0.5" in output
    assert json.loads(dino("info", file, "--json").out)["names"] == ["disc", "ring"]
    file.write_bytes(b"")
    assert dino("info", file).code == 4


def test_inspectors_refuse_an_exported_file(dino, write_exported, tmp_path):
    Image.new("RGB", (20, 20)).save(tmp_path / "a.png")
    result = dino("inspect-proposals", tmp_path / "a.png", "--weights", write_exported())
    assert result.code == 2
    assert "an exported file, which this command cannot use" in " ".join(result.err.split())


def test_exported_and_unverified_files_cannot_be_exported(dino, write_onnx, tmp_path):
    result = dino("export", write_onnx(), "--out", tmp_path / "z.onnx")
    assert result.code == 2
    assert "is already an exported file" in result.err
    unverified = write_onnx().rename(tmp_path / "x.onnx.unverified")
    Image.new("RGB", (20, 20)).save(tmp_path / "a.png")
    for result in (
        dino("predict", tmp_path / "a.png", "--weights", unverified), dino("export", unverified, "--out", "z.onnx"),
        dino("info", unverified),
    ):  # fmt: skip
        assert result.code == 4
        assert "failed the check of dino export" in " ".join(result.err.split())


@pytest.mark.parametrize("name", ["m.onnx", "m.xml", "m.bin", "m.onnx.unverified"])
def test_commands_that_need_weights_recognise_an_exported_file(write_onnx, tmp_path, name):
    file = write_onnx().rename(tmp_path / name)
    (tmp_path / "m.xml").touch()
    for read in (read_safetensors, read_pickle):
        with pytest.raises(CheckpointError, match="is an exported file, or part of one, not weights; give the weights"):
            read(file)


def test_max_dets_of_a_file_is_limited_by_its_queries_and_classes():
    config = small("r50-4scale").config  # 20 queries, 3 classes
    assert [comparison_config(config, limit).eval.max_dets for limit in (None, 7, 100_000)] == [60, 7, 60]


@pytest.mark.parametrize(("size", "reported"), [((160, 160), True), ((128, 160), False), (None, False)])
def test_a_canvas_larger_than_any_image_is_reported(tmp_path, monkeypatch, size, reported):
    monkeypatch.setattr(export, "trace", lambda *args: None)
    monkeypatch.setitem(write.FORMATS, "torch-export", (lambda *args: 1 / 0, ".pt2", (), ""))
    messages = []
    request = Request("torch-export", tmp_path / "m.pt2", sizes=[size] if size else [])
    with pytest.raises(ZeroDivisionError):
        export_weights(small("r50-4scale"), tmp_path, request, [], messages.append)
    assert ("the canvas is larger than any image on it" in " ".join(messages)) is reported


@pytest.mark.parametrize(
    ("requested", "stored", "origin", "message"),
    [
        (None, 0.4, "weights", "the best F1 when these weights were evaluated"),
        (None, None, "default", "because these weights were never evaluated"),
        (0.7, 0.4, "asked", "set when the file was exported"),
    ],
)
def test_a_file_records_the_origin_of_its_threshold(dino, write_onnx, tmp_path, requested, stored, origin, message):
    assert threshold_origin(requested, stored) == origin
    file = write_onnx({"threshold": pick_threshold(requested, stored), "threshold_from": origin})
    Image.new("RGB", (20, 20)).save(tmp_path / "a.png")
    result = dino("predict", tmp_path / "a.png", "--weights", file)
    assert f"threshold: {pick_threshold(requested, stored):.3f}, " in result.err
    assert message in " ".join(result.err.split())


@pytest.mark.parametrize(
    ("settings", "facts", "preset"),
    [
        (["model.denoising.num_pairs=50", "model.num_classes=3"], {}, "r50-4scale"),  # the preset stays
        (["train.epochs=24"], {}, "r50-4scale-24e"),
        ([], {"converted_from": {"preset": "detrex-r50-4scale-12e"}}, "detrex-r50-4scale-12e"),
        (["model.num_queries=77"], {}, None),
    ],
)
def test_a_file_stores_the_preset_that_dino_info_shows(settings, facts, preset):
    weights = Weights({}, load_config("r50-4scale", settings), [], facts)
    canvases = Canvases((64, 64), (64, 64), 32)
    assert describe(weights, Request("onnx", Path("a.onnx")), canvases, 100)["preset"] == preset


@pytest.mark.parametrize(
    "fault",
    [
        RuntimeError("onnxruntime/core/framework/bfc_arena.cc:376 Failed to allocate memory for requested buffer"),
        MemoryError("out of memory: 0 answers for 2 images"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_a_runtime_out_of_memory_exits_with_5_and_not_as_a_damaged_file(dino, write_onnx, monkeypatch, tmp_path, fault):
    def fail(*_):
        raise fault

    monkeypatch.setattr(
        ExportedDetector, "_open", lambda *args, original=ExportedDetector._open: (fail, original(*args)[1])
    )
    Image.new("RGB", (20, 20)).save(tmp_path / "a.png")
    result = dino("predict", tmp_path / "a.png", "--weights", write_onnx())
    assert result.code == 5 and "out of memory in the exported file's runtime; use smaller batches" in result.err
    assert "damaged" not in result.err
