from pathlib import Path
from typing import Annotated

import typer

from ..options import Amp, Device, Json, Out, Weights


def predict(
    files: Annotated[list[str], typer.Argument(help="Pictures, folders, globs, or - for standard input.")],
    out: Out = None,
    weights: Weights = None,
    threshold: Annotated[float, typer.Option("--threshold", "--conf", min=0, max=1, help="Least score shown.")] = 0.3,
    max_dets: Annotated[int, typer.Option(min=1, help="Most detections per picture.")] = 300,
    format: Annotated[
        str, typer.Option(help="Of --out: json, coco, csv, yolo or labelme; auto: csv for FILE.csv, else json.")
    ] = "auto",
    save_images: Annotated[Path | None, typer.Option(help="Folder for pictures with the boxes drawn in.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an --out that an interrupt left.")] = False,
    device: Device = "auto",
    amp: Amp = "auto",
    json: Json = False,
) -> None:
    """Detect objects in pictures."""
    from ..inputs import check_header

    check_header(files)
    from ._predict_work import Wanted, predict_files

    predict_files(files, Wanted(out, format, save_images, threshold, max_dets, resume, json), weights, device, amp)
