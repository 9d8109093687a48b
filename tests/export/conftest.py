"""A small model with random weights, images of noise, and a hand-written detector in ONNX and PyTorch.

The detector's boxes are fixed, and its scores are proportional to the image's brightest pixel.
"""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dinocore.data.annotations import Category
from dinocore.model.build import build_model
from dinocore.presets import load_config
from dinocore.weights.file import Weights

SMALL = ["hidden_dim=32", "num_heads=4", "ffn_dim=48", "num_queries=20", "num_encoder_layers=1",
         "num_decoder_layers=2", "num_classes=3"]  # fmt: skip
BACKBONES = {"r50-4scale": "resnet18", "swin-l-4scale": "swin-t-224"}  # smaller replacements


def small(preset: str, *settings: str) -> Weights:
    """Random weights of a small model; those of the heads are large, so that queries differ."""
    torch.manual_seed(5)
    backbone = [f"model.backbone={BACKBONES[preset]}"] if preset in BACKBONES else []
    sizes = ["data.eval_scale=96", "data.max_size=128"]
    config = load_config(preset, [*(f"model.{setting}" for setting in SMALL), *backbone, *sizes, *settings])
    model = build_model(config.model)
    for name, parameter in model.named_parameters():
        if "_head" in name or "offsets" in name or "weights" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    return Weights(model.state_dict(), config, [Category(k, f"c{k}") for k in range(3)], {})


def images(rng: np.random.Generator, count: int = 3) -> list[Image.Image]:
    sizes = rng.integers(60, 300, (count, 2))
    return [Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8)) for size in sizes]


INFO = {
    "schema": 1, "names": ["disc", "ring"], "ids": [1, 2], "canvas": [96, 128], "pixels": "uint8", "eval_scale": 64,
    "max_size": 110, "nms_iou": 0.5, "max_dets": 3, "threshold": 0.3, "precision": "float32", "data": {},
}  # fmt: skip
NO_CHANGES: dict = {}
BOX_FRACTIONS = np.array(
    [[0.1, 0.2, 0.5, 0.6], [0.12, 0.2, 0.5, 0.6], [0.0, 0.0, 0.25, 1.0]], np.float32
)  # xyxy fractions
LABELS, SCORES = [0, 0, 1], [0.9, 0.8, 0.2]


@pytest.fixture
def write_onnx(tmp_path) -> Callable[..., Path]:
    """A function that writes the detector to an ONNX file; `info` overrides metadata, None omits all metadata."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    from onnx import TensorProto as T
    from onnx import helper, numpy_helper

    def write(info: dict | None = NO_CHANGES, name: str = "hand.onnx") -> Path:
        node, pixels = helper.make_node, (INFO | (info or {}))["pixels"]
        constants = {
            "columns": np.array([1, 0, 1, 0]), "fractions": BOX_FRACTIONS[None], "labels_": np.array([LABELS]),
            "axis": [1], "scores_": np.array([SCORES], np.float32) / 255, "axes": [1, 2, 3],
        }  # fmt: skip
        nodes = [
            node("Gather", ["sizes", "columns"], ["whwh"], axis=1), node("Cast", ["whwh"], ["pixels"], to=T.FLOAT),
            node("Unsqueeze", ["pixels", "axis"], ["scale"]), node("Mul", ["scale", "fractions"], ["boxes"]),
            node("Cast", ["images"], ["floats"], to=T.FLOAT),
            node("ReduceMax", ["floats", "axes"], ["brightest"], keepdims=0),
            node("Unsqueeze", ["brightest", "axis"], ["column"]), node("Mul", ["column", "scores_"], ["scores"]),
            node("Cast", ["scores"], ["whole"], to=T.INT64), node("Sub", ["whole", "whole"], ["zero"]),
            node("Add", ["zero", "labels_"], ["labels"]),
        ]  # fmt: skip
        graph = helper.make_graph(
            nodes, "hand",
            [helper.make_tensor_value_info("images", T.FLOAT if pixels == "float32" else T.UINT8, ["b", 96, 128, 3]),
             helper.make_tensor_value_info("sizes", T.INT64, ["b", 2])],
            [helper.make_tensor_value_info("labels", T.INT64, ["b", 3]),
             helper.make_tensor_value_info("scores", T.FLOAT, ["b", 3]),
             helper.make_tensor_value_info("boxes", T.FLOAT, ["b", 3, 4])],
            [numpy_helper.from_array(np.asarray(value), key) for key, value in constants.items()],
        )  # fmt: skip
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
        if info is not None:
            helper.set_model_props(model, {"dino": json.dumps(INFO | info)})
        onnx.save(model, tmp_path / name)
        return tmp_path / name

    return write


class HandWrittenDetector(torch.nn.Module):
    """The same detector in PyTorch."""

    def __init__(self):
        super().__init__()
        self.register_buffer("fractions", torch.from_numpy(BOX_FRACTIONS))
        self.register_buffer("base_scores", torch.tensor(SCORES))

    def forward(self, images: torch.Tensor, sizes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Labels, scores and boxes, like `DetectorGraph`."""
        scores = images.float().amax((1, 2, 3))[:, None] / 255 * self.base_scores
        boxes = sizes[:, [1, 0, 1, 0]].float()[:, None] * self.fractions
        return torch.tensor(LABELS).expand(sizes.shape[0], -1).clone(), scores, boxes


@pytest.fixture
def write_pt2(tmp_path) -> Callable[..., Path]:
    """Like `write_onnx`, for a torch.export program."""

    def write(info: dict | None = NO_CHANGES, name: str = "hand.pt2") -> Path:
        extra_files = {} if info is None else {"dino": json.dumps(INFO | info)}
        batch = torch.export.Dim("batch", max=64)
        shapes = torch.zeros(2, 96, 128, 3, dtype=torch.uint8), torch.ones(2, 2, dtype=torch.int64)
        program = torch.export.export(HandWrittenDetector(), shapes, dynamic_shapes=({0: batch}, {0: batch}))
        torch.export.save(program, tmp_path / name, extra_files=extra_files)
        return tmp_path / name

    return write


@pytest.fixture(params=["onnx", "pt2"])
def write_exported(request) -> Callable[..., Path]:
    """`write_onnx` or `write_pt2`."""
    return request.getfixturevalue(f"write_{request.param}")
