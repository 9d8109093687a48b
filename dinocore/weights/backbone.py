"""Load pretrained backbone weights from a file, or download them with torchvision or timm."""

import contextlib
import importlib
import re
import sys
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from urllib.error import URLError

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ..config import ModelConfig
from ..errors import CheckpointError, EnvironmentFault
from ..model.backbones.build import NORMED, Backbone, ResNet
from ..model.backbones.swin import Swin
from ..model.backbones.timm import OutputNorms, TimmBackbone
from ..model.backbones.vit import POSITION_GRID, VITDETS, PlainViT
from .untrusted import check_tensor, is_counter, read_file, without_prefixes

# timm's names of the weights that "imagenet" stands for: ImageNet-1k if available
IMAGENET = {
    "swin-t-224": "swin_tiny_patch4_window7_224.ms_in1k",
    "swin-s-224": "swin_small_patch4_window7_224.ms_in1k",
    "swin-b-224": "swin_base_patch4_window7_224.ms_in1k",
    "swin-b-384": "swin_base_patch4_window12_384.ms_in1k",
    "swin-l-224": "swin_large_patch4_window7_224.ms_in22k",
    "swin-l-384": "swin_large_patch4_window12_384.ms_in22k",
    "convnext-t": "convnext_tiny.fb_in1k",
    "convnext-s": "convnext_small.fb_in1k",
    "convnext-b": "convnext_base.fb_in1k",
    "convnext-l": "convnext_large.fb_in1k",
    "focalnet-l-3": "focalnet_large_fl3.ms_in22k",
    "focalnet-l-4": "focalnet_large_fl4.ms_in22k",
    "vitdet-b": "vit_base_patch16_224.mae",
    "vitdet-l": "vit_large_patch16_224.mae",
}


def load_backbone_weights(backbone: Backbone, config: ModelConfig) -> str:
    """Load the weights that `model.backbone_weights` names: `none`, `imagenet`, `timm/NAME` or a file.

    Returns:
        a description of what was loaded, with a note if it was trained with other pixel statistics than the config's.

    Raises:
        EnvironmentFault: the download failed.
        CheckpointError: the file cannot be read or holds weights of another model.
    """
    source = config.backbone_weights
    if source == "none":
        return source
    name = _timm_name(config)
    if source != "imagenet" and not source.startswith("timm/"):
        state = read_tensors(Path(source))
    else:
        state = _download_timm(name) if name else _download_torchvision(config.backbone)
    if isinstance(backbone, ResNet):
        _load_by_name(backbone.body, state, source)
    elif isinstance(backbone, Swin):
        _load_by_name(backbone, swin_names(state), source, fresh=r"norm\d\.")
    elif isinstance(backbone, PlainViT) and config.backbone in VITDETS:
        _load_by_name(backbone.body.model, _vitdet_names(state), source, fresh=r".*rel_pos_[hw]")
    elif isinstance(backbone, OutputNorms):
        _load_timm(backbone.body, state, NORMED[config.backbone][0], source)
    else:
        _load_timm(backbone, state, config.backbone.removeprefix("timm/"), source)
    return source + (_pixel_note(name, config) if name else "")


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors or PyTorch file, read without running any code in it.

    Raises:
        CheckpointError: the file is missing, damaged, or holds more than tensors.
    """
    content, _ = read_file(path)
    for key in ("model", "state_dict"):
        content = content.get(key, content) if isinstance(content, Mapping) else content
    if isinstance(content, Mapping):
        content = {key: value for key, value in content.items() if not is_counter(str(key), value)}
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise CheckpointError(f"{path} contains something other than a state dict")
    for key, value in content.items():
        check_tensor(key, value, path)
    return without_prefixes(content)


def swin_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A Swin's tensors under their published names; timm assigns patch merging to the following stage."""
    if "layers.1.downsample.norm.weight" not in state or "layers.0.downsample.norm.weight" in state:
        return dict(state)
    moved = re.compile(r"^layers\.(\d+)\.downsample")
    return {moved.sub(lambda m: f"layers.{int(m[1]) - 1}.downsample", key): value for key, value in state.items()}


def _vitdet_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a masked autoencoder's encoder for ViTDet, which has no class token."""
    state = dict(state)
    position = state.pop("pos_embed", None)
    if position is not None and position.shape[1] == POSITION_GRID**2 + 1:
        state["pos_drop.pos_embed"] = position[:, 1:].unflatten(1, (POSITION_GRID, POSITION_GRID))
    return state


def _timm_name(config: ModelConfig) -> str | None:
    """The name in timm's catalogue of the requested weights, or of those for this backbone; None if there are none."""
    name = config.backbone_weights if config.backbone_weights.startswith("timm/") else config.backbone
    return name.removeprefix("timm/") if name.startswith("timm/") else IMAGENET.get(config.backbone)


def _download_timm(name: str) -> dict[str, Tensor]:
    import timm

    if not timm.is_model(name):
        raise CheckpointError(f"timm {timm.__version__} has no weights `{name}`; set model.backbone_weights")
    try:
        return timm.create_model(name, pretrained=True).state_dict()
    except (URLError, OSError, RuntimeError) as error:
        pretrained = timm.get_pretrained_cfg(name)
        address = f"https://huggingface.co/{pretrained.hf_hub_id}" if pretrained else "the Hugging Face hub"
        raise _download_error(name, address, "~/.cache/huggingface", error) from error


def _download_torchvision(name: str) -> dict[str, Tensor]:
    from torchvision.models import get_model_weights

    weights = get_model_weights(name)["IMAGENET1K_V1"]  # as used in the paper
    try:
        with contextlib.redirect_stdout(sys.stderr):  # torch.hub prints what it downloads
            return dict(weights.get_state_dict(progress=False, check_hash=True))
    except (URLError, OSError, RuntimeError) as error:
        raise _download_error(name, weights.url, f"{torch.hub.get_dir()}/checkpoints", error) from error


def _download_error(name: str, address: str, folder: str, error: Exception) -> EnvironmentFault:
    return EnvironmentFault(
        f"the ImageNet weights of {name} could not be downloaded from {address} into {folder} "
        f"({str(error).splitlines()[0][:120] if str(error) else type(error).__name__}); fetch the file and use "
        "--set model.backbone_weights=FILE, or start without them: --set model.backbone_weights=none"
    )


def _pixel_note(name: str, config: ModelConfig) -> str:
    """A note if these weights were trained with another pixel mean or standard deviation; otherwise empty."""
    import timm

    trained = timm.get_pretrained_cfg(name)
    if trained is None or (tuple(trained.mean), tuple(trained.std)) == (config.pixel_mean, config.pixel_std):
        return ""
    return (
        f" (trained with pixels that the config does not give: --set model.pixel_mean={list(trained.mean)} "
        f"--set model.pixel_std={list(trained.std)})"
    )


def _load_by_name(body: nn.Module, state: Mapping[str, Tensor], source: str, fresh: str = r"(?!)") -> None:
    """Load tensors by name; parameters that match `fresh` are new in a detector and keep their initial values."""
    expected = {key: value for key, value in body.state_dict().items() if not re.match(fresh, key)}
    missing = [key for key in expected if key not in state or state[key].shape != expected[key].shape]
    if missing:
        shape = tuple(state[missing[0]].shape) if missing[0] in state else "missing"
        raise CheckpointError(
            f"{source} does not fit the backbone: {len(missing)} of {len(expected)} tensors are missing or of another "
            f"shape, such as {missing[0]} ({shape} in the file, {tuple(expected[missing[0]].shape)} in the model)"
        )
    body.load_state_dict({key: state[key] for key in expected}, strict=False)


def _load_timm(backbone: TimmBackbone | PlainViT, state: Mapping[str, Tensor], name: str, source: str) -> None:
    """Load a classifier's tensors into the feature extractor with timm, which may have to rename them."""
    state = _in_timm_names(name, state, source)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # timm warns that the classifier's tensors are unused
        file = Path(folder) / "model.safetensors"
        save_file({key: value.contiguous() for key, value in state.items()}, file)
        overlay = {"file": str(file), "url": None, "hf_hub_id": None}
        body = backbone.extract(pretrained=True, pretrained_cfg_overlay=overlay)
    backbone.body.load_state_dict(body.state_dict())


def _in_timm_names(name: str, state: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """The tensors under timm's names: as they are, renamed by timm's own function, or matched by their order."""
    import timm

    with torch.device("meta"):
        classifier, features = timm.create_model(name), timm.create_model(name, num_classes=0)
    expected, given = _without_counters(features.state_dict()), _without_counters(state)
    for named in (given, _renamed_by_timm(name, given, features)):
        if all(key in named and named[key].shape == value.shape for key, value in expected.items()):
            return {key: named[key] for key in expected}
    expected = _without_counters(classifier.state_dict())
    if [value.shape for value in expected.values()] != [value.shape for value in given.values()]:
        raise CheckpointError(
            f"{source} does not fit timm's {name}: its {len(given)} tensors have neither the names nor, in order, the "
            f"shapes of the {len(expected)} that are needed"
        )
    return dict(zip(expected, given.values(), strict=True))


def _renamed_by_timm(name: str, state: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """The tensors of a model's original release, renamed by timm; empty if timm cannot rename them."""
    import timm

    module = importlib.import_module(timm.model_entrypoint(name).__module__)
    rename = getattr(module, "checkpoint_filter_fn", None)
    if rename is None:
        return {}
    try:
        return dict(rename(dict(state), model))
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError):  # the names are of another model
        return {}


def _without_counters(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}
