"""Create the data set that the bundled model is trained on: everyday photographs, blood cells and synthetic images.

    python benchmarks/everyday_data.py OUT --photos ANIMALS COCO_MORE --cells BCCD --drawn DRAWN

Classes with few objects are left out. Most of their objects simply become background, like cups for a model without a
class for cups. Objects that look like those of a remaining class (a truck like a car, a bench like a chair) would be
misleading, so they are painted over with their image's mean colour, except where a labelled object overlaps them.
"""

import argparse
import json
import random
from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ["person", "dog", "cat", "horse", "sheep", "cow", "car", "chair", "sofa", "potted plant", "bottle", "RBC",
           "WBC", "Platelets"]  # fmt: skip
SYNONYMS = {"pottedplant": "potted plant", "couch": "sofa"}
LOOK_ALIKES = {"bird", "bus", "truck", "train", "bench", "bed", "vase", "wine glass", "cup", "elephant", "bear",
               "zebra", "giraffe", "teddy bear", "hot dog", "toilet", "suitcase"}  # fmt: skip


def main() -> None:
    """Write OUT/{annotations,train2017,val2017}."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--photos", type=Path, nargs="+", required=True, help="COCO folders of photographs")
    parser.add_argument("--cells", type=Path, help="COCO folder of blood cells")
    parser.add_argument("--drawn", type=Path, help="folder made by `dino sample-data`")
    parser.add_argument("--classes", nargs="+", default=CLASSES, help="that are taught")
    parser.add_argument("--repeat-cells", type=int, default=3, help="how often an epoch shows each image of cells")
    parser.add_argument("--repeat", nargs="*", default=[], metavar="CLASS=N", help="how often, for images of a class")
    parser.add_argument("--at-most", type=int, help="of the training images that many, drawn with seed 5")
    args = parser.parse_args()
    more = {name: int(times) for name, times in (text.split("=") for text in args.repeat)}
    for split in ("train2017", "val2017"):
        train = split == "train2017"
        repeats = args.repeat_cells if train else 1
        sources = [(folder, 1) for folder in args.photos] + [(args.cells, repeats), (args.drawn, 1)]
        sources = [(folder, times) for folder, times in sources if folder]
        write_split(args.out, split, sources, args.classes, more if train else {}, args.at_most if train else None)


def write_split(
    out: Path,
    split: str,
    sources: list[tuple[Path, int]],
    classes: list[str],
    more: dict[str, int],
    at_most: int | None,
) -> None:
    """Copy the images of all sources, with the objects of some classes.

    Args:
        classes: numbered in this order.
        more: how often to repeat an image with an object of a class; the highest number counts.
        at_most: maximum number of images, chosen at random; None for all.
    """
    (out / split).mkdir(parents=True, exist_ok=True)
    (out / "annotations").mkdir(exist_ok=True)
    images, annotations = [], []
    for folder, repeats in sources:
        source = json.loads((folder / "annotations" / f"instances_{split}.json").read_text())
        names = {c["id"]: SYNONYMS.get(c["name"], c["name"]) for c in source["categories"]}
        by_image: dict[int, list[dict]] = {}
        for annotation in source["annotations"]:
            by_image.setdefault(annotation["image_id"], []).append(annotation)
        for image in source["images"]:
            objects = by_image.get(image["id"], [])
            taught = [a for a in objects if names[a["category_id"]] in classes]
            alike = [a["bbox"] for a in objects if names[a["category_id"]] in LOOK_ALIKES]
            if not taught and split == "train2017":
                continue
            name = f"{folder.name}-{Path(image['file_name']).name}"
            paint(folder / split / image["file_name"], out / split / name, alike, [a["bbox"] for a in taught])
            times = [more.get(names[a["category_id"]], 1) for a in taught]
            for _ in range(max([repeats, *times])):
                images.append({**image, "id": len(images) + 1, "file_name": name})
                for a in taught:
                    category = classes.index(names[a["category_id"]]) + 1
                    row = {"id": len(annotations) + 1, "image_id": len(images), "category_id": category}
                    row |= {"bbox": a["bbox"], "area": a["area"], "iscrowd": a.get("iscrowd", 0)}
                    annotations.append(row)
    if at_most is not None:
        random.Random(5).shuffle(images)
        images = images[:at_most]
        kept = {image["id"] for image in images}
        annotations = [a for a in annotations if a["image_id"] in kept]
    categories = [{"id": i + 1, "name": name} for i, name in enumerate(classes)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (out / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    print(f"{split}: {len(images)} images, {len(annotations)} objects")


def paint(source: Path, target: Path, hidden: list[list[float]], kept: list[list[float]]) -> None:
    """Copy an image, painting the `hidden` boxes (xywh) in its mean colour except where a box of `kept` overlaps."""
    if not hidden:
        target.write_bytes(source.read_bytes())
        return
    pixels = np.array(Image.open(source).convert("RGB"))
    cover = np.zeros(pixels.shape[:2], bool)
    for boxes, value in ((hidden, True), (kept, False)):
        for x, y, w, h in boxes:
            cover[int(y) : int(y + h) + 1, int(x) : int(x + w) + 1] = value
    pixels[cover] = pixels.mean((0, 1))
    Image.fromarray(pixels).save(target, quality=92)


if __name__ == "__main__":
    main()
