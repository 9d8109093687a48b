"""Time inference or a training step: our model, a baseline of it, and Hugging Face's two-stage Deformable DETR.

    python benchmarks/model.py [--train] [--preset r50-4scale] [--size 800x1333] [--batch 1] [--repeats 5] [--cpu-time]
                               [--json FILE]

The baseline ("peers' form") is the same model in eager float32, with `grid_sample` for the attention and without our
optimizations. Hugging Face's model has the same size and random weights; it needs the extra `bench`, and is skipped
with a message without it.
"""

import argparse
import importlib.util
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from turns import Build, take_turns, write

from dinocore.benchmark import Case, prepare, random_batch
from dinocore.config import Config
from dinocore.model.ops import use_backend
from dinocore.presets import load_config

CPU = torch.device("cpu")
PEERS = "peers' form, float32"
TRANSFORMERS = "transformers, float32"


def main() -> None:
    """Print a table of medians, ratios to the baseline (or the first contestant) and peak memory."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="r50-4scale")
    parser.add_argument("--size", default="800x1333", help="height x width")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--objects", type=int, default=10, help="per image, with --train")
    parser.add_argument("--train", action="store_true")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--without", nargs="*", default=[], metavar="NAME", help="leave out, if memory is too small")
    parser.add_argument("--cpu-time", action="store_true", help="for one thread on a machine that others use, too")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    height, width = map(int, options.size.split("x"))
    case = Case(
        load_config(options.preset),
        (height, width),
        options.batch,
        options.train,
        "auto",
        "auto",
        CPU,
        options.objects,
        1,
    )
    timings = take_turns(
        {name: build for name, build in contestants(case).items() if name not in options.without},
        options.repeats,
        clock=time.process_time if options.cpu_time else time.perf_counter,
    )
    base = timings.get(PEERS) or next(iter(timings.values()))
    print(f"{'':26}{'median s':>10}{'ratio':>8}{'memory MB':>12}{'ratio':>8}")
    rows = []
    for name, timing in timings.items():
        faster, less = base.median / timing.median, timing.peak_memory_mb / base.peak_memory_mb
        print(f"{name:26}{timing.median:10.3f}{faster:8.2f}{timing.peak_memory_mb:12.0f}{less:8.2f}")
        rows.append({"name": name, "median_s": timing.median, "faster": faster, **timing._asdict()})
    write(options.json, vars(options), rows)


def contestants(case: Case) -> dict[str, Build]:
    """The contestants by name."""
    found: dict[str, Build] = {
        PEERS: partial(ours, case._replace(ops="reference", amp="off")),
        "ours, float32": partial(ours, case._replace(amp="off")),
        "ours, --amp auto": partial(ours, case),
    }
    if case.train:
        recomputing = case.config.model.model_copy(update={"checkpoint_activations": True})
        config = case.config.model_copy(update={"model": recomputing})
        found["ours, recomputing"] = partial(ours, case._replace(config=config))
    else:
        found["ours, auto, --compile"] = partial(ours, case._replace(compiled=True))
        if torch.cpu._is_vnni_supported():
            found["ours, --amp int8"] = partial(ours, case._replace(amp="int8"))
            found["ours, int8, --compile"] = partial(ours, case._replace(amp="int8", compiled=True))
    if importlib.util.find_spec("transformers") is None:
        print("transformers is not installed; with it (the extra `bench`) it takes part, too", file=sys.stderr)
    elif case.config.model.backbone == "resnet50":
        found[TRANSFORMERS] = partial(deformable_detr, case)
    return found


def ours(case: Case) -> Callable[[], Any]:
    """Our model, or its baseline."""
    call, _ = prepare(case)

    def with_backend() -> None:
        with use_backend(case.ops):
            call()

    return with_backend


def deformable_detr(case: Case) -> Callable[[], Any]:
    """Hugging Face's two-stage Deformable DETR with the same width, depth and number of queries as ours."""
    model = build_deformable_detr(case.config)
    batch = random_batch(case)
    mask = (~batch.padding).long()
    if not case.train:
        model.eval()

        def detect() -> None:
            with torch.inference_mode():
                model(batch.images, mask)

        return detect
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    labels = [{"class_labels": target.labels, "boxes": target.boxes} for target in batch.targets]

    def step() -> None:
        model(batch.images, mask, labels=labels).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        optimizer.step()
        optimizer.zero_grad()

    return step


def build_deformable_detr(config: Config) -> Any:
    """The model with random weights, in training mode."""
    from transformers import DeformableDetrConfig, DeformableDetrForObjectDetection, TimmBackboneConfig

    sizes = config.model
    torch.manual_seed(0)
    backbone = TimmBackboneConfig(backbone="resnet50", out_indices=[2, 3, 4], use_pretrained_backbone=False)
    return DeformableDetrForObjectDetection(
        DeformableDetrConfig(
            backbone_config=backbone,
            num_queries=sizes.num_queries,
            two_stage=True,
            two_stage_num_proposals=sizes.num_queries,
            with_box_refine=True,
            auxiliary_loss=True,
            d_model=sizes.hidden_dim,
            encoder_layers=sizes.num_encoder_layers,
            decoder_layers=sizes.num_decoder_layers,
            encoder_ffn_dim=sizes.ffn_dim,
            decoder_ffn_dim=sizes.ffn_dim,
            num_feature_levels=sizes.num_levels,
            num_labels=sizes.num_classes,
            dropout=0.0,
            disable_custom_kernels=True,
        )
    ).train()


if __name__ == "__main__":
    main()
