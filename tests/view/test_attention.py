"""`dino inspect-attention` shows the sampling points and weights that the layer itself used."""

import pytest
import torch

from dinocore.errors import ConfigError
from dinocore.inspect.attention import (
    _sampling_points,
    attention_at,
    attention_of_query,
    draw_attention,
    record_sampling,
)
from dinocore.model.ops import sample_fused


def test_points_and_weights_reproduce_the_output_of_the_layer(detector, image):
    batch = detector.batch(image)
    for attention in (attention_of_query(detector, batch, query=3), attention_at(detector, batch, (40, 30), level=1)):
        assert attention.error < 1e-4
        assert attention.weights.sum((1, 2)).tolist() == pytest.approx([1.0] * 4, abs=1e-5)
    with record_sampling(detector.model.decoder.layers[-1].cross_attn) as records:
        detector.forward(batch)
    (used,) = records
    wrong = used._replace(weights=used.weights.flip(-1)), used._replace(locations=used.locations + 0.1)
    assert all(_sampling_points(sampling, 3, batch.sizes[0])[-1] > 0.01 for sampling in wrong)


def test_recording_does_not_change_the_output_and_ends_with_the_block(detector, image):
    batch = detector.batch(image)
    plain = detector.forward(batch).final
    attention = detector.model.decoder.layers[0].cross_attn
    with record_sampling(attention) as records:
        recorded = detector.forward(batch).final
    assert torch.allclose(plain.boxes, recorded.boxes, atol=1e-5)
    assert attention.sample is sample_fused
    detector.forward(batch)
    assert len(records) == 1


@pytest.mark.parametrize("name", ["offsets", "weights", "value"])
@pytest.mark.parametrize("part", ["decoder", "encoder"])
def test_the_view_changes_with_the_weights_of_the_layer(make_detector, detector, image, part, name):
    batch = detector.batch(image)

    def edit(model):
        layer = getattr(model, part).layers[-1]
        for parameter in getattr(layer.cross_attn if part == "decoder" else layer.attn, name).parameters():
            parameter.add_(torch.randn_like(parameter))

    def get_attention(detector):
        if part == "decoder":
            return attention_of_query(detector, batch, query=2)
        return attention_at(detector, batch, (9, 9))

    before, after = get_attention(detector), get_attention(make_detector(edit))
    assert torch.allclose(before.points, after.points, atol=1e-3) == (name != "offsets")
    assert torch.allclose(before.weights, after.weights, atol=1e-4) == (name != "weights")
    assert after.error < 1e-4
    figures = [draw_attention(image, attention).tobytes() for attention in (before, after)]
    assert name == "value" or figures[0] != figures[1]  # only points and weights are drawn, not values


def test_without_offsets_all_points_are_the_centre_of_the_token_at_the_pixel(make_detector, image):
    def edit(model):
        for parameter in model.encoder.layers[-1].attn.offsets.parameters():
            parameter.zero_()

    detector = make_detector(edit)
    attention = attention_at(detector, detector.batch(image), (50, 20))
    assert torch.allclose(attention.points, torch.tensor(attention.center).expand_as(attention.points), atol=1e-3)
    assert (
        abs(attention.center[0] - 50) <= 96 / 12 / 2 + 1 and abs(attention.center[1] - 20) <= 72 / 8 / 2 + 1
    )  # a token is 8 x 9 pixels


def test_the_default_query_is_the_most_confident_one(detector, image):
    batch = detector.batch(image)
    final = detector.forward(batch).final
    attention = attention_of_query(detector, batch)
    assert attention.index == int(final.logits[0].amax(-1).argmax())
    assert attention.score == pytest.approx(float(final.logits.sigmoid().max()), abs=1e-5)


@pytest.mark.parametrize(
    "call",
    [
        lambda d, b: attention_of_query(d, b, layer=2),
        lambda d, b: attention_of_query(d, b, query=12),
        lambda d, b: attention_of_query(d, b, query=-1),
        lambda d, b: attention_at(d, b, (0, 0), level=-1),
        lambda d, b: attention_at(d, b, (96, 0)),
        lambda d, b: attention_at(d, b, (0, 0), level=4),
    ],
)
def test_invalid_queries_layers_levels_and_pixels_are_refused(detector, image, call):
    with pytest.raises(ConfigError):
        call(detector, detector.batch(image))


def test_figures_of_all_heads_and_of_one_are_not_blank(detector, image):
    attention = attention_of_query(detector, detector.batch(image))
    for head in (None, 2):
        assert len(draw_attention(image, attention, head).resize((60, 40)).getcolors(10**6)) > 20  # not blank
    assert len(attention.as_dict()["heads"]) == 4
