"""A small detector whose weights tests may edit, an image of noise, and report pages in a browser."""

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image

from dinocore import build_model, load_config
from dinocore.data.annotations import Category
from dinocore.model.deform_attn import MSDeformAttn
from dinocore.model.dino import DINO
from dinocore.predict import Detector
from dinocore.report.page import render_page

SMALL = [
    "model.backbone=resnet18", "model.backbone_weights=none", "model.hidden_dim=32", "model.num_heads=4",
    "model.ffn_dim=48", "model.num_queries=12", "model.num_encoder_layers=2", "model.num_decoder_layers=2",
    "model.num_classes=4", "model.denoising.num_pairs=20", "data.max_size=96", "data.eval_scale=64",
]  # fmt: skip


@pytest.fixture(scope="session")
def image() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (72, 96, 3), dtype=np.uint8))


@pytest.fixture(scope="session")
def make_detector() -> Callable[..., Detector]:
    """A function that builds the same small detector every time, after `edit` changes its model, if given."""
    config = load_config("r50-4scale", SMALL)
    torch.manual_seed(0)
    model = build_model(config.model)
    for module in model.modules():
        if isinstance(module, MSDeformAttn):  # so that they depend on the query, as after training
            torch.nn.init.normal_(module.offsets.weight, std=0.3)
            torch.nn.init.normal_(module.weights.weight, std=0.3)
    categories = [Category(k, f"class {k}") for k in range(config.model.num_classes)]

    def make(edit: Callable[[DINO], None] | None = None) -> Detector:
        changed = copy.deepcopy(model)
        if edit is not None:
            torch.manual_seed(1)
            with torch.no_grad():
                edit(changed)
        return Detector(changed, config, categories, torch.device("cpu"), "off")

    return make


@pytest.fixture(scope="session")
def detector(make_detector) -> Detector:
    """A shared detector; tests must not change it."""
    return make_detector()


@pytest.fixture
def visit(browser, tmp_path):
    """A function that opens a page from disk; console messages, errors, dialogs and requests fail the test."""
    problems, contexts = [], []

    def open_(page, width=1280, scheme="light"):
        file = tmp_path / "report.html"
        file.write_text(render_page(page), encoding="utf-8")
        contexts.append(browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme))
        tab = contexts[-1].new_page()
        tab.on("console", lambda message: problems.append(message.text))
        tab.on("pageerror", lambda error: problems.append(str(error)))
        tab.on("dialog", lambda dialog: (problems.append(dialog.message), dialog.dismiss()))
        tab.on("request", lambda request: request.url.startswith(("data:", "file://")) or problems.append(request.url))
        tab.goto(file.as_uri())
        return tab

    yield open_
    for context in contexts:
        context.close()
    assert problems == []
