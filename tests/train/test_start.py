"""The start of a run: weights, frozen parts, settings and precision."""

import json

import numpy as np
import pytest
import torch

from dinocli.commands.train.train import TrainRequest, _find_checkpoint, checked
from dinocore.data.annotations import Category
from dinocore.data.dataset import open_dataset
from dinocore.errors import CheckpointError, ConfigError
from dinocore.model.build import build_model
from dinocore.model.ops.dispatch import is_reference
from dinocore.presets import load_config
from dinocore.system.device import _WithoutTF32, float32_throughout
from dinocore.train.context import exceeded_limits
from dinocore.train.failures.classify import deterministic
from dinocore.train.run.folder import make_new_run, write_config
from dinocore.train.setup import check_start, settings_of
from dinocore.weights.file import load_weights, save_weights

CLASSES = [Category(k, f"class {k}") for k in range(3)]


PARTS = ["backbone", "neck", "tokenizer", "encoder", "proposer", "denoiser", "decoder"]


def state_bytes(module, part):
    return {key: value.numpy().tobytes() for key, value in module.get_submodule(part).state_dict().items()}


@pytest.mark.parametrize("frozen", [("backbone", "encoder"), ("neck", "tokenizer", "decoder")])
def test_frozen_parts_stay_bitwise_equal_and_others_change(frozen, small_config, start, run_to_end):
    """Includes batch norm statistics, the moving average and the optimizer."""
    freeze = f"train.freeze={json.dumps(frozen)}"
    context, state = start(small_config(freeze, "train.epochs=1", "train.ema_decay=0.9", "model.frozen_stages=-1"))
    before = {part: state_bytes(state.model, part) for part in PARTS}
    run_to_end(context, state)
    for model in (state.model, state.ema.model):
        unchanged = {part for part in PARTS if state_bytes(model, part) == before[part]}
        assert set(frozen) <= unchanged <= {*frozen, "tokenizer"}, "a new, frozen encoder ignores positions"
    frozen_ids = {id(p) for part in frozen for p in state.model.get_submodule(part).parameters()}
    assert frozen_ids and not frozen_ids & {id(p) for group in state.optimizer.param_groups for p in group["params"]}
    saved = load_weights(context.folder / "best.safetensors").tensors
    for part in frozen:
        assert all(saved[f"{part}.{key}"].numpy().tobytes() == value for key, value in before[part].items())


def test_freezing_everything_is_refused(small_config, start):
    with pytest.raises(ConfigError, match="leaves nothing to train"):
        start(small_config(f"train.freeze={json.dumps(PARTS)}"))


@pytest.fixture
def weights_of(tmp_path):
    """A function that writes a weights file with a preset's config and one dummy tensor."""

    def write(preset, *overrides, facts=None):
        config = load_config(preset, overrides)
        save_weights(tmp_path / "w.safetensors", {"a": torch.zeros(1)}, config, CLASSES, facts or {})
        return f'train.weights="{tmp_path / "w.safetensors"}"'

    return write


def test_weights_of_another_preset_are_refused_with_its_name(weights_of):
    setting = weights_of("detrex-r50-4scale-24e")
    with pytest.raises(CheckpointError, match=r"model\.heads = per-layer \(requested: shared\); use --preset detrex"):
        check_start(load_config("r50-4scale", [setting]))
    check_start(load_config("detrex-r50-4scale-24e", [setting]))


def test_another_position_encoding_counts_as_another_model_even_if_all_shapes_match(weights_of):
    setting = weights_of("detrex-r50-4scale-12e")
    with pytest.raises(CheckpointError, match=r"position_temperature = 10000\.0 .* --preset detrex-r50-4scale-12e"):
        check_start(load_config("detrex-r50-4scale-24e", [setting]))


@pytest.mark.parametrize(
    ("file_preset", "requested_preset", "difference"),
    [
        ("r50-5scale", "r50-4scale", r"model\.feature_strides .* model\.num_levels = 5 \(requested: 4\)"),
        ("detrex-r101-4scale-12e", "detrex-r50-4scale-12e", r"model\.backbone = resnet101"),
        ("r50-4scale", "tiny", r"model\.num_levels = 4"),
        ("mmdet-r50-4scale-12e", "mmdet-r50-4scale-improved-12e", r"model\.position_temperature = 20"),
    ],
)
def test_the_wrong_preset_is_refused_and_the_right_one_suggested(file_preset, requested_preset, difference, weights_of):
    with pytest.raises(CheckpointError, match=f"{difference}.*use --preset {file_preset}"):
        check_start(load_config(requested_preset, [weights_of(file_preset)]))


def test_another_pixel_normalization_or_minimum_fraction_counts_as_another_model(weights_of):
    setting = weights_of("r50-4scale", "model.pixel_mean=[0.5, 0.5, 0.5]", "model.box_eps=1e-5")
    with pytest.raises(
        CheckpointError, match=r"--set model\.box_eps=1e-05 --set model\.pixel_mean=\[0\.5, 0\.5, 0\.5\]"
    ):
        check_start(load_config("r50-4scale", [setting]))


def test_the_bundled_weights_of_a_changed_model_are_refused_before_data_is_read():
    with pytest.raises(ConfigError, match=r"backbone_weights=none"):
        check_start(load_config("tiny", ["model.num_levels=4"]))


def test_settings_specific_to_a_run_are_not_taken_over_from_weights(weights_of):
    file = weights_of("r50-4scale-36e", "data.path=/old", 'train.freeze=["neck"]', "train.weights=other.safetensors")
    config = settings_of(json.loads(file.partition("=")[2]))
    assert config == load_config("r50-4scale-36e")


def test_weights_that_fit_no_preset_are_refused_with_their_settings(weights_of):
    setting = weights_of("r50-4scale", "model.ffn_dim=512")
    with pytest.raises(CheckpointError, match=r"use --set model\.ffn_dim=512$"):
        check_start(load_config("r50-4scale", [setting]))
    check_start(load_config("r50-4scale", [setting, "model.ffn_dim=512"]))


def test_other_classes_do_not_count_as_another_model(weights_of):
    check_start(load_config("r50-4scale", [weights_of("r50-4scale"), "model.num_classes=3"]))


def test_converted_weights_of_another_preset_are_refused_with_its_name(weights_of):
    facts = {"converted_from": {"preset": "mmdet-r50-4scale-36e"}}
    with pytest.raises(CheckpointError, match="--preset mmdet-r50-4scale-36e"):
        check_start(load_config("tiny", [weights_of("mmdet-r50-4scale-12e", facts=facts)]))


def test_classes_of_a_converted_model_are_matched_by_name(small_config, start, run_to_end, tmp_path):
    """Like a file from `dino convert`: 91 numbered classes, one of them with a name from the data."""
    from dinocore.weights.convert import coco

    config = small_config("model.num_classes=91")
    classes = [*coco.all_ids()[:-1], Category(90, "WBC")]
    save_weights(tmp_path / "w.safetensors", build_model(config.model).state_dict(), config, classes, {})
    context, state = start(small_config(f'train.weights="{tmp_path / "w.safetensors"}"', "train.epochs=1"))
    assert state.transfer.classes == {"RBC": None, "WBC": "WBC", "Platelets": None}
    run_to_end(context, state)
    assert (context.folder / "best.safetensors").is_file()


def request(*changes, file=None, resume=None):
    return TrainRequest("r50-4scale-36e", file, list(changes), None, resume, False, False, "cpu", None)


def checked_config(tmp_path, monkeypatch, *changes, file=None):
    monkeypatch.chdir(tmp_path)
    return checked(request(*changes, file=file))[0]


def test_setting_epochs_moves_the_learning_rate_drop_unless_it_is_set_too(tmp_path, monkeypatch):
    assert checked_config(tmp_path, monkeypatch).train.lr_drop_epochs == (30,)
    assert checked_config(tmp_path, monkeypatch, "train.epochs=12").train.lr_drop_epochs == (10,)
    config = checked_config(tmp_path, monkeypatch, "train.epochs=12", "train.lr_drop_epochs=[30]")
    assert config.train.lr_drop_epochs == (30,)


@pytest.mark.parametrize(
    ("settings", "drops"),
    [
        ("[train]\nepochs = 40\nlr_drop_epochs = [20]", (6,)),  # a complete recipe, as from `dino presets NAME`
        ("[train]\nepochs = 40", (10,)),  # the preset's drop, at 30 of 36
        ("[train]\nlr_drop_epochs = [7]", (7,)),  # set for this run
        ("# lr_drop_epochs = [7]", (10,)),
    ],
)
def test_setting_epochs_moves_the_drop_of_a_settings_file_that_sets_both(tmp_path, monkeypatch, settings, drops):
    (tmp_path / "mine.toml").write_text(settings)
    config = checked_config(tmp_path, monkeypatch, "train.epochs=12", file=tmp_path / "mine.toml")
    assert config.train.lr_drop_epochs == drops


def test_more_epochs_for_a_resumed_run_move_and_report_its_drop(tmp_path, capsys):
    folder = make_new_run(tmp_path / "run")
    write_config(folder, load_config("r50-4scale-36e"))
    locks: list = []
    _, config, _ = _find_checkpoint(request("train.epochs=72", resume=str(folder)), locks)
    locks[0].release()
    assert config.train.lr_drop_epochs == (60,)
    assert "train.lr_drop_epochs" in capsys.readouterr().err


def test_runs_started_in_the_same_second_have_different_folders(tmp_path):
    folders = [make_new_run(tmp_path / "runs" / "20260101-000000") for _ in range(3)]
    assert [folder.name for folder in folders] == ["20260101-000000", "20260101-000000-2", "20260101-000000-3"]
    assert all(folder.is_dir() for folder in folders)


def test_more_objects_than_queries_are_reported_at_the_start(small_config):
    data = open_dataset(small_config().data)
    limits = ("model.num_queries", "eval.max_dets", "model.denoising.num_pairs")
    max_objects = [int(np.bincount(split.owners()[split.trainable()]).max()) for split in (data.train, data.val)]
    config = small_config("train.lr_drop_epochs=[1]", *(f"{name}={max(max_objects)}" for name in limits))
    assert exceeded_limits(config, data) == []
    train = data._replace(val=data.train)
    exceeded = exceeded_limits(config.replace("model.num_queries", max_objects[0] - 1), train)
    assert len(exceeded) == 1 and f"more objects than the {max_objects[0] - 1} queries" in exceeded[0]


def test_objects_of_the_val_split_are_counted_too_but_not_for_denoising(small_config):
    data = open_dataset(small_config().data)
    max_objects = int(np.bincount(data.val.owners()[data.val.trainable()]).max())
    limits = ("model.num_queries", "eval.max_dets", "model.denoising.num_pairs")
    config = small_config(*(f"{name}={max_objects - 1}" for name in limits))
    val_messages = [text for text in exceeded_limits(config, data) if text.startswith("val: ")]
    assert len(val_messages) == 2 and "queries" in val_messages[0] and "detections" in val_messages[1]


def test_deterministic_training_on_a_gpu_uses_only_pytorchs_own_operations():
    for expected, device, reference in ((True, "cuda", True), (True, "cpu", False), (False, "cuda", False)):
        with deterministic(expected, torch.device(device)):
            assert is_reference() == reference and torch.are_deterministic_algorithms_enabled() == expected
    assert not is_reference()


def test_amp_off_disables_tf32_and_restores_the_settings():
    before = torch.backends.cudnn.allow_tf32
    with float32_throughout(True):
        assert not torch.backends.cudnn.allow_tf32 and not torch.backends.cuda.matmul.allow_tf32
    assert torch.backends.cudnn.allow_tf32 == before


def test_tf32_is_restored_when_the_last_overlapping_block_ends(monkeypatch):
    monkeypatch.setattr("dinocore.system.device._without_tf32", _WithoutTF32())
    settings = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [backend.allow_tf32 for backend in settings]
    try:
        for backend in settings:
            backend.allow_tf32 = True
        first, second, states = float32_throughout(True), float32_throughout(True), []
        for step in (first.__enter__, second.__enter__, lambda: first.__exit__(None, None, None),
                     lambda: second.__exit__(None, None, None)):  # fmt: skip
            step()
            states.append([backend.allow_tf32 for backend in settings])
        assert states == [[False, False], [False, False], [False, False], [True, True]]
    finally:
        for backend, value in zip(settings, before, strict=True):
            backend.allow_tf32 = value
