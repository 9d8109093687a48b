"""Model settings: each builds a model that trains and predicts."""

import pytest
import torch

from dinocore import Target, build_model, criterion, load_config
from dinocore.errors import ConfigError
from dinocore.model.proposals import PureContent

SMALL = [
    'model.backbone="resnet18"', "model.hidden_dim=32", "model.num_heads=4", "model.ffn_dim=48", "model.num_queries=7",
    "model.num_encoder_layers=1", "model.num_decoder_layers=3", "model.num_classes=5", "model.denoising.num_pairs=6",
]  # fmt: skip


def small(*overrides: str, preset: str = "r50-4scale"):
    config = load_config(preset, [*SMALL, *overrides])
    torch.manual_seed(0)
    return build_model(config.model), config


def make_batch():
    torch.manual_seed(1)
    padding = torch.zeros(2, 64, 96, dtype=torch.bool)
    padding[1, 48:] = True
    targets = [
        Target(torch.tensor([1, 4]), torch.tensor([[0.3, 0.4, 0.2, 0.3], [0.7, 0.6, 0.3, 0.4]]), 1),
        Target(torch.tensor([0]), torch.tensor([[0.5, 0.5, 0.4, 0.5]]), 2),
    ]
    return torch.randn(2, 3, 64, 96).masked_fill(padding[:, None], 0), padding, targets


def forward_backward(model, config, targets=None):
    images, padding, default_targets = make_batch()
    targets = default_targets if targets is None else targets
    output = model(images, padding, targets)
    terms = criterion(output, targets, sum(len(t.labels) for t in targets), config.loss)
    torch.stack(list(terms.values())).sum().backward()
    return output, terms


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ('model.first_stage="foreground"',),
        ('model.queries="pure"',),
        ('model.queries="static"',),
        ('model.heads="per-layer"',),
        ('model.look_forward="once"',),
        ('model.denoising.kind="plain"',),
        ('model.denoising.kind="none"',),
        ("model.denoising.num_groups=3",),
        ("model.feature_strides=[4, 8, 16, 32]", "model.num_levels=5"),
        ("model.feature_strides=[32]", "model.num_levels=1"),
        ("model.dropout=0.1",),
    ],
    ids=lambda o: " ".join(o) or "published",
)
def test_every_trainable_parameter_gets_a_finite_gradient(overrides):
    model, config = small(*overrides)
    _, terms = forward_backward(model.train(), config)
    assert all(value.isfinite() for value in terms.values())
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None and parameter.grad.isfinite().all(), name


def test_every_trainable_parameter_gets_a_gradient_without_objects():
    model, config = small()
    empty = Target(torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4))
    forward_backward(model.train(), config, [empty, empty])
    missing = [
        n for n, p in model.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.isfinite().all())
    ]
    assert missing == []


def test_the_foreground_first_stage_has_one_logit_and_foreground_labels():
    model, config = small('model.first_stage="foreground"')
    output, _ = forward_backward(model, config)
    assert output.proposals.logits.shape == (2, 7, 1)
    assert output.final.logits.shape == (2, 7, 5)
    assert config.loss.proposal_labels == "foreground"


def test_pure_queries_take_content_from_the_chosen_tokens_without_their_gradient():
    chosen = torch.randn(2, 7, 32, requires_grad=True)
    content = PureContent()(chosen)
    assert torch.equal(content, chosen) and not content.requires_grad
    model, _ = small('model.queries="pure"')
    assert not any("content" in name for name, _ in model.named_parameters())


def test_static_queries_have_no_first_stage_and_start_within_the_image():
    model, _ = small('model.queries="static"', "model.num_queries=50")
    images, padding, _ = make_batch()
    output = model(images, padding)
    assert output.proposals is None
    boxes = model.proposer.boxes.sigmoid()
    assert ((boxes[:, :2] - boxes[:, 2:] / 2 > -1e-3) & (boxes[:, :2] + boxes[:, 2:] / 2 < 1 + 1e-3)).all()
    assert torch.equal(output.queries.boxes[0], output.queries.boxes[1])


def test_heads_are_shared_or_one_per_layer():
    assert len(small()[0].decoder.class_heads) == 1
    assert len(small('model.heads="per-layer"')[0].decoder.class_heads) == 3


def test_look_forward_twice_trains_the_previous_layer_and_once_does_not():
    def gradient_of_first_layer(setting):
        model, _ = small(f'model.look_forward="{setting}"', 'model.heads="per-layer"', 'model.denoising.kind="none"')
        images, padding, _ = make_batch()
        torch.manual_seed(2)
        for head in model.decoder.box_heads:
            torch.nn.init.normal_(head[-1].weight, std=0.1)
        boxes = model(images, padding).stages[1].boxes  # only the second layer's boxes have a loss
        return torch.autograd.grad(boxes.sum(), model.decoder.box_heads[0][-1].weight, allow_unused=True)[0]

    assert gradient_of_first_layer("once") is None
    assert gradient_of_first_layer("twice").abs().max() > 0


def test_look_forward_once_and_twice_give_the_same_outputs():
    images, padding, _ = make_batch()
    once, twice = (small(f'model.look_forward="{s}"')[0].eval()(images, padding).final for s in ("once", "twice"))
    assert torch.equal(once.boxes, twice.boxes)


def test_outputs_do_not_depend_on_the_order_of_the_images():
    model, _ = small("model.num_encoder_layers=2")
    model.eval()
    images, padding, _ = make_batch()
    both = model(images, padding).final
    assert both.logits.isfinite().all()
    swapped = model(images.flip(0), padding.flip(0)).final
    torch.testing.assert_close(both.logits, swapped.logits.flip(0), atol=1e-4, rtol=1e-4)


def test_matching_queries_do_not_depend_on_denoising_queries():
    model, _ = small()
    model.eval()
    images, padding, targets = make_batch()
    with_noise, without = model(images, padding, targets), model(images, padding)
    torch.testing.assert_close(with_noise.final.logits, without.final.logits, atol=1e-4, rtol=1e-4)
    assert with_noise.denoising[0].logits.shape[1] == with_noise.noise.boxes.shape[1]


def test_fewer_tokens_than_queries_give_fewer_predictions():
    model, config = small("model.num_queries=400")
    output, _ = forward_backward(model, config)
    tokens = 8 * 12 + 4 * 6 + 2 * 3 + 1 * 2
    assert output.final.logits.shape[1] == output.proposals.boxes.shape[1] == tokens


def test_an_image_of_one_pixel_works():
    model, _ = small()
    output = model.eval()(torch.zeros(1, 3, 1, 1), torch.zeros(1, 1, 1, dtype=torch.bool))
    assert output.final.boxes.isfinite().all()


def test_recomputed_activations_give_the_same_gradients():
    gradients = []
    for setting in ("false", "true"):
        model, config = small(f"model.checkpoint_activations={setting}")
        forward_backward(model, config)
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, recomputed, atol=1e-5, rtol=1e-4)


def test_the_batch_norm_of_a_timm_backbone_stays_frozen():
    model, config = small('model.backbone="timm/tf_efficientnet_lite0"')
    forward_backward(model.train(), config)
    before = {k: v.clone() for k, v in model.state_dict().items() if "running" in k}
    forward_backward(model, config)
    assert before and all(torch.equal(model.state_dict()[k], v) for k, v in before.items())
    assert not any(".bn" in name for name, _ in model.backbone.named_parameters())


@pytest.mark.parametrize(
    "backbone, message",
    [
        ("resnet51", "unknown backbone `resnet51`"),
        ("timm/nothing_like_it", "has no model `nothing_like_it`"),
    ],
)
def test_an_unknown_backbone_is_refused_by_name(backbone, message):
    with pytest.raises(ConfigError, match=message):
        small(f'model.backbone="{backbone}"')


def test_strides_that_a_backbone_lacks_are_refused():
    with pytest.raises(ConfigError, match="not at \\[64\\]"):
        small("model.feature_strides=[64]")


def test_frozen_stages_get_no_gradient():
    model, _ = small("model.frozen_stages=1")
    frozen = {name.split(".")[1] for name, p in model.backbone.named_parameters() if not p.requires_grad}
    assert frozen == {"conv1", "layer1"}
    assert all(p.requires_grad for p in small("model.frozen_stages=-1")[0].backbone.parameters())
