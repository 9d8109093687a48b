"""Create a data set of blood cells: BCCD's photographs and synthetic images in one COCO folder.

    python benchmarks/mixed_data.py BCCD_FOLDER OUT_FOLDER --drawn 300

Training images are BCCD's train2017 and the synthetic ones; evaluation is on BCCD's val2017 alone.
"""

import argparse
import json
import shutil
import tempfile
from pathlib import Path

from dinocore.data.synthetic.sample import write_sample_data


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bccd", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--drawn", type=int, default=300)
    parser.add_argument("--seed", type=int, default=1, help="not 0, which draws the images of `dino sample-data`")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        drawn = Path(folder)
        # one more, because at least one goes to validation
        write_sample_data(drawn, arguments.drawn + 1, arguments.seed)
        mix(arguments.bccd, drawn, arguments.out)


def mix(bccd: Path, drawn: Path, out: Path) -> None:
    """Copy the photographs and the synthetic images, with consecutive ids for images and objects."""
    shutil.copytree(bccd, out)
    file = out / "annotations" / "instances_train2017.json"
    mixed = json.loads(file.read_text())
    for split in ("train", "val"):
        part = json.loads((drawn / "annotations" / f"instances_{split}2017.json").read_text())
        assert [c["name"] for c in part["categories"]] == [c["name"] for c in mixed["categories"]]
        first_image = max(image["id"] for image in mixed["images"]) + 1
        first_object = max(row["id"] for row in mixed["annotations"]) + 1
        numbers = {image["id"]: first_image + i for i, image in enumerate(part["images"])}
        mixed["images"] += [image | {"id": numbers[image["id"]]} for image in part["images"]]
        mixed["annotations"] += [
            row | {"id": first_object + i, "image_id": numbers[row["image_id"]]}
            for i, row in enumerate(part["annotations"])
        ]
        for image in part["images"]:
            shutil.copy(drawn / f"{split}2017" / image["file_name"], out / "train2017")
    file.write_text(json.dumps(mixed))
    print(f"{len(mixed['images'])} training images, {len(mixed['annotations'])} objects in {out}")


if __name__ == "__main__":
    main()
