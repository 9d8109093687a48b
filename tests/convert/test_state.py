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
NO_FACTS = FileFacts(None, [], None)


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
def test_converted_values_are_bit_identical(name, state_of):
    state = state_of(name)
    converted = convert_tensors(state)
    for theirs, ours in converted.renamed.items():
        assert torch.equal(converted.tensors[ours], state[theirs])


def test_official_weights_are_unchanged_by_a_round_trip(state_of):
    state = state_of("official_r50_4scale")
    config = load_config("r50-4scale", ["model.num_queries=100"])
    back = official_state(convert_state_dict(state), config.model)
    assert back.keys() == state.keys()
    assert all(torch.equal(back[key], value) for key, value in state.items())


def test_exporting_a_model_that_official_dino_cannot_compute_is_refused(state_of):
    config = load_config("detrex-r50-4scale-12e", ["model.num_queries=100"])
    tensors = convert_state_dict(state_of("detrex_r50_4scale"))
    with pytest.raises(CheckpointError, match="no offset"):
        official_state(tensors, config.model)
    later = load_config("detrex-r50-4scale-24e", ["model.num_queries=100"]).model
    state = official_state(tensors, later)
    restored = convert_state_dict(state)
    assert restored.keys() == tensors.keys() and all(torch.equal(restored[key], tensors[key]) for key in tensors)
    assert "dec_pred_class_embed_share=False" in official_options(later)
    assert "dn_labelbook_size=79" in official_options(later), "official DINO adds 1 to this value"


def test_an_unknown_tensor_is_reported(empty_state):
    state = empty_state("mmdet_r50_4scale") | {"bbox_head.mystery.weight": torch.zeros(1)}
    with pytest.raises(CheckpointError, match=r"1 of 628 tensors .* such as bbox_head\.mystery\.weight"):
        convert_state_dict(state)


def test_aliases_of_a_tensor_must_agree_and_one_is_enough(empty_state):
    state = empty_state("detrex_r50_4scale")
    conflicting = state | {"transformer.decoder.class_embed.3.bias": torch.ones(80)}
    with pytest.raises(CheckpointError, match=r"class_embed\.3\.bias differ"):
        convert_state_dict(conflicting)
    top = {key: value for key, value in state.items() if not key.startswith("transformer.decoder.class_embed")}
    low = {key: value for key, value in state.items() if not key.startswith("class_embed")}
    assert convert_state_dict(top).keys() == convert_state_dict(low).keys() == convert_state_dict(state).keys()


def test_official_heads_that_are_not_shared_stay_separate(empty_state):
    state = empty_state("official_r50_4scale")
    assert settings_in(convert_state_dict(state))["heads"] == "shared"
    for i in range(6):
        state[f"class_embed.{i}.bias"] = state[f"transformer.decoder.class_embed.{i}.bias"] = torch.full(
            (91,), float(i)
        )
    tensors = convert_state_dict(state)
    assert settings_in(tensors)["heads"] == "per-layer"
    assert [tensors[f"decoder.class_heads.{i}.bias"][0] for i in range(6)] == [0, 1, 2, 3, 4, 5]


def test_a_wrapper_and_the_prefix_of_distributed_training_are_removed(empty_state):
    state = empty_state("mmdet_r50_4scale")
    wrapped = {"state_dict": {f"module.{key}": value for key, value in state.items()}, "meta": {}}
    assert convert_state_dict(wrapped).keys() == convert_state_dict(state).keys()


def halved(state):
    return {key: value / 2 if value.is_floating_point() else value for key, value in state.items()}


def ddp_prefixed(state):
    return {f"module.{key}": value for key, value in state.items()}


def prefix(part, state):
    return {f"{part}.{key}": value for key, value in state.items()}


WEIGHT = {"empty_weight": torch.ones(92)}  # class weights, a buffer of the criterion
STEPS = {"steps": torch.tensor(5)}
MOVING_AVERAGES = {
    "official DINO": lambda plain, average: {"model": plain, "ema_model": ddp_prefixed(average)},
    "detrex": lambda plain, average: {"model": plain, "ema_state": average},
    "timm": lambda plain, average: {"state_dict": plain, "state_dict_ema": average},
    "RT-DETR": lambda plain, average: {"model": plain, "ema": {"module": average, "updates": 7, "warmups": 9}},
    "decay and shadow": lambda plain, average: {"model": plain, "ema": {"decay": 0.99, "shadow": average}},
    "Lightning": lambda plain, average: {
        "state_dict": prefix("model", plain) | prefix("model_ema.module", average) | prefix("criterion", WEIGHT)
    },
    "Lightning under DDP": lambda plain, average: {
        "state_dict": prefix("module.model", plain) | prefix("module.ema", average) | prefix("module.val_map", WEIGHT)
    },
    "without a wrapper": lambda plain, average: plain | prefix("ema_model", average),
    "PyTorch": lambda plain, average: {
        "model": plain,
        "model_ema": {"n_averaged": STEPS["steps"]} | ddp_prefixed(average),
    },
}


@pytest.mark.parametrize("codebase", MOVING_AVERAGES)
def test_the_moving_average_of_each_codebase_is_found(codebase, state_of):
    plain = state_of("detrex_r50_4scale")
    content = MOVING_AVERAGES[codebase](plain, halved(plain))
    assert moving_average_in(by_part(content))
    expected, chosen = convert_state_dict(halved(plain)), convert_tensors(content, ema=True).tensors
    assert chosen.keys() == expected.keys() and all(torch.equal(chosen[key], value) for key, value in expected.items())
    last, expected = convert_tensors(content).tensors, convert_state_dict(plain)
    assert last.keys() == expected.keys() and all(torch.equal(last[key], value) for key, value in expected.items())


def test_losses_and_metrics_beside_the_model_are_ignored(state_of):
    plain = state_of("mmdet_r50_4scale")
    content = {"state_dict": prefix("model", plain) | prefix("criterion", WEIGHT), "epoch": 3}
    assert convert_state_dict(content).keys() == convert_state_dict(plain).keys()
    assert by_part(content).keys() == {"state_dict", "criterion", "epoch"}
    for other in ({"state_dict": plain, "epoch": 3}, plain, {"model": prefix("module", plain)}):
        assert by_part(other) is other


def test_the_average_in_an_mmengine_file_is_used_with_and_without_ema(state_of):
    """mmengine's EMAHook swaps the weights and their average when it saves."""
    last = state_of("mmdet_r50_4scale")
    content = {"state_dict": halved(last), "ema_state_dict": STEPS | ddp_prefixed(last)}
    key = "encoder.layers.0.ffn.net.0.weight"
    average = convert_state_dict(halved(last))[key]
    for ema in (False, True):
        assert torch.equal(convert_tensors(content, ema=ema).tensors[key], average)


def test_an_average_without_other_weights_is_converted_and_its_counter_ignored(state_of):
    state = state_of("mmdet_r50_4scale")
    assert convert_state_dict(STEPS | ddp_prefixed(state)).keys() == convert_state_dict(state).keys()


def test_batch_norm_statistics_missing_from_an_average_come_from_the_weights(state_of):
    plain = state_of("detrex_r50_4scale")
    average = {key: value for key, value in halved(plain).items() if not key.endswith(("running_mean", "running_var"))}
    chosen = convert_tensors({"model": plain, "ema_state": average}, ema=True).tensors
    expected = convert_state_dict(plain)
    statistics = [key for key in expected if key.endswith(("running_mean", "running_var"))]
    assert statistics and all(torch.equal(chosen[key], expected[key]) for key in statistics)
    with pytest.raises(CheckpointError, match="no moving average"):
        convert_tensors({"model": plain}, ema=True)


def test_settings_are_read_from_the_tensors(empty_state):
    settings = settings_in(convert_state_dict(empty_state("detrex_r50_5scale")))
    assert (settings["num_classes"], settings["num_queries"], settings["num_levels"]) == (80, 900, 5)
    assert settings["feature_strides"] == (4, 8, 16, 32) and settings["backbone"] == "resnet50"
    assert settings_in(convert_state_dict(empty_state("detrex_r101_4scale")))["backbone"] == "resnet101"


@pytest.mark.parametrize(("source", "variants"), [("mmdet", ("base", "improved")), ("detrex", ("12e", "24e"))])
def test_an_ambiguous_variant_is_refused_and_can_be_chosen(source, variants, empty_state):
    settings = settings_in(convert_state_dict(empty_state(f"{source}_r50_4scale")))
    with pytest.raises(ConfigError) as caught:
        choose_preset(source, settings, None, NO_FACTS)
    for variant in variants:
        assert f"--variant {variant}" in str(caught.value)
        assert choose_preset(source, settings, variant, NO_FACTS).startswith(f"{source}-r50-4scale")
    with pytest.raises(ConfigError, match=" or ".join(variants).replace(" or ", ", ")):
        choose_preset(source, settings, "other", NO_FACTS)


def test_the_position_encoding_in_a_file_determines_the_preset(empty_state):
    settings = settings_in(convert_state_dict(empty_state("mmdet_r50_4scale")))
    config_text = "positional_encoding=dict(\n    normalize=True, num_feats=128, offset=-0.5, temperature=10000),"
    facts = read_facts({"meta": {"cfg": config_text, "epoch": 12, "dataset_meta": {"classes": ("a", "b")}}})
    assert facts == FileFacts((10000.0, -0.5), ["a", "b"], 12)
    assert choose_preset("mmdet", settings, None, facts) == "mmdet-r50-4scale-improved-12e"


def test_removing_unused_classes_keeps_the_rows_of_the_80_others(state_of):
    tensors = convert_state_dict(state_of("official_r50_4scale"))
    fewer = coco.without_unused(tensors)
    for k, category in enumerate(coco.CATEGORIES):
        for key in ("proposer.class_head.weight", "decoder.class_heads.0.bias", "denoiser.label_embed.weight"):
            assert torch.equal(fewer[key][k], tensors[key][category.id])
    assert torch.equal(fewer["denoiser.label_embed.weight"][80], tensors["denoiser.label_embed.weight"][91])
    config = with_settings(load_config("r50-4scale"), settings_in(fewer))
    model = build_model(config.model)
    model.load_state_dict(fewer, strict=True)


def test_coco_has_80_classes_with_the_official_ids():
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
def test_other_models_are_refused_with_a_hint(names, message):
    with pytest.raises(CheckpointError, match=message):
        convert_state_dict({name: torch.zeros(1) for name in names})


def test_the_log_in_an_mmengine_file_is_ignored(monkeypatch, tmp_path):
    """Pickled as by mmengine 0.10.7: methods of the buffer by getattr, its values as numpy arrays."""
    module = types.ModuleType("mmengine.logging.history_buffer")

    class HistoryBuffer:
        def mean(self):
            raise AssertionError("must not be called")

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
