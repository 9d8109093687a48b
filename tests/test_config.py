"""Valid values of the config, and the error messages for invalid ones."""

import re
from pathlib import Path

import pytest
from pydantic import ValidationError

from dinocore.config import Config, fixed_on_resume
from dinocore.detections_io import format_of
from dinocore.errors import ConfigError
from dinocore.presets import NO_SETTING, OPTIONS, OTHER_NAMES, config_from_dict, load_config
from dinocore.settings import list_settings


def refusal(*overrides):
    with pytest.raises(ConfigError) as caught:
        load_config(overrides=overrides)
    assert caught.value.exit_code == 2
    return str(caught.value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.num_queries=true", "`model.num_queries` = True cannot be used; it must be a whole number"),
        ('model.num_queries="3"', "`model.num_queries` = '3' cannot be used; it must be a whole number"),
        ("model.num_queries=1.5", "`model.num_queries` = 1.5 cannot be used; it must be a whole number"),
        ("model.num_queries=-3", "`model.num_queries` = -3 cannot be used; it must be greater than 0"),
        ("train.seed=-1", "`train.seed` = -1 cannot be used; it must be greater than or equal to 0"),
        (
            "train.seed=18446744073709551616",
            "`train.seed` = 18446744073709551616 cannot be used; it must be less than or equal to 9223372036854775807",
        ),
        (
            "loss.proposal_positives=100000",
            "`loss.proposal_positives` = 100000 cannot be used; it must be less than or equal to 100",
        ),
        ("train.lr=true", "`train.lr` = True cannot be used; it must be a number"),
        ("train.lr=nan", "`train.lr` = nan cannot be used; it must be a finite number"),
        ("train.lr=-1e-4", "`train.lr` = -0.0001 cannot be used; it must be greater than or equal to 0"),
        ("data.path=5", "`data.path` = 5 cannot be used; it must be text, in quotes"),
        ("model.checkpoint_activations=1", "_activations` = 1 cannot be used; it must be true or false"),
        ("train.amp=on", "`train.amp` = 'on' cannot be used; it must be 'auto', 'off', 'bf16' or 'fp16'"),
        (
            "train.freeze=head",
            "`train.freeze` = 'head' cannot be used; it must be a list of backbone, neck, tokenizer, encoder, "
            'proposer, denoiser, decoder, such as ["backbone"]',
        ),
        ("train.lr_drop_epochs=3", "`train.lr_drop_epochs` = 3 cannot be used; it must be a list, such as [11]"),
        (
            "train.trackers=neptune",
            "`train.trackers[0]` = 'neptune' cannot be used; it must be 'auto', 'tensorboard', 'wandb' or 'mlflow', or "
            "off for none",
        ),
        ("data.train_scales=ab", "`data.train_scales` = 'ab' cannot be used; it must be a list, such as [480, 800]"),
        ("data.train_scales=[]", "`data.train_scales` = [] cannot be used; it must be a longer list"),
        ("data.train_scales=[4.5]", "`data.train_scales[0]` = 4.5 cannot be used; it must be a whole number"),
        ("data.train_scales=[480, -1]", "`data.train_scales[1]` = -1 cannot be used; it must be greater than 0"),
        ("data.crop_size=[1, 2, 3]", "`data.crop_size` = [1, 2, 3] cannot be used; it must be a shorter list"),
        ("model.pixel_mean=[0.5]", "`model.pixel_mean` = [0.5] cannot be used; it must be a longer list"),
        ("model.pixel_mean=[0, nan, 0]", "`model.pixel_mean[1]` = nan cannot be used; it must be a finite number"),
        ("model.pixel_std=[1, 1, 0]", "`model.pixel_std[2]` = 0 cannot be used; it must be greater than 0"),
        ("model=3", "`model` = 3 cannot be used; it must be a section, with settings such as `model.num_classes`"),
        ("train.lr.x=3", "`train.lr` = {'x': 3} cannot be used; it must be a number"),
        ("data.max_pixels=178956971", "it must be less than or equal to 178956970"),
    ],
)
def test_a_wrong_value_is_refused_with_the_setting_the_value_and_what_it_must_be(override, message):
    assert refusal(override).endswith(message)


@pytest.mark.parametrize("value", ["x", "-1", "1.5", "true", "[1]"])
def test_a_wrong_value_of_a_union_type_is_refused_in_one_line(value):
    for setting in ("model.denoising.num_groups", "data.workers", "train.micro_batch_size"):
        message = refusal(f"{setting}={value}")
        assert message.startswith(f"`{setting}` = ") and "it must be 'auto' or " in message and "\n" not in message


def test_all_errors_are_reported_at_once_in_one_line_each():
    lines = refusal("model.num_querys=3", "train.lr=-1", "model.denoising.num_groups=x").splitlines()
    assert len(lines) == 3
    assert {line.split("`")[1] for line in lines} == {"model.num_querys", "train.lr", "model.denoising.num_groups"}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.num_querys=3", "`model.num_querys`; did you mean `model.num_queries`?"),
        ("modle.num_queries=3", "`modle.num_queries`; did you mean `model.num_queries`?"),
        ("model.denoising.box_nose=1", "`model.denoising.box_nose`; did you mean `model.denoising.box_noise`?"),
        ("eval.foo=1", "`eval.foo`; known are: max_dets, nms_iou, backend"),
    ],
)
def test_the_error_for_an_unknown_setting_names_similar_ones_or_all(override, message):
    assert refusal(override) == f"unknown setting {message}"


@pytest.mark.parametrize(
    ("name", "suggestion"),
    [
        ("optim_wrapper.optimizer.lr", "did you mean `train.lr`?"),
        ("optim_wrapper.clip_grad.max_norm", "did you mean `train.clip_norm`?"),
        ("param_scheduler.milestones", "did you mean `train.lr_drop_epochs`?"),
        ("with_cp", "did you mean `model.checkpoint_activations`?"),
        ("work_dir", "that is `--output-dir DIR`"),
        ("load_from", "that is `--weights FILE`"),
        ("train_cfg.max_epochs", "did you mean `train.epochs`?"),
        ("trian.epochs", "did you mean `train.epochs`?"),
        ("train.max_iter", "did you mean `train.epochs`?"),
        ("train.iters", "did you mean `train.epochs`?"),
        ("model.bbox_head.num_classes", "did you mean `model.num_classes`?"),
        ("train.LR", "did you mean `train.lr`?"),
        ("dn_cfg.group_cfg.num_dn_queries", "did you mean `model.denoising.num_pairs`?"),
        ("train.weights_decay", "did you mean `train.weight_decay`?"),
        ("use_checkpoint", "did you mean `model.checkpoint_activations`?"),
        ("dn_box_noise_scale", "did you mean `model.denoising.box_noise`?"),
        ("encoder.num_layers", "did you mean `model.num_encoder_layers`?"),
        ("backbone.init_cfg.checkpoint", "did you mean `model.backbone_weights`?"),
        ("bbox_head.loss_cls.loss_weight", "did you mean `loss.label`?"),
        ("default_hooks.checkpoint.interval", "did you mean `train.save_every_steps`?"),
        ("gradient_accumulation_steps", "did you mean `train.micro_batch_size`?"),
        ("report_to", "did you mean `train.trackers`?"),
        ("conf", "that is `--threshold 0.3`"),
    ],
)
def test_a_name_from_another_codebase_or_a_typo_suggests_the_intended_setting(name, suggestion):
    assert refusal(f"{name}=1").endswith(f"; {suggestion}")


def test_each_name_from_another_codebase_leads_to_an_existing_setting():
    names = {setting.name for setting in list_settings()}
    assert set(OTHER_NAMES.values()) <= names
    leaves = {name.rpartition(".")[2] for name in names}
    assert not leaves & OTHER_NAMES.keys(), "these are our own settings, so they are never looked up"


@pytest.mark.parametrize(
    ("overrides", "setting", "advice"),
    [
        (["model.hidden_dim=100"], "model.hidden_dim = 100", "choose a multiple of 8"),
        (["model.hidden_dim=200"], "model.hidden_dim = 200", "multiple of 32"),
        (["model.num_levels=2"], "model.num_levels = 2", "3 entries of model.feature_strides"),
        (["data.crop_size=[600, 384]"], "data.crop_size = [600, 384]", "swap them"),
    ],
)
def test_contradicting_values_are_refused_with_advice(overrides, setting, advice):
    message = refusal(*overrides)
    assert setting in message and advice in message


def test_lists_become_tuples_and_integers_among_fractions_become_floats():
    config = load_config(overrides=["data.train_scales=[320, 352]", "model.pixel_std=[1, 0.5, 1]", "train.lr=1"])
    assert config.data.train_scales == (320, 352)
    assert config.model.pixel_std == (1.0, 0.5, 1.0) and isinstance(config.model.pixel_std[0], float)
    assert isinstance(config.train.lr, float)
    assert load_config(overrides=["train.lr_drop_epochs=[]"]).train.lr_drop_epochs == ()


def test_the_loss_follows_the_first_stage_of_the_model():
    assert load_config().loss.proposal_labels == "classes"
    foreground = load_config(overrides=["model.first_stage=foreground"])
    assert foreground.loss.proposal_labels == "foreground"
    assert load_config(overrides=["model.first_stage=foreground", "loss.box=3"]).loss.proposal_labels == "foreground"


@pytest.mark.parametrize("requested", [["loss.proposal_labels=foreground"],
                                   ["loss.proposal_labels=classes", "model.first_stage=foreground"]])  # fmt: skip
def test_a_loss_that_contradicts_the_first_stage_is_refused(requested):
    message = refusal(*requested)
    assert "loss.proposal_labels" in message and "contradicts" in message and "set only model.first_stage" in message


def test_a_wrong_first_stage_is_reported_once_and_not_again_for_the_loss():
    assert refusal("model.first_stage=both").count("\n") == 0


def test_a_contradicting_config_built_in_python_is_refused():
    with pytest.raises(ConfigError, match="contradicts"):
        Config.model_validate({"loss": {"proposal_labels": "foreground"}})


def test_configs_are_immutable():
    config = load_config("tiny")
    for section, name in ((config, "train"), (config.train, "lr"), (config.model.denoising, "box_noise")):
        with pytest.raises(ValidationError, match="frozen"):
            setattr(section, name, 1)


def test_a_setting_that_was_renamed_still_works_and_the_warning_names_the_new_one():
    with pytest.warns(FutureWarning, match=r"train\.images_per_forward is now called train\.micro_batch_size"):
        config = load_config("tiny", ["train.images_per_forward=3"])
    assert config.train.micro_batch_size == 3 != load_config("tiny").train.micro_batch_size


def test_configs_stored_before_0_2_are_read_without_a_warning():
    settings = {"train": {"images_per_forward": 2, "sharding": "fsdp2", "seed": 5}}
    assert config_from_dict(settings) == config_from_dict({"train": {"micro_batch_size": 2, "seed": 5}})


def test_a_removed_setting_is_reported_as_removed():
    with pytest.warns(FutureWarning, match=r"train\.sharding = fsdp2 no longer has any effect"):
        load_config("r50-4scale", ["train.sharding=fsdp2"])


def test_replace_changes_one_setting_and_checks_it():
    before = load_config("r50-4scale", ["model.denoising.num_pairs=7"])
    after = before.replace("model.denoising.box_noise", 0.25)
    assert after.model.denoising.box_noise == 0.25 and before.model.denoising.box_noise == 1.0
    assert after.replace("model.denoising.box_noise", 1.0) == before
    with pytest.raises(ConfigError, match=r"unknown setting `model\.wings`; `dino presets NAME` lists all"):
        before.replace("model.wings", 2)
    with pytest.raises(ConfigError, match=r"unknown setting `model\.num_querys`; did you mean `num_queries`\?$"):
        before.replace("model.num_querys", 2)
    with pytest.raises(ConfigError, match=r"`train\.batch_size` = 0 cannot be used: input should be greater than"):
        before.replace("train.batch_size", 0)
    with pytest.raises(ConfigError, match=r"`train\.lr` = 'a' cannot be used: input should be a valid number$"):
        before.replace("train.lr", "a")


def test_settings_that_a_resumed_run_cannot_change_are_marked():
    assert set(fixed_on_resume()) == {
        "model", "loss", "train.weights", "train.freeze", "train.batch_size", "train.seed",
    }  # fmt: skip


ROW = re.compile(r"^\| (.+) \| (.+) \|$", re.M)
WORD = re.compile(r"`([A-Za-z][\w.]*)=?`")
SETTING = re.compile(r"`((?:model|loss|train|data|eval)\.[a-z_.]+|\.[a-z_]+)\b")


def test_names_of_other_codebases_lead_to_the_settings_listed_in_the_docs():
    page = (Path(__file__).parents[1] / "docs/coming-from.md").read_text(encoding="utf-8")
    wrong, num_checked = [], 0
    for theirs, ours in ROW.findall(page):
        if "--" in theirs + ours:  # has command-line options
            continue
        words = WORD.findall(re.sub(r"\([^)]*\)", "", theirs))
        settings = [name.rpartition(".")[2] for name in SETTING.findall(ours)]
        has_no_setting = ours.startswith("nothing")
        for word in words if settings or has_no_setting else []:
            try:
                load_config(overrides=[f"{word}=1"])
            except ConfigError as error:
                num_checked += 1
                hint = re.search(r"; (?:did you mean|that is) `([^`]*)`", str(error))
                if has_no_setting and "known are" not in str(error):
                    continue
                if not (hint and (hint[1].startswith("--") or hint[1].rpartition(".")[2] in settings)):
                    wrong.append(f"{word}: {error} (the page says {settings})")
    assert num_checked > 50 and wrong == []


@pytest.mark.parametrize(
    "word",
    [
        "mosaic",
        "auto_scale_lr",
        "cfg-options",
        "data.pin_memory",
        "Classes",
        "single_cls",
        "persistent_workers",
        "rect",
    ],
)
def test_a_name_for_something_that_is_not_configurable_is_explained(word):
    with pytest.raises(ConfigError, match=rf"unknown setting `{word}`: \w+"):
        load_config(overrides=[f"{word}=1"])


def test_explained_names_are_neither_settings_nor_their_aliases():
    ours = {setting.name.rpartition(".")[2] for setting in list_settings()}
    assert not ours & NO_SETTING.keys() and not NO_SETTING.keys() & (OTHER_NAMES.keys() | OPTIONS.keys())


def test_every_setting_has_a_description():
    assert [setting.name for setting in list_settings() if len(setting.comment) < 4] == []


OFFICIAL = [  # settings of official DINO's recipe, from its config file and coco_transformer.py
    "lr", "lr_backbone", "lr_backbone_names", "lr_linear_proj_names", "lr_linear_proj_mult", "batch_size",
    "weight_decay", "epochs", "lr_drop", "save_checkpoint_interval", "clip_max_norm", "onecyclelr",
    "multi_step_lr", "lr_drop_list", "frozen_weights", "backbone", "use_checkpoint", "dilation",
    "position_embedding", "pe_temperatureH", "pe_temperatureW", "return_interm_indices", "enc_layers",
    "dec_layers", "dim_feedforward", "hidden_dim", "dropout", "nheads", "num_queries", "num_feature_levels",
    "enc_n_points", "dec_n_points", "backbone_freeze_keywords", "two_stage_type",
    "two_stage_bbox_embed_share", "two_stage_class_embed_share", "num_select", "masks", "aux_loss",
    "set_cost_class", "set_cost_bbox", "set_cost_giou", "cls_loss_coef", "bbox_loss_coef", "giou_loss_coef",
    "interm_loss_coef", "focal_alpha", "nms_iou_threshold", "dec_pred_bbox_embed_share",
    "dec_pred_class_embed_share", "use_dn", "dn_number", "dn_box_noise_scale", "dn_label_noise_ratio",
    "embed_init_tgt", "dn_labelbook_size", "use_ema", "ema_decay", "ema_epoch", "data_aug_scales",
    "data_aug_max_size", "data_aug_scales2_resize", "data_aug_scales2_crop", "data_aug_scale_overlap"
]  # fmt: skip


@pytest.mark.parametrize("word", OFFICIAL)
def test_names_from_official_dinos_configs_lead_to_our_settings_or_an_explanation(word):
    with pytest.raises(ConfigError) as caught:
        load_config(overrides=[f"{word}=1"])
    assert "known are" not in str(caught.value)
    suggested = re.search(r"did you mean `([^`]*)`", str(caught.value))
    ours = [setting.name for setting in list_settings() if word in setting.official.split(", ")]
    assert not ours or (suggested and suggested[1] in ours), "the settings page names another one"


@pytest.mark.parametrize(("name", "suggestion"), [("label-studio", "labelstudio"), ("Label Studio", "labelstudio")])
def test_an_alternative_spelling_of_a_format_suggests_its_name(name, suggestion):
    with pytest.raises(ConfigError, match=f"unknown format `{name}`; did you mean `{suggestion}`"):
        format_of(name, None)
