"""The optimizer and its schedule; the moving average of the weights."""

import copy
import math

import torch

from ..config import TrainConfig
from ..model.dino import DINO
from ..words import counted, listed

NORMS = (torch.nn.LayerNorm, torch.nn.GroupNorm)


def build_optimizer(model: DINO, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW with a parameter group per learning rate and weight decay: the backbone's first, the main one last."""
    main = ("rest", config.lr, config.weight_decay)
    groups = {("backbone", config.backbone_lr, config.weight_decay): [], main: []}
    norms = {id(p) for m in model.modules() if isinstance(m, NORMS) for p in m.parameters()}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups.setdefault(_group_of(name, id(parameter) in norms, config), []).append(parameter)
    groups[main] = groups.pop(main)  # moves it to the end
    fused = next(model.parameters()).device.type in ("cpu", "cuda")
    return torch.optim.AdamW(
        [
            {"params": members, "lr": lr, "peak_lr": lr, "weight_decay": decay}
            for (_, lr, decay), members in groups.items()
        ],
        lr=config.lr,
        weight_decay=config.weight_decay,
        fused=fused,
    )


def _group_of(name: str, is_norm: bool, config: TrainConfig) -> tuple[str, float, float]:
    """The model part, learning rate and weight decay of a parameter."""
    part = "backbone" if name.startswith("backbone.") else "rest"
    lr = config.backbone_lr if part == "backbone" else config.lr
    if part == "rest" and ".offsets." in name and config.offsets_lr != "same":
        lr = config.offsets_lr
    decay = config.norm_weight_decay if is_norm else "same"
    return part, lr, config.weight_decay if decay == "same" else decay


def lr_factor(step: int, steps_per_epoch: int, config: TrainConfig) -> float:
    """The factor of the learning rates in optimizer step `step`, counted from 0."""
    if step < config.warmup_steps:
        return (step + 1) / (config.warmup_steps + 1)
    if config.lr_schedule == "cosine":
        total = max(1, config.epochs * steps_per_epoch - config.warmup_steps)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - config.warmup_steps) / total)))
    drops = sum(step // steps_per_epoch >= epoch for epoch in config.lr_drop_epochs)
    return 0.1**drops


def describe_lr(steps_per_epoch: int, config: TrainConfig) -> str:
    """A description of a run's learning rates, shown before it starts."""
    frozen = f"frozen: {', '.join(config.freeze)}; " if config.freeze else ""
    backbone = "" if "backbone" in config.freeze else f", backbone {config.backbone_lr:g}"
    rates = f"{frozen}{config.lr:g}{backbone}"
    warmup = f", {counted(config.warmup_steps, 'step')} of warm-up" if config.warmup_steps else ""
    if warmup_warning(steps_per_epoch, config):
        taken = counted(config.epochs * steps_per_epoch, "step")
        return f"{rates}, never reached: warm-up takes {counted(config.warmup_steps, 'step')}, the run {taken}"
    if config.lr_schedule == "cosine":
        return f"{rates}{warmup}, cosine decay to 0"
    reached = [str(epoch) for epoch in sorted(config.lr_drop_epochs) if epoch < config.epochs]
    epochs = f"epochs {listed(reached)}" if len(reached) > 1 else f"epoch {reached[0]}" if reached else ""
    drops = f"divided by 10 after {epochs} of {config.epochs}" if reached else "never lowered"
    return f"{rates}{warmup}, {drops}"


def warmup_warning(steps_per_epoch: int, config: TrainConfig) -> str:
    """A warning if a run ends before its warm-up; otherwise empty."""
    steps = config.epochs * steps_per_epoch
    if not config.warmup_steps or config.warmup_steps < steps:
        return ""
    lengths = f"{counted(config.warmup_steps, 'step')} of warm-up, and the run has {counted(steps, 'step')}"
    return f"the learning rate is still rising when the run ends: {lengths}; --set train.warmup_steps=0"


def drops_warning(steps_per_epoch: int, config: TrainConfig) -> str:
    """A warning about learning rate drops that a run does not reach or that its warm-up hides; otherwise empty."""
    if config.lr_schedule != "step" or warmup_warning(steps_per_epoch, config):
        return ""
    beyond = [str(epoch) for epoch in sorted(config.lr_drop_epochs) if epoch >= config.epochs]
    if beyond:
        needed = 1 + max(config.lr_drop_epochs)
        missed = f"{counted(config.epochs, 'epoch')}, and its learning rate would drop after {listed(beyond)}"
        return f"the run has {missed}; --set train.epochs={needed} or more, or change train.lr_drop_epochs"
    hidden = [str(epoch) for epoch in sorted(config.lr_drop_epochs) if epoch * steps_per_epoch < config.warmup_steps]
    if hidden:
        where = f"{counted(config.warmup_steps, 'step')} of warm-up, and the drop after epoch {hidden[0]}"
        return f"the learning rate drops before its warm-up ends: {where} is step {int(hidden[0]) * steps_per_epoch}"
    return ""


def scaled_drops(config: TrainConfig, epochs: int) -> tuple[int, ...]:
    """A recipe's drop epochs scaled to a run of another length, without drops at its start or end."""
    drops = [epoch * epochs // config.epochs for epoch in config.lr_drop_epochs]
    return tuple(dict.fromkeys(epoch for epoch in drops if 0 < epoch < epochs))


def set_lr(optimizer: torch.optim.Optimizer, factor: float) -> float:
    """Set the learning rate of every group; returns the rate of the last group, which is the main one."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * factor
    return optimizer.param_groups[-1]["lr"]


class Ema:
    """An exponential moving average of a model's weights, faster in the first steps."""

    def __init__(self, model: DINO, decay: float):
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.decay = decay
        self.updates = 0

    @torch.no_grad()
    def update(self, model: DINO) -> None:
        """Move every average towards the current weights."""
        self.updates += 1
        weight = 1 - min(self.decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(list(self.model.parameters()), list(model.parameters()), weight)


class NoEma:
    """No average: the model itself is evaluated and saved."""

    def __init__(self, model: DINO):
        self.model = model
        self.updates = 0

    def update(self, model: DINO) -> None:
        """Nothing to do."""
