"""Gradients of the optimized model, in float32 and bf16, equal those of the reference."""

import torch

from dinocore import Target, build_model, criterion, load_config
from dinocore.model.ops import use_backend

SMALL = ["model.hidden_dim=64", "model.num_heads=4", "model.ffn_dim=96", "model.num_encoder_layers=2"]
SMALL += ["model.num_decoder_layers=2", "model.num_queries=20", "model.num_classes=5", 'model.backbone="resnet18"']
STATIC = ['model.queries="static"']  # no tokens are selected, which rounding could change


def gradients(backend: str, dtype: torch.dtype | None, overrides: list[str]) -> dict[str, torch.Tensor]:
    """Gradients of the loss of two images, by parameter."""
    torch.manual_seed(0)
    config = load_config("r50-4scale", [*SMALL, *overrides])
    model = build_model(config.model).train()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".offsets." in name:  # initially at token centres, where interpolation has a kink
                parameter.add_(0.1 * torch.rand_like(parameter))
    images, padding = torch.randn(2, 3, 96, 128), torch.zeros(2, 96, 128, dtype=torch.bool)
    padding[1, 64:] = True
    targets = [
        Target(torch.tensor([1, 2]), torch.tensor([[0.3, 0.4, 0.2, 0.3], [0.7, 0.6, 0.3, 0.4]]), seed=0),
        Target(torch.tensor([4]), torch.tensor([[0.5, 0.3, 0.4, 0.3]]), seed=1),
    ]
    with use_backend(backend), torch.autocast("cpu", dtype=dtype, enabled=dtype is not None):
        output = model(images, padding, targets)
    torch.stack(list(criterion(output, targets, 3.0, config.loss).values())).sum().backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def test_the_optimized_model_gives_the_gradients_of_the_reference():
    actual, expected = gradients("auto", None, []), gradients("reference", None, [])
    assert actual.keys() == expected.keys()
    for name, grad in expected.items():
        assert (actual[name] - grad).norm() <= 1e-4 * grad.norm() + 1e-6, name


def test_gradients_in_bf16_are_those_of_float32_within_its_precision():
    actual, expected = gradients("auto", torch.bfloat16, STATIC), gradients("reference", None, STATIC)
    assert actual.keys() == expected.keys()
    flattened = [torch.cat([grads[name].flatten() for name in expected]) for grads in (actual, expected)]
    assert torch.cosine_similarity(*flattened, dim=0) > 0.995
    assert abs(flattened[0].norm() / flattened[1].norm() - 1) < 0.01
