"""Names and shapes: every tensor of another codebase is used once, or dropped with a reason."""

import sys
import types

import numpy as np
import pytest
import torch

from dinocore import build_model, convert_state_dict, load_config
from dinocore.errors import CheckpointError, ConfigError
from dinocore.weights.convert import coco
from dinocore.weights.convert.files import with_settings
from dinocore.weights.convert.known import FileFacts, choose_preset, read_facts, settings_in
from dinocore.weights.convert.state import by_part, convert_tensors, moving_average_in
from dinocore.weights.convert.to_official import official_options, official_state
from dinocore.weights.untrusted import Ignored, read_pickle

LISTS = {
    "official_r50_4scale": ["r50-4scale", "r50-4scale-24e", "r50-4scale-36e"],
    "detrex_r50_4scale": [
        "detrex-r50-4scale-12e", "detrex-r50-4scale-24e", "detrex-r50-4scale-300dn-12e",
        "detrex-r50-4scale-hacked-12e", "detrex-r50-4scale-better-hyper-12e",
    ],
    "detrex_r50_5scale": ["detrex-r50-5scale-12e"],
    "detrex_r101_4scale": ["detrex-r101-4scale-12e"],
    "mmdet_r50_4scale": [
        "mmdet-r50-4scale-12e", "mmdet-r50-4scale-24e", "mmdet-r50-4scale-36e", "mmdet-r50-4scale-improved-12e",
    ],
    "detrex_swint_4scale": ["detrex-swin-t-224-4scale-12e", "detrex-swin-t-224-22k-4scale-12e"],
    "detrex_swinl384_4scale": ["detrex-swin-l-384-4scale-12e", "detrex-swin-l-384-4scale-36e"],
    "detrex_swinl384_5scale": ["detrex-swin-l-384-5scale-12e", "detrex-swin-l-384-5scale-36e"],
    "mmdet_swinl_5scale": ["mmdet-swin-l-5scale-12e", "mmdet-swin-l-5scale-36e"],
}  # fmt: skip
PAIRS = [(name, preset) for name, presets in LISTS.items() for preset in presets]
NOTHING_TOLD = FileFacts(None, [], None)


def shapes_of(preset, num_queries):
    with torch.device("meta"):
        model = build_model(load_config(preset, [f"model.num_queries={num_queries}"]).model)
    return {key: tuple(value.shape) for key, value in model.state_dict().items()}


@pytest.mark.parametrize(("name", "preset"), PAIRS)
def test_a_preset_has_the_names_and_shapes_of_the_published_model(name, preset, empty_state):
    tensors = convert_state_dict(empty_state(name))
    queries = len(tensors["proposer.content.content"])
    assert {key: tuple(value.shape) for key, value in tensors.items()} == shapes_of(preset, queries)


@pytest.mark.parametrize("name", LISTS)
def test_every_tensor_is_used_once_or_dropped_with_a_reason(name, empty_state):
    state = empty_state(name)
    converted = convert_tensors(state)
    assert converted.source == name.split("_")[0]
    assert converted.renamed.keys() | converted.dropped.keys() == state.keys()
    assert not converted.renamed.keys() & converted.dropped.keys()
    assert sorted(converted.renamed.values()) == sorted(converted.tensors)
    assert all(len(reason) > 10 for reason in converted.dropped.values())


@pytest.mark.parametrize("name", ["detrex_r50_4scale", "mmdet_r50_4scale", "official_r50_4scale"])
def test_the_numbers_are_theirs_bit_for_bit(name, state_of):
    state = state_of(name)
    converted = convert_tensors(state)
    for theirs, ours in converted.renamed.items():
        assert torch.equal(converted.tensors[ours], state[theirs])


def test_official_to_ours_and_back_gives_the_same_file(state_of):
    state = state_of("official_r50_4scale")
    config = load_config("r50-4scale", ["model.num_queries=100"])
    back = official_state(convert_state_dict(state), config.model)
    assert back.keys() == state.keys()
    assert all(torch.equal(back[key], value) for key, value in state.items())


def test_what_official_cannot_compute_is_not_written_for_it(state_of):
    config = load_config("detrex-r50-4scale-12e", ["model.num_queries=100"])
    tensors = convert_state_dict(state_of("detrex_r50_4scale"))
    with pytest.raises(CheckpointError, match="no offset"):
        official_state(tensors, config.model)
    later = load_config("detrex-r50-4scale-24e", ["model.num_queries=100"]).model
    state = official_state(tensors, later)
    again = convert_state_dict(state)
    assert again.keys() == tensors.keys() and all(torch.equal(again[key], tensors[key]) for key in tensors)
    assert "dec_pred_class_embed_share=False" in official_options(later)
    assert "dn_labelbook_size=79" in official_options(later), "official DINO adds 1 to this value"


def test_a_tensor_that_nobody_knows_is_named(empty_state):
    state = empty_state("mmdet_r50_4scale") | {"bbox_head.mystery.weight": torch.zeros(1)}
    with pytest.raises(CheckpointError, match=r"1 of 628 tensors .* such as bbox_head\.mystery\.weight"):
        convert_state_dict(state)


def test_two_names_of_one_tensor_must_agree_and_one_of_them_is_enough(empty_state):
    state = empty_state("detrex_r50_4scale")
    other = state | {"transformer.decoder.class_embed.3.bias": torch.ones(80)}
    with pytest.raises(CheckpointError, match=r"class_embed\.3\.bias differ"):
        convert_state_dict(other)
    top = {key: value for key, value in state.items() if not key.startswith("transformer.decoder.class_embed")}
    low = {key: value for key, value in state.items() if not key.startswith("class_embed")}
    assert convert_state_dict(top).keys() == convert_state_dict(low).keys() == convert_state_dict(state).keys()


def test_official_heads_that_are_not_shared_stay_apart(empty_state):
    state = empty_state("official_r50_4scale")
    assert settings_in(convert_state_dict(state))["heads"] == "shared"
    for i in range(6):
        state[f"class_embed.{i}.bias"] = state[f"transformer.decoder.class_embed.{i}.bias"] = torch.full(
            (91,), float(i)
        )
    tensors = convert_state_dict(state)
    assert settings_in(tensors)["heads"] == "per-layer"
    assert [tensors[f"decoder.class_heads.{i}.bias"][0] for i in range(6)] == [0, 1, 2, 3, 4, 5]


def test_a_wrapper_and_the_prefix_of_distributed_training_are_seen_through(empty_state):
    state = empty_state("mmdet_r50_4scale")
    wrapped = {"state_dict": {f"module.{key}": value for key, value in state.items()}, "meta": {}}
    assert convert_state_dict(wrapped).keys() == convert_state_dict(state).keys()


def halved(state):
    return {key: value / 2 if value.is_floating_point() else value for key, value in state.items()}


def prefixed(state):
    return {f"module.{key}": value for key, value in state.items()}


def named(part, state):
    return {f"{part}.{key}": value for key, value in state.items()}


WEIGHT = {"empty_weight": torch.ones(92)}  # class weights, a buffer of the criterion
STEPS = {"steps": torch.tensor(5)}
PARTS_OF_AN_AVERAGE = {
    "official DINO": lambda plain, average: {"model": plain, "ema_model": prefixed(average)},
    "detrex": lambda plain, average: {"model": plain, "ema_state": average},
    "timm": lambda plain, average: {"state_dict": plain, "state_dict_ema": average},
    "RT-DETR": lambda plain, average: {"model": plain, "ema": {"module": average, "updates": 7, "warmups": 9}},
    "a decay and its shadow": lambda plain, average: {"model": plain, "ema": {"decay": 0.99, "shadow": average}},
    "Lightning, in one": lambda plain, average: {
        "state_dict": named("model", plain) | named("model_ema.module", average) | named("criterion", WEIGHT)
    },
    "Lightning under DDP": lambda plain, average: {
        "state_dict": named("module.model", plain) | named("module.ema", average) | named("module.val_map", WEIGHT)
    },
    "in one, without a wrapper": lambda plain, average: plain | named("ema_model", average),
    "PyTorch": lambda plain, average: {"model": plain, "model_ema": {"n_averaged": STEPS["steps"]} | prefixed(average)},
}


@pytest.mark.parametrize("codebase", PARTS_OF_AN_AVERAGE)
def test_the_moving_average_of_each_codebase_is_found(codebase, state_of):
    plain = state_of("detrex_r50_4scale")
    content = PARTS_OF_AN_AVERAGE[codebase](plain, halved(plain))
    assert moving_average_in(by_part(content))
    expected, chosen = convert_state_dict(halved(plain)), convert_tensors(content, ema=True).tensors
    assert chosen.keys() == expected.keys() and all(torch.equal(chosen[key], value) for key, value in expected.items())
    last, expected = convert_tensors(content).tensors, convert_state_dict(plain)
    assert last.keys() == expected.keys() and all(torch.equal(last[key], value) for key, value in expected.items())


def test_the_losses_and_metrics_of_a_program_beside_its_model_are_passed_over(state_of):
    plain = state_of("mmdet_r50_4scale")
    content = {"state_dict": named("model", plain) | named("criterion", WEIGHT), "epoch": 3}
    assert convert_state_dict(content).keys() == convert_state_dict(plain).keys()
    assert by_part(content).keys() == {"state_dict", "criterion", "epoch"}
    for other in ({"state_dict": plain, "epoch": 3}, plain, {"model": named("module", plain)}):
        assert by_part(other) is other


def test_mmengine_saves_the_average_as_the_weights_so_both_choices_take_it(state_of):
    """mmengine's EMAHook swaps the weights and their average when it saves."""
    last = state_of("mmdet_r50_4scale")
    content = {"state_dict": halved(last), "ema_state_dict": STEPS | prefixed(last)}
    key = "encoder.layers.0.ffn.net.0.weight"
    average = convert_state_dict(halved(last))[key]
    for ema in (False, True):
        assert torch.equal(convert_tensors(content, ema=ema).tensors[key], average)


def test_an_average_saved_alone_is_weights_and_its_counter_is_not(state_of):
    state = state_of("mmdet_r50_4scale")
    assert convert_state_dict(STEPS | prefixed(state)).keys() == convert_state_dict(state).keys()


def test_what_an_average_leaves_out_of_the_backbone_is_the_weights_own(state_of):
    plain = state_of("detrex_r50_4scale")
    average = {key: value for key, value in halved(plain).items() if not key.endswith(("running_mean", "running_var"))}
    chosen = convert_tensors({"model": plain, "ema_state": average}, ema=True).tensors
    expected = convert_state_dict(plain)
    statistics = [key for key in expected if key.endswith(("running_mean", "running_var"))]
    assert statistics and all(torch.equal(chosen[key], expected[key]) for key in statistics)
    with pytest.raises(CheckpointError, match="no moving average"):
        convert_tensors({"model": plain}, ema=True)


def test_settings_are_read_from_the_tensors(empty_state):
    found = settings_in(convert_state_dict(empty_state("detrex_r50_5scale")))
    assert (found["num_classes"], found["num_queries"], found["num_levels"]) == (80, 900, 5)
    assert found["feature_strides"] == (4, 8, 16, 32) and found["backbone"] == "resnet50"
    assert settings_in(convert_state_dict(empty_state("detrex_r101_4scale")))["backbone"] == "resnet101"


@pytest.mark.parametrize(("source", "variants"), [("mmdet", ("base", "improved")), ("detrex", ("12e", "24e"))])
def test_what_the_names_do_not_tell_is_asked_for(source, variants, empty_state):
    settings = settings_in(convert_state_dict(empty_state(f"{source}_r50_4scale")))
    with pytest.raises(ConfigError) as refusal:
        choose_preset(source, settings, None, NOTHING_TOLD)
    for variant in variants:
        assert f"--variant {variant}" in str(refusal.value)
        assert choose_preset(source, settings, variant, NOTHING_TOLD).startswith(f"{source}-r50-4scale")
    with pytest.raises(ConfigError, match=" or ".join(variants).replace(" or ", ", ")):
        choose_preset(source, settings, "other", NOTHING_TOLD)


def test_a_file_that_tells_its_position_encoding_is_believed(empty_state):
    settings = settings_in(convert_state_dict(empty_state("mmdet_r50_4scale")))
    written = "positional_encoding=dict(\n    normalize=True, num_feats=128, offset=-0.5, temperature=10000),"
    facts = read_facts({"meta": {"cfg": written, "epoch": 12, "dataset_meta": {"classes": ("a", "b")}}})
    assert facts == FileFacts((10000.0, -0.5), ["a", "b"], 12)
    assert choose_preset("mmdet", settings, None, facts) == "mmdet-r50-4scale-improved-12e"


def test_91_classes_become_80_and_the_rows_that_stay_are_equal(state_of):
    tensors = convert_state_dict(state_of("official_r50_4scale"))
    fewer = coco.without_unused(tensors)
    for k, category in enumerate(coco.CATEGORIES):
        for key in ("proposer.class_head.weight", "decoder.class_heads.0.bias", "denoiser.label_embed.weight"):
            assert torch.equal(fewer[key][k], tensors[key][category.id])
    assert torch.equal(fewer["denoiser.label_embed.weight"][80], tensors["denoiser.label_embed.weight"][91])
    config = with_settings(load_config("r50-4scale"), settings_in(fewer))
    model = build_model(config.model)
    model.load_state_dict(fewer, strict=True)


def test_coco_has_80_classes_with_these_ids():
    ids = {category.name: category.id for category in coco.CATEGORIES}
    assert len(ids) == 80 and max(ids.values()) == 90
    some = {"person": 1, "fire hydrant": 11, "stop sign": 13, "backpack": 27, "dining table": 67, "toilet": 70,
            "tv": 72, "refrigerator": 82, "book": 84, "toothbrush": 90}  # fmt: skip
    assert {name: ids[name] for name in some} == some
    assert [category.id for category in coco.all_ids()] == list(range(91))


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["cls_token", "pos_embed"], "self-supervised DINO"),
        (["conv1.weight", "fc.weight"], "backbone_weights"),
        (["tokenizer.level_embed"], "save_weights"),
        ([], "empty"),
        (["input_proj.0.0.weight", "backbone.0.patch_embed.proj.weight"], "not a complete DINO"),
    ],
)
def test_other_models_are_told_apart(names, message):
    with pytest.raises(CheckpointError, match=message):
        convert_state_dict({name: torch.zeros(1) for name in names})


def test_the_log_in_a_file_of_mmengine_is_skipped_over(monkeypatch, tmp_path):
    """Pickled as by mmengine 0.10.7: methods of the buffer by getattr, its values as numpy arrays."""
    module = types.ModuleType("mmengine.logging.history_buffer")

    class HistoryBuffer:
        def mean(self):
            raise AssertionError("nothing of it is called")

        def __getstate__(self):
            return {"_log_history": np.ones(3), "statistics_methods": {"mean": HistoryBuffer.mean}}

    HistoryBuffer.__module__, HistoryBuffer.__qualname__ = module.__name__, "HistoryBuffer"
    HistoryBuffer.mean.__module__, HistoryBuffer.mean.__qualname__ = module.__name__, "HistoryBuffer.mean"
    module.HistoryBuffer = HistoryBuffer
    monkeypatch.setitem(sys.modules, "mmengine", types.ModuleType("mmengine"))
    monkeypatch.setitem(sys.modules, "mmengine.logging", types.ModuleType("mmengine.logging"))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    hub = {"log_scalars": {"loss": HistoryBuffer()}, "runtime_info": {"best_score": np.float64(0.4)}}
    torch.save({"meta": {"epoch": 12}, "state_dict": {"x": torch.ones(2)}, "message_hub": hub}, tmp_path / "mm.pth")
    content = read_pickle(tmp_path / "mm.pth")
    assert content["meta"] == {"epoch": 12} and torch.equal(content["state_dict"]["x"], torch.ones(2))
    assert {type(content["message_hub"]["log_scalars"]["loss"]), type(hub["log_scalars"]["loss"])} == {
        Ignored, HistoryBuffer}  # fmt: skip
