"""The script that compares a TensorRT engine with ONNX Runtime, run without TensorRT."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch
from PIL import Image

from dinocore.export.runtime import ExportedDetector

SCRIPT = Path(__file__).parents[2] / "benchmarks/tensorrt_check.py"


@pytest.fixture
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("tensorrt_check", SCRIPT)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def check(script, write_onnx, tmp_path, monkeypatch):
    """A function that runs the script and returns its exit code; `change` edits ONNX Runtime's results."""
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a card")
    monkeypatch.setattr(script, "build_engine", lambda *args: b"")

    def run(change, info: dict, *options: object) -> object:
        file, image = write_onnx(info), tmp_path / "a.png"
        Image.fromarray(np.random.default_rng().integers(0, 256, (50, 90, 3), np.uint8)).save(image)

        def run_engine(engine, pixels, sizes):
            assert pixels.dtype == np.float32 and len({tuple(size) for size in sizes}) == len(sizes) == 3
            outputs = dict(
                zip(script.OUTPUTS, (x.copy() for x in ExportedDetector(file).run(pixels, sizes)), strict=True)
            )
            change(outputs)
            return outputs, 0.004

        monkeypatch.setattr(script, "run_engine", run_engine)
        monkeypatch.setattr(sys, "argv", ["tensorrt_check.py", str(file), "--image", str(image), *map(str, options)])
        with pytest.raises(SystemExit) as caught:
            script.main()
        return caught.value.code

    return run


def test_an_engine_with_equal_outputs_passes(check, capsys):
    assert check(lambda outputs: None, {"pixels": "float32"}) == 0
    assert (
        "a card, float32, batch 3: 4.00 ms, 750.0 images/s; scores differ by 0, boxes by 0 pixels"
        in capsys.readouterr().out
    )


@pytest.mark.parametrize("image", [0, 1, 2])
@pytest.mark.parametrize(("column", "offset"), [("scores", -0.01), ("boxes", 1.0)])
def test_an_engine_that_differs_in_any_image_of_the_batch_exits_with_1(check, capsys, image, column, offset):
    def change(outputs):
        outputs[column][image, 0] += offset

    assert check(change, {"pixels": "float32"}) == 1
    assert "NOT the same" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("info", "message"),
    [({}, "export it with --pixels float32"), ({"pixels": "float32", "precision": "int8"}, "is in int8")],
)
def test_files_that_tensorrt_does_not_support_are_refused(check, info, message):
    assert message in str(check(lambda outputs: None, info))


@pytest.mark.parametrize(
    ("info", "message"),
    [
        ({"pixels": "float32"}, "has no plug-in; export it with --tensorrt-plugin"),
        ({"pixels": "uint8", "plugin": "P 2"}, "differs in pixels; export both from the same weights"),
        ({"pixels": "float32", "plugin": "P 2", "max_dets": 9}, "differs in max_dets"),
        ({"pixels": "float32", "plugin": "P 2"}, None),
    ],
)
def test_a_file_with_the_plugin_must_match_the_file_it_is_compared_with(check, write_onnx, capsys, info, message):
    code = check(lambda outputs: None, {"pixels": "float32"}, "--plugin", write_onnx(info, "plugin.onnx"))
    assert message in str(code) if message else code == 0
    assert message or "a card, float32, plug-in, batch 3" in capsys.readouterr().out


@pytest.mark.parametrize("built", [None, b"engine"])
def test_an_engine_computes_in_float32_and_one_that_cannot_be_built_is_reported(script, monkeypatch, tmp_path, built):
    (file := tmp_path / "m.onnx").write_bytes(b"")
    flags = {"TF32"}
    settings = SimpleNamespace(
        set_flag=flags.add, clear_flag=flags.discard, add_optimization_profile=lambda profile: None
    )
    tensorrt = MagicMock(BuilderFlag=SimpleNamespace(TF32="TF32", FP16="FP16"))
    builder = tensorrt.Builder.return_value
    builder.create_builder_config.return_value = settings
    builder.build_serialized_network.return_value = built
    monkeypatch.setitem(sys.modules, "tensorrt", tensorrt)
    if built is None:
        with pytest.raises(SystemExit, match="cannot build an engine"):
            script.build_engine(file, [96, 128], 2, fp16=False)
    else:
        assert script.build_engine(file, [96, 128], 2, fp16=False) == built
    assert not flags
