"""Fonts for images: Pillow's own, or a system font for characters that it lacks."""

import functools
from collections.abc import Iterable
from contextlib import suppress

from PIL import Image, ImageDraw, ImageFont

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

OWN = ""  # Pillow's own font, which is always available but has only English letters
# Pillow looks for these in the system's font folders
SYSTEM = (
    "DejaVuSans.ttf", "NotoSans-Regular.ttf", "LiberationSans-Regular.ttf", "Arial.ttf", "arial.ttf",
    "NotoSansCJK-Regular.ttc", "NotoSansCJKsc-Regular.otf", "NotoSansSC-Regular.otf", "SourceHanSansSC-Regular.otf",
    "wqy-microhei.ttc", "wqy-zenhei.ttc", "msyh.ttc", "PingFang.ttc", "Hiragino Sans GB.ttc", "Arial Unicode.ttf",
    "malgun.ttf", "AppleSDGothicNeo.ttc",
    "NotoSansHebrew-Regular.ttf", "NotoSansArabic-Regular.ttf", "NotoNaskhArabic-Regular.ttf",
    "NotoSansDevanagari-Regular.ttf", "Lohit-Devanagari.ttf", "Nirmala.ttf", "Kohinoor.ttc",
    "NotoSansBengali-Regular.ttf", "NotoSansTamil-Regular.ttf", "NotoSansThai-Regular.ttf", "LeelawUI.ttf",
    "unifont.otf", "unifont.ttf",
)  # fmt: skip
UNASSIGNED = "\U0010fffe"  # rendered with the glyph for missing characters
TEST_SIZE = 20  # of the font when glyphs are compared


def load_font(size: float, text: str = "") -> Font:
    """The first font that has every character of a text, or else the one that has most of them."""
    name = next((name for name in _installed() if _has_all(name, text)), None)
    if name is None:
        name = max(_installed(), key=lambda name: sum(_has(name, character) for character in text))
    return _font(name, size)


def shortened(text: str, font: Font, width: float) -> str:
    """The text, with its middle replaced by … if it is wider than `width` pixels; its end may be a score."""
    if len(text) <= 8 or font.getlength(text) <= width:
        return text
    end = text[-6:]
    start = next((n for n in range(len(text) - 7, 0, -1) if font.getlength(f"{text[:n]}…{end}") <= width), 1)
    return f"{text[:start]}…{end}"


def unwritable(texts: Iterable[str]) -> list[str]:
    """The texts for which no installed font has all characters."""
    return [text for text in texts if not any(_has_all(name, text) for name in _installed())]


def _has_all(name: str, text: str) -> bool:
    return all(_has(name, character) for character in set(text))


@functools.cache
def _has(name: str, character: str) -> bool:
    return character.isspace() or _rendered(name, character) != _rendered(name, UNASSIGNED)


def _rendered(name: str, character: str) -> bytes:
    image = Image.new("L", (2 * TEST_SIZE, 2 * TEST_SIZE))
    ImageDraw.Draw(image).text((4, 4), character, 255, _font(name, TEST_SIZE))
    return image.tobytes()


@functools.cache
def _installed() -> list[str]:
    names = [OWN]
    for name in SYSTEM:
        with suppress(OSError):  # not installed
            _font(name, TEST_SIZE)
            names.append(name)
    return names


@functools.cache
def _font(name: str, size: float) -> Font:
    return ImageFont.load_default(size) if name == OWN else ImageFont.truetype(name, size)
