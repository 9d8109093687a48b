"""The score that the first stage gave to every token, as maps over the picture."""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw

from ...draw.boxes import with_legend
from ...errors import ConfigError
from ...model.dino import DinoOutput
from .proposals import SCORE_COLORS, Proposal, side_by_side

OPACITY = 0.7


def score_maps(output: DinoOutput) -> list[np.ndarray]:
    """The probability of the best class, or of foreground, of every token of the one picture, L x (H_l, W_l).

    Raises:
        ConfigError: the model has static queries, so there is no first stage.
    """
    if output.proposals is None:
        raise ConfigError("this model has no first stage (model.queries = static), so there are no scores to show")
    return [scores[0].float().cpu().sigmoid().numpy() for scores in output.proposals.maps]


def draw_scores(picture: Image.Image, maps: Sequence[np.ndarray], proposals: Sequence[Proposal]) -> Image.Image:
    """A panel for each level, one scale of colours for all; dots are the centres of the anchors that were chosen."""
    best = max(float(scores.max()) for scores in maps)
    panels = []
    for level, scores in enumerate(maps):
        chosen = [p for p in proposals if p.level == level]
        height, width = scores.shape
        title = f"level {level}, {width} x {height} tokens: {len(chosen)} chosen, best {scores.max():.2f}"
        panels.append((title, _panel(picture, scores / max(best, 1e-9), chosen)))
    steps = len(SCORE_COLORS)
    marks = [(f"score {best * i / (steps - 1):.2f}", color) for i, color in enumerate(SCORE_COLORS)]
    return with_legend(side_by_side(panels, columns=2 if len(maps) > 1 else 1), [*marks, ("chosen token", "#D55E00")])


def _panel(picture: Image.Image, shares: np.ndarray, chosen: Sequence[Proposal]) -> Image.Image:
    colors = np.array([list(bytes.fromhex(color[1:])) for color in SCORE_COLORS], dtype=float)  # (steps, 3)
    places = np.linspace(0, 1, len(colors))
    heat = np.stack([np.interp(shares, places, colors[:, channel]) for channel in range(3)], axis=-1)
    scale = max(1.0, 420 / picture.width)
    size = (round(picture.width * scale), round(picture.height * scale))
    over = Image.fromarray(heat.round().astype(np.uint8)).resize(size, Image.Resampling.NEAREST)
    image = Image.blend(picture.convert("L").convert("RGB").resize(size), over, OPACITY)
    canvas, radius = ImageDraw.Draw(image), max(1.5, size[0] / 250)
    for p in chosen:
        x, y = ((p.anchor[i] + p.anchor[i + 2]) / 2 * scale for i in (0, 1))
        canvas.ellipse((x - radius, y - radius, x + radius, y + radius), fill="#D55E00", outline="white")
    return image


def spread(scores: np.ndarray) -> dict[str, float | list[int]]:
    """A map in a few numbers."""
    values = torch.from_numpy(scores).flatten().double()
    p50, p99, best = values.quantile(torch.tensor([0.5, 0.99, 1.0], dtype=torch.float64)).tolist()
    return {"size": list(scores.shape), "median": p50, "p99": p99, "best": best}
