"""torch.compile is used for frequent image sizes, and gives the same results."""

import logging
import pickle

import pytest
import torch

from dinocore import load_detector
from dinocore.data.synthetic.smear import draw_smear
from dinocore.model.inference import CompiledModel, for_inference
from dinocore.system.device import check_compiler

CPU = torch.device("cpu")


class Model(torch.nn.Module):
    """Records the image sizes it is called with."""

    def __init__(self):
        super().__init__()
        self.shapes = []

    def forward(self, images, padding):
        self.shapes.append(tuple(images.shape[2:]))
        return images


def call(model: CompiledModel, height: int, width: int) -> None:
    model(torch.zeros(1, 3, height, width), torch.zeros(1, height, width, dtype=torch.bool))


@pytest.fixture
def pair(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda model, **options: model)  # it takes half a minute
    plain, to_compile = Model(), Model()
    clock = iter(range(1000))
    monkeypatch.setattr("dinocore.model.inference.time.perf_counter", lambda: next(clock))  # each call takes a second
    return plain, to_compile, CompiledModel(plain, to_compile, after=2, limit=2)


def test_a_size_is_compiled_once_it_has_taken_enough_time(pair, caplog):
    plain, to_compile, model = pair
    with caplog.at_level(logging.INFO, "dinocore"):
        for _ in range(4):
            call(model, 8, 16)
    assert plain.shapes == [(8, 16)] * 2 and to_compile.shapes == [(8, 16)] * 2
    assert [record.message for record in caplog.records] == [
        "compiling for 8 x 16 pixels, batch size 1; this takes a while"
    ]


def test_no_more_sizes_are_compiled_than_the_limit_allows(pair):
    plain, to_compile, model = pair
    for side in (8, 16, 24):
        for _ in range(4):
            call(model, side, side)
    assert to_compile.shapes == [(8, 8)] * 2 + [(16, 16)] * 2
    assert plain.shapes[-4:] == [(24, 24)] * 4


def test_sizes_that_occur_once_are_never_compiled(pair):
    plain, to_compile, model = pair
    for side in range(8, 40):
        call(model, side, 8)
    assert not to_compile.shapes and len(plain.shapes) == 32


def test_if_compiling_fails_the_eager_model_is_used_with_one_warning(pair, monkeypatch):
    plain, _, model = pair

    def fail(images, padding):
        raise RuntimeError("g++ was killed")

    monkeypatch.setattr(model, "call", fail)
    for _ in range(2):
        call(model, 8, 8)
    with pytest.warns(
        UserWarning, match=r"torch\.compile failed, continuing without it: RuntimeError: g\+\+ was killed"
    ) as warned:
        for side in (8, 8, 8, 16, 16, 16):
            call(model, side, side)
    assert len(warned) == 1 and plain.shapes == [(8, 8)] * 5 + [(16, 16)] * 3


def test_a_copy_for_another_process_starts_without_compiled_sizes(pair):
    _, _, model = pair
    model.plain = model.to_compile = torch.nn.Identity()
    model.seconds[torch.Size((1, 3, 8, 8))] = 5
    copy = pickle.loads(pickle.dumps(model))
    assert (copy.after, copy.limit, dict(copy.seconds)) == (2, 2, {})


@pytest.mark.slow
@pytest.mark.parametrize("amp", ["off", "int8"])
def test_the_compiled_model_detects_the_same_cells(amp, tmp_path, monkeypatch):
    if amp == "int8" and not torch.cpu._is_vnni_supported():
        pytest.skip("without VNNI, int8 is refused")
    check_compiler(CPU)  # CI has a compiler
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    plain, compiled = load_detector("cells", "cpu", amp), load_detector("cells", "cpu", amp, compiled=True)
    assert compiled.compiled is not None
    compiled.compiled.after = 1e-9
    smear = draw_smear(5, 0, (160, 120))[0]
    expected = plain(smear)
    confident = expected.scores > 0.4
    assert confident.sum() >= 2
    for _ in range(3):  # eager, compiled, and compiled again
        actual = compiled(smear)
        distance = (expected.boxes_xyxy[confident][:, None] - actual.boxes_xyxy[None]).abs().amax(-1).amin(1)
        assert distance.max() < (0.05 if amp == "off" else 3)
        torch.testing.assert_close(actual.scores[:5], expected.scores[:5], atol=1e-4 if amp == "off" else 0.05, rtol=0)
    assert len(compiled.compiled.compiled) == 1


@pytest.mark.slow
def test_a_resnet_is_compiled_around_its_int8_convolutions(tmp_path, monkeypatch):
    from dinocore import build_model, load_config

    if not torch.cpu._is_vnni_supported():
        pytest.skip("without VNNI, int8 is refused")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    overrides = ["model.backbone=resnet18", "model.hidden_dim=64", "model.num_heads=4", "model.ffn_dim=96"]
    overrides += ["model.num_encoder_layers=1", "model.num_decoder_layers=1", "model.num_queries=20"]
    torch.manual_seed(0)
    model = build_model(load_config("r50-4scale", overrides).model)
    models = [for_inference(model, None, CPU, int8=True, to_compile=compiling) for compiling in (False, True)]
    compiled = CompiledModel(*models, after=0)
    images, padding = torch.randn(1, 3, 64, 96), torch.zeros(1, 64, 96, dtype=torch.bool)
    with torch.no_grad():
        expected, actual = models[0](images, padding).final, compiled(images, padding).final
    torch.testing.assert_close(actual.logits, expected.logits, atol=0.02, rtol=0.02)
