"""ONNX files with TensorRT's plug-in for deformable attention; a NumPy version of the plug-in runs here."""

import json

import numpy as np
import pytest
import torch

from dinocore.errors import CheckpointError, ConfigError
from dinocore.export.detector import FileDetector
from dinocore.export.export import Request, export_weights
from dinocore.export.graph import DetectorGraph
from dinocore.export.plugin import DOMAIN, PLUGIN
from dinocore.model.ops import use_backend
from dinocore.weights.file import restore_model

from .conftest import images, small

CANVAS = (96, 128)


def reference_plugin(value, shapes, starts, locations, weights):
    """The plug-in in NumPy, as TensorRT documents it: value (B, S, M, D) -> output (B, N, M, D)."""
    batch, _, heads, width = value.shape
    out = np.zeros((batch, locations.shape[1], heads, width), np.float32)
    for level, ((rows, columns), start) in enumerate(zip(shapes.tolist(), starts.tolist(), strict=True)):
        level_map = value[:, start : start + rows * columns].reshape(batch, rows, columns, heads, width)
        x = locations[:, :, :, level, :, 0] * columns - 0.5  # (B, N, M, P)
        y = locations[:, :, :, level, :, 1] * rows - 0.5
        for dx in (0, 1):
            for dy in (0, 1):
                column, row = np.floor(x).astype(int) + dx, np.floor(y).astype(int) + dy
                factor = (1 - np.abs(x - column)) * (1 - np.abs(y - row)) * weights[:, :, :, level]
                factor = factor * ((column >= 0) & (column < columns) & (row >= 0) & (row < rows))
                b, m = np.arange(batch)[:, None, None, None], np.arange(heads)[None, None, :, None]
                values = level_map[b, row.clip(0, rows - 1), column.clip(0, columns - 1), m]  # (B, N, M, P, D)
                out += (values * factor[..., None]).sum(3)
    return out


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["tiny", "r50-4scale"])
def test_a_file_with_a_numpy_plugin_gives_the_models_outputs(tmp_path, preset, dino):
    for package in ("onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    onnx = pytest.importorskip("onnx")
    from onnx.reference import ReferenceEvaluator
    from onnx.reference.op_run import OpRun

    weights, file = small(preset), tmp_path / "plugin.onnx"
    request = Request("onnx", file, sizes=[CANVAS], max_dets=30, plugin=True)
    export_weights(weights, tmp_path, request, images(np.random.default_rng(8)))
    model = onnx.load(file)
    assert not model.functions, "TensorRT would use the function instead of its plug-in"
    calls = []

    def _run(self, value, shapes, starts, locations, weights, plugin_version=None):
        assert plugin_version == "2" and shapes.dtype == starts.dtype == np.int32
        calls.append(value.shape)
        return (reference_plugin(value, shapes, starts, locations, weights),)

    class GatherElements(OpRun):  # onnx's own supports at most 64 rows
        def _run(self, data, indices, axis=0):
            return (np.take_along_axis(data, indices, axis),)

    operators = [type(PLUGIN, (OpRun,), {"op_domain": DOMAIN, "_run": _run}), GatherElements]
    pixels = np.random.default_rng(3).integers(0, 256, (2, *CANVAS, 3), np.uint8)
    sizes = np.array([[96, 90], [70, 128]])
    with np.errstate(all="ignore"):
        labels, scores, boxes = ReferenceEvaluator(model, new_ops=operators).run(
            None, {"images": pixels, "sizes": sizes}
        )
    graph = DetectorGraph(restore_model(weights, file).eval(), weights.config.model, 30)
    with use_backend("reference"), torch.no_grad():
        expected = [x.numpy() for x in graph(torch.from_numpy(pixels), torch.from_numpy(sizes))]
    assert len(calls) == 3, "one encoder layer and two decoder layers"
    assert (labels == expected[0]).all()
    assert np.abs(scores - expected[1]).max() < 1e-4 and np.abs(boxes - expected[2]).max() < 0.05

    metadata = {entry.key: entry.value for entry in model.metadata_props}
    assert json.loads(metadata["dino"])["plugin"] == f"{PLUGIN} 2"
    with pytest.raises(CheckpointError, match="exported with --tensorrt-plugin, so it runs in TensorRT only"):
        FileDetector(file)
    result = dino("info", file)
    assert result.code == 0 and "runs in TensorRT only" in result.err and f"{PLUGIN} 2" in result.out
    assert json.loads(dino("info", file, "--json").out)["names"] == json.loads(metadata["dino"])["names"]
    content = file.read_bytes()
    file.write_bytes(content[:9000] + bytes([content[9000] ^ 1]) + content[9001:])
    assert "its checksum is wrong" in " ".join(dino("info", file).err.split())
    file.write_bytes(content[:5000])
    assert "is damaged" in dino("info", file).err


@pytest.mark.parametrize("options", [{"format": "openvino"}, {"precision": "int8"}, {"sizes": [(96, 128), (256, 256)]}])
def test_the_plugin_is_refused_with_unsupported_options(tmp_path, options):
    suffix = ".xml" if "format" in options else ".onnx"
    request = Request("onnx", tmp_path / f"model{suffix}", plugin=True)._replace(**options)
    with pytest.raises(ConfigError, match="--tensorrt-plugin needs --format onnx"):
        export_weights(small("tiny"), tmp_path, request, [])
    assert not list(tmp_path.iterdir())
