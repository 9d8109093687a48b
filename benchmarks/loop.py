"""The overhead of the training loop: images per second with everything on, compared with a minimal loop.

    python benchmarks/loop.py [--steps 40] [--repeats 6]

Both do the same optimizer steps on the same images, in turns. The minimal loop only reads, computes and steps: no log,
no checks between ranks, no events. Neither saves nor evaluates; the time for saving is measured separately.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch

from dinocore.data.dataset import open_dataset
from dinocore.data.loaders import training_steps
from dinocore.data.synthetic.sample import write_sample_data
from dinocore.losses import criterion
from dinocore.presets import load_config
from dinocore.train.batches import count_boxes
from dinocore.train.context import RunContext
from dinocore.train.events import Saved, Step
from dinocore.train.loop import train
from dinocore.train.run.folder import prepare_run
from dinocore.train.setup import fresh_state
from dinocore.train.step import forward

SETTINGS = ["data.train_scales=[256]", "data.crop_chance=0.0", "data.workers=0", "train.epochs=1", "train.batch_size=2",
            "train.micro_batch_size=2", "model.backbone_weights=none"]  # fmt: skip


def main() -> None:
    """Print both speeds, their ratio, and the seconds per save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--repeats", type=int, default=6, help="even, so that each is first equally often")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        write_sample_data(Path(folder) / "data", num_images=options.steps * 5 // 2, seed=1, size=(320, 240))
        seconds: dict[str, list[float]] = {"loop": [], "bare": [], "save": []}
        for number in range(options.repeats):
            context = prepare(Path(folder) / f"run{number}", Path(folder) / "data")
            for measure in (whole, bare) if number % 2 else (bare, whole):
                measure(context, options.steps, seconds)
    loop, plain = (statistics.median(seconds[name]) for name in ("loop", "bare"))
    print(f"loop {loop:.4f} s a step, bare {plain:.4f} s a step, throughput ratio {plain / loop:.3f}")
    print(f"save {statistics.median(seconds['save']):.2f} s")


def prepare(run: Path, data: Path) -> RunContext:
    """A run of the preset `tiny` on synthetic images."""
    config = load_config("tiny", [*SETTINGS, f'data.path="{data}"'])
    prepare_run(run, overwrite=False)
    return RunContext(config, open_dataset(config.data), run, torch.device("cpu"))


def whole(context: RunContext, steps: int, seconds: dict[str, list[float]]) -> None:
    """Seconds between steps of `train`, after two to warm up."""
    state, began = fresh_state(context.config, context.data.train.categories, context.device), 0.0
    for event in train(context, state):
        if isinstance(event, Step) and event.step == 2:
            began = time.perf_counter()
        if isinstance(event, Step) and event.step == steps:
            seconds["loop"].append((time.perf_counter() - began) / (steps - 2))
        if isinstance(event, Saved):
            seconds["save"].append(event.seconds)
            return


def bare(context: RunContext, steps: int, seconds: dict[str, list[float]]) -> None:
    """The same with a minimal loop."""
    config, state, began = (
        context.config,
        fresh_state(context.config, context.data.train.categories, context.device),
        0.0,
    )
    state.model.train()
    for done, batches in enumerate(training_steps(context.data.train, config, 2, 0, steps)):
        if done == 2:
            began = time.perf_counter()
        for batch in batches:
            output, targets = forward(state.model, batch, config)
            terms = criterion(output, targets, float(count_boxes(batches)), config.loss)
            torch.stack(list(terms.values())).sum().backward()
        torch.nn.utils.clip_grad_norm_(state.model.parameters(), config.train.clip_norm)
        state.optimizer.step()
        state.optimizer.zero_grad(set_to_none=True)
        state.ema.update(state.model)
    seconds["bare"].append((time.perf_counter() - began) / (steps - 2))


if __name__ == "__main__":
    main()
