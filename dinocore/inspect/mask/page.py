"""The denoising mask as one HTML file that opens from disk, in light or dark, and explains every row."""

from ...report.page import render_page
from ...report.parts import Drawing, Facts, Page, Part, Section, Table
from .image import TITLE, draw_svg
from .mask import MaskView, blocked_facts

HOW = "Point at a row, or reach it with the Tab key, and it is explained."


def render_mask(view: MaskView) -> str:
    """The drawing, the counts, and the images where they are known."""
    parts: list[Part] = [Drawing("", draw_svg(view), HOW), Facts("Counts", blocked_facts(view))]
    if view.files:
        rows = list(zip(view.files, view.num_objects, view.taking_part, strict=True))
        parts.append(Table("Images", ("file", "objects", "objects that take part"), rows))
    subtitle = f"{view.num_groups} groups, {view.num_denoising:,} denoising and {view.num_matching:,} matching queries"
    return render_page(Page(TITLE, subtitle, [Section("The mask", parts)]))
