"""The report of a dataset: numbers, findings, and images of each finding."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ..config import DataConfig
from ..data.check.check import Checked
from ..data.findings import Finding, Location
from ..data.images import read_image
from ..errors import DataError
from .page import shrink
from .parts import Facts, Gallery, Mark, MarkedImage, Page, Part, Section, Table

MAX_IMAGES = 6  # per finding
MAX_SIDE = 640  # pixels
MARGIN = 3.0  # around small objects, as a multiple of their size
MAX_PIXELS = 50_000_000
COLUMNS = ("min", "p5", "median", "p95", "max", "mean")
SPREADS = {
    "objects per image": "objects_per_image",
    "object side in pixels": "object_side_px",
    "object width / height": "object_aspect",
    "width of an image": "image_width",
    "height of an image": "image_height",
}


def data_page(checked: Checked) -> Page:
    """The page of a data check: findings, and the numbers of each split."""
    config = checked.config.model_copy(update={"max_pixels": min(checked.config.max_pixels, MAX_PIXELS)})
    findings = checked.findings()
    counts = ", ".join(f"{count} {level}" for level, count in checked.counts().items())
    decoded = "all" if checked.decoded else "not"
    summary = f"{checked.layout.kind} layout. {counts}. Images were {decoded} decoded."
    splits = [_split(name, part.numbers) for name, part in checked.splits.items() if part.numbers]
    return Page(f"{checked.folder}: data check", summary, [_findings(findings, config), *splits])


def _findings(findings: Sequence[tuple[str, Finding]], config: DataConfig) -> Section:
    """All findings in a table, then images of those that can be shown."""
    rows = [[one.level, one.code, split or None, one.count, one.text, one.fix] for split, one in findings]
    parts: list[Part] = [Table("", ["level", "code", "split", "count", "what", "what to do"], rows)] if rows else []
    for split, finding in findings:
        images = list(_images(finding, config))
        if images:
            text = "\n".join(filter(None, (finding.what, finding.fix)))
            title = f"{finding.level} {finding.code}" + (f", {split}" if split else "")
            parts.append(Gallery(title, images, text=text))
    return Section("Findings", parts, "" if rows else "No problems found in this data.")


def _split(name: str, numbers: dict[str, Any]) -> Section:
    facts = {
        "images": numbers["images"],
        "images without objects": numbers["empty_images"],
        "objects": numbers["objects"],
        "crowd regions": numbers["crowds"],
    } | {f"{size} objects": f"{fraction:.0%}" for size, fraction in numbers["shares"].items()}
    spreads = [[title, *(numbers[key][c] for c in COLUMNS)] for title, key in SPREADS.items() if numbers[key]]
    classes = [
        [kind, row["id"], row["objects"], row["images"]]
        for kind, row in sorted(numbers["classes"].items(), key=lambda item: -item[1]["objects"])
    ]
    return Section(name, [
        Facts("", facts),
        Table("Sizes", ["of", *COLUMNS], spreads),
        Table("Classes", ["class", "id", "objects", "images"], classes),
    ])  # fmt: skip


def _images(finding: Finding, config: DataConfig) -> Iterator[MarkedImage]:
    """The first images of a finding that can be read."""
    for place in [p for p in finding.places if p.image is not None][:MAX_IMAGES]:
        for path in (place.image, place.other):
            if path is None:
                continue
            try:
                yield _image(place, path, config)
            except DataError:
                continue  # the finding says that it cannot be read


def _image(place: Location, path: Path, config: DataConfig) -> MarkedImage:
    """The image with the boxes or, if they are small, the region around them."""
    image = read_image(path, config)
    corners = [(x, y, x + w, y + h) for x, y, w, h in place.boxes]
    region = _around(corners, image.size) if corners else (0, 0, *image.size)
    part = image.crop(region)
    # clip boxes slightly beyond the image, because browsers don't draw extreme coordinates
    marks = [
        Mark([min(max(value - region[k % 2], -2), part.size[k % 2] + 1) for k, value in enumerate(box)], "", "truth")
        for box in corners
    ]
    return shrink(MarkedImage(place.text, part, marks), MAX_SIDE)


def _around(corners: Sequence[Sequence[float]], size: tuple[int, int]) -> tuple[int, int, int, int]:
    """The region around small boxes with a margin; the whole image if they are large or outside of it."""
    left, top = min(min(c[0], c[2]) for c in corners), min(min(c[1], c[3]) for c in corners)
    right, bottom = max(max(c[0], c[2]) for c in corners), max(max(c[1], c[3]) for c in corners)
    margin = max(MARGIN * max(right - left, bottom - top), 40)
    if right - left > size[0] / 4 or bottom - top > size[1] / 4 or right < 0 or bottom < 0:
        return (0, 0, *size)
    region = (max(0, int(left - margin)), max(0, int(top - margin)),
              min(size[0], int(right + margin)), min(size[1], int(bottom + margin)))  # fmt: skip
    return region if region[0] < region[2] and region[1] < region[3] else (0, 0, *size)
