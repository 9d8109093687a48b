"""Where deformable attention looks, as one report page."""

from PIL import Image

from ...report.page import render_page
from ...report.parts import Cell, Facts, Gallery, Mark, Page, Picture, Section, Table
from .attention import Attention


def render_attention(name: str, picture: Image.Image, figure: Image.Image, seen: Attention) -> str:
    """The figure, the picture with the query's answer, and every point; numbers as in `Attention.as_dict`."""
    marks = [] if seen.box is None else [Mark(seen.box, seen.label, "found", seen.score)]
    facts: dict[str, Cell] = {"layer": f"{seen.part} {seen.layer}", "query or token": seen.index}
    facts |= {"level of the token": seen.level} if seen.box is None else {"class": seen.label, "score": seen.score}
    facts["farthest from the layer's own output"] = seen.error
    rows: list[list[Cell]] = [
        [head, level, x, y, weight]
        for head, (points, weights) in enumerate(zip(seen.points.tolist(), seen.weights.tolist(), strict=True))
        for level, (places, shares) in enumerate(zip(points, weights, strict=True))
        for (x, y), weight in zip(places, shares, strict=True)
    ]
    parts = [
        Gallery("Sampling points by head", [Picture(name, figure)], columns=1),
        Gallery("The picture", [Picture(name, picture, marks)], threshold=0.0, columns=2),
        Facts("", facts),
        Table("Points", ["head", "level", "x", "y", "weight"], rows, "In pixels; the weights of a head sum to 1."),
    ]
    return render_page(Page(f"Attention: {name}", "", [Section("Deformable attention", parts)]))
