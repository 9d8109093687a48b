"""Selection of proposals from tokens, and the extra queries in training."""

import pytest
import torch

from dinocore.model import proposals
from dinocore.model.proposals import ExtraQueries, MixedContent, Proposer, token_anchors
from dinocore.model.tokens import token_centers
from dinocore.structures import Queries, Tokens


def make_tokens(*shapes: tuple[int, int]) -> Tokens:
    """Tokens of maps without padding."""
    count = sum(height * width for height, width in shapes)
    return Tokens(
        content=torch.randn(1, count, 32, generator=torch.Generator().manual_seed(0)),
        position=torch.zeros(1, count, 32),
        padding=torch.zeros(1, count, dtype=torch.bool),
        shapes=list(shapes),
        valid_ratios=torch.ones(1, len(shapes), 2),
    )


@pytest.mark.parametrize(("width", "first_is_usable"), [(49, True), (51, False)])
def test_anchors_within_one_percent_of_the_edge_are_not_proposed(width, first_is_usable):
    """The first column's centre is at 1.02 % with 49 columns, and at 0.98 % with 51; the last column mirrors it."""
    _, usable = token_anchors(make_tokens((10, width)))
    middle_row = usable.view(10, width)[5]
    assert middle_row[0] == middle_row[-1] == torch.tensor(first_is_usable)
    assert middle_row[1:-1].all()


@pytest.mark.parametrize("rounding", [0.0, 2e-7, -2e-7])
def test_anchors_near_the_edge_are_the_same_for_every_size_and_rounding(rounding, monkeypatch):
    """The first of 50 columns is at exactly 1 %, and excluded as in official DINO, with and without padding."""
    monkeypatch.setattr(proposals, "token_centers", lambda memory: token_centers(memory) * (1 + rounding))
    for valid_width in (1, 2, 17, 49, 50, 51, 150, 199):
        column = torch.arange(valid_width)
        expected = (50 * (2 * column + 1) > valid_width) & (50 * (2 * column + 1) < 99 * valid_width)  # in integers
        for width in range(valid_width, 220):
            row = make_tokens((3, width))
            padding = (torch.arange(width) >= valid_width).expand(3, -1).flatten()[None]
            ratio = (~padding).float().mean().item()
            _, usable = token_anchors(row._replace(padding=padding, valid_ratios=torch.tensor([[[ratio, 1.0]]])))
            assert torch.equal(usable.view(3, width)[1, :valid_width], expected), (valid_width, width)


def test_anchors_are_a_twentieth_of_the_image_and_double_with_each_level():
    anchors, _ = token_anchors(make_tokens((4, 4), (2, 2), (1, 1)))
    sizes = [0.05] * 16 + [0.1] * 4 + [0.2]
    torch.testing.assert_close(anchors[0, :, 2:], torch.tensor(sizes)[:, None].expand(-1, 2))
    assert anchors[0, 0, :2].tolist() == [0.125, 0.125] and anchors[0, -1, :2].tolist() == [0.5, 0.5]


def test_tokens_with_the_highest_class_scores_are_proposed_best_first():
    torch.manual_seed(0)
    proposer = Proposer(32, 5, 7, MixedContent(7, 32))
    memory = make_tokens((6, 8), (3, 4))
    proposals, _ = proposer(memory)
    _, usable = token_anchors(memory)
    scores = proposer.class_head(proposer.project(memory.content * usable[..., None])).amax(-1)[0]  # of every token
    torch.testing.assert_close(proposals.logits[0].amax(-1), scores.sort(descending=True).values[:7])


def test_no_gradient_of_the_decoder_reaches_the_first_stage_through_boxes():
    proposer = Proposer(32, 5, 7, MixedContent(7, 32))
    proposals, queries = proposer(make_tokens((6, 8)))
    assert proposals.boxes.requires_grad and not queries.boxes.requires_grad
    assert queries.boxes.equal(proposals.boxes)


def test_extra_queries_start_from_the_best_boxes_with_their_own_content():
    extra = ExtraQueries(3, 32)
    boxes = torch.rand(2, 5, 4)
    queries = extra(Queries(torch.zeros(2, 5, 32), boxes))
    assert queries.boxes.equal(boxes[:, :3])
    assert queries.content[0].equal(queries.content[1]) and queries.content[0].equal(extra.content)


def test_an_image_with_few_tokens_gets_fewer_extra_queries():
    queries = ExtraQueries(8, 32)(Queries(torch.zeros(1, 5, 32), torch.rand(1, 5, 4)))
    assert queries.boxes.shape == (1, 5, 4) and queries.content.shape == (1, 5, 32)
