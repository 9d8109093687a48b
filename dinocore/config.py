"""Every setting of DINO, with its default: DINO-4scale with ResNet-50, 12 epochs on COCO.

A preset is a TOML file of settings that differ from these. Defaults are only defined here. The source of a value is
next to it: [name] is its name in IDEA-Research/DINO, `config/DINO/DINO_4scale.py`, which publishes the recipe of the
paper's appendix D (arXiv 2203.03605); "ours" is our choice.
"""

from collections.abc import Iterator, Sequence
from functools import reduce
from operator import getitem
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from .errors import ConfigError
from .words import did_you_mean

LARGEST = 2**63 - 1  # PyTorch's integers have 64 bits
Positive = Annotated[int, Field(gt=0, le=LARGEST)]
Count = Annotated[int, Field(ge=0, le=LARGEST)]
Repeats = Annotated[int, Field(gt=0, le=100)]  # per object in matching; time and memory grow with it
Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Above0 = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Mean = Annotated[tuple[Finite, Finite, Finite], Field(strict=False)]
Deviation = Annotated[tuple[Above0, Above0, Above0], Field(strict=False)]
Sizes = Annotated[tuple[Positive, ...], Field(strict=False, min_length=1)]
Range = Annotated[tuple[Positive, Positive], Field(strict=False)]
Scales = Annotated[tuple[Above0, Above0], Field(strict=False)]
Jitter = Annotated[tuple[Share, Share, Share, Annotated[float, Field(ge=0, le=0.5)]], Field(strict=False)]
Parts = Annotated[
    tuple[Literal["backbone", "neck", "tokenizer", "encoder", "proposer", "denoiser", "decoder"], ...],
    Field(strict=False),
]
Epochs = Annotated[tuple[Count, ...], Field(strict=False)]


def _tracker_names(value: Any) -> Any:
    """Split `wandb,mlflow` into a list; `off` and `none` become an empty one. Lists are unchanged."""
    if not isinstance(value, str):
        return value
    return [name.strip() for name in value.split(",") if value not in ("off", "none")]


Trackers = Annotated[
    tuple[Literal["auto", "tensorboard", "wandb", "mlflow"], ...],
    Field(strict=False),
    BeforeValidator(_tracker_names),
]


REMOVED = {"train.sharding": "models are no longer sharded; remove it"}  # since 0.2.0
RENAMED = {  # old name -> new name, since 0.2.0
    "train.images_per_forward": "train.micro_batch_size",
    "train.tensorboard": "train.trackers",
}


class FixedOnResume:
    """Marks a setting that a resumed run cannot change."""


FIXED_ON_RESUME = FixedOnResume()


class SettingsGroup(BaseModel):
    """A group of settings; frozen, and undeclared settings are rejected."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class DenoisingConfig(SettingsGroup):
    kind: Literal["contrastive", "plain", "none"] = "contrastive"  # plain: only DN-DETR's positives; [use_dn]
    num_groups: Literal["auto"] | Annotated[int, Field(ge=0, le=1000)] = "auto"  # auto: from the largest image
    num_pairs: Annotated[int, Field(gt=0, le=10_000)] = 100  # auto: most noisy positives per image; [dn_number]
    max_queries: Annotated[int, Field(gt=0, le=100_000)] = 2000  # the longest denoising part with a fixed num_groups
    label_noise: Share = 0.5  # twice the fraction of labels that are replaced; [dn_label_noise_ratio]
    spare_labels: Annotated[int, Field(ge=0, le=100)] = 1  # rows of the label embedding beyond the classes; 0 in detrex
    box_noise: Weight = 1.0  # 1: corners move by up to half the box; official: 0.4, in scripts 1; [dn_box_noise_scale]

    @property
    def copies(self) -> int:
        """The number of queries per target in a group: a positive and a negative, or only a positive."""
        return 2 if self.kind == "contrastive" else 1

    @property
    def max_targets(self) -> int:
        """The maximum number of an image's targets with denoising queries; 0 without denoising."""
        if self.kind == "none" or self.num_groups == 0:
            return 0
        if self.num_groups == "auto":
            return self.num_pairs
        return max(1, self.max_queries // (self.copies * self.num_groups))


class ModelConfig(SettingsGroup):
    num_classes: Positive = 91  # COCO's category ids run to 90; `dino train` sets it from the data; [num_classes]
    backbone: str = "resnet50"  # a torchvision ResNet, swin-t-224 and others (docs/weights.md), timm/NAME; [backbone]
    backbone_weights: str = "imagenet"  # imagenet | timm/NAME (if a model has several) | none | FILE
    drop_path: Annotated[float, Field(ge=0, lt=1)] = (
        0.0  # probability of skipping the backbone's last block in training
    )
    frozen_stages: Annotated[int, Field(ge=-1, le=4)] = 1  # -1: none, 0: the stem, 1: also the first stage
    pixel_mean: Mean = (0.485, 0.456, 0.406)  # of RGB in [0, 1], as in the backbone's training
    pixel_std: Deviation = (0.229, 0.224, 0.225)  # pixels are divided by this after subtracting pixel_mean
    feature_strides: Sizes = (8, 16, 32)  # strides of the backbone features in use; [return_interm_indices]
    num_levels: Annotated[int, Field(gt=0, le=8)] = (
        4  # one per feature, then maps of half the size; [num_feature_levels]
    )
    hidden_dim: Positive = 256  # channels of tokens and queries, a multiple of 32; [hidden_dim]
    num_heads: Positive = 8  # of attention; [nheads]
    num_points: Positive = 4  # sampling points per head and level; [enc_n_points, dec_n_points]
    ffn_dim: Positive = 2048  # inner width of the feed-forward layers; [dim_feedforward]
    num_encoder_layers: Positive = 6  # each refines the tokens of the whole image; [enc_layers]
    num_decoder_layers: Positive = 6  # each refines the boxes of the queries; [dec_layers]
    num_queries: Annotated[int, Field(gt=0, le=100_000)] = (
        900  # the most boxes that can be found in an image; [num_queries]
    )
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0  # fraction of activations set to 0 in training; [dropout]
    position_temperature: Above0 = 20.0  # 20 here, 10000 in DETR and detrex; [pe_temperatureH, pe_temperatureW]
    position_offset: Finite = 0.0  # added to row and column numbers; -0.5 in detrex
    neck_bias: bool = True  # of the neck's convolutions; mmdetection has none
    box_eps: Annotated[float, Field(gt=0, lt=0.5)] = (
        1e-3  # lower bound of a box fraction before the inverse sigmoid; mmdetection 1e-5
    )
    first_stage: Literal["classes", "foreground"] = "classes"  # how it scores tokens; foreground: a single logit, ours
    queries: Literal["mixed", "pure", "static"] = "mixed"  # static: no first stage; [embed_init_tgt, two_stage_type]
    extra_queries: Count = 0  # additional queries in training, for loss.extra_positives; H-DETR; ours: 0 is DINO
    heads: Literal["shared", "per-layer"] = "shared"  # the decoder's; [dec_pred_class_embed_share]
    look_forward: Literal["twice", "once"] = (
        "twice"  # twice: a layer's loss also trains the previous layer; once: it does not
    )
    checkpoint_activations: bool = False  # recompute layers: less memory, more time; [use_checkpoint]
    denoising: DenoisingConfig = DenoisingConfig()

    @model_validator(mode="after")
    def _fits_together(self) -> "ModelConfig":
        if self.hidden_dim % self.num_heads:
            raise ConfigError(
                f"model.hidden_dim = {self.hidden_dim} cannot be split into model.num_heads = {self.num_heads} heads; "
                f"choose a multiple of {self.num_heads}"
            )
        if self.hidden_dim % 32:
            raise ConfigError(
                f"model.hidden_dim = {self.hidden_dim} must be a multiple of 32 (the neck normalises 32 groups)"
            )
        if self.num_levels < len(self.feature_strides):
            raise ConfigError(
                f"model.num_levels = {self.num_levels} is less than the {len(self.feature_strides)} entries of "
                f"model.feature_strides = {list(self.feature_strides)}; every backbone feature becomes a level"
            )
        if self.extra_queries > self.num_queries:
            raise ConfigError(
                f"model.extra_queries = {self.extra_queries} is more than model.num_queries = {self.num_queries}, "
                f"whose boxes they use; set at most {self.num_queries}"
            )
        return self


class LossConfig(SettingsGroup):
    """Loss weights, matching costs, and the targets of the first stage."""

    label: Weight = 1.0  # weight of the focal loss of labels; [cls_loss_coef]
    denoising_label: Literal["same"] | Weight = "same"  # the same for denoising queries; detrex's best recipe uses half
    box: Weight = 5.0  # weight of the L1 distance of boxes; [bbox_loss_coef]
    giou: Weight = 2.0  # weight of 1 - GIoU; [giou_loss_coef]
    cost_label: Weight = 2.0  # matching cost of the label; [set_cost_class]
    cost_box: Weight = 5.0  # matching cost of the L1 distance; [set_cost_bbox]
    cost_giou: Weight = 2.0  # matching cost of 1 - GIoU; [set_cost_giou]
    focal_alpha: Share = 0.25  # focal loss weight of the present class; 1 - this for absent ones; [focal_alpha]
    focal_gamma: Weight = 2.0  # focal loss: higher values downweight easy examples; 2 in official models/dino/utils.py
    extra_positives: Repeats = 6  # extra queries matched to each object; k of H-DETR
    proposal_positives: Repeats = 1  # proposals matched to each object; ours, 1 is DINO
    proposal_labels: Literal["classes", "foreground"] = "classes"  # follows model.first_stage


class TrainConfig(SettingsGroup):
    weights: Annotated[str, FIXED_ON_RESUME] = (
        ""  # a file to start from, or bundled (the bundled model); empty: use model.backbone_weights
    )
    freeze: Annotated[
        Parts, FIXED_ON_RESUME
    ] = ()  # parts of the model that are not trained, such as ["backbone", "encoder"]
    epochs: Positive = 12  # passes over the training images; [epochs]
    batch_size: Annotated[Positive, FIXED_ON_RESUME] = (
        16  # per optimizer step, over all ranks and micro-batches; [batch_size], 2 on 8 GPUs
    )
    micro_batch_size: Literal["auto", "probe"] | Positive = (
        "auto"  # images per forward pass; auto: 1 on CPU, all elsewhere; probe: as many as fit into GPU memory
    )
    lr: Weight = 1e-4  # learning rate, except of the backbone and offsets_lr; [lr]
    backbone_lr: Weight = 1e-5  # learning rate of the backbone; [lr_backbone]
    offsets_lr: Literal["same"] | Weight = "same"  # of the layers that place sampling points; [lr_linear_proj_mult]
    weight_decay: Weight = 1e-4  # of AdamW; [weight_decay]
    norm_weight_decay: Literal["same"] | Weight = "same"  # of normalisation layers; 0 in detrex
    lr_schedule: Literal["step", "cosine"] = "step"  # step: divided by ten at each of lr_drop_epochs
    lr_drop_epochs: Epochs = (11,)  # epochs after which the learning rate is divided by ten; [lr_drop]
    warmup_steps: Count = 0  # the learning rate rises linearly from 0 over this many steps
    clip_norm: Weight = 0.1  # maximum gradient norm; 0: no clipping; [clip_max_norm]
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.0  # 0: no moving average of the weights; [use_ema, ema_decay]
    amp: Literal["auto", "off", "bf16", "fp16"] = "auto"  # auto: bf16 if the hardware supports it
    seed: Annotated[Count, FIXED_ON_RESUME] = 42  # for new weights, order, augmentation and denoising noise
    save_every_steps: Count = 0  # in addition to the end of each epoch; 0: off
    save_every_minutes: Weight = 10.0  # also when the last save is this old; 0: off
    eval_every_epochs: Positive = 1  # the last epoch is always evaluated
    patience: Count = 0  # evaluations without a better AP before the run stops; 0: never stop early
    keep_checkpoints: Positive = 2  # the newest; the best and the one resumed from are kept, too
    on_nan: Literal["stop", "rollback"] = "stop"  # rollback: load the newest checkpoint and skip that batch
    max_rollbacks: Positive = 3  # per run
    on_out_of_memory: Literal["stop", "halve"] = "stop"  # halve: halve micro_batch_size for the rest of the run
    deterministic: bool = False  # refuse nondeterministic operations
    trackers: Trackers = ("auto",)  # tensorboard, wandb, mlflow; auto: TensorBoard if installed; []: none

    @model_validator(mode="before")
    @classmethod
    def _read_older_files(cls, settings: dict) -> dict:
        """Accept old names in weights and runs from before 0.2.0; `load_config` warns about names given by the user."""
        if not isinstance(settings, dict):
            return settings
        new = {f"train.{key}": value for key, value in settings.items()}
        new = {RENAMED.get(key, key): value for key, value in new.items() if key not in REMOVED}
        return {key.removeprefix("train."): value for key, value in new.items()}


class DataConfig(SettingsGroup):
    path: str = ""  # empty: images that `dino sample-data` draws
    flip: Share = 0.5  # probability of a horizontal flip
    vertical_flip: Share = 0.0  # probability of a vertical flip; for microscopes and satellites, none in DETR
    policy: Literal["detr", "lsj"] = "detr"  # lsj: large-scale jitter (arXiv 2012.07177) instead of scales and crop
    color_jitter: Jitter = (0.0, 0.0, 0.0, 0.0)  # largest change of brightness, contrast, saturation, hue; none in DETR
    train_scales: Sizes = (480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800)  # short side; [data_aug_scales]
    max_size: Positive = 1333  # long side; [data_aug_max_size]
    crop_chance: Share = 0.5  # probability: resize to one of crop_scales, crop to crop_size, then resize as above
    crop_scales: Sizes = (400, 500, 600)  # short side before the crop; [data_aug_scales2_resize]
    crop_size: Range = (384, 600)  # smallest and largest, each side; [data_aug_scales2_crop]
    lsj_scales: Scales = (0.1, 2.0)  # lsj: smallest and largest image size, as a multiple of lsj_size
    lsj_size: Positive = 1024  # lsj: side of the crop in pixels
    pad_size_divisor: Positive = 1  # training batches are padded to multiples of this, up to max_size; ours
    eval_scale: Positive = 800  # short side in evaluation and prediction, unless max_size limits the long one
    workers: Literal["auto"] | Count = "auto"  # auto: number of cores - 1, at most 4
    loader_timeout: Count = 600  # seconds that a step waits for an image from a worker; 0: forever
    max_pixels: Annotated[int, Field(gt=0, le=178_956_970)] = (
        178_956_970  # larger images are not decoded; Pillow's own limit
    )
    exif: bool = True  # rotate images by their EXIF orientation; false: boxes were drawn on images as stored
    depth: Literal["full", "minmax"] = (
        "full"  # grey images of more than 8 bits: white is 65535 or, with minmax, the image's maximum
    )
    voc_first_pixel: Literal["auto", 0, 1] = (
        "auto"  # first pixel index in Pascal VOC's boxes; auto: 0 if any corner is 0, else 1
    )
    min_box_size: Weight = 0.1  # pixels; smaller visible parts of objects are not trained on; ours
    allow_orphans: bool = False  # ignore objects of unknown images and classes instead of refusing the data
    follow_symlinks: bool = False  # open images outside the data folder through links
    val_fraction: Share = 0.0  # fraction of training images held out for validation if there is no validation split
    sample_images: Positive = 200  # number of images drawn if path is empty
    _canvas: tuple[int, int] | None = None  # height and width; see `on_canvas`

    @property
    def canvas(self) -> tuple[int, int] | None:
        """The largest height and width that an exported file takes; None for a model, which takes every size."""
        return self._canvas

    def on_canvas(self, canvas: Sequence[int]) -> "DataConfig":
        """A copy for an exported file with a canvas (height, width): larger images are shrunk to fit."""
        config = self.model_copy()
        config._canvas = (canvas[0], canvas[1])
        return config

    @model_validator(mode="after")
    def _fits_together(self) -> "DataConfig":
        smallest, largest = self.crop_size
        if smallest > largest:
            raise ConfigError(
                f"data.crop_size = {[smallest, largest]} has the smallest side after the largest; swap them"
            )
        if self.lsj_scales[0] > self.lsj_scales[1]:
            raise ConfigError(
                f"data.lsj_scales = {list(self.lsj_scales)} has the smallest after the largest; swap them"
            )
        return self


class EvalConfig(SettingsGroup):
    max_dets: Positive = 300  # detections kept per image, over all queries and classes; [num_select]
    nms_iou: Share = 1.0  # NMS: drop a box of the same class that overlaps by more; 1: off; [nms_iou_threshold]
    backend: Literal["auto", "pycocotools", "hotcoco"] = "auto"  # same numbers; auto: hotcoco (fast) if installed


class Config(SettingsGroup):
    model: Annotated[ModelConfig, FIXED_ON_RESUME] = ModelConfig()
    loss: Annotated[LossConfig, FIXED_ON_RESUME] = LossConfig()
    train: TrainConfig = TrainConfig()
    data: DataConfig = DataConfig()
    eval: EvalConfig = EvalConfig()

    @model_validator(mode="before")
    @classmethod
    def _one_first_stage(cls, settings: dict) -> dict:
        """Derive loss.proposal_labels from model.first_stage, so that they always agree."""
        model, loss = settings.get("model", {}), settings.get("loss", {})
        first_stage = model.get("first_stage", "classes") if isinstance(model, dict) else None
        if first_stage in ("classes", "foreground") and isinstance(loss, dict):
            if loss.get("proposal_labels", first_stage) != first_stage:
                raise ConfigError(
                    f"loss.proposal_labels = {loss['proposal_labels']!r} contradicts "
                    f"model.first_stage = {first_stage!r}; set only model.first_stage"
                )
            settings = settings | {"loss": loss | {"proposal_labels": first_stage}}
        return settings

    def replace(self, key: str, value: Any) -> "Config":
        """A copy with one setting changed; `key` is its path, such as `model.num_classes`.

        Raises:
            ConfigError: there is no such setting, or the value cannot be used.
        """
        settings = self.model_dump()
        *sections, name = str(key).split(".")
        section: Any = settings
        for part in sections:
            section = section.get(part) if isinstance(section, dict) else None
        if not isinstance(section, dict) or name not in section:
            near = did_you_mean(name, section if isinstance(section, dict) else ())
            raise ConfigError(f"unknown setting `{key}`{near}", fix="" if near else "`dino presets NAME` lists all")
        section[name] = value
        try:
            return type(self).model_validate(settings)
        except ValidationError as error:
            reason = error.errors()[0]["msg"]
            raise ConfigError(f"`{key}` = {value!r} cannot be used: {reason[:1].lower()}{reason[1:]}") from None


def check_section(given: object, section: type[SettingsGroup]) -> None:
    """Check that an argument is a certain section of a config, not, for example, the whole config.

    Raises:
        ConfigError: it is not; the message names the section.
    """
    if not isinstance(given, section):
        name = next(name for name, field in Config.model_fields.items() if field.annotation is section)
        kind = "a whole config" if isinstance(given, Config) else f"an object of type {type(given).__name__}"
        raise ConfigError(f"this takes the section `{name}` of a config, not {kind}", fix=f"use config.{name}")


def fixed_settings(config: Config) -> dict[str, Any]:
    """The values of all settings that a resumed run cannot change, by the paths of `fixed_on_resume`, for JSON."""
    settings = config.model_dump(mode="json")
    return {path: reduce(getitem, path.split("."), settings) for path in fixed_on_resume()}


def fixed_on_resume(section: type[BaseModel] = Config, prefix: str = "") -> Iterator[str]:
    """The settings and sections that a resumed run cannot change, such as `model` and `train.seed`."""
    for name, field in section.model_fields.items():
        if FIXED_ON_RESUME in field.metadata:
            yield f"{prefix}{name}"
        elif isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from fixed_on_resume(field.annotation, f"{prefix}{name}.")
