"""Which tokens may become proposals, and what extra training queries start from."""

import pytest
import torch

from dinocore.model.proposals import ExtraQueries, token_anchors
from dinocore.structures import Queries, Tokens


def tokens(height: int, width: int) -> Tokens:
    """One level without padding."""
    return Tokens(
        content=torch.zeros(1, height * width, 32),
        position=torch.zeros(1, height * width, 32),
        padding=torch.zeros(1, height * width, dtype=torch.bool),
        shapes=[(height, width)],
        valid_ratios=torch.ones(1, 1, 2),
    )


@pytest.mark.parametrize(("width", "first_is_usable"), [(49, True), (51, False)])
def test_anchors_within_one_percent_of_the_edge_are_not_proposed(width, first_is_usable):
    """The centre of the first of 49 columns is at 1.02 %, of 51 at 0.98 %; the last one mirrors it."""
    _, usable = token_anchors(tokens(10, width))
    middle_row = usable.view(10, width)[5]
    assert middle_row[0] == middle_row[-1] == torch.tensor(first_is_usable)
    assert middle_row[1:-1].all()


def test_extra_queries_start_from_the_best_boxes_with_a_content_of_their_own():
    extra = ExtraQueries(3, 32)
    boxes = torch.rand(2, 5, 4)
    queries = extra(Queries(torch.zeros(2, 5, 32), boxes))
    assert queries.boxes.equal(boxes[:, :3])
    assert queries.content[0].equal(queries.content[1]) and queries.content[0].equal(extra.content)


def test_an_image_with_few_tokens_gets_as_few_extra_queries():
    queries = ExtraQueries(8, 32)(Queries(torch.zeros(1, 5, 32), torch.rand(1, 5, 4)))
    assert queries.boxes.shape == (1, 5, 4) and queries.content.shape == (1, 5, 32)
