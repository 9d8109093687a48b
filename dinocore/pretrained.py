"""Trained weights for a backbone: downloaded by torchvision or timm, or from a file."""

import contextlib
import sys
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from urllib.error import URLError

import torch
from safetensors.torch import save_file
from torch import Tensor

from .config import ModelConfig
from .errors import CheckpointError, EnvironmentFault
from .model.backbone import Backbone, ResNet, TimmBackbone, timm_feature_indices
from .tensor_files import check_tensor, read_file


def load_backbone_weights(backbone: Backbone, config: ModelConfig) -> None:
    """Fill a backbone as `model.backbone_weights` says: `none`, `imagenet` or a file.

    Raises:
        EnvironmentFault: the download failed.
        CheckpointError: the file cannot be read or holds another model.
    """
    if config.backbone_weights == "none":
        return
    if config.backbone_weights == "imagenet":
        state = _download(config.backbone)
    else:
        state = read_tensors(Path(config.backbone_weights))
    if isinstance(backbone, ResNet):
        _load_resnet(backbone, state, config.backbone_weights)
    else:
        _load_timm(backbone, state, config)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors or a PyTorch file, of which no code is run.

    Raises:
        CheckpointError: the file is missing, damaged, or holds more than tensors.
    """
    content, _ = read_file(path)
    for key in ("model", "state_dict"):
        content = content.get(key, content) if isinstance(content, Mapping) else content
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise CheckpointError(f"{path} holds something other than tensors by name")
    for key, value in content.items():
        check_tensor(key, value, path)
    return dict(content)


def _download(name: str) -> dict[str, Tensor]:
    try:
        if name.startswith("timm/"):
            import timm

            return timm.create_model(name.removeprefix("timm/"), pretrained=True).state_dict()
        from torchvision.models import get_model_weights

        weights = get_model_weights(name)["IMAGENET1K_V1"]  # the recipe of the paper's backbones
        with contextlib.redirect_stdout(sys.stderr):  # torch.hub says there what it downloads
            return weights.get_state_dict(progress=False, check_hash=True)
    except (URLError, OSError, RuntimeError) as error:
        raise _unobtainable(name, error) from error


def _unobtainable(name: str, error: Exception) -> EnvironmentFault:
    if name.startswith("timm/"):
        import timm

        pretrained = timm.get_pretrained_cfg(name.removeprefix("timm/"))
        address = f"https://huggingface.co/{pretrained.hf_hub_id}" if pretrained else "the Hugging Face hub"
        folder = "~/.cache/huggingface"
    else:
        from torchvision.models import get_model_weights

        address, folder = get_model_weights(name)["IMAGENET1K_V1"].url, f"{torch.hub.get_dir()}/checkpoints"
    return EnvironmentFault(
        f"the ImageNet weights of {name} could not be downloaded from {address} into {folder} "
        f"({str(error).splitlines()[0][:120] if str(error) else type(error).__name__}); fetch the file and use "
        "--set model.backbone_weights=FILE, or start without them: --set model.backbone_weights=none"
    )


def _load_resnet(backbone: ResNet, state: Mapping[str, Tensor], source: str) -> None:
    wanted = backbone.body.state_dict()
    missing = [key for key in wanted if key not in state or state[key].shape != wanted[key].shape]
    if missing:
        raise CheckpointError(
            f"{source} does not fit the backbone: {len(missing)} of {len(wanted)} tensors are missing or of another "
            f"shape, such as {missing[0]}"
        )
    backbone.body.load_state_dict({key: state[key] for key in wanted})


def _load_timm(backbone: TimmBackbone, state: Mapping[str, Tensor], config: ModelConfig) -> None:
    """Let timm fit a classifier's tensors to the feature extractor; accept other names in timm's own order."""
    import timm

    name = config.backbone.removeprefix("timm/")
    state = _in_timm_names(name, state, config.backbone_weights)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # timm says that the classifier's tensors are left over
        file = Path(folder) / "model.safetensors"
        save_file({key: value.contiguous() for key, value in state.items()}, file)
        indices = timm_feature_indices(name, config.feature_strides)
        overlay = {"file": str(file), "url": None, "hf_hub_id": None}
        body = timm.create_model(
            name, pretrained=True, pretrained_cfg_overlay=overlay, features_only=True, out_indices=indices
        )
    backbone.body.load_state_dict(body.state_dict())


def _in_timm_names(name: str, state: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    import timm

    wanted = {k: v for k, v in timm.create_model(name).state_dict().items() if not k.endswith("num_batches_tracked")}
    given = {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}
    if all(key in given and given[key].shape == value.shape for key, value in wanted.items()):
        return {key: given[key] for key in wanted}
    shapes = [tuple(v.shape) for v in wanted.values()], [tuple(v.shape) for v in given.values()]
    if shapes[0] != shapes[1]:
        raise CheckpointError(
            f"{source} does not fit timm's {name}: its {len(given)} tensors have neither the names nor, in order, the "
            f"shapes of the {len(wanted)} that are needed"
        )
    return dict(zip(wanted, given.values(), strict=True))
