"""Fonts for images: Pillow's own, or a system font for names that it lacks."""

import functools
from collections.abc import Iterable
from contextlib import suppress

from PIL import Image, ImageDraw, ImageFont

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

OWN = ""  # Pillow's, which is always there and knows English letters only
SYSTEM = (  # Pillow looks for them where the system keeps fonts
    "DejaVuSans.ttf", "NotoSans-Regular.ttf", "LiberationSans-Regular.ttf", "Arial.ttf", "arial.ttf",
    "NotoSansCJK-Regular.ttc", "NotoSansCJKsc-Regular.otf", "NotoSansSC-Regular.otf", "SourceHanSansSC-Regular.otf",
    "wqy-microhei.ttc", "wqy-zenhei.ttc", "msyh.ttc", "PingFang.ttc", "Hiragino Sans GB.ttc", "Arial Unicode.ttf",
    "malgun.ttf", "AppleSDGothicNeo.ttc",
    "NotoSansHebrew-Regular.ttf", "NotoSansArabic-Regular.ttf", "NotoNaskhArabic-Regular.ttf",
    "NotoSansDevanagari-Regular.ttf", "Lohit-Devanagari.ttf", "Nirmala.ttf", "Kohinoor.ttc",
    "NotoSansBengali-Regular.ttf", "NotoSansTamil-Regular.ttf", "NotoSansThai-Regular.ttf", "LeelawUI.ttf",
    "unifont.otf", "unifont.ttf",
)  # fmt: skip
UNASSIGNED = "\U0010fffe"  # a font shows it as it shows whatever it lacks
TRIED = 20  # the size at which glyphs are compared


def load_font(size: float, text: str = "") -> Font:
    """The first font that has every character of the text, or else the most of them."""
    name = next((name for name in _installed() if _has_all(name, text)), None)
    if name is None:
        name = max(_installed(), key=lambda name: sum(_has(name, character) for character in text))
    return _font(name, size)


def shortened(text: str, font: Font, width: float) -> str:
    """With the middle of a text that is wider than this, in pixels, left out: its end may be a score."""
    if len(text) <= 8 or font.getlength(text) <= width:
        return text
    end = text[-6:]
    start = next((n for n in range(len(text) - 7, 0, -1) if font.getlength(f"{text[:n]}…{end}") <= width), 1)
    return f"{text[:start]}…{end}"


def unwritable(texts: Iterable[str]) -> list[str]:
    """The texts that no font here can write as a whole."""
    return [text for text in texts if not any(_has_all(name, text) for name in _installed())]


def _has_all(name: str, text: str) -> bool:
    return all(_has(name, character) for character in set(text))


@functools.cache
def _has(name: str, character: str) -> bool:
    return character.isspace() or _drawn(name, character) != _drawn(name, UNASSIGNED)


def _drawn(name: str, character: str) -> bytes:
    image = Image.new("L", (2 * TRIED, 2 * TRIED))
    ImageDraw.Draw(image).text((4, 4), character, 255, _font(name, TRIED))
    return image.tobytes()


@functools.cache
def _installed() -> list[str]:
    found = [OWN]
    for name in SYSTEM:
        with suppress(OSError):  # there is no such font here
            _font(name, TRIED)
            found.append(name)
    return found


@functools.cache
def _font(name: str, size: float) -> Font:
    return ImageFont.load_default(size) if name == OWN else ImageFont.truetype(name, size)
