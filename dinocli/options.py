"""Options shared by several commands, so that they read and behave alike, and their names in other tools."""

import difflib
from collections.abc import Collection
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from .completion import choices, preset_names, setting_values

SETTINGS, MACHINE = "Settings", "Machine"  # panels of --help
setting, on_machine = (partial(typer.Option, rich_help_panel=panel) for panel in (SETTINGS, MACHINE))

Overrides = Annotated[
    list[str],
    setting(
        "--set",
        metavar="KEY=VALUE",
        help="Change one setting, such as train.lr=2e-4; repeatable.",
        autocompletion=setting_values,
    ),
]
DATA_FORMATS = "Data folder: COCO, Roboflow, YOLO, Pascal VOC, CSV, Open Images, KITTI, VisDrone, or a dataset.toml."
ConfigFile = Annotated[
    Path | None, setting("--config", "-c", help="A TOML file of settings that override the preset's.")
]


# Paths that do not exist are rejected at once, before any large import.


def check_preset(source: str | None) -> str | None:
    """Check that a preset exists."""
    from dinocore.presets import find_preset

    if source is not None:
        find_preset(source)
    return source


def check_data(folder: Path | None) -> Path | None:
    """Check that a data folder exists and is not a file."""
    from dinocore.data.formats.layout import check_is_folder

    if folder is not None:
        check_is_folder(folder.expanduser())
    return folder


def check_weights(name: str | None) -> str | None:
    """Check that weights exist."""
    from dinocore.weights.fetch.catalogue import check_there

    if name is not None:
        check_there(name)
    return name


def preset_option(shown: str | bool = True) -> Any:
    """`--preset`. With `shown`, the default is None, to detect whether it was typed, and the help shows `shown`."""
    return typer.Option(
        "--preset",
        "-p",
        callback=check_preset,
        help="See `dino presets`.",
        show_default=shown,
        autocompletion=preset_names,
    )


Preset = Annotated[str, preset_option()]
Split = Annotated[
    str,
    typer.Option(
        "--split", help="Split of --data: val, train or test.", autocompletion=choices("val", "train", "test")
    ),
]
Data = Annotated[Path | None, typer.Option("--data", callback=check_data, help=DATA_FORMATS)]
VAL_FRACTION = "Hold out this fraction of the training images for validation if there is no val split."
ValFraction = Annotated[float | None, typer.Option(metavar="0…1", help=VAL_FRACTION)]

Weights = Annotated[
    str | None,
    typer.Option(
        "--weights",
        callback=check_weights,
        help="A file, a run, a name of `dino weights`, hf:org/name, an address, or bundled; default: the newest run in "
        "runs/, or else bundled.",
    ),
]
ModelOf = Annotated[
    str | None,
    typer.Option(
        "--weights",
        callback=check_weights,
        help="Use the model of these weights (a file, a run or a name) instead of a preset's.",
    ),
]
Device = Annotated[
    str,
    on_machine(
        "--device",
        help="auto, cpu, cuda, cuda:N or mps.",
        autocompletion=choices("auto", "cpu", "cuda", "cuda:0", "mps"),
    ),
]
Amp = Annotated[
    str,
    on_machine(
        "--amp",
        help="Precision: auto, off, bf16 or fp16.",
        autocompletion=choices("auto", "off", "bf16", "fp16"),
    ),
]
Precision = Annotated[
    str,
    on_machine(
        "--amp",
        "--precision",
        help="Precision: auto, off, bf16, fp16, or int8 (large matrix products, on CPUs).",
        autocompletion=choices("auto", "off", "bf16", "fp16", "int8"),
    ),
]
Compile = Annotated[
    bool,
    on_machine(
        "--compile",
        help="Compile the model for each image size that has run for half a minute; compiling takes as long.",
    ),
]
Threshold = Annotated[
    str,
    typer.Option(
        "--threshold",
        "--conf",
        help="Lowest score shown: a number for all classes, or auto: that of the best F1 in the weights' evaluation, "
        "of each class where that is stored; else 0.3.",
    ),
]
Gpus = Annotated[
    int, typer.Option(min=1, help="Ranks to split the images among, one per GPU; with --device cpu, on the CPU.")
]

Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]
Out = Annotated[Path | None, typer.Option("--out", "-o", help="File to write the result to.")]
Overlap = Annotated[
    float | None,
    typer.Option(
        "--overlap",
        help="Of neighbouring slices, as a fraction of their side; default: 0.2, or with --slice auto as much as "
        "training objects need.",
    ),
]


# Names of the same option in our commands and in other tools; a command has at most one of each set.
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
    """Options of a command that mean the same as the typed one, start with it, or are spelled similarly.

    Args:
        typed: including its hyphens; case and underscores are ignored.
        known: including their hyphens.
    """
    word = typed.casefold().replace("_", "-")
    if word in known:
        return [word]
    same = [option for options in SAME if word in options for option in options if option in known]
    longer = [option for option in known if option.startswith(f"{word}-")]
    return list(dict.fromkeys(same + longer)) or difflib.get_close_matches(word, known, n=2, cutoff=0.75)
