"""Draw a small dataset of washers, nuts and bolts in YOLO layout: python draw_parts.py my-data"""

import math
import random
import sys
from pathlib import Path

from PIL import Image, ImageDraw

NAMES = ["washer", "nut", "bolt"]
WIDTH, HEIGHT = 480, 360


def polygon(x, y, radius, corners, angle):
    angles = [angle + 2 * math.pi * corner / corners for corner in range(corners)]
    return [(x + radius * math.cos(a), y + radius * math.sin(a)) for a in angles]


def draw_part(canvas, rng, name, x, y):
    """Draw one part and return the points that its box has to hold."""
    size, angle = rng.uniform(18, 34), rng.uniform(0, math.pi)
    steel = tuple(rng.randint(120, 170) + shift for shift in (0, 4, 10))
    bench = (92, 74, 58)
    if name == "bolt":
        dx, dy = math.cos(angle), math.sin(angle)
        head, tip = (x - size * dx, y - size * dy), (x + size * dx, y + size * dy)
        canvas.line([head, tip], fill=steel, width=9)
        ends = [(px + 5 * side * -dy, py + 5 * side * dx) for px, py in (head, tip) for side in (1, -1)]
        hexagon = polygon(*head, 14, 6, angle)
        canvas.polygon(hexagon, fill=steel)
        return ends + hexagon
    outline = polygon(x, y, size, 6 if name == "nut" else 60, angle)
    canvas.polygon(outline, fill=steel)
    canvas.polygon(polygon(x, y, size * 0.5, 60, 0), fill=bench)
    return outline


def draw_image(rng):
    """An image of the bench with three to eight parts that do not touch, and its label lines."""
    image = Image.new("RGB", (WIDTH, HEIGHT), (92, 74, 58))
    canvas = ImageDraw.Draw(image)
    for _ in range(40):  # the grain of the wood
        y = rng.uniform(0, HEIGHT)
        canvas.line([(0, y), (WIDTH, y + rng.uniform(-20, 20))], fill=(86, 69, 54), width=2)
    cells = [(60 + 90 * column, 55 + 83 * row) for column in range(5) for row in range(4)]
    lines = []
    for x, y in rng.sample(cells, rng.randint(3, 8)):
        kind = rng.randrange(3)
        points = draw_part(canvas, rng, NAMES[kind], x + rng.uniform(-6, 6), y + rng.uniform(-6, 6))
        x0, y0 = min(p[0] for p in points), min(p[1] for p in points)
        x1, y1 = max(p[0] for p in points), max(p[1] for p in points)
        box = (x0 + x1) / 2 / WIDTH, (y0 + y1) / 2 / HEIGHT, (x1 - x0) / WIDTH, (y1 - y0) / HEIGHT
        lines.append(f"{kind} " + " ".join(f"{value:.5f}" for value in box))
    return image, lines


def main(folder, train=80, val=20, seed=0):
    rng = random.Random(seed)
    for split, count in (("train", train), ("val", val)):
        for kind in ("images", "labels"):
            (folder / kind / split).mkdir(parents=True, exist_ok=True)
        for index in range(count):
            image, lines = draw_image(rng)
            image.save(folder / "images" / split / f"bench-{index:03d}.jpg", quality=90)
            (folder / "labels" / split / f"bench-{index:03d}.txt").write_text("\n".join(lines) + "\n")
    (folder / "data.yaml").write_text(f"train: images/train\nval: images/val\nnames: {NAMES}\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
