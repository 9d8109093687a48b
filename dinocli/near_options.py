"""Suggest the option that a user probably meant by an unknown one."""

import difflib
from collections.abc import Collection

# Options of ours and of other tools that mean the same; a command has one of them, or none.
SAME = (
    ("--output-dir", "--out", "--output", "--work-dir", "--save-dir", "--project", "--name"),
    ("--lr", "--learning-rate", "--lr0"),
    ("--batch-size", "--batch", "--bs", "--batch-per-gpu"),
    ("--workers", "--num-workers"),
    ("--gpus", "--num-gpus", "--nproc-per-node"),
    ("--threshold", "--score-threshold", "--confidence", "--conf", "--min-score"),
    ("--max-dets", "--max-det", "--top-k", "--topk"),
    ("--data", "--coco-path", "--dataset", "--data-path", "--source"),
    ("--weights", "--checkpoint", "--ckpt", "--model", "--pretrained", "--pretrain-model-path", "--load-from"),
    ("--preset", "--cfg", "--config-file", "--model"),
    ("--set", "--options", "--cfg-options", "--opts"),
    ("--slice", "--sahi", "--tile", "--tiles"),
    ("--amp", "--precision", "--half", "--fp16", "--bf16", "--dtype"),
    ("--size", "--imgsz", "--img-size", "--image-size"),
    ("--epochs", "--max-epochs", "--num-epochs"),
    ("--compile", "--torch-compile"),
    ("--save-images", "--visualize", "--vis", "--show"),
    ("--num-images", "--num", "--images"),
)


def near_options(typed: str, known: Collection[str]) -> list[str]:
    """Those of a command's options that mean what was typed, or begin with it, or are spelled nearly so.

    Args:
        typed: with its hyphens; capitals and underscores do not matter.
        known: with their hyphens.
    """
    word = typed.casefold().replace("_", "-")
    if word in known:
        return [word]
    same = [option for options in SAME if word in options for option in options if option in known]
    longer = [option for option in known if option.startswith(f"{word}-")]
    return list(dict.fromkeys(same + longer)) or difflib.get_close_matches(word, known, n=2, cutoff=0.75)
