"""What the parts of DINO contribute to a small model, measured in short runs of our own.

    python benchmarks/ablations.py look-forward|ablations|positives|all [--seeds 3] [--steps 600] [--set KEY=VALUE]
    python benchmarks/ablations.py positives --seconds 120 --data DIR:400+120     (as many steps as fit into that time)
    python benchmarks/ablations.py look-forward --plot        (needs matplotlib: the extra `bench`)

A run is one variant (see ablation_variants.py) with one seed. Backbone, neck and encoder are those of the bundled model
and are frozen; proposer, denoiser and decoder are initialised from the seed, trained on images from `dino sample-data`,
and evaluated on others. Each finished run is one line of docs/benchmarks/ablations.jsonl and is not repeated, so the
script can be stopped and started again. All variants run with one seed before the next seed starts.
"""

import argparse
import json
import os
import statistics
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from ablation_variants import STUDIES, Variant
from subset import subset
from torch import Tensor, nn

from dinocore import build_model
from dinocore.config import Config
from dinocore.data.dataset import open_dataset
from dinocore.data.loaders import training_steps
from dinocore.data.synthetic.sample import write_sample_data
from dinocore.errors import DivergedError
from dinocore.evaluate.coco import coco_metrics, detect_all
from dinocore.model.dino import DINO
from dinocore.predict import Detector
from dinocore.presets import load_config
from dinocore.system.memory import keep_memory
from dinocore.system.processes import SingleProcess
from dinocore.train.batches import count_boxes
from dinocore.train.context import RunContext
from dinocore.train.optim import NoEma, build_optimizer, lr_factor, set_lr
from dinocore.train.setup import freeze
from dinocore.train.state import Progress, TrainState
from dinocore.train.step import NonFinite, train_step
from dinocore.weights.fetch.locate import locate
from dinocore.weights.file import load_weights

RESULTS = Path(__file__).parent.parent / "docs" / "benchmarks" / "ablations.jsonl"
NUM_IMAGES, SIDE = 300, 240  # 240 of the images are for training
TRAINED = ("backbone", "neck", "tokenizer", "encoder")  # modules with the bundled model's weights
SETTINGS = [
    'train.weights=""', 'model.backbone_weights="none"', 'train.freeze=["backbone", "neck", "tokenizer", "encoder"]',
    "train.epochs=1", "train.warmup_steps=20", "train.ema_decay=0.0", "train.lr=8e-4", "train.batch_size=2",
    "model.num_queries=60", "model.denoising.num_pairs=30", "data.workers=0", "data.train_scales=[160]",
    "data.crop_chance=0.0", "data.eval_scale=160",
]  # fmt: skip


class Gradients:
    """Gradient norms of a step: of parts of the model, and of each layer's box refinement."""

    def __init__(self, state: TrainState):
        self.model = state.model
        self.deltas: list[
            Tensor
        ] = []  # outputs of the box heads, by layer: for the prediction, then for the refinement
        self.norms: dict[str, Any] = {}
        self.handles = [head.register_forward_hook(self._keep) for head in set(self.model.decoder.box_heads)]
        self.handles.append(state.optimizer.register_step_pre_hook(self._measure))

    def _keep(self, head: nn.Module, given: tuple[Tensor], delta: Tensor) -> None:
        delta.retain_grad()
        self.deltas.append(delta)

    def _measure(self, *_: Any) -> None:
        decoder = self.model.decoder
        parts = {"class_heads": decoder.class_heads, "box_heads": decoder.box_heads, "proposer": self.model.proposer}
        self.norms = {name: _norm(p.grad for p in part.parameters()) for name, part in parts.items()}
        self.norms["layers"] = [_norm(p.grad for p in layer.parameters()) for layer in decoder.layers]
        self.clipped = _norm(p.grad for p in self.model.parameters())

    def read(self, grad_norm: float) -> dict[str, Any]:
        """Norms before clipping; `answers` and `moves` are those of the box heads' outputs, by layer."""
        scale = grad_norm / max(self.clipped, 1e-12)
        norms = {k: [n * scale for n in v] if isinstance(v, list) else v * scale for k, v in self.norms.items()}
        return norms | {
            "answers": [_norm([delta.grad]) for delta in self.deltas[0::2]],
            "moves": [_norm([delta.grad]) for delta in self.deltas[1::2]],
        }

    def remove(self) -> None:
        """Remove the hooks from the model."""
        for handle in self.handles:
            handle.remove()


def _norm(gradients: Any) -> float:
    squares = [gradient.float().square().sum().item() for gradient in gradients if gradient is not None]
    return sum(squares) ** 0.5


def build(variant: Variant, config: Config, seed: int) -> TrainState:
    """The state before the first step: the bundled model's weights, and the rest initialised from the seed."""
    torch.manual_seed(seed)
    model = build_model(config.model)
    for change in variant.changes:
        change(model)
    trained = load_weights(locate("bundled")).tensors
    for part in TRAINED:
        prefix = f"{part}."
        state = {key.removeprefix(prefix): v for key, v in trained.items() if key.startswith(prefix)}
        model.get_submodule(part).load_state_dict(state)
    freeze(model, config.train.freeze)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    return TrainState(model, model, NoEma(model), build_optimizer(model, config.train), scaler, Progress())


def begin(variant: Variant, config: Config, seed: int) -> tuple[RunContext, TrainState]:
    """Read the data and build the model for its classes."""
    data = open_dataset(config.data)
    config = config.replace("model.num_classes", len(data.train.categories))
    state = build(variant, config, seed)
    state.model.train()
    return RunContext(config, data, Path(tempfile.mkdtemp()), torch.device("cpu")), state


def steps_in(
    seconds: float, configs: dict[str, Config], variants: dict[str, Variant], steps: int = 24
) -> dict[str, int]:
    """The number of steps of each variant that fit into `seconds`, from the median time of some interleaved steps."""
    runs = {}
    for name, config in configs.items():
        context, state = begin(variants[name], config, 0)
        batches = training_steps(context.data.train, context.config, config.train.batch_size, 0, steps)
        runs[name] = state, context.config, iter(batches), []
    for _ in range(steps):
        for state, config, batches, taken in runs.values():
            batch = next(batches)
            began = time.perf_counter()
            train_step(state, batch, float(count_boxes(batch)), config, SingleProcess())
            taken.append(time.perf_counter() - began)
    return {name: round(seconds / statistics.median(taken[4:])) for name, (*_, taken) in runs.items()}


def run(variant: Variant, config: Config, seed: int, steps: int, every: int) -> dict[str, Any]:
    """Train and evaluate; gradient norms are recorded in the first ten steps and then every `every` steps."""
    context, state = begin(variant, config, seed)
    config = context.config
    history, began = [], time.perf_counter()
    size = config.train.batch_size
    for step, batches in enumerate(training_steps(context.data.train, config, size, 0, steps)):
        set_lr(state.optimizer, lr_factor(step, steps, config.train))
        watched = Gradients(state) if step < 10 or step % every == 0 or step == steps - 1 else None
        try:
            numbers = train_step(state, batches, float(count_boxes(batches)), config, SingleProcess())
        except (NonFinite, DivergedError) as error:
            return {"diverged": f"step {step}: {error}", "history": history}
        if watched:
            watched.remove()
            row = {"step": step, "loss": numbers["loss"], "grad_norm": numbers["grad_norm"]}
            history.append(_rounded(row | watched.read(numbers["grad_norm"])))
    seconds = time.perf_counter() - began
    return _evaluate(state.model, context) | {"seconds": round(seconds, 1), "history": history}


def _evaluate(model: DINO, context: RunContext) -> dict[str, Any]:
    """COCO metrics without NMS, as in the paper, and AP with the preset's NMS."""
    found = {}
    for name, nms_iou in (("plain", 1.0), ("nms", context.config.eval.nms_iou)):
        config = context.config.replace("eval.nms_iou", nms_iou)
        detector = Detector(model, config, context.data.train.categories, context.device, config.train.amp)
        results = [row for rows, _ in detect_all(detector, context.data.val) for row in rows]
        found[name] = coco_metrics(context.data.val, results).summary
    plain = {name: found["plain"][name] for name in ("AP", "AP50", "AP75", "AR100")}
    return _rounded(plain | {"AP_nms": found["nms"]["AP"]})


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(v) for key, v in value.items()}
    if isinstance(value, list):
        return [_rounded(v) for v in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value


def key_of(line: dict[str, Any]) -> tuple:
    """The key that identifies a run."""
    length = line.get("for_seconds") or line["steps"]
    return line["variant"], line["seed"], length, tuple(line["settings"])


def read_lines(file: Path) -> list[dict[str, Any]]:
    """The finished runs."""
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def commit() -> str:
    """The commit of this checkout."""
    found = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, cwd=RESULTS.parent
    )
    return found.stdout.strip()


def main() -> None:
    """Do all runs that are not in the file yet, seed by seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", choices=[*STUDIES, "all"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--seconds", type=float, help="instead of --steps: as many as each variant does in that time")
    parser.add_argument("--every", type=int, default=20, help="steps between gradient norms")
    parser.add_argument("--set", action="append", default=[], help="a setting for all variants, as in dino train")
    parser.add_argument("--only", action="append", default=[], help="a variant; default: all of the study")
    parser.add_argument("--data", metavar="DIR[:TRAIN+VAL]", help="with so many of its images; default: drawn ones")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--plot", action="store_true", help="print tables and draw figures of the finished runs")
    options = parser.parse_args()
    chosen = list(STUDIES) if options.study == "all" else [options.study]
    if options.plot:
        from ablation_plots import report

        length = options.seconds or options.steps
        lines = [x for x in read_lines(options.out) if key_of(x)[2:] == (length, tuple(with_data(options)))]
        for study in chosen:
            report(study, lines)
        return
    keep_memory()
    options.commit = commit()  # read before the results modify the checkout
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "drawn"
        if options.data:
            path = Path(options.data.partition(":")[0])
            data = subset(path.name, options.data, Path(folder)).absolute()
        else:
            write_sample_data(data, NUM_IMAGES, seed=5, size=(SIDE, SIDE))
        for study in chosen:
            configs = {name: settings_of(variant, 0, data, options) for name, variant in STUDIES[study].items()}
            steps = dict.fromkeys(configs, options.steps)
            if options.seconds:
                steps = steps_in(options.seconds, configs, STUDIES[study])
            for seed in range(options.seeds):
                for name, variant in STUDIES[study].items():
                    if not options.only or name in options.only:
                        once(name, variant, seed, steps[name], data, options)


def with_data(options: argparse.Namespace) -> list[str]:
    """The settings shared by all variants, and the name of the data."""
    return [*options.set, f"data.path={Path(options.data).name.replace(':', '-')}"] if options.data else options.set


def settings_of(variant: Variant, seed: int, data: Path, options: argparse.Namespace) -> Config:
    """The settings of one run."""
    settings = [*SETTINGS, f"train.seed={seed}", f'data.path="{data}"', *options.set, *variant.settings]
    return load_config("tiny", settings)


def once(name: str, variant: Variant, seed: int, steps: int, data: Path, options: argparse.Namespace) -> None:
    """Do one run, unless it is in the file."""
    about = {"variant": name, "seed": seed, "steps": steps, "settings": with_data(options)}
    about |= {"for_seconds": options.seconds} if options.seconds else {}
    if key_of(about) in {key_of(line) for line in read_lines(options.out)}:
        print(f"{name}, seed {seed}: there already", flush=True)
        return
    found = run(variant, settings_of(variant, seed, data, options), seed, steps, options.every)
    line = about | {"commit": options.commit, "threads": torch.get_num_threads()} | found
    with options.out.open("a") as file:
        file.write(json.dumps(line) + os.linesep)
    print(f"{name}, seed {seed}: AP {line.get('AP', line.get('diverged'))}, {steps} steps, {line.get('seconds')} s",
          flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
