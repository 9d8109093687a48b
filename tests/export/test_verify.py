"""An exported file is accepted only if it gives the model's detections."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from dinocore.config import Config
from dinocore.errors import ConfigError
from dinocore.export import export, write
from dinocore.export import graph as graph_module
from dinocore.export.detector import fit
from dinocore.export.export import (
    NotVerified,
    Request,
    check_smallest_canvas,
    comparison_config,
    export_weights,
    pick_canvases,
)
from dinocore.export.graph import Canvases, DetectorGraph, Signature, trace
from dinocore.export.onnx_graph import name_dynamic_dims
from dinocore.export.programs import open_exported
from dinocore.export.runtime import ExportedDetector
from dinocore.export.verify import TIE, TOLERANCES, Difference, Stages, batches, compare, tied_pairs, verify
from dinocore.model.build import build_model
from dinocore.model.ops import use_backend
from dinocore.predict import Detector
from dinocore.weights.file import Weights

from .conftest import images, small

EXACT = TOLERANCES["float32"]
CANVAS = (128, 192)


def random_detections(rng: np.random.Generator, count: int = 40) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return rng.integers(0, 3, count), -np.sort(-rng.random(count)), rng.random((count, 4)) * 300


def test_the_order_of_detections_does_not_matter():
    rng = np.random.default_rng(1)
    detections = random_detections(rng)
    order = rng.permutation(40)
    assert compare(detections, tuple(x[order] for x in detections), EXACT)[:3] == (0, 0, 0)


@pytest.mark.parametrize(("column", "error"), [(1, 3e-4), (2, 0.2)])
def test_a_single_wrong_value_is_detected(column, error):
    rng = np.random.default_rng(2)
    detections = random_detections(rng)
    changed = [x.copy() for x in detections]
    changed[column][int(rng.integers(30))] += error
    difference = compare(detections, tuple(changed), EXACT)
    assert max(difference.score, difference.box) == pytest.approx(error)
    assert not difference.within(EXACT)


def test_a_wrong_class_and_non_finite_values_are_detected():
    detections = random_detections(np.random.default_rng(3))
    labels = detections[0].copy()
    labels[0] = 7
    assert compare(detections, (labels, *detections[1:]), EXACT).off == 1
    scores = detections[1].copy()
    scores[3] = np.nan
    assert not compare(detections, (detections[0], scores, detections[2]), EXACT).within(EXACT)


def test_in_int8_one_detection_in_ten_may_differ():
    tolerance = TOLERANCES["int8"]
    assert Difference(0.9, 50, off=2, compared=20).within(tolerance)
    assert not Difference(0.9, 50, off=3, compared=20).within(tolerance)


def test_in_int8_any_of_several_boxes_of_an_object_may_have_the_highest_score():
    box, shifted, distant = [10.0, 10, 60, 60], [12.0, 10, 62, 60], [100.0, 10, 160, 60]
    model = np.array([1, 1, 0]), np.array([0.9, 0.35, 0.6]), np.array([box, shifted, distant])
    file = np.array([1, 0, 1]), np.array([0.85, 0.55, 0.1]), np.array([shifted, distant, box])
    assert compare(model, file, TOLERANCES["int8"])[2:4] == (0, 5)


@pytest.mark.parametrize(
    ("label", "score", "shift"), [(0, 0.9, 0), (1, 0.7, 0), (1, 0.9, 30)], ids=["class", "score", "position"]
)
def test_in_int8_an_object_with_another_class_score_or_position_differs_in_both_directions(label, score, shift):
    box = np.array([[10.0, 10, 60, 60]])
    model, file = (np.array([1]), np.array([0.9]), box), (np.array([label]), np.array([score]), box + shift)
    assert compare(model, file, TOLERANCES["int8"])[2:4] == (2, 2)
    empty = np.zeros(0, int), np.zeros(0), np.zeros((0, 4))
    assert compare(model, empty, TOLERANCES["int8"])[2:4] == (1, 1)
    assert compare(empty, file, TOLERANCES["int8"])[2:4] == (1, 1)


def test_a_comparison_without_detections_fails():
    assert not Difference().within(EXACT)


def make_detector(weights: Weights) -> tuple[Detector, DetectorGraph]:
    """A detector, and the graph of its model that would be exported."""
    model = build_model(weights.config.model)
    model.load_state_dict(weights.tensors)
    config = comparison_config(weights.config, 30)
    detector = Detector(model, config, weights.categories, torch.device("cpu"), "off")
    return detector, DetectorGraph(model, config.model, 30)


def graph_against_model(preset: str, rng: np.random.Generator) -> Difference:
    detector, graph = make_detector(small(preset))
    resized = [fit(detector.batch(image).images[0], CANVAS) for image in images(rng)]

    def run(pixels, sizes):
        with torch.no_grad():
            return [x.numpy() for x in graph(torch.from_numpy(pixels), torch.from_numpy(sizes))]

    worst = Difference()
    with use_backend("reference"):  # compiling the default one takes too long
        for _, difference in verify(run, detector, resized, CANVAS, EXACT):
            worst = worst.combined(difference)
    return worst


@pytest.mark.parametrize("preset", ["tiny", "r50-4scale", pytest.param("swin-l-4scale", marks=pytest.mark.slow)])
def test_the_graph_gives_the_models_detections_in_every_shape_and_batch(preset):
    worst = graph_against_model(preset, np.random.default_rng())
    assert worst.within(EXACT), worst


def test_a_trace_gives_the_graphs_detections_of_another_batch():
    _, graph = make_detector(small("r50-4scale", "model.num_decoder_layers=1"))
    program = trace(graph, Signature(Canvases(CANVAS, CANVAS, 32), 30))
    pixels = torch.randint(0, 256, (3, *CANVAS, 3), dtype=torch.uint8)
    sizes = torch.tensor([[128, 192], [70, 192], [128, 50]])
    with use_backend("reference"), torch.no_grad():
        expected = graph(pixels, sizes)
    for i, actual in enumerate(zip(*(x.numpy() for x in program.module()(pixels, sizes)), strict=True)):
        difference = compare((expected[0][i].numpy(), expected[1][i].numpy(), expected[2][i].numpy()), actual, EXACT)
        assert difference.within(EXACT), difference


def test_a_graph_that_ignores_the_padding_is_detected(monkeypatch):
    monkeypatch.setattr(graph_module, "padding_mask", lambda sizes, *canvas: torch.zeros(len(sizes), *canvas).bool())
    assert not graph_against_model("r50-4scale", np.random.default_rng(6)).within(EXACT)


def test_several_shapes_and_batch_sizes_are_compared():
    originals = [torch.zeros(3, h, w, dtype=torch.uint8) for h, w in ((60, 90), (100, 70), (30, 120))]
    compared = list(batches(originals, CANVAS))
    assert len({size for batch in compared for size in batch.sizes}) >= 5
    assert {len(batch.sizes) for batch in compared} >= {1, 2, 3}
    assert all(batch.images.shape[2:] == CANVAS for batch in compared)


class Broken:
    """A writer whose file gives wrong detections, or cannot be opened."""

    def __init__(self, kind):
        self.kind = kind

    def __call__(self, program, path, info):
        path.write_bytes(b"x")
        return [path]

    def open(self, path):
        if self.kind == "unreadable":
            raise OSError("bad magic")

        def run(pixels, sizes):
            count = len(sizes)
            return np.zeros((count, 9), int), np.full((count, 9), 0.5), np.zeros((count, 9, 4))

        return SimpleNamespace(run=run)


@pytest.mark.parametrize(
    ("kind", "message"), [("unreadable", "failed to run: bad magic"), ("wrong", "differ from the model")]
)
def test_a_wrong_file_is_kept_as_unverified(tmp_path, monkeypatch, kind, message):
    writer = Broken(kind)
    monkeypatch.setitem(write.FORMATS, "torch-export", (writer, ".pt2", (), ""))
    monkeypatch.setattr(export, "open_exported", writer.open)
    monkeypatch.setattr(export, "trace", lambda *args: None)
    request = Request("torch-export", tmp_path / "new" / "model.pt2")
    with use_backend("reference"), pytest.raises(NotVerified, match=message) as caught:
        export_weights(small("r50-4scale"), tmp_path, request, images(np.random.default_rng(4)))
    assert caught.value.exit_code == 1
    assert [file.name for file in request.out.parent.iterdir()] == ["model.pt2.unverified"]


def test_a_canvas_must_be_a_multiple_of_the_stride():
    config = Config()
    assert pick_canvases(config, [], 32) == Canvases((1344, 1344), (1344, 1344), 32)
    assert pick_canvases(config, [(320, 448)], 32) == Canvases((320, 448), (320, 448), 32)
    with pytest.raises(ConfigError, match="multiple of 32, the model's coarsest stride; try 320x416"):
        pick_canvases(config, [(320, 427)], 32)


def test_a_range_of_canvases_must_be_increasing_and_have_a_token_for_each_query():
    config = Config()  # 900 queries, strides 8 to 64
    with pytest.raises(ConfigError, match="from the smallest to the largest; got 320 x 320 to 640 x 256 pixels"):
        pick_canvases(config, [(320, 320), (640, 256)], 32)
    with pytest.raises(ConfigError, match="192 x 192 has 765 tokens for 900 queries; start the range at 224x224"):
        check_smallest_canvas(pick_canvases(config, [(192, 192), (640, 640)], 32), config, 2)
    check_smallest_canvas(pick_canvases(config, [(224, 224), (640, 640)], 32), config, 2)


def test_a_file_is_verified_on_the_smallest_the_largest_and_another_canvas_of_its_range():
    canvases = Canvases((640, 640), (224, 256), 32).samples()
    assert len({height for height, _ in canvases}) == len({width for _, width in canvases}) == 3
    assert canvases[0] == (640, 640) and canvases[-1] == (224, 256)
    assert all(height % 32 == width % 32 == 0 and height != width for height, width in canvases[1:])


class Swapped:
    """The graph with two proposals of neighbouring rank swapped, as rounding does with tied scores."""

    def __init__(self, graph: DetectorGraph):
        self.graph = graph

    def __call__(self, pixels: np.ndarray, sizes: np.ndarray) -> list[np.ndarray]:
        with torch.no_grad(), self.graph.model.proposer.class_head.register_forward_hook(self._swap):
            return [x.numpy() for x in self.graph(torch.from_numpy(pixels), torch.from_numpy(sizes))]

    def _swap(self, module, inputs, logits):
        logits = logits.clone()
        for i, ranks in enumerate(logits.amax(-1)):
            ranked, token = ranks.sort(descending=True)
            rank = int((ranked[:-1] - ranked[1:] > 1e-5).nonzero()[0])  # skips equal scores
            a, b = token[[rank, rank + 1]].tolist()
            logits[i, [a, b]] = logits[i, [b, a]]
        return logits


class Shuffled(Swapped):
    """The graph with noise added to the proposals' scores, which changes the order of many."""

    def _swap(self, module, inputs, logits):
        noise = torch.rand(logits.shape[1], generator=torch.Generator().manual_seed(5)) - 0.5
        return logits + 0.9 * self.gap * noise[:, None]


@pytest.mark.parametrize(("gap", "within"), [(0.3, True), (6.0, False)])
def test_many_tied_proposals_may_be_in_any_order_but_others_may_not(monkeypatch, gap, within):
    monkeypatch.setattr("dinocore.export.verify.TIE", 0.3)  # the best twenty scores span less than 1
    monkeypatch.setattr("dinocore.export.verify.MAX_TIES", 2)
    detector, graph = make_detector(small("tiny"))
    torch.nn.init.normal_(detector.model.proposer.content.content, std=3)
    graph.model.proposer.content.content.data.copy_(detector.model.proposer.content.content)
    image = torch.randint(0, 256, (3, *CANVAS), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    batch, run = next(iter(batches([image], CANVAS))), Shuffled(graph)
    run.gap = gap
    with use_backend("reference"):
        labels, scores, boxes = run(batch.images.permute(0, 2, 3, 1).numpy(), np.array(batch.sizes))
        stages = Stages(detector, batch)
    difference = stages.compare(0, (labels[0], scores[0], boxes[0]), EXACT)
    assert difference.within(EXACT) == within, difference
    wrong = stages.compare(0, (labels[0], scores[0] * 0.3, boxes[0]), EXACT)
    assert not wrong.within(EXACT), "ties do not hide another error"


@pytest.mark.parametrize("equal", [True, False])
def test_only_tied_proposals_may_swap_ranks(monkeypatch, equal):
    monkeypatch.setattr("dinocore.export.verify.TIE", 10.0 if equal else TIE)
    detector, graph = make_detector(small("tiny"))
    torch.nn.init.normal_(detector.model.proposer.content.content, std=3)
    graph.model.proposer.content.content.data.copy_(detector.model.proposer.content.content)
    resized = [fit(detector.batch(image).images[0], CANVAS) for image in images(np.random.default_rng(9))]
    batch, worst = list(batches(resized, CANVAS))[3], Difference()
    with use_backend("reference"):
        rows = Swapped(graph)(batch.images.permute(0, 2, 3, 1).numpy(), np.array(batch.sizes))
        stages = Stages(detector, batch)
    for i, row in enumerate(zip(*rows, strict=True)):
        worst = worst.combined(stages.compare(i, row, EXACT))
    assert worst.within(EXACT) == equal, worst
    assert bool(worst.ties) == equal


def test_ties_are_detected_up_to_the_first_proposal_that_is_not_selected():
    ranks = torch.tensor([0.0, 5.0, 5.0 + TIE / 2, 3.0, 3.0, 1.0, 1.0])
    usable = torch.tensor([True] * 5 + [False] * 2)
    assert tied_pairs(ranks, usable, 3) == [(2, 1), (3, 4)]
    assert tied_pairs(ranks, usable, 2) == [(2, 1)]
    assert tied_pairs(ranks, usable, 7) == [(2, 1), (3, 4)]  # not the last two: tokens without an anchor


SUFFIXES = {"onnx": ".onnx", "openvino": ".xml", "torch-export": ".pt2"}


OTHER_FORMATS = [("onnx", "r50-4scale"), ("onnx", "swin-l-4scale"), ("torch-export", "swin-l-4scale")]


@pytest.mark.slow
@pytest.mark.parametrize(("format", "preset"), [*((format, "tiny") for format in SUFFIXES), *OTHER_FORMATS])
def test_a_format_is_written_and_gives_the_models_outputs(tmp_path, format, preset):
    for package in write.FORMATS[format][2]:
        pytest.importorskip(package)
    out = tmp_path / f"model{SUFFIXES[format]}"
    request = Request(format, out, sizes=[CANVAS], max_dets=30)
    result = export_weights(small(preset), tmp_path, request, images(np.random.default_rng(8)))
    assert result.files[0] == out and all(file.stat().st_size for file in result.files)
    assert result.difference.within(EXACT)
    assert result.info["names"] == ["c0", "c1", "c2"]
    assert open_exported(out).info == result.info
    for file in result.files:
        content = file.read_bytes()
        middle = len(content) // 2
        file.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
        with pytest.raises(ValueError, match="damaged"):
            open_exported(out)
        file.write_bytes(content)


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["tiny", "r50-4scale"])
def test_one_onnx_file_accepts_canvases_of_many_sizes(tmp_path, preset):
    pytest.importorskip("onnxscript")
    request = Request("onnx", tmp_path / "model.onnx", sizes=[(96, 128), (256, 256)], max_dets=30)
    result = export_weights(small(preset), tmp_path, request, images(np.random.default_rng(8)))
    assert result.difference.within(EXACT)
    run = ExportedDetector(request.out)
    for size in [(40, 70), (130, 100), (256, 200)]:
        pixels, _ = run.place([np.zeros((*size, 3), np.uint8)])
        assert pixels.shape[1] % 32 == pixels.shape[2] % 32 == 0
        assert size <= pixels.shape[1:3] <= (256, 256)
        assert len(run.run(pixels, np.array([size]))[0]) == 1
    assert shapes_of(request.out)["images"] == ["batch", "height", "width", 3]


def shapes_of(file: Path) -> dict[str, list[str | int]]:
    """The shape of each input and output of an ONNX file."""
    import onnxruntime

    session = onnxruntime.InferenceSession(file)
    return {value.name: value.shape for value in (*session.get_inputs(), *session.get_outputs())}


def test_dynamic_dims_of_an_onnx_file_are_named_everywhere_and_others_stay():
    from onnx import TensorProto, helper

    def value(name, *shape):
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)

    inputs, outputs = [value("images", "s3", "32*s8", 64, 3), value("sizes", "s3", 2)], [value("boxes", "s3", 9, 4)]
    inner = [value("map", "s3", 16, "4*s8", 64), value("same", "32*s8", 64)]
    graph = helper.make_graph([], "graph", inputs, outputs, value_info=inner)
    name_dynamic_dims(graph)
    shapes = {
        value.name: [size.dim_param or size.dim_value for size in value.type.tensor_type.shape.dim]
        for value in (*graph.input, *graph.output, *graph.value_info)
    }
    assert shapes == {
        "images": ["batch", "height", 64, 3], "sizes": ["batch", 2], "boxes": ["batch", 9, 4],
        "map": ["batch", 16, "4*s8", 64], "same": ["height", 64],
    }  # fmt: skip


def test_a_range_of_sizes_is_refused_for_swin_before_the_export(tmp_path):
    request = Request("onnx", tmp_path / "model.onnx", sizes=[(96, 128), (256, 256)], max_dets=30)
    with pytest.raises(ConfigError, match="for one size; give one, such as --size 256x256"):
        export_weights(small("swin-l-4scale"), tmp_path, request, [])
    assert not list(tmp_path.iterdir())
