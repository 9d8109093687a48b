"""The code blocks of docs/python.md run, one after another."""

import re
from pathlib import Path

import pytest
import torch
from PIL import Image

from dinocore import build_model, load_config
from dinocore.data.synthetic.sample import write_sample_data
from dinocore.data.synthetic.smear import draw_smear
from dinocore.errors import ConfigError

PAGE = Path(__file__).parents[1] / "docs" / "python.md"
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S)
QUICK = ["data.train_scales=[64]", "data.crop_chance=0.0", "data.max_size=96", "data.eval_scale=64"]


@pytest.mark.slow
def test_the_code_blocks_of_the_page_run(tmp_path, monkeypatch, capsys):
    pytest.importorskip("supervision")
    monkeypatch.chdir(tmp_path)
    write_sample_data(Path("my-data"), num_images=8, seed=3, size=(96, 72))
    Image.fromarray(draw_smear(5, 0, (320, 240))[0]).save("img.jpg")
    namespace: dict = {}
    for number, block in enumerate(BLOCKS, 1):
        exec(compile(block, f"block {number} of {PAGE.name}", "exec"), namespace)
        if "import build_model, load_config" in block:  # smaller images, for a faster test
            namespace["load_config"] = lambda name, overrides=(): load_config(name, [*QUICK, *overrides])
    printed = capsys.readouterr().out
    assert "RBC" in printed or "WBC" in printed, "the first block prints detections"
    assert (tmp_path / "runs/mine/best.safetensors").is_file() and len(BLOCKS) > 10
    assert "CHECKPOINT" in printed.splitlines()[-1]


def test_a_backbone_with_wrong_outputs_is_refused_with_what_it_returned():
    config = load_config("tiny", ["model.feature_strides=[8, 16]"]).model

    class Wrong(torch.nn.Module):
        channels = (8, 16)

        def forward(self, images):
            return [torch.nn.functional.avg_pool2d(images, 8), torch.nn.functional.avg_pool2d(images, 16)]

    with pytest.raises(
        ConfigError, match=r"Wrong returns maps \[\(3, 4, 4\), .*; its channels and strides mean \[\(8, 4, 4\)"
    ):
        build_model(config, backbone=Wrong())
    with pytest.raises(ConfigError, match=r"Linear\.channels is \[\], but model\.feature_strides = \[8, 16\]"):
        build_model(config, backbone=torch.nn.Linear(2, 2))
