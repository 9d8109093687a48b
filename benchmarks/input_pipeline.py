"""Time the training input, from files to normalised batches: ours against torchvision's CocoDetection and DETR's steps.

    python benchmarks/input_pipeline.py --data coco/ [--preset r50-4scale] [--images 40] [--repeats 7] [--json FILE]
    python benchmarks/input_pipeline.py --large      synthetic images of 4000 x 3000

Both read the same images in the same order with the same choice of scales and crops, in one process with one thread,
like a single worker. They take turns, so that other load on the machine affects them alike: compare ratios, not times
of different runs.
"""

import argparse
import json
import random
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor
from torchvision.datasets import CocoDetection
from torchvision.transforms import functional as F
from turns import write

from dinocore.config import Config
from dinocore.data.annotations import Annotations, read_annotations
from dinocore.data.batch import Batch, normalise, resized
from dinocore.data.formats.layout import find_layout
from dinocore.data.loaders import Steps, training_steps
from dinocore.data.synthetic.sample import write_sample_data
from dinocore.presets import load_config
from dinocore.system.memory import keep_memory

Labelled = tuple[Image.Image, Tensor, Tensor]  # boxes (T, 4) xyxy in pixels, labels (T,)


def main() -> None:
    """Print images/s of both and their ratio, and write them to a file if one is given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="a folder in a layout that dino train takes")
    parser.add_argument("--large", action="store_true", help="draw 8 images of 4000 x 3000 instead")
    parser.add_argument("--preset", default="r50-4scale")
    parser.add_argument("--images", type=int, default=40, help="in each round")
    parser.add_argument("--batch", type=int, default=2, help="images padded to one size")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if bool(options.data) == options.large:
        parser.error("give either --data or --large")
    torch.set_num_threads(1)
    keep_memory()  # like dino train; it speeds up both
    config = load_config(options.preset, overrides=["data.workers=0", f"train.batch_size={options.batch}"])
    with tempfile.TemporaryDirectory() as folder:
        annotations = read_annotations(find_layout(draw_large(Path(folder)) if options.large else options.data).train)
        row = measure(annotations, config, options.images, options.repeats)
    print(f"{'':10}{'images/s':>10}{'ms/image':>10}")
    for name in ("plain", "ours"):
        print(f"{name:10}{row[name]:10.1f}{1000 / row[name]:10.2f}")
    print(f"{'ratio':10}{row['ratio']:10.2f}")
    write(options.json, vars(options), [row])


def measure(annotations: Annotations, config: Config, num_images: int, repeats: int) -> dict[str, float]:
    """Median images/s of both, and the median ratio of consecutive rounds."""
    steps = max(1, num_images // config.train.batch_size)
    forms = {"plain": Plain(annotations, config), "ours": Ours(annotations, config)}
    seconds: dict[str, list[float]] = {name: [] for name in forms}
    for n in range(repeats + 1):
        for name, form in forms.items():
            start = time.perf_counter()
            for _ in form.batches(n * steps, (n + 1) * steps):
                pass
            seconds[name].append(time.perf_counter() - start)
    plain, ours = seconds["plain"][1:], seconds["ours"][1:]  # the first round warms up
    images = steps * config.train.batch_size
    ratio = statistics.median(a / b for a, b in zip(plain, ours, strict=True))
    return {"plain": images / statistics.median(plain), "ours": images / statistics.median(ours), "ratio": ratio}


class Ours(NamedTuple):
    """The input pipeline of our training loop."""

    annotations: Annotations
    config: Config

    def batches(self, start: int, end: int) -> Iterator[Batch]:
        """The batches from optimizer step `start` to `end`."""
        model = self.config.model
        for step in training_steps(self.annotations, self.config, self.config.train.batch_size, start, end):
            for batch in step:
                yield normalise(batch, model.pixel_mean, model.pixel_std, torch.device("cpu"))


class Plain:
    """CocoDetection and DETR's augmentation, image by image with Pillow, as in DETR and its descendants."""

    def __init__(self, annotations: Annotations, config: Config):
        self.config = config
        self.annotations = annotations
        with redirect_stdout(None):  # pycocotools prints messages
            self.dataset = CocoDetection(str(annotations.image_root), str(annotations.file))
        self.rows = {image_id: row for row, image_id in enumerate(self.dataset.ids)}

    def batches(self, start: int, end: int) -> Iterator[tuple[Tensor, Tensor, list[tuple[Tensor, Tensor]]]]:
        """Images, padding, and boxes and labels."""
        train = self.config.train
        for step in Steps(len(self.dataset), train.batch_size, train.seed, start, end):
            samples = [self.sample(self.rows[int(self.annotations.image_ids[index])]) for _, index in step]
            height, width = (max(image.shape[side] for image, _, _ in samples) for side in (1, 2))
            images = torch.zeros(len(samples), 3, height, width)
            padding = torch.ones(len(samples), height, width, dtype=torch.bool)
            for image, into, blocked in zip((s[0] for s in samples), images, padding, strict=True):
                into[:, : image.shape[1], : image.shape[2]].copy_(image)
                blocked[: image.shape[1], : image.shape[2]] = False
            yield images, padding, [(boxes, labels) for _, boxes, labels in samples]

    def sample(self, row: int) -> tuple[Tensor, Tensor, Tensor]:
        """A normalised image (3, H, W), boxes (T, 4) cxcywh as fractions of it, labels (T,)."""
        image, objects = self.dataset[row]
        objects = [found for found in objects if not found.get("iscrowd")]
        boxes = torch.tensor([found["bbox"] for found in objects], dtype=torch.float32).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        boxes[:, 0::2].clamp_(0, image.width)
        boxes[:, 1::2].clamp_(0, image.height)
        labels = torch.tensor([found["category_id"] for found in objects], dtype=torch.int64)
        keep = (boxes[:, 2:] > boxes[:, :2]).all(1)
        image, boxes, labels = self.augment((image, boxes[keep], labels[keep]))
        width, height = image.size
        pixels = F.normalize(F.to_tensor(image), self.config.model.pixel_mean, self.config.model.pixel_std)
        boxes = torch.cat([(boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]], 1)
        return pixels, boxes / torch.tensor([width, height, width, height]), labels

    def augment(self, sample: Labelled) -> Labelled:
        """Flip; then resize, or resize, crop and resize again."""
        data = self.config.data
        if random.random() < data.flip:
            image, boxes, labels = sample
            boxes = boxes[:, [2, 1, 0, 3]] * torch.tensor([-1, 1, -1, 1]) + torch.tensor(
                [image.width, 0, image.width, 0]
            )
            sample = F.hflip(image), boxes, labels
        if random.random() < data.crop_chance:
            sample = resize(sample, random.choice(data.crop_scales), None)
            sample = crop(sample, *data.crop_size)
        return resize(sample, random.choice(data.train_scales), data.max_size)


def resize(sample: Labelled, short: int, max_size: int | None) -> Labelled:
    """Resize so that the short side has a given length."""
    image, boxes, labels = sample
    height, width = resized((image.height, image.width), short, max_size)
    scale = torch.tensor([width / image.width, height / image.height] * 2)
    return F.resize(image, [height, width]), boxes * scale, labels


def crop(sample: Labelled, least: int, most: int) -> Labelled:
    """Crop a random region; drop objects outside it."""
    image, boxes, labels = sample
    width = random.randint(min(image.width, least), min(image.width, most))
    height = random.randint(min(image.height, least), min(image.height, most))
    left, top = random.randint(0, image.width - width), random.randint(0, image.height - height)
    boxes = boxes - torch.tensor([left, top, left, top])
    boxes = boxes.reshape(-1, 2, 2).clamp(torch.zeros(2), torch.tensor([width, height])).reshape(-1, 4)
    keep = (boxes[:, 2:] > boxes[:, :2]).all(1)
    return F.crop(image, top, left, height, width), boxes[keep], labels[keep]


def draw_large(folder: Path) -> Path:
    """Eight synthetic images, enlarged to 4000 x 3000, in COCO layout."""
    write_sample_data(folder, num_images=10, size=(800, 600))
    file = folder / "annotations" / "instances_train2017.json"
    document = json.loads(file.read_text())
    for row in document["images"]:
        path = folder / "train2017" / row["file_name"]
        Image.open(path).resize((4000, 3000), Image.Resampling.BICUBIC).save(path, quality=90)
        row["width"], row["height"] = 4000, 3000
    for row in document["annotations"]:
        row["bbox"] = [5 * value for value in row["bbox"]]
    file.write_text(json.dumps(document))
    return folder


if __name__ == "__main__":
    main()
