"""Introduce forty bugs, one at a time, and report which fast test catches each.

    python benchmarks/mutations.py [--only 3 17] [--json docs/benchmarks/mutations.json]

Each is applied to a copy of the checkout, and the tests of that part of the code are run until one fails. Bugs that no
test catches are listed at the end, and the exit code is 1.
"""

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent


class Mutation(NamedTuple):
    """One bug: a piece of code and its replacement."""

    what: str
    file: str
    old: str  # occurs exactly once in the file
    new: str
    tests: str


MODEL, LOSS = "tests/model", "tests/test_losses.py"
GOLDEN = "tests/convert/test_golden_official.py"
TRAIN, DATA, EVALUATE = "tests/train", "tests/data", "tests/evaluate"

MUTATIONS = [
    Mutation(
        "anchors within 1 % of the edge are proposed",
        "dinocore/model/proposals.py",
        "(anchors > EDGE)",
        "(anchors > 0.0)",
        f"{MODEL}/test_first_stage.py",
    ),
    Mutation(
        "anchor size grows by 1.9 instead of 2 per level",
        "dinocore/model/proposals.py",
        "0.05 * 2.0 **",
        "0.05 * 1.9 **",
        f"{MODEL}/test_first_stage.py",
    ),
    Mutation(
        "the queries' boxes are not detached",
        "dinocore/model/proposals.py",
        "Queries(self.content(chosen), boxes.detach())",
        "Queries(self.content(chosen), boxes)",
        f"{MODEL}/test_first_stage.py",
    ),
    Mutation(
        "the proposals with the lowest scores are selected",
        "dinocore/model/proposals.py",
        "rank.topk(num_chosen, dim=1)",
        "rank.topk(num_chosen, dim=1, largest=False)",
        f"{MODEL}/test_first_stage.py",
    ),
    Mutation(
        "negatives get as little box noise as positives",
        "dinocore/model/denoising.py",
        "generator=generator) + negative",
        "generator=generator) + 0 * negative",
        f"{MODEL}/test_denoising.py",
    ),
    Mutation(
        "twice as many labels are flipped",
        "dinocore/model/denoising.py",
        "< label_noise / 2",
        "< label_noise",
        f"{MODEL}/test_denoising.py",
    ),
    Mutation(
        "noisy boxes are not clipped",
        "dinocore/model/denoising.py",
        "(to_xyxy(boxes) + move * half).clamp(0, 1)",
        "(to_xyxy(boxes) + move * half)",
        f"{MODEL}/test_denoising.py",
    ),
    Mutation(
        "matching queries attend to denoising queries",
        "dinocore/model/denoising.py",
        "(group[:, None] >= 0) & (group == MATCHING)",
        "(group[:, None] == MATCHING) & (group >= 0)",
        f"{MODEL}/test_denoising.py",
    ),
    Mutation(
        "negatives are assigned to targets",
        "dinocore/model/denoising.py",
        "* (copies * num_targets)",
        "* num_targets",
        f"{MODEL}/test_denoising.py",
    ),
    Mutation(
        "look forward once instead of twice",
        "dinocore/model/decoder.py",
        'DINO: the loss of a layer trains this layer\'s move and the previous one."""\n    return boxes',
        'DINO: the loss of a layer trains this layer\'s move and the previous one."""\n    return boxes.detach()',
        MODEL,
    ),
    Mutation(
        "box refinement starts from the first boxes in every layer",
        "dinocore/model/decoder.py",
        "moved.detach()",
        "boxes.detach()",
        GOLDEN,
    ),
    Mutation(
        "predictions are not normalised", "dinocore/model/decoder.py", "normed = self.norm(x)", "normed = x", GOLDEN
    ),
    Mutation(
        "x and y are swapped in the position encoding of maps",
        "dinocore/model/position.py",
        "for v in (y, x)]",
        "for v in (x, y)]",
        f"{MODEL}/test_position.py {GOLDEN}",
    ),
    Mutation(
        "x and y are swapped in the encoding of boxes",
        "dinocore/model/position.py",
        "for v in (cy, cx, w, h)",
        "for v in (cx, cy, w, h)",
        f"{MODEL}/test_position.py {GOLDEN}",
    ),
    Mutation(
        "reference points ignore the valid ratio",
        "dinocore/model/encoder.py",
        "[:, :, None] * tokens.valid_ratios[:, None]",
        "[:, :, None] * tokens.valid_ratios[:, None].ceil()",
        f"{GOLDEN} {MODEL}",
    ),
    Mutation(
        "padding counts as image in the valid ratio",
        "dinocore/model/tokens.py",
        "(~padding[:, 0, :]).float()",
        "(padding[:, 0, :] | True).float()",
        f"{GOLDEN} {MODEL}/test_alignment.py",
    ),
    Mutation(
        "alignment pads one pixel too few",
        "dinocore/model/alignment.py",
        "(-side % multiple for side",
        "((-side - 1) % multiple for side",
        f"{MODEL}/test_alignment.py",
    ),
    Mutation(
        "padding is not zeroed before convolutions",
        "dinocore/model/alignment.py",
        "(inputs[0] * extents.inside(inputs[0]),)",
        "(inputs[0],)",
        f"{MODEL}/test_alignment.py",
    ),
    Mutation(
        "alpha and 1 - alpha are swapped in the focal loss",
        "dinocore/matching.py",
        "return (1 - alpha) *",
        "return alpha *",
        LOSS,
    ),
    Mutation(
        "the sign of the GIoU cost is wrong",
        "dinocore/matching.py",
        "-loss.cost_giou * giou",
        "loss.cost_giou * giou",
        LOSS,
    ),
    Mutation(
        "losses are divided by at least 2 instead of 1",
        "dinocore/losses.py",
        "max(1.0, num_boxes)",
        "max(2.0, num_boxes)",
        LOSS,
    ),
    Mutation(
        "denoising losses are not divided by the number of groups",
        "dinocore/losses.py",
        "max(1, output.noise.num_groups)",
        "1",
        f"{LOSS} tests/train/test_step.py {GOLDEN}",
    ),
    Mutation(
        "L1 is averaged over coordinates instead of summed",
        "dinocore/losses.py",
        'F.l1_loss(pred_boxes, target_boxes, reduction="sum")',
        'F.l1_loss(pred_boxes, target_boxes, reduction="sum") / 4',
        LOSS,
    ),
    Mutation(
        "GIoU ignores the enclosing box",
        "dinocore/boxes.py",
        "return intersection / union - (hull - union) / hull",
        "return intersection / union",
        "tests/test_boxes.py",
    ),
    Mutation(
        "detections are not clipped to the image",
        "dinocore/predict.py",
        "to_xyxy(boxes[i, query]).clamp(0, 1)",
        "to_xyxy(boxes[i, query])",
        "tests/test_predict.py",
    ),
    Mutation(
        "width and height are swapped in detections",
        "dinocore/predict.py",
        "torch.tensor([width, height, width, height])",
        "torch.tensor([height, width, height, width])",
        "tests/test_predict.py",
    ),
    Mutation(
        "a flip does not move boxes",
        "dinocore/data/transforms.py",
        "annotated = _on_both(F.horizontal_flip, annotated)",
        "annotated = (F.horizontal_flip(annotated[0]), *annotated[1:])",
        f"{DATA}/test_transforms.py",
    ),
    Mutation(
        "a crop keeps objects outside it",
        "dinocore/data/transforms.py",
        "visible = (boxes[:, 2:] > boxes[:, :2]).all(1)",
        "visible = (boxes[:, 2:] >= boxes[:, :2]).all(1)",
        f"{DATA}/test_transforms.py",
    ),
    Mutation(
        "the long side may exceed max_size",
        "dinocore/data/batch.py",
        "if max_size is not None and high / low * short > max_size:",
        "if max_size is not None and high / low * short > 2 * max_size:",
        f"{DATA}/test_transforms.py",
    ),
    Mutation(
        "augmentation is the same in every epoch",
        "dinocore/data/loaders.py",
        "np.random.default_rng((self.seed, epoch, index))",
        "np.random.default_rng((self.seed, index))",
        f"{DATA}/test_loaders.py",
    ),
    Mutation(
        "the padding mask of a batch is empty",
        "dinocore/data/batch.py",
        "padding[i, :h, :w] = False",
        "padding[i] = False",
        f"{DATA} tests/test_predict.py",
    ),
    Mutation(
        "accumulated gradients are not those of the whole batch",
        "dinocore/train/step.py",
        "criterion(output, targets, num_boxes, config.loss, num_denoised)",
        "criterion(output, targets, num_boxes / len(micro_batches), config.loss, num_denoised)",
        f"{TRAIN}/test_step.py {TRAIN}/test_loop.py",
    ),
    Mutation(
        "a step is taken with a non-finite gradient",
        "dinocore/train/step.py",
        "if not finite_loss or not (finite_norm or scaler.is_enabled()):",
        "if not finite_loss:",
        f"{TRAIN}/test_loop.py",
    ),
    Mutation(
        "the moving average is ten times too fast",
        "dinocore/train/optim.py",
        "(1 + self.updates) / (10 + self.updates)",
        "(1 + self.updates) / (1 + self.updates) * 0.5",
        f"{TRAIN}/test_optim.py",
    ),
    Mutation(
        "the last epoch is not evaluated",
        "dinocore/train/schedule.py",
        "or epoch == self.config.epochs",
        "",
        f"{TRAIN}/test_schedule.py",
    ),
    Mutation(
        "a damaged checkpoint is not recognised",
        "dinocore/train/run/checkpoint_folder.py",
        "if damaged:",
        "if damaged and not damaged:",
        f"{TRAIN}/test_loop.py",
    ),
    Mutation(
        "a crowd can be matched only once",
        "dinocore/evaluate/matches.py",
        "(~taken[:, :, target] | crowd[target])",
        "~taken[:, :, target]",
        EVALUATE,
    ),
    Mutation(
        "a detection is not matched to the object with the highest IoU",
        "dinocore/evaluate/matches.py",
        "rank[by_iou] = np.arange(total)",
        "rank[by_iou] = np.arange(total)[::-1]",
        EVALUATE,
    ),
    Mutation(
        "two norms are swapped in the conversion of official weights",
        "dinocore/weights/convert/tables.py",
        """{ours}cross_norm.",\n        f"{theirs}norm2.": f"{ours}self_norm.",""",
        """{ours}self_norm.",\n        f"{theirs}norm2.": f"{ours}cross_norm.",""",
        GOLDEN,
    ),
    Mutation(
        "the kernel uses a map's height as its width",
        "dinocore/model/ops/numba/cpu.py",
        "np.array([(width, height, start)",
        "np.array([(height, width, start)",
        f"{MODEL}/test_ops.py",
    ),
]


def main() -> None:
    """Apply each mutation, and list which test catches it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", type=int, nargs="+", help="numbers, from 1")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "dino"
        shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".git", ".venv*", "runs", "*_cache", "__pycache__"))
        for number, mutation in enumerate(MUTATIONS, start=1):
            if options.only is None or number in options.only:
                started = time.monotonic()
                caught = try_one(mutation, copy)
                rows.append({"number": number, "what": mutation.what, "file": mutation.file, "caught_by": caught})
                print(
                    f"{number:3} {mutation.what}: {caught or 'NOT CAUGHT'} ({time.monotonic() - started:.0f} s)",
                    flush=True,
                )
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")
    missed = [row["number"] for row in rows if not row["caught_by"]]
    print(f"{len(rows) - len(missed)} of {len(rows)} caught" + (f"; not caught: {missed}" if missed else ""))
    sys.exit(bool(missed))


def try_one(mutation: Mutation, copy: Path) -> str:
    """The first test that fails, or an empty string.

    Raises:
        ValueError: `old` does not occur exactly once: this list is out of date.
    """
    file = copy / mutation.file
    whole = file.read_text()
    if whole.count(mutation.old) != 1:
        raise ValueError(f"{mutation.file} holds {mutation.old!r} {whole.count(mutation.old)} times")
    file.write_text(whole.replace(mutation.old, mutation.new))
    try:
        command = [sys.executable, "-m", "pytest", "-x", "-n", "0", "-p", "no:cacheprovider", *mutation.tests.split()]
        result = subprocess.run(command, cwd=copy, capture_output=True, text=True)
    finally:
        file.write_text(whole)
    if result.returncode == 0:
        return ""
    failed = re.search(r"^_+ (?:ERROR at setup of )?(test_\w+)", result.stdout, re.MULTILINE)
    return failed[1] if failed else f"no test, but pytest ended with {result.returncode}"


if __name__ == "__main__":
    main()
