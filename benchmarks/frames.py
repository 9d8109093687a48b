"""Trace which of our files run in a typical task, and how deep the calls are, with `sys.setprofile`.

    python benchmarks/frames.py image       # one image to its boxes, in Python
    python benchmarks/frames.py command     # `dino predict one.jpg`, once weights are loaded
    python benchmarks/frames.py step        # what the training loop calls for one step, around the model and the loss

Only functions of `dinocore` and `dinocli` called in the main thread count, including those compiled by Numba. Each task
is done once before the trace, so that imports and compilation do not count.
"""

import argparse
import contextlib
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import dinocore
from dinocli import app
from dinocore.data.synthetic.sample import write_sample_data

ROOT = Path(dinocore.__file__).parents[1]
MODEL = ("dinocore/model/", "dinocore/losses.py", "dinocore/matching.py", "dinocore/boxes.py", "dinocore/structures.py")
SMALL = [
    *("model.backbone=resnet18", "model.backbone_weights=none", "model.hidden_dim=32", "model.num_heads=4"),
    *("model.ffn_dim=48", "model.num_queries=12", "model.num_encoder_layers=1", "model.num_decoder_layers=2"),
    *("data.train_scales=[64]", "data.crop_chance=0.0", "data.max_size=96", "data.eval_scale=64", "data.workers=0"),
]
STEP = 3  # the step to trace


class Trace:
    """Our functions by file, in the order of their first call."""

    def __init__(self, within: str = "", after: str = "", number: int = 1, targets: tuple[str, ...] = ()):
        """
        Args:
            within: qualified name of the function whose call is traced; empty: everything.
            after: the function whose return starts the trace; empty: start at once.
            number: which call of `within` to trace, from 1.
            targets: functions for which to record the chain of calls from `within` to their first call.
        """
        self.files: dict[str, dict[str, None]] = {}
        self.chains: dict[str, list[str]] = {}
        self.within, self.after, self.number, self.targets = within, after, number, targets
        self.calls = 0
        self.root: FrameType | None = None
        self.on = not within and not after

    def note(self, frame: FrameType, event: str) -> None:
        """Record a call or a return."""
        file, name = frame.f_code.co_filename, frame.f_code.co_qualname
        if not file.startswith(f"{ROOT}/dino"):
            return
        if event == "return" and self.after and name == self.after:
            self.on = True
        if event == "call" and self.within and name == self.within and self.root is None:
            self.calls += 1
            if self.calls == self.number:
                self.root, self.on = frame, True
        if self.on and event == "call" and "<module>" not in name:
            self.files.setdefault(_short(file), {})[name.replace("<locals>.", "")] = None
            if name in self.targets and name not in self.chains:
                self.chains[name] = list(_chain(frame, self.root))
        if event == "return" and frame is self.root:
            self.on, self.root = False, None

    def show(self, title: str, left_out: tuple[str, ...] = ()) -> None:
        """Print the files and their functions, except files that start with one of `left_out`."""
        files = {file: names for file, names in self.files.items() if not file.startswith(left_out)}
        print(f"\n{title}: {len(files)} files, {sum(map(len, files.values()))} functions")
        for file, names in files.items():
            print(f"  {file}: {', '.join(names)}")
        for target, chain in self.chains.items():
            print(f"  {len(chain)} frames to {target}: {' > '.join(chain)}")


def _short(file: str) -> str:
    return file.removeprefix(f"{ROOT}/")


def _chain(frame: FrameType | None, root: FrameType | None) -> Iterator[str]:
    """Names of our functions from `root` down to a frame."""
    names = []
    while frame is not None:
        if frame.f_code.co_filename.startswith(f"{ROOT}/dino"):
            names.append(frame.f_code.co_qualname)
        if frame is root:
            break
        frame = frame.f_back
    return reversed(names)


def trace_calls(work: Callable[[], Any], *traces: Trace) -> None:
    """Run `work` with tracing."""

    def profile(frame: FrameType, event: str, _: Any) -> None:
        for trace in traces:
            trace.note(frame, event)

    sys.setprofile(profile)
    try:
        work()
    finally:
        sys.setprofile(None)


def dino(*words: str) -> None:
    """Run a command in this process, discarding its output."""
    before, sys.argv = sys.argv, ["dino", *words]
    try:
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.suppress(SystemExit):
            app.main()
    finally:
        sys.argv = before


def trace_image(image: Path, weights: str) -> None:
    """Trace `detector(image)` with a loaded detector."""
    detector = dinocore.load_detector(weights, device="cpu")
    detector(image)
    trace = Trace()
    trace_calls(lambda: detector(image), trace)
    trace.show("image to boxes")


def trace_command(image: Path, weights: str) -> None:
    """Trace `dino predict` from loaded weights to the printed table."""
    words = ("predict", str(image), "--weights", weights, "--device", "cpu")
    dino(*words)
    trace = Trace(after="open_work")
    trace_calls(lambda: dino(*words), trace)
    trace.show("dino predict one.jpg, from loaded weights on")


def trace_step(folder: Path) -> None:
    """Trace one step of a small training."""
    settings = [part for setting in SMALL for part in ("--set", setting)]
    words = ("train", "--preset", "r50-4scale", "--data", str(folder), "--epochs", "1", "--batch-size", "2",
             "--device", "cpu", "--output-dir", str(folder / "run"))  # fmt: skip
    step = Trace(within="guarded_step", number=STEP)
    loop = Trace(within="_Run._step", number=STEP, targets=("train_step", "forward", "criterion"))
    trace_calls(lambda: dino(*words, *settings), step, loop)
    step.show("a step, without model and loss", MODEL)
    loop.show("a step with its learning rate and its log, without model and loss", MODEL)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", default=["image", "command", "step"], help="image, command, step; all")
    parser.add_argument("--image", type=Path, help="a file; by default one that is drawn")
    parser.add_argument("--weights", default="bundled", help="as for dino predict")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        write_sample_data(Path(name), num_images=10, seed=0, size=(96, 72))
        image = options.image or next(Path(name).rglob("*.jpg"))
        if "image" in options.what:
            trace_image(image, options.weights)
        if "command" in options.what:
            trace_command(image, options.weights)
        if "step" in options.what:
            trace_step(Path(name))


if __name__ == "__main__":
    main()
