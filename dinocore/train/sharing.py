"""Which way of sharing a model a run has."""

from ..config import Config
from ..errors import ConfigError
from ..model.dino import DINO
from ..system.processes import Alone, Processes
from .ddp import Replicated, Single
from .sharded import Sharded


def shared(model: DINO, group: Alone, config: Config) -> Single:
    """How the processes of a group share a model, as `train.sharding` says.

    Raises:
        ConfigError: another setting does not go with that.
    """
    if config.train.sharding == "fsdp2":
        _check_sharded(config, group)
    if not isinstance(group, Processes):
        return Single(model, group)
    return Sharded(model, group, config.model) if config.train.sharding == "fsdp2" else Replicated(model, group)


def _check_sharded(config: Config, group: Alone) -> None:
    """All processes go through each pass together, and a pass that fails on one cannot be repeated."""
    train = config.train
    against = [
        (group.size == 1, "one process, which would have all parts; set train.sharding=none"),
        (train.amp == "fp16", "train.amp = fp16, whose scaler looks at parts only; choose bf16"),
        (
            train.images_per_forward == "probe",
            "--batch-size auto, which each tries alone; set train.images_per_forward",
        ),
        (train.on_out_of_memory == "halve", "train.on_out_of_memory = halve; set train.images_per_forward"),
        (
            train.batch_size % group.size > 0,
            f"a batch of {train.batch_size} for {group.size} processes, which need equal shares; choose --batch-size",
        ),
    ]
    for true, text in against:
        if true:
            raise group.together(ConfigError(f"train.sharding = fsdp2 does not go with {text}"))
