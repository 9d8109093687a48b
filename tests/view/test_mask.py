"""The mask as text, image and JSON equals the model's own."""

import pytest
import torch

from dinocore.errors import ConfigError
from dinocore.inspect.mask.figure import draw_image, draw_svg, render_mask
from dinocore.inspect.mask.mask import MaskBatch, MaskView, batch_mask, downsample, mask_of, notes, to_json, true_runs
from dinocore.inspect.mask.text import ASCII, UNICODE, draw_text
from dinocore.model import denoising
from dinocore.presets import load_config
from dinocore.structures import Target


def model_config(*overrides: str):
    return load_config("r50-4scale", [f"model.{override}" for override in ("hidden_dim=32", *overrides)]).model


def mask(num_groups: int | str, *num_objects: int, **settings: object) -> MaskView:
    changes = [f"{key.replace('__', '.')}={value}" for key, value in settings.items()]
    value = f'"{num_groups}"' if num_groups == "auto" else num_groups
    return mask_of(model_config(f"denoising.num_groups={value}", *changes), num_objects)


def draw_lines(view: MaskView, width: int = 80) -> list[str]:
    return ["".join(span.text for span in line).rstrip() for line in draw_text(view, ASCII, width)]


def test_two_groups_of_two_objects():
    assert draw_lines(mask(2, 2))[:13] == [
        "group     0       1        900",
        "          + + - - + + - -  matching",
        "group 0 + . . . . ########|........",
        "        + . . . . ########|........",
        "        - . . . . ########|........",
        "        - . . . . ########|........",
        "group 1 + ########. . . . |........",
        "        + ########. . . . |........",
        "        - ########. . . . |........",
        "        - ########. . . . |........",
        "          ----------------+--------",
        "900       ################|........",
        "matching  ################|........",
    ]


def test_plain_denoising_has_positives_only():
    assert draw_lines(mask(2, 2, denoising__kind="plain"))[1:7] == [
        "          + + + +  matching",
        "group 0 + . . ####|........",
        "        + . . ####|........",
        "group 1 + ####. . |........",
        "        + ####. . |........",
        "          --------+--------",
    ]


def test_padding_of_a_batch_is_drawn_under_the_columns():
    lines = draw_lines(mask(2, 2, 1, 0))
    first = next(index for index, line in enumerate(lines) if line.startswith("image 0"))
    assert lines[first : first + 3] == [
        "image 0   o o o o o o o o",
        "image 1   o _ o _ o _ o _",
        "image 2   _ _ _ _ _ _ _ _",
    ]


def test_a_batch_without_padding_has_no_strips():
    assert not any(line.startswith("image") for line in draw_lines(mask(2, 2, 2)))


def test_five_groups_of_three_objects_have_the_expected_counts():
    view = mask(5, 3)
    data = to_json(view)
    assert (data["num_denoising"], data["num_matching"], data["num_queries"]) == (5 * 2 * 3, 900, 930)
    assert data["num_positive"] == data["num_negative"] == 15
    assert data["blocked_pairs"] == 900 * 30 + 30 * 24  # matching to denoising, and each group to the other four
    assert data["blocked_pairs_by_part"]["denoising_to_matching"] == 0
    assert data["blocked_share"] == data["blocked_pairs"] / 930**2
    assert "blocked            27,720 of 930 x 930 pairs: 3.20%" in draw_lines(view)


def test_json_contains_the_whole_mask():
    view = mask(3, 2, 1)
    rebuilt = torch.zeros_like(view.blocked)
    for run in to_json(view)["mask"]:
        for first, end in run["blocked"]:
            rebuilt[slice(*run["rows"]), first:end] = True
    assert rebuilt.equal(view.blocked)


def test_json_lists_the_queries_that_are_padding():
    images = to_json(mask(2, 2, 1))["images"]
    assert images[0] == {"file": None, "objects": 2, "taking_part": 2, "padding_queries": []}
    assert images[1]["padding_queries"] == [[1, 2], [3, 4], [5, 6], [7, 8]]


def test_runs_of_true():
    assert true_runs(torch.tensor([True, True, False, True])) == [[0, 2], [3, 4]]
    assert true_runs(torch.zeros(0, dtype=torch.bool)) == []


def test_every_view_shows_the_models_own_mask(monkeypatch):
    before = mask(2, 1)
    monkeypatch.setattr(denoising, "attention_mask", lambda group: torch.eye(len(group), dtype=torch.bool))
    after = mask(2, 1)
    assert draw_lines(after)[2:6] == [
        "group 0 + ##. . . |........",
        "        - . ##. . |........",
        "group 1 + . . ##. |........",
        "        - . . . ##|........",
    ]
    assert to_json(after)["blocked_pairs"] == len(after.blocked)
    assert draw_image(after).tobytes() != draw_image(before).tobytes()


def test_the_view_of_a_real_batch_shows_the_models_own_mask(monkeypatch):
    targets = [
        Target(torch.tensor([0, 2]), torch.full((2, 4), 0.3), seed=0),
        Target(torch.tensor([1]), torch.full((1, 4), 0.5), seed=1),
    ]
    objects = MaskBatch(targets, ["a.png", "b.png"], [["cat", "dog"], ["fox"]])
    config = model_config("denoising.num_groups=2")
    before = batch_mask(config, objects)
    monkeypatch.setattr(denoising, "attention_mask", lambda group: torch.eye(len(group), dtype=torch.bool))
    after = batch_mask(config, objects)
    assert (after.blocked == torch.eye(len(after.blocked), dtype=torch.bool)).all()
    for render in (lambda view: draw_image(view).tobytes(), draw_svg, render_mask, draw_lines, to_json):
        assert render(after) != render(before)


@pytest.mark.parametrize(
    "make_view", [lambda: mask(0, 3), lambda: mask(5, 0), lambda: mask(5, 3, denoising__kind="none")]
)
def test_without_denoising_queries_nothing_is_blocked(make_view):
    view = make_view()
    assert draw_lines(view)[2:4] == ["900       |........", "matching  |........"]
    data = to_json(view)
    assert data["blocked_pairs"] == data["num_denoising"] == 0 and data["num_queries"] == 900
    assert draw_image(view).width > 0


def test_a_note_explains_why_a_mask_blocks_nothing():
    assert (
        "no denoising (model.denoising.num_groups = 0)" in notes(mask(0, 3), model_config("denoising.num_groups=0"))[0]
    )
    assert "no image has an object" in notes(mask(5, 0), model_config("denoising.num_groups=5"))[0]


@pytest.mark.parametrize(
    ("num_groups", "bound", "num_used"), [('"auto"', "num_pairs", 100), (20, "max_queries", 50)]
)  # fmt: skip
def test_a_note_reports_objects_beyond_the_limit(num_groups, bound, num_used):
    config = model_config(f"denoising.num_groups={num_groups}")
    view = mask_of(config, [150, 3])
    (note,) = notes(view, config)
    assert f"image 0 has 150 objects and {num_used} of them take part" in note and bound in note
    assert view.taking_part == [num_used, 3]


def test_up_to_seventy_queries_are_drawn_one_by_one_in_80_columns():
    lines = draw_lines(mask(7, 5))
    assert max(map(len, lines)) <= 80
    assert lines[2] == "0 + " + "." * 10 + "#" * 60 + "|..."
    assert not any("each cell" in line for line in lines)


def test_a_cell_of_several_groups_is_drawn_as_mixed_and_explained():
    lines = draw_lines(mask(100, 1))
    assert lines[2].startswith("0  * %%####") and lines[3].startswith("3  * ##%%##")
    assert any(line.startswith("each cell stands for up to 6 x 6 queries") for line in lines)
    assert max(map(len, lines)) <= 80


def test_a_large_group_is_cut_into_cells_of_one_kind():
    lines = draw_lines(mask(1, 100))
    kinds = lines[1].split()[:-1]
    assert kinds == ["+"] * 17 + ["-"] * 17  # 34 cells of 6 queries or fewer
    assert "#" not in lines[2]


@pytest.mark.parametrize(("num_groups", "num_objects"), [(1, 1), (3, 7), (33, 3), (100, 1), (1, 100), (999, 1)])
@pytest.mark.parametrize("limit", [1, 7, 35, 480])
def test_downsampling_keeps_every_query_once_and_the_blocked_fraction(num_groups, num_objects, limit):
    view = mask(num_groups, num_objects)
    small = downsample(view, limit)
    sizes = torch.tensor([*(cell.stop - cell.start for cell in small.cells), view.num_matching])
    assert len(small.cells) <= limit
    assert [cell.start for cell in small.cells] == [0, *(cell.stop for cell in small.cells[:-1])]
    assert sizes.sum() == len(view.blocked)
    assert (small.blocked * sizes * sizes[:, None]).sum().round() == view.blocked.sum()


@pytest.mark.parametrize("num_objects", [[10**9], [10**30], [10**400], [3, 10**9]])
def test_huge_masks_are_refused_with_their_size_before_they_are_allocated(num_objects):
    with pytest.raises(ConfigError, match=r"need .*GB of memory, .* at most 1\.0 GB"):
        mask_of(model_config(), num_objects)


def test_unicode_and_ascii_draw_the_same():
    view = mask(2, 2, 1)
    table = str.maketrans(dict(zip(UNICODE, ASCII, strict=True)))
    unicode = ["".join(span.text for span in line).rstrip() for line in draw_text(view, UNICODE)]
    assert [line.translate(table) for line in unicode] == draw_lines(view)
    assert all(line.isascii() for line in draw_lines(view))


def test_the_image_is_grey_where_the_mask_is_true():
    """In the middle of group 0's rows, its positives are blue, its negatives orange, and other groups grey."""
    image = draw_image(mask(2, 1))
    row = [image.getpixel((x, 306 + 40)) for x in range(image.width)]
    names = {(0xD3, 0xE9, 0xF7): "blue", (0xFB, 0xEB, 0xC8): "orange", (0x8F, 0x8F, 0x8F): "grey"}
    colors = [names[pixel] for pixel in row if pixel in names]
    assert list(dict.fromkeys(colors)) == ["blue", "orange", "grey"]
    assert colors.count("grey") > 1.9 * colors.count("blue")  # two cells to one


@pytest.mark.parametrize("objects", [[1], [3, 1], [0, 2], [100], [300] * 20 + [1]])
@pytest.mark.parametrize("num_groups", [1, 100])
def test_images_have_a_limited_size_and_a_white_margin(num_groups, objects):
    image = draw_image(mask(num_groups, *objects))
    assert max(image.size) <= 2600
    border = [(0, 0, image.width, 30), (0, image.height - 30, image.width, image.height),
              (0, 0, 30, image.height), (image.width - 30, 0, image.width, image.height)]  # fmt: skip
    assert all(image.crop(box).getextrema() == ((255, 255),) * 3 for box in border)
