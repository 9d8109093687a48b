"""Load a Config from a preset or TOML file with overrides, and write one as TOML."""

import difflib
import re
import tomllib
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import tomli_w
from pydantic import ValidationError

from .config import REMOVED, RENAMED, Config
from .errors import ConfigError
from .settings import Setting, list_choices, list_settings

MAX_IN_EXAMPLE = 4  # entries of a list
CLOSE = 0.75  # similarity, at most 1, from which a name is suggested for a misspelt one
EXPECTED = {  # by pydantic's error type; for others, its message "Input should be …" is used
    "int_type": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "text, in quotes",
    "missing": "a longer list",
    "too_short": "a longer list",
    "too_long": "a shorter list",
}

OTHER_NAMES = {  # in other codebases, and everyday names; official DINO's names are in config.py
    "learning_rate": "train.lr", "lr0": "train.lr", "base_lr": "train.lr", "lr_encoder": "train.backbone_lr",
    "num_epochs": "train.epochs", "max_epochs": "train.epochs", "max_iter": "train.epochs", "max_iters": "train.epochs",
    "iters": "train.epochs", "num_iters": "train.epochs", "iterations": "train.epochs", "steps": "train.epochs",
    "milestones": "train.lr_drop_epochs", "param_scheduler": "train.lr_drop_epochs", "lr_step": "train.lr_drop_epochs",
    "lr_multiplier": "train.lr_schedule", "cos_lr": "train.lr_schedule", "warmup_epochs": "train.warmup_steps",
    "warmup_iters": "train.warmup_steps", "warmup": "train.warmup_steps", "batch": "train.batch_size",
    "total_batch_size": "train.batch_size", "grad_accum_steps": "train.micro_batch_size",
    "val_interval": "train.eval_every_epochs", "eval_period": "train.eval_every_epochs",
    "max_keep_ckpts": "train.keep_checkpoints", "max_to_keep": "train.keep_checkpoints",
    "with_cp": "model.checkpoint_activations", "gradient_checkpointing": "model.checkpoint_activations",
    "num_dn_queries": "model.denoising.num_pairs", "cost_class": "loss.cost_label", "cost_bbox": "loss.cost_box",
    "select_box_nums_for_evaluation": "eval.max_dets", "nms": "eval.nms_iou", "iou": "eval.nms_iou",
    "optimizer": "train.lr", "temperature": "model.position_temperature", "offset": "model.position_offset",
    "lr_mult": "train.backbone_lr", "hsv_h": "data.color_jitter", "hsv_s": "data.color_jitter",
    "hsv_v": "data.color_jitter", "size_divisor": "data.pad_size_divisor",
    "size_divisibility": "data.pad_size_divisor", "wd": "train.weight_decay",
    "grad_clip": "train.clip_norm", "max_norm": "train.clip_norm", "ema": "train.ema_decay",
    "num_workers": "data.workers", "imgsz": "data.train_scales", "resolution": "data.train_scales",
    "dataset_dir": "data.path", "fliplr": "data.flip", "flipud": "data.vertical_flip", "max_det": "eval.max_dets",
    "max_per_img": "eval.max_dets", "embed_dims": "model.hidden_dim", "embed_dim": "model.hidden_dim",
    "feedforward_channels": "model.ffn_dim", "num_feature_levels": "model.num_levels", "nc": "model.num_classes",
    "label_noise_scale": "model.denoising.label_noise", "box_noise_scale": "model.denoising.box_noise",
    "loss_cls": "loss.label", "loss_bbox": "loss.box", "loss_iou": "loss.giou", "cls": "loss.label",
    "loss_cls.loss_weight": "loss.label", "loss_bbox.loss_weight": "loss.box", "loss_iou.loss_weight": "loss.giou",
    "weight_dict.loss_class": "loss.label", "weight_dict.loss_bbox": "loss.box", "weight_dict.loss_giou": "loss.giou",
    "encoder.num_layers": "model.num_encoder_layers", "decoder.num_layers": "model.num_decoder_layers",
    "backbone.depth": "model.backbone", "init_cfg.checkpoint": "model.backbone_weights",
    "backbone_pretrained": "model.backbone_weights", "data_preprocessor.mean": "model.pixel_mean",
    "data_preprocessor.std": "model.pixel_std", "self_attn_cfg.num_heads": "model.num_heads",
    "use_checkpoint": "model.checkpoint_activations", "dn_box_noise_scale": "model.denoising.box_noise",
    "use_dn": "model.denoising.kind", "return_interm_indices": "model.feature_strides",
    "lr_drop_list": "train.lr_drop_epochs", "data_aug_scales": "data.train_scales",
    "data_aug_max_size": "data.max_size", "dec_pred_bbox_embed_share": "model.heads", "weight_dict": "loss.label",
    "randomflip": "data.flip", "randomflip.prob": "data.flip", "randomflip.direction": "data.vertical_flip",
    "randomchoiceresize": "data.train_scales", "randomchoiceresize.scales": "data.train_scales",
    "emahook": "train.ema_decay",
    "lr_linear_proj_names": "train.offsets_lr", "ddetr_lr_param": "train.offsets_lr", "onecyclelr": "train.lr_schedule",
    "multi_step_lr": "train.lr_drop_epochs", "save_checkpoint_interval": "train.save_every_steps",
    "backbone_freeze_keywords": "model.frozen_stages", "iou_thres": "eval.nms_iou", "nms_thr": "eval.nms_iou",
    "agnostic_nms": "eval.nms_iou",
    "model_ema.enabled": "train.ema_decay", "paramwise_cfg": "train.backbone_lr",
    "gradient_accumulation_steps": "train.micro_batch_size", "accumulative_counts": "train.micro_batch_size",
    "accumulate_grad_batches": "train.micro_batch_size", "per_device_train_batch_size": "train.batch_size",
    "max_steps": "train.epochs", "warmup_ratio": "train.warmup_steps", "max_grad_norm": "train.clip_norm",
    "gradient_clip_val": "train.clip_norm", "dataloader_num_workers": "data.workers",
    "multi_scale": "data.train_scales", "img_scale": "data.train_scales", "pipeline": "data.policy",
    "train_pipeline": "data.policy", "test_pipeline": "data.eval_scale", "two_stage_num_proposals": "model.num_queries",
    "num_proposals": "model.num_queries",
    "eval_steps": "train.eval_every_epochs", "save_total_limit": "train.keep_checkpoints",
    "checkpointer.period": "train.save_every_steps", "checkpoint.interval": "train.save_every_steps",
    "checkpoint_interval": "train.save_every_steps", "save_period": "train.save_every_steps",
    "save_steps": "train.save_every_steps", "early_stopping": "train.patience",
    "early_stopping_patience": "train.patience", "early_stop": "train.patience",
    "report_to": "train.trackers", "wandb": "train.trackers", "tensorboard": "train.trackers",
    "mlflow": "train.trackers", "logger": "train.trackers", "amp.enabled": "train.amp",
}  # fmt: skip
OPTIONS = {  # settings of other codebases that are command-line options of `dino`
    "work_dir": "--output-dir DIR", "output_dir": "--output-dir DIR", "project": "--output-dir DIR",
    "load_from": "--weights FILE", "init_checkpoint": "--weights FILE", "pretrain_weights": "--weights FILE",
    "pretrain_model_path": "--weights FILE", "resume": "--resume auto", "resume_from": "--resume RUN",
    "device": "--device cuda", "gpus": "--gpus N", "num_gpus": "--gpus N", "amp": "--amp auto",
    "deterministic": "--deterministic", "coco_path": "--data DIR", "data_root": "--data DIR",
    "name": "--output-dir DIR", "exist_ok": "--overwrite", "pretrained": "--weights FILE", "conf": "--threshold 0.3",
    "frozen_weights": "--weights FILE", "fp16": "--amp fp16", "bf16": "--amp bf16", "half": "--amp fp16",
    "dataset_file": "--data DIR", "ampoptimwrapper": "--amp bf16",
    "precision": "--amp auto", "dtype": "--amp auto", "accelerator": "--device cuda",
    "world_size": "--gpus N", "launcher": "--gpus N", "strategy": "--gpus N", "conf_thres": "--threshold 0.3",
    "score_thr": "--threshold 0.3", "score_threshold": "--threshold 0.3", "save_txt": "--format yolo",
    "source": "dino predict PATH",
}  # fmt: skip

_AUGMENTED = "images are flipped, resized and cropped, with data.flip, data.policy and others; see `dino presets tiny`"
_PADDED = "images keep their aspect ratio, and a batch is padded to its largest image"
_ORDER = "training images are shuffled in each epoch, depending on train.seed"
_OFFICIAL = "it is fixed as in official DINO's released recipe"
NO_SETTING = {  # settings of other codebases that do not exist here, and why
    "auto_scale_lr": "set train.lr yourself when you change train.batch_size",
    "aux_loss": "every decoder layer always has a loss", "deep_supervision": "every decoder layer always has a loss",
    "mosaic": "images are never mixed; data.policy sets the augmentation",
    "mixup": "images are never mixed; data.policy sets the augmentation",
    "close_mosaic": "images are never mixed; data.policy sets the augmentation",
    "copy_paste": "images are never mixed; data.policy sets the augmentation",
    "pin_memory": "memory is always pinned if there is a GPU",
    "metainfo": "the classes come from your annotations", "names": "the classes come from your annotations",
    "classes": "the classes come from your annotations", "dn_labelbook_size": "the classes come from your annotations",
    "class_names": "the classes come from your annotations",
    "single_cls": "the classes come from your annotations; use one class there",
    "persistent_workers": "worker processes live for the whole run; data.workers sets their number",
    "prefetch_factor": "each worker process loads 4 batches ahead; data.workers sets their number",
    "label_smoothing": "the focal loss has loss.focal_alpha and loss.focal_gamma",
    "class_weight": "every class has the same loss weight", "class_weights": "every class has the same loss weight",
    **dict.fromkeys(("momentum", "betas", "eps"), "AdamW uses PyTorch's default"),
    "lrf": "a cosine falls to 0", "eta_min": "a cosine falls to 0", "min_lr": "a cosine falls to 0",
    "lr_min": "a cosine falls to 0", "sync_bn": "batch norm is frozen", "syncbn": "batch norm is frozen",
    "norm_eval": "batch norm is frozen", "save_best": "best.safetensors has the best AP",
    "filter_empty_gt": "images without objects are trained on, too",
    **dict.fromkeys(("degrees", "translate", "scale", "shear", "perspective", "erasing", "cutmix"), _AUGMENTED),
    **dict.fromkeys(("rect", "keep_ratio"), _PADDED),
    **dict.fromkeys(("shuffle", "sampler", "batch_sampler"), _ORDER),
    **dict.fromkeys(("log_interval", "log_period", "print_freq"), "metrics.jsonl logs every step"),
    **dict.fromkeys(
        (
            "lr_backbone_names", "dilation", "position_embedding", "pre_norm", "query_dim", "two_stage_learn_wh",
            "two_stage_bbox_embed_share", "two_stage_class_embed_share", "two_stage_keep_all_tokens",
            "transformer_activation", "batch_norm_type", "enc_loss_coef", "interm_loss_coef", "no_interm_box_loss",
            "decoder_sa_type", "matcher_type", "ema_epoch", "data_aug_scale_overlap",
        ),
        _OFFICIAL,
    ),
    "mask_loss_coef": "dino predicts boxes, not masks", "dice_loss_coef": "dino predicts boxes, not masks",
    "masks": "dino predicts boxes, not masks", "cfg_options": "give --set KEY=VALUE for each",
}  # fmt: skip


def preset_dir() -> Path:
    """The folder of presets: inside an installed package, next to it in a checkout."""
    packaged = Path(__file__).parent / "_presets"
    return packaged if packaged.is_dir() else Path(__file__).parents[1] / "presets"


def list_presets() -> list[str]:
    """The names that `--preset` accepts, sorted."""
    return sorted(path.stem for path in preset_dir().glob("*.toml"))


def preset_title(name: str) -> str:
    """The title of a preset, which is its first comment line."""
    return (preset_dir() / f"{name}.toml").read_text(encoding="utf-8").splitlines()[0].removeprefix("#").strip()


def reported_ap(name: str) -> str | None:
    """The AP reported for a preset, from its comments, or None."""
    comments = (preset_dir() / f"{name}.toml").read_text(encoding="utf-8")
    match = re.search(r"^# .*\breports (\d+\.\d) AP\b", comments, re.MULTILINE)
    return match and match[1]


def load_config(
    source: str | Path | Config | None = None, overrides: Sequence[str] = (), file: str | Path | None = None
) -> Config:
    """Load a preset by name, a TOML file by path, or a Config; then apply `file`, then `section.key=value` overrides.

    Raises:
        ConfigError: the source, a key or a value is unknown or of the wrong type.
    """
    if isinstance(source, Config):
        settings: dict[str, Any] = source.model_dump(mode="json")
    else:
        settings = {} if source is None else _current(read_settings(find_preset(str(source))))
    overrides = overrides if isinstance(overrides, Iterable) and not isinstance(overrides, str) else [overrides]
    changes = [read_settings(file)] if file is not None else []
    for change in map(_current, [*changes, *map(_parse_override, overrides)]):
        model = change.get("model")
        if isinstance(model, dict) and "backbone_weights" in model:  # start from these, not from train.weights
            _merge(settings, {"train": {"weights": ""}})
        _merge(settings, change)
    return config_from_dict(settings)


def override(config: Config, overrides: Sequence[str], sections: Sequence[str]) -> Config:
    """Change settings of a config stored with weights; only those in `sections` can be changed.

    Raises:
        ConfigError: a key or value is unknown, has the wrong type, or belongs to another section.
    """
    settings = config.model_dump(mode="json")
    for text, change in zip(overrides, map(_parse_override, overrides), strict=True):
        if not set(change) <= set(sections):
            raise ConfigError(f"`{text}` cannot be set here; only settings of {' and '.join(sections)} can")
        _merge(settings, _current(change))
    return config_from_dict(settings)


def _current(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings with this version's names, with a warning for each old name."""
    for old in (*RENAMED, *REMOVED):
        section, _, name = old.partition(".")
        values = settings.get(section)
        if not isinstance(values, dict) or name not in values:
            continue
        values = dict(values)
        value = values.pop(name)
        if old in RENAMED:
            values.setdefault(RENAMED[old].rpartition(".")[2], value)
            message = f"{old} is now called {RENAMED[old]}; the old name still works"
        elif value == "none":
            message = ""  # every run wrote it into its config.toml
        else:
            message = f"{old} = {value} no longer has any effect: {REMOVED[old]}"
        settings = settings | {section: values}
        if message:
            warnings.warn(message, FutureWarning, stacklevel=1)
    return settings


def config_from_dict(settings: dict[str, Any]) -> Config:
    """Validate settings and fill in the defaults.

    Raises:
        ConfigError: names every invalid key or value.
    """
    try:
        return Config.model_validate(settings)
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(error.errors()))) from None


def config_to_toml(config: Config) -> str:
    """All settings, including defaults; `load_config` reads it back to an equal Config."""
    return tomli_w.dumps(config.model_dump(mode="json"))


def find_preset(source: str) -> Path:
    """The file of a preset.

    Args:
        source: its name, or a file ending in `.toml`.

    Raises:
        ConfigError: there is none.
    """
    path = Path(source) if source.endswith(".toml") else preset_dir() / f"{source}.toml"
    if not path.is_file():
        close = difflib.get_close_matches(source.lower(), list_presets(), n=1)
        hint = (
            f"did you mean `{close[0]}`?"
            if close
            else "presets include r50-4scale, swin-l-4scale and tiny; `dino presets` lists all"
        )
        raise ConfigError(f"no preset or file `{source}`; {hint}")
    return path


def read_settings(file: str | Path) -> dict[str, Any]:
    """The settings in a TOML file, not yet checked.

    Raises:
        ConfigError: it cannot be read.
    """
    if file == "":
        raise ConfigError("the name of the config file is empty; give a file that ends in .toml")
    path = Path(file)
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise ConfigError(f"no config file `{path}`") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text: {error.reason} at byte {error.start}; save it as UTF-8") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} cannot be read as TOML: {error}") from error
    except OSError as error:
        reason = "is a folder" if path.is_dir() else f"cannot be read: {error.strerror}"
        raise ConfigError(f"{path} {reason}; give a file that ends in .toml") from error


def _parse_override(given: object) -> dict[str, Any]:
    """`train.lr=2e-4` -> {"train": {"lr": 2e-4}}; a value that is not TOML is taken as a string."""
    text = str(given)  # objects that are not strings are reported as invalid below
    key, equals, value = text.partition("=")
    if not equals or not all(part.strip() for part in key.split(".")):
        raise ConfigError(f"`{text}` is not an override; write it as section.key=value, such as train.epochs=24")
    parsed: Any
    try:
        parsed = tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        parsed = value.strip()
    for part in reversed(key.strip().split(".")):
        parsed = {part: parsed}
    return parsed


def _merge(base: dict[str, Any], update: dict[str, Any]) -> None:
    for key, value in update.items():
        if isinstance(value, dict) and isinstance(base.get(key), dict):
            _merge(base[key], value)
        else:
            base[key] = value


def _explain(problems: Sequence[Any]) -> list[str]:
    """One line for each setting with validation errors, in our own words."""
    unknown = [problem for problem in problems if problem["type"] == "extra_forbidden"]
    lines = [_unknown(problem["loc"], problem["input"]) for problem in unknown]
    expected: dict[str, list[str]] = {}
    for problem in problems:
        # pydantic counts only valid entries, and reports the invalid ones anyway
        too_short = problem["type"] == "too_short" and problem["input"]
        if problem["type"] != "extra_forbidden" and not too_short:
            fault = f"`{_setting_path(problem)}` = {problem['input']!r}"
            expected.setdefault(fault, []).append(_expected(problem))
    return lines + [
        f"{fault} cannot be used; it must be {' or '.join(dict.fromkeys(values))}" for fault, values in expected.items()
    ]


def _setting_path(problem: Any) -> str:
    """The path of a setting, such as data.train_scales[1], without pydantic's names of union members."""
    loc = problem["loc"][:-1] if problem["type"] == "missing" else problem["loc"]  # report the list, not an entry
    depth = next((i for i in range(len(loc)) if loc[i] not in _settings_in(loc[:i])), len(loc))
    entries = [f"[{part}]" for part in loc[depth:] if isinstance(part, int)]
    return ".".join(map(str, loc[:depth])) + "".join(entries)


def _expected(problem: Any) -> str:
    """What the value of a setting must be."""
    if problem["type"] == "model_type":
        return f"a section, with settings such as `{_setting_path(problem)}.{_settings_in(problem['loc'])[0]}`"
    setting = next((one for one in list_settings() if one.name == ".".join(map(str, problem["loc"][:2]))), None)
    if problem["type"] == "tuple_type" and setting is not None:
        return _expected_list(setting)
    expected = EXPECTED.get(problem["type"]) or problem["msg"].removeprefix("Input should be ")
    return f"{expected}, or off for none" if setting is not None and setting.name == "train.trackers" else expected


def _expected_list(setting: Setting) -> str:
    """What a list must contain: the choices for its entries, or an example."""
    if choices := list_choices(setting.type):
        return f'a list of {", ".join(choices)}, such as ["{choices[0]}"]'
    default = list(setting.default) or [1]
    example = default if len(default) <= MAX_IN_EXAMPLE else [default[0], default[-1]]
    return f"a list, such as {example}"


def _settings_in(path: Sequence[str | int]) -> list[str]:
    """The names of the settings in a section of the config; empty if it is not a section."""
    section: Any = Config
    for part in path:
        field = getattr(section, "model_fields", {}).get(part)
        section = field and field.annotation
    return list(getattr(section, "model_fields", ()))


def _unknown(loc: Sequence[str | int], value: Any) -> str:
    """A message about an unknown setting, with a suggestion: from another section or codebase, or a similar name."""
    here, path = _settings_in(loc[:-1]), [str(part) for part in loc]
    while isinstance(value, dict) and len(value) == 1:  # an unknown section: look at the setting in it
        ((key, value),) = value.items()
        path.append(key)
    return f"unknown setting `{'.'.join(path)}`{_hint([part.casefold() for part in path], here)}"


def _hint(path: Sequence[str], here: Sequence[str]) -> str:
    typed, word = ".".join(path), path[-1]
    if option := next((OPTIONS[part] for part in (typed, word) if part in OPTIONS), None):
        return f"; that is `{option}`"
    if reason := next((NO_SETTING[part] for part in (typed, word, word.replace("-", "_")) if part in NO_SETTING), None):
        return f": {reason}"
    endings = [".".join(path[start:]) for start in range(len(path) - 1)]  # of two or more parts
    meant = next((OTHER_NAMES[end] for end in endings if end in OTHER_NAMES), None) or _meant(typed, word, here)
    return f"; did you mean `{meant}`?" if meant else f"; known are: {', '.join(here)}"


def _meant(typed: str, word: str, here: Sequence[str]) -> str | None:
    settings = list_settings()
    names = [setting.name for setting in settings]
    official = {name.casefold(): setting.name for setting in settings for name in setting.official.split(", ") if name}
    same = [name for name in names if name.rpartition(".")[2] == word]
    if same:
        return difflib.get_close_matches(typed, same, n=1, cutoff=0)[0]
    if known := OTHER_NAMES.get(typed) or official.get(word) or OTHER_NAMES.get(word):
        return known
    section, leaves = typed.rpartition(".")[0], {name.rpartition(".")[2]: name for name in reversed(names)}
    near = difflib.get_close_matches(word, here, n=1, cutoff=CLOSE) if section.count(".") < 2 else []
    if near and (full := f"{section}.{near[0]}" if section else near[0]) in names:
        return full
    if close := difflib.get_close_matches(typed, names, n=1, cutoff=CLOSE):
        return close[0]
    if close := difflib.get_close_matches(word, leaves, n=1, cutoff=CLOSE):
        return leaves[close[0]]
    return near[0] if near and not section else None
