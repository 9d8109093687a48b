"""Class names may be in any language; images show them if an installed font can."""

import numpy as np
import pytest
from PIL import Image, ImageFont

from dinocore.draw import fonts as module
from dinocore.draw.boxes import Box, draw_boxes
from dinocore.draw.fonts import OWN, load_font, unwritable


@pytest.fixture
def fonts(monkeypatch: pytest.MonkeyPatch):
    """A function that replaces system fonts: `open_font` gets the size and returns a font."""
    original = ImageFont.truetype

    def set_up(open_font) -> None:
        def truetype(font, size: float, **keywords):  # Pillow opens its own font with it, too
            return open_font(size) if isinstance(font, str) else original(font, size, **keywords)

        monkeypatch.setattr(ImageFont, "truetype", truetype)
        _forget()

    yield set_up
    monkeypatch.undo()
    _forget()


def _forget() -> None:
    for cached in (module._has, module._installed, module._font):
        cached.cache_clear()


def _accents(size: float) -> ImageFont.FreeTypeFont:
    """Pillow's font with é added, marked as a system font."""
    font = ImageFont.load_default(size)
    draw = font.getmask2
    font.getmask2 = lambda text, *args, **keywords: draw(text.replace("é", "e"), *args, **keywords)
    font.is_of_system = True
    return font


def test_english_uses_the_built_in_font():
    assert load_font(20, "cell 0.93") is load_font(20)
    assert unwritable(["red blood cell", "WBC_2"]) == []


def test_characters_that_the_built_in_font_lacks_use_a_system_font(fonts):
    fonts(_accents)
    assert hasattr(load_font(20, "vélo"), "is_of_system")
    assert not hasattr(load_font(20, "cell"), "is_of_system")
    assert unwritable(["vélo", "红细胞"]) == ["红细胞"]


def test_a_name_that_no_font_supports_is_reported_and_still_drawn(fonts):
    def fail(size: float):
        raise OSError("cannot open resource")

    fonts(fail)
    assert unwritable(["cell", "vélo", "红细胞"]) == ["vélo", "红细胞"]
    assert load_font(20, "红细胞") is module._font(OWN, 20)
    drawn = draw_boxes(Image.new("RGB", (80, 60)), [Box((10, 30, 60, 50), "#D55E00", "红细胞")])
    assert np.asarray(drawn).any()


def test_a_text_that_no_font_fully_supports_uses_the_font_with_the_most_characters(fonts):
    fonts(_accents)
    assert hasattr(load_font(20, "3 as vélo 红"), "is_of_system")
    assert not hasattr(load_font(20, "3 as cell 红"), "is_of_system")
