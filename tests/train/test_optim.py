"""Parameter groups, the learning rate schedule, and the moving average."""

from itertools import pairwise

import pytest
import torch
from torch import nn

from dinocore import build_model, load_config
from dinocore.config import TrainConfig
from dinocore.train.optim import (
    Ema,
    build_optimizer,
    describe_lr,
    drops_warning,
    lr_factor,
    scaled_drops,
    set_lr,
    warmup_warning,
)


def test_the_published_schedule_drops_once_after_epoch_11():
    config = TrainConfig()
    factors = [lr_factor(step, 10, config) for step in range(120)]
    assert factors[:110] == [1.0] * 110
    assert factors[110:] == pytest.approx([0.1] * 10)


def test_warm_up_rises_in_equal_steps_and_cosine_ends_at_zero():
    config = TrainConfig(epochs=2, warmup_steps=4, lr_schedule="cosine")
    factors = [lr_factor(step, 50, config) for step in range(100)]
    assert factors[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert all(later < earlier for earlier, later in pairwise(factors[4:]))
    assert factors[-1] < 0.001


def test_the_backbone_has_its_own_learning_rate_and_frozen_parameters_are_omitted():
    config = load_config("r50-4scale", ['model.backbone="resnet18"'])
    model = build_model(config.model)
    optimizer = build_optimizer(model, config.train)
    backbone, rest = (group["params"] for group in optimizer.param_groups)
    expected = [p for n, p in model.named_parameters() if p.requires_grad and n.startswith("backbone.")]
    assert {id(p) for p in backbone} == {id(p) for p in expected}
    assert len(backbone) + len(rest) == sum(p.requires_grad for p in model.parameters())
    assert set_lr(optimizer, 0.1) == pytest.approx(1e-5)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([1e-6, 1e-5])
    assert all(group["weight_decay"] == 1e-4 for group in optimizer.param_groups)


def test_the_moving_average_equals_its_formula():
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, 0.0)
    ema, expected = Ema(model, 0.9), 0.0
    for step in range(1, 40):
        nn.init.constant_(model.weight, float(step))
        ema.update(model)
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * step
    assert ema.model.weight.item() == pytest.approx(expected, rel=1e-4)
    assert not ema.model.weight.requires_grad


def test_the_moving_average_is_a_copy():
    model = nn.Linear(2, 2)
    ema = Ema(model, 0.9)
    before = ema.model.weight.clone()
    with torch.no_grad():
        model.weight.add_(1)
    assert torch.equal(ema.model.weight, before)


@pytest.mark.parametrize("epochs", [1, 2, 6, 13, 50])
@pytest.mark.parametrize("recipe", [(12, (11,)), (36, (27, 33)), (50, (40,))])
def test_drops_move_in_proportion_to_the_epochs_and_stay_within_the_run(epochs, recipe):
    before = TrainConfig(epochs=recipe[0], lr_drop_epochs=recipe[1])
    drops = scaled_drops(before, epochs)
    assert all(0 < drop < epochs for drop in drops) and sorted(set(drops)) == list(drops)
    expected = [drop * epochs / recipe[0] for drop in recipe[1]]
    assert all(any(abs(drop - epoch) <= 1 for epoch in expected) for drop in drops)
    assert drops or epochs == 1


def test_the_schedule_description_lists_drops_and_those_never_reached():
    assert "divided by 10 after epoch 11 of 12" in describe_lr(100, TrainConfig())
    assert "never lowered" in describe_lr(100, TrainConfig(epochs=6))
    assert describe_lr(100, TrainConfig()).startswith("0.0001, backbone 1e-05, ")
    assert describe_lr(100, TrainConfig(freeze=("neck",))).startswith("frozen: neck; 0.0001, backbone 1e-05, ")
    description = describe_lr(100, TrainConfig(freeze=("backbone", "encoder")))
    assert description.startswith("frozen: backbone, encoder; 0.0001, divided"), (
        "a frozen backbone has no learning rate"
    )
    short = TrainConfig(warmup_steps=24, lr_schedule="cosine")
    assert describe_lr(2, short).endswith("never reached: warm-up takes 24 steps, the run 24 steps")
    assert warmup_warning(2, short).endswith("and the run has 24 steps; --set train.warmup_steps=0")
    assert warmup_warning(3, short) == warmup_warning(1, TrainConfig(warmup_steps=0)) == ""


def test_learning_rate_drops_that_never_happen_are_reported():
    assert "after epochs 3 and 5 of 12" in describe_lr(9, TrainConfig(lr_drop_epochs=(5, 3)))
    warning = drops_warning(9, TrainConfig(epochs=12, lr_drop_epochs=(9, 40)))
    assert warning.startswith("the run has 12 epochs, and its learning rate would drop after 40; --set train.epochs=41")
    assert "step 9" in drops_warning(9, TrainConfig(warmup_steps=10, lr_drop_epochs=(1, 11)))
    configs = [TrainConfig(), TrainConfig(lr_schedule="cosine", epochs=6), TrainConfig(epochs=1, lr_drop_epochs=())]
    assert [drops_warning(9, config) for config in configs] == ["", "", ""]
